"use strict";
// Calibration: is the network right as often as it is sure?

const EXPLANATION =
  "Each bar holds the answers that were about that sure; its height is how many of them are " +
  "right, in %. On the dashed line, a network that says 80 % is right in 80 % of such cases.";

// Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 2; bins: [[count, right, sure], ...]
function calibrationError(bins) {
  if (!bins) return null;
  const gaps = bins.map(([count, right, sure]) => Math.abs(right - count * sure));
  return sum(gaps) / sum(bins.map(([count]) => count));
}

function calibration(run) {
  const bins = run.test && run.test["test/calibration"];
  if (!bins) return null;
  const total = sum(bins.map(([count]) => count));
  const sure = sum(bins.map(([count, , sure]) => count * sure)) / total;
  const right = sum(bins.map((each) => each[1])) / total;
  const verdict = sure < right ? "less sure than it could be" : "surer than it should be";
  const told = p("told", "Point at a bar.");
  const heading = el("h3", {}, `Expected calibration error ${percent(calibrationError(bins))}`);
  const both = `On average this network was ${percent(sure, 1)} sure and ${percent(right, 1)} right`;
  const text = [heading, p("", EXPLANATION), p("", `${both}: ${verdict}.`), told];
  const parts = [div("card", diagram(bins, total, told)), div("detail card", ...text)];
  return section("Calibration", "test set", div("confusion", ...parts));
}

function diagram(bins, total, told) {
  const label = (x, y, anchor, text) =>
    svg("text", { class: "tick small", x, y, "text-anchor": anchor }, text);
  const grid = [0, 25, 50, 75, 100].flatMap((value) => [
    svg("line", { class: "grid", x1: 0, x2: 100, y1: 100 - value, y2: 100 - value }),
    label(-1.5, 101.5 - value, "end", String(value)),
    label(value, 105, "middle", String(value)),
  ]);
  const bars = bins.flatMap((bin, index) => bar(bin, index, 100 / bins.length, total, told));
  const ideal = svg("line", { class: "ideal", x1: 0, y1: 100, x2: 100, y2: 0 });
  const axis = label(50, 111, "middle", "how sure the network was, in %");
  const frame = { class: "calibration", viewBox: "-9 -3 113 116" };
  return svg("svg", frame, ...grid, ...bars, ideal, axis);
}

function bar([count, right, sure], index, size, total, told) {
  const share = count ? right / count : 0;
  const tell = () => {
    const answers = `${counted(count, "answer")} (${percent(count / total, 1)} of all)`;
    const rates = `${percent(sure, 1)} sure on average, and ${percent(share, 1)} right`;
    told.textContent = count ? `${answers}: ${rates}.` : "No answer was that sure.";
  };
  const [x, height] = [index * size, 100 * share];
  const opacity = 0.35 + 0.65 * Math.sqrt(count / total);
  const place = { x: x + 0.4, width: size - 0.8, y: 100 - height, height };
  const touch = { x, width: size, y: 0, height: 100, onpointerenter: tell, onclick: tell };
  return [
    svg("rect", { class: "bar", ...place, opacity }),
    svg("rect", { class: "touch", ...touch }),
  ];
}
