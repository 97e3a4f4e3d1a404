"use strict";
// Calibration: whether the accuracy matches the confidence.

const EXPLANATION =
  "Each bar groups answers of similar confidence; its height is their accuracy, in %. On the " +
  "dashed line, answers with 80 % confidence are right 80 % of the time.";

// Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 2; bins: [[count, right, confidence], ...]
function calibrationError(bins) {
  if (!bins) return null;
  const gaps = bins.map(([count, right, confidence]) => Math.abs(right - count * confidence));
  return sum(gaps) / sum(bins.map(([count]) => count));
}

function calibration(run) {
  const bins = run.test && run.test["test/calibration"];
  if (!bins) return null;
  const total = sum(bins.map(([count]) => count));
  const confidence = sum(bins.map(([count, , mean]) => count * mean)) / total;
  const accuracy = sum(bins.map(([, right]) => right)) / total;
  const verdict = confidence < accuracy ? "underconfident" : "overconfident";
  const details = p("details", "Point at a bar.");
  const heading = el("h3", {}, `Expected calibration error ${percent(calibrationError(bins))}`);
  const means = `Mean confidence ${percent(confidence, 1)}, accuracy ${percent(accuracy, 1)}`;
  const summary = p("", `${means}: the network is ${verdict}.`);
  const text = [heading, p("", EXPLANATION), summary, details];
  const parts = [div("card", diagram(bins, total, details)), div("detail card", ...text)];
  return section("Calibration", "test set", div("confusion", ...parts));
}

function diagram(bins, total, details) {
  const label = (x, y, anchor, text) =>
    svg("text", { class: "tick small", x, y, "text-anchor": anchor }, text);
  const grid = [0, 25, 50, 75, 100].flatMap((value) => [
    svg("line", { class: "grid", x1: 0, x2: 100, y1: 100 - value, y2: 100 - value }),
    label(-1.5, 101.5 - value, "end", String(value)),
    label(value, 105, "middle", String(value)),
  ]);
  const bars = bins.flatMap((bin, index) => bar(bin, index, 100 / bins.length, total, details));
  const ideal = svg("line", { class: "ideal", x1: 0, y1: 100, x2: 100, y2: 0 });
  const axis = label(50, 111, "middle", "confidence, in %");
  const frame = { class: "calibration", viewBox: "-9 -3 113 116" };
  return svg("svg", frame, ...grid, ...bars, ideal, axis);
}

function bar([count, right, confidence], index, size, total, details) {
  const share = count ? right / count : 0;
  const show = () => {
    const answers = `${counted(count, "answer")} (${percent(count / total, 1)} of all)`;
    const rates = `mean confidence ${percent(confidence, 1)}, accuracy ${percent(share, 1)}`;
    details.textContent = count ? `${answers}: ${rates}.` : "No answer has this confidence.";
  };
  const [x, height] = [index * size, 100 * share];
  const opacity = 0.35 + 0.65 * Math.sqrt(count / total);
  const place = { x: x + 0.4, width: size - 0.8, y: 100 - height, height };
  const touch = { x, width: size, y: 0, height: 100, onpointerenter: show, onclick: show };
  return [
    svg("rect", { class: "bar", ...place, opacity }),
    svg("rect", { class: "touch", ...touch }),
  ];
}
