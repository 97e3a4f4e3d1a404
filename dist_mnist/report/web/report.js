"use strict";
// The page of one run, and the parts that a comparison of runs uses too.

const RUNS = JSON.parse(document.getElementById("runs").textContent);

const points = (columns, x, y) =>
  (columns[x] || [])
    .map((at, index) => [at, (columns[y] || [])[index]])
    .filter(([, value]) => Number.isFinite(value));

function summary(run) {
  const { test, epoch, step } = run;
  const scores = points(epoch, "epoch", "validation/accuracy");
  return {
    accuracy: test ? test["test/accuracy"] : null,
    loss: test ? test["test/loss"] : null,
    best: scores.reduce((a, b) => (b[1] > a[1] ? b : a), [null, null]),
    seconds: sum(epoch.seconds || []),
    epochs: last(epoch.epoch),
    step: last(epoch.step) ?? last(step.step) ?? 0,
    pace: last(epoch.images_per_second) ?? last(step.images_per_second),
    error: test && calibrationError(test["test/calibration"]),
  };
}

function tile(label, value, note) {
  return div("tile card", span(label), el("strong", {}, value), el("small", {}, note));
}

function tiles(run) {
  const { test } = run;
  const { accuracy, loss, best, seconds, epochs, pace, error } = summary(run);
  const right = test && `${integer(test["test/correct"])} of ${integer(test["test/count"])}`;
  return div(
    "tiles",
    test && tile("Test accuracy", percent(accuracy), right),
    test && tile("Test loss", number(loss), "mean per image"),
    best[0] && tile("Best validation", percent(best[1]), `after epoch ${best[0]}`),
    seconds > 0 && tile("Training", duration(seconds), counted(epochs, "epoch")),
    pace && tile("Speed", integer(pace), "images per second"),
    error !== null && tile("Calibration error", percent(error), "expected, 15 bins"),
  );
}

// ---- curves

function curves(runs) {
  const marks = runs.length === 1 ? begins(runs[0]).map(({ step }) => step) : [];
  const scores = runs.flatMap((run) => run.epoch["validation/accuracy"] || []);
  const lowest = least(scores.filter(Number.isFinite).concat(scores.length ? [] : [0]));
  // Accuracy starts near zero, so only the range near the validation scores is shown.
  const low = 1 - Math.min(1, Math.max(0.01, 4 * (1 - lowest)));
  const digits = (count) => (value) => number(value, count);
  const share = (value) => percent(value, 10).replace(/\.?0+ %$/, " %");
  const thousands = (value) => (value >= 1e4 ? `${value / 1000}k` : integer(value));
  const accuracy = split(runs, "accuracy");
  const charts = [
    makeChart("Loss", split(runs, "loss"), {
      log: true,
      marks,
      format: digits(3),
      formatPoint: digits(4),
    }),
    makeChart("Accuracy", accuracy, { marks, low, high: 1, format: share, formatPoint: percent }),
    makeChart("Learning rate", whole(runs, "learning_rate"), {
      marks,
      format: digits(3),
      formatPoint: digits(4),
    }),
    makeChart("Images per second", whole(runs, "images_per_second"), {
      marks,
      format: thousands,
      formatPoint: integer,
    }),
  ];
  if (!charts.some(Boolean)) return null;
  return section("Curves", hint(), legend(accuracy), div("charts", ...charts));
}

const source = (run, key) => (points(run.step, "step", key).length ? run.step : run.epoch);

// A metric in training and in validation.
function split(runs, metric) {
  return runs.flatMap((run, index) => {
    const isAlone = runs.length === 1;
    const [train, validation] = [`train/${metric}`, `validation/${metric}`];
    const name = (part) => (isAlone ? part : `${run.name}, ${part}`);
    const look = { color: color(index), width: 1.2, opacity: isAlone ? 0.75 : 0.45 };
    const before = { name: name("train"), points: points(source(run, train), "step", train) };
    const after = { name: name("validation"), points: points(run.epoch, "step", validation) };
    const both = [
      { ...before, ...look },
      { ...after, color: color(isAlone ? 1 : index), dots: true },
    ];
    return both.filter(({ points }) => points.length);
  });
}

function whole(runs, key) {
  return runs.map((run, index) => {
    const name = runs.length === 1 ? key.replaceAll("_", " ") : run.name;
    const values = points(source(run, key), "step", key);
    return { name, color: color(index), width: 1.4, points: values };
  });
}

function hint() {
  const verb = matchMedia("(hover: none)").matches ? "Touch" : "Point";
  const reset = el("button", { class: "reset", onclick: () => zoom(null) }, "whole range");
  return span(`${verb} to read values, drag to zoom `, reset);
}

function legend(series) {
  const entry = ({ name, color, opacity, dots }) => {
    const style = `background:${color};opacity:${opacity || 1}`;
    const toggle = (event) => {
      if (!view.hidden.delete(name)) view.hidden.add(name);
      event.currentTarget.setAttribute("aria-pressed", !view.hidden.has(name));
      view.charts.forEach(draw);
    };
    const properties = { "aria-pressed": "true", title: "Hide or show", onclick: toggle };
    return el("button", properties, el("i", { style, class: dots ? "round" : null }), name);
  };
  return div("legend", ...series.map(entry));
}

// ---- the config

const isTyped = (run, key) =>
  run.typed.some((typed) => key === typed || key.startsWith(`${typed}.`));

// Lets long dotted names break after their dots.
const breakable = (text) =>
  text.split(/(?<=\.)(?=[A-Za-z_])/).flatMap((part) => [el("wbr", {}), part]);

function config(run) {
  const groups = new Map();
  for (const key of Object.keys(run.config)) {
    const group = key.includes(".") ? key.split(".")[0] : "run";
    groups.set(group, [...(groups.get(group) || []), key]);
  }
  if (!groups.size) return null;
  const typed = run.overrides.length
    ? p("typed", "Overrides: ", ...run.overrides.flatMap((text) => [el("code", {}, text), " "]))
    : p("typed", "No overrides: these are the defaults.");
  const line = (key, group) => {
    const name = group === "run" ? key : key.slice(group.length + 1);
    const value = el("td", {}, ...breakable(run.config[key]));
    return el("tr", { class: isTyped(run, key) ? "typed" : null }, el("th", {}, name), value);
  };
  const blocks = [...groups].map(([group, keys]) => {
    const body = el("tbody", {}, ...keys.map((key) => line(key, group)));
    return div("group", el("h3", {}, group), el("table", {}, body));
  });
  const shown = div("card config", typed, div("groups", ...blocks));
  return section("Config", "overrides are highlighted", shown);
}

// ---- the page

function page(run) {
  const [word, tone] = status(run);
  const model = (run.config["model._target_"] || "").split(".").pop();
  const what = [run.config["data.name"], model].filter(Boolean).join(" · ");
  const title = el("h1", {}, run.name, el("span", { class: `status ${tone}` }, word));
  return [
    el("header", {}, p("eyebrow", what || "dist_mnist"), title, p("path", run.path)),
    tiles(run),
    curves([run]),
    confusion(run),
    calibration(run),
    timeline(run),
    origin(run),
    config(run),
  ].flat();
}

const parts = RUNS.length === 1 ? page(RUNS[0]) : comparison(RUNS);
document.getElementById("page").append(...parts.filter(Boolean));
view.charts.forEach(draw);
