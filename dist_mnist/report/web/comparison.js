"use strict";
// Several runs side by side.

const RESULTS = ["run", "test accuracy", "test loss", "best validation", "calibration error"];
const EFFORTS = ["steps", "training", "images/s", "state"];

function comparison(runs) {
  const title = el("h1", {}, `${runs.length} runs side by side`);
  return [
    el("header", {}, p("eyebrow", "dist_mnist"), title),
    section("Results", null, div("card scroll", results(runs))),
    curves(runs),
    differences(runs),
  ];
}

function results(runs) {
  const summaries = runs.map(summary);
  const highest = most(summaries.map(({ accuracy }) => accuracy ?? 0));
  const rows = runs.map((run, index) => {
    const { accuracy, loss, best, error, step, seconds, pace } = summaries[index];
    const name = el("th", {}, el("i", { style: `background:${color(index)}` }), run.name);
    const kind = accuracy === highest ? "best" : null;
    const scores = [number(loss), percent(best[1]), percent(error)];
    const efforts = [integer(step), seconds ? duration(seconds) : "–", integer(pace)];
    const score = el("td", { class: kind }, percent(accuracy));
    return [name, score, ...scores, ...efforts, status(run)[0]];
  });
  return table("wide", [...RESULTS, ...EFFORTS], rows);
}

function differences(runs) {
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.config)))].sort();
  const configured = runs.filter((run) => Object.keys(run.config).length);
  const isSame = (key) => new Set(configured.map((run) => run.config[key])).size === 1;
  const differing = keys.filter((key) => key !== "run_dir" && !isSame(key));
  const value = (run, key) =>
    el("td", { class: isTyped(run, key) ? "typed" : null }, run.config[key] ?? "–");
  const rows = differing.map((key) => [key, ...runs.map((run) => value(run, key))]);
  const title = "Config differences";
  if (!rows.length) return section(title, null, p("card", "None: the configs are the same."));
  const shown = table("wide texts", ["key", ...runs.map((run) => run.name)], rows);
  return section(title, "overrides are highlighted", div("card scroll", shown));
}
