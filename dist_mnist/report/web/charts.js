"use strict";
// Charts that zoom and show values: drag to zoom, double click or Escape to go back. All charts of
// a page share the visible range and the crosshair.

const MARGIN = { left: 54, right: 14, top: 10, bottom: 26 };
const view = { range: null, at: null, drag: null, hidden: new Set(), charts: [] };

function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const values = [];
  for (let n = Math.ceil(low / size - 1e-9); n * size <= high + 1e-9 * size; n++)
    values.push(n * size);
  return values.map((value) => Number(value.toPrecision(12)));
}

function logTicks(low, high) {
  const values = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of [1, 2, 5]) values.push(factor * 10 ** power);
  const inside = values.filter((value) => value >= low && value <= high);
  return inside.length > 2 ? inside.slice(0, 12) : ticks(low, high, 4).filter((value) => value > 0);
}

function nearest(points, x) {
  let low = 0;
  let high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle;
    else high = middle;
  }
  return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
}

// series: [{name, color, dash, dots, points: [[step, value], ...]}]
// options: {log, format, formatPoint, low, high, marks: [step, ...]}
function makeChart(title, series, options) {
  const filled = series.filter(({ points }) => points.length);
  if (!filled.length) return null;
  const plot = svg("svg", { class: "plot", tabindex: 0, role: "img" });
  plot.setAttribute("aria-label", `${title} over the steps; arrow keys show values`);
  const tip = el("div", { class: "tip", hidden: "" });
  const chart = { plot, tip, series: filled, options, extent: extent(filled) };
  listen(chart);
  view.charts.push(chart);
  new ResizeObserver(() => draw(chart)).observe(plot);
  const heading = el("h3", {}, title);
  return el("figure", { class: "chart card" }, heading, el("div", { class: "stage" }, plot, tip));
}

function extent(series) {
  const steps = series.flatMap(({ points }) => points.map(([step]) => step));
  return [0, Math.max(1, most(steps))];
}

// The lowest and the highest visible value, on a linear or a logarithmic scale.
function bounds(chart, shown, x0, x1) {
  const { options } = chart;
  if (options.low !== undefined && !view.range) return [options.low, options.high];
  const values = shown
    .flatMap(({ points }) => points)
    .filter(([step, value]) => step >= x0 && step <= x1 && (!options.log || value > 0))
    .map(([, value]) => (options.log ? Math.log10(value) : value));
  if (!values.length) return options.log ? [-1, 0] : [0, 1];
  const [low, high] = [least(values), most(values)];
  const room = 0.05 * (high - low) || (options.log ? 0.1 : 0.05 * Math.abs(low) || 0.5);
  return [low - room, high + room];
}

function scales(chart) {
  const { options, plot } = chart;
  const [x0, x1] = view.range || chart.extent;
  const shown = chart.series.filter(({ name }) => !view.hidden.has(name));
  const [bottom, top] = bounds(chart, shown, x0, x1);
  const right = (plot.clientWidth || 400) - MARGIN.right;
  const floor = (plot.clientHeight || 240) - MARGIN.bottom;
  const [width, height] = [right - MARGIN.left, floor - MARGIN.top];
  const on = options.log ? Math.log10 : (value) => value;
  const from = options.log ? (value) => 10 ** value : (value) => value;
  return {
    ...{ x0, x1, shown, right, floor, low: from(bottom), high: from(top) },
    x: (value) => MARGIN.left + ((value - x0) / (x1 - x0)) * width,
    y: (value) => MARGIN.top + (1 - (on(value) - bottom) / (top - bottom)) * height,
    step: (pixel) => x0 + ((pixel - MARGIN.left) / width) * (x1 - x0),
  };
}

function vertical(kind, x, scale) {
  return svg("line", { class: kind, x1: x, x2: x, y1: MARGIN.top, y2: scale.floor });
}

function axes(scale, options) {
  const { low, high, x0, x1, right, floor } = scale;
  const values = options.log ? logTicks(low, high) : ticks(low, high, 5);
  const steps = ticks(x0, x1, Math.max(2, right / 90)).filter(Number.isInteger);
  const marks = (options.marks || []).filter((step) => step > x0 && step < x1);
  const level = (value) => {
    const [y, left] = [scale.y(value), MARGIN.left];
    const at = { class: "tick", x: left - 8, y: y + 4, "text-anchor": "end" };
    const line = svg("line", { class: "grid", x1: left, x2: right, y1: y, y2: y });
    return [line, svg("text", at, options.format(value))];
  };
  const number = (value) => {
    const at = { class: "tick", x: scale.x(value), y: floor + 18, "text-anchor": "middle" };
    return svg("text", at, integer(value));
  };
  const starts = marks.map((step) => vertical("mark", scale.x(step), scale));
  return [...values.flatMap(level), ...steps.map(number), ...starts];
}

function draw(chart) {
  const { plot, options } = chart;
  const scale = (chart.scale = scales(chart));
  const clip = `clip-${view.charts.indexOf(chart)}`;
  const width = Math.max(0, scale.right - MARGIN.left + 5);
  const window = svg("rect", { x: MARGIN.left, y: 0, width, height: scale.floor + 3 });
  const lines = svg("g", { "clip-path": `url(#${clip})` });
  for (const series of scale.shown) lines.append(...curve(series, scale, options.log));
  chart.overlay = svg("g", {});
  const edge = svg("clipPath", { id: clip }, window);
  plot.replaceChildren(edge, ...axes(scale, options), lines, chart.overlay);
  drawCrosshair(chart);
}

function curve(series, scale, isLog) {
  const points = series.points.filter(([, value]) => !isLog || value > 0);
  const path = points.map(
    ([step, value]) => `${scale.x(step).toFixed(1)},${scale.y(value).toFixed(1)}`,
  );
  const line = svg("polyline", {
    class: "curve",
    points: path.join(" "),
    stroke: series.color,
    "stroke-width": series.width || 1.6,
    "stroke-dasharray": series.dash,
    opacity: series.opacity,
  });
  const visible = points.filter(([step]) => step >= scale.x0 && step <= scale.x1);
  const dots = series.dots || visible.length < 25 ? visible : [];
  return [
    line,
    ...dots.map(([step, value]) =>
      svg("circle", {
        cx: scale.x(step),
        cy: scale.y(value),
        r: series.dots ? 3.2 : 2,
        fill: series.color,
      }),
    ),
  ];
}

// The crosshair, the values beside it, and the range that is being dragged.
function drawCrosshair(chart) {
  const { scale, overlay, tip } = chart;
  if (!scale) return;
  overlay.replaceChildren();
  if (view.drag) {
    const [x, right] = view.drag.map(scale.x).sort((a, b) => a - b);
    const height = scale.floor - MARGIN.top;
    overlay.append(svg("rect", { class: "drag", x, y: MARGIN.top, width: right - x, height }));
  }
  const values = (view.at === null ? [] : scale.shown)
    .map((series) => ({ series, near: nearest(series.points, view.at) }))
    .filter(({ near }) => near[0] >= scale.x0 && near[0] <= scale.x1);
  tip.hidden = !values.length;
  if (!values.length) return;
  const steps = values.map(({ near }) => near).sort((a, b) => a[0] - b[0]);
  const step = nearest(steps, view.at)[0];
  const x = scale.x(step);
  overlay.append(vertical("cross", x, scale), ...values.map((value) => dot(value, scale)));
  const heading = el("div", { class: "where" }, `step ${integer(step)}`);
  tip.replaceChildren(heading, ...values.map((value) => row(value, step, chart.options)));
  const before = Math.max(0, x - 14 - tip.offsetWidth);
  tip.style.left = `${x + 14 + tip.offsetWidth < scale.right ? x + 14 : before}px`;
}

function dot({ series, near }, scale) {
  const cy = Math.min(scale.floor, Math.max(MARGIN.top, scale.y(near[1])));
  return svg("circle", { class: "dot", cx: scale.x(near[0]), cy, r: 4, fill: series.color });
}

function row({ series, near }, step, options) {
  const key = el("i", { style: `background:${series.color}` });
  const where = near[0] === step ? null : el("small", {}, ` at ${integer(near[0])}`);
  return el("div", {}, key, el("span", {}, series.name), el("b", {}, options.formatPoint(near[1])), where);
}

function show() {
  view.charts.forEach(drawCrosshair);
}

function zoom(range) {
  Object.assign(view, { range, drag: null });
  document.body.classList.toggle("zoomed", range !== null);
  view.charts.forEach(draw);
}

function listen(chart) {
  const { plot } = chart;
  const step = (event) => {
    const at = chart.scale.step(event.clientX - plot.getBoundingClientRect().left);
    return Math.min(chart.scale.x1, Math.max(chart.scale.x0, at));
  };
  const on = (name, action) => plot.addEventListener(name, action);
  on("pointerdown", (event) => {
    if (event.button === 0) view.drag = [step(event), step(event)];
    plot.setPointerCapture(event.pointerId);
  });
  on("pointermove", (event) => {
    view.at = step(event);
    if (view.drag) view.drag[1] = view.at;
    show();
  });
  on("pointerup", () => {
    const [from, to] = (view.drag || [0, 0]).sort((a, b) => a - b);
    view.drag = null;
    if (chart.scale.x(to) - chart.scale.x(from) > 6) zoom([from, to]);
    else show();
  });
  const forget = () => {
    Object.assign(view, { drag: null, at: null });
    show();
  };
  on("pointercancel", forget);
  on("pointerleave", () => view.drag || forget());
  on("dblclick", () => zoom(null));
  on("keydown", (event) => press(event, chart));
}

function press(event, chart) {
  if (event.key === "Escape") zoom(null);
  const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!way) return;
  event.preventDefault();
  const at = view.at ?? -way * Infinity;
  const steps = chart.series.flatMap(({ points }) => points.map(([step]) => step));
  const beyond = steps.filter((step) => way * (step - at) > 0);
  if (beyond.length) view.at = way > 0 ? least(beyond) : most(beyond);
  show();
}
