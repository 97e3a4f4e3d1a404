"use strict";
// The confusion matrix, the pictures in its cells, and the mistakes.

const PICTURES_IN_A_ROW = 20; // of the sheet of pictures
const MISTAKES_SHOWN = 24;
const MOST_NUMBERED = 20; // classes; the cells of more are too small for numbers
const WAYS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// The results of the test: names, counts, and examples with their places on the sheet.
function outcome(run) {
  const counts = run.test && run.test["test/confusion"];
  if (!counts) return null;
  const names = run.test.classes || counts.map((_, index) => String(index));
  const examples = (run.pictures && run.test["test/examples"]) || [];
  const named = ([index, label, prediction, confidence], place) => {
    return { index, label, prediction, confidence, place };
  };
  const misses = counts.flatMap((row, label) => row.filter((_, index) => index !== label));
  return {
    ...{ names, counts, totals: counts.map(sum), highest: Math.max(1, most(misses)) },
    examples: examples.map(named),
    sheet: run.pictures ? address(run.pictures) : null,
  };
}

function address(pictures) {
  const bytes = Uint8Array.from(atob(pictures), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
}

function picture({ sheet, names }, { index, label, prediction, place }) {
  const [x, y] = [place % PICTURES_IN_A_ROW, Math.floor(place / PICTURES_IN_A_ROW)];
  return el("i", {
    class: "picture",
    style: `--sheet:url(${sheet});--x:${x};--y:${y}`,
    role: "img",
    "aria-label": `${names[label]} taken for ${names[prediction]}`,
    title: `test image ${index}`,
  });
}

// The pictures of one cell: the most confident mistakes, or the least confident hits.
function cellDetail(results, label, prediction) {
  const { names, counts, totals, examples } = results;
  const [count, total, isHit] = [counts[label][prediction], totals[label], label === prediction];
  const inside = examples.filter(
    (example) => example.label === label && example.prediction === prediction,
  );
  inside.sort((a, b) => (b.confidence - a.confidence) * (isHit ? -1 : 1));
  const order = isHit ? ", least confident first:" : ", most confident first:";
  const share = `${integer(count)} of ${integer(total)} (${percent(count / total)})`;
  const figures = inside.map((example) => {
    const caption = el("figcaption", {}, percent(example.confidence, 0));
    return el("figure", {}, picture(results, example), caption);
  });
  const title = isHit ? [bold(names[label]), " recognized"] : taken(names, label, prediction);
  const heading = el("h3", {}, ...title);
  return [heading, p("", share + (inside.length ? order : "")), div("pictures", ...figures)];
}

function taken(names, label, prediction) {
  return [bold(names[label]), " taken for ", bold(names[prediction])];
}

function matrix(results) {
  const { names, counts } = results;
  const detail = el("div", { id: "cell", class: "detail card", "aria-live": "polite" });
  const kinds = [
    "matrix",
    names.length > MOST_NUMBERED ? "dense" : "",
    names.some((name) => name.length > 3) ? "long" : "",
  ];
  const grid = el("div", { class: kinds.join(" "), style: `--n:${names.length}` }, span());
  const cells = counts.map((row, label) => row.map((_, at) => cell(results, label, at)));
  const choose = (label, prediction) => {
    const chosen = (cells[label] || [])[prediction];
    if (!chosen) return;
    for (const button of cells.flat()) {
      button.classList.toggle("chosen", button === chosen);
      button.tabIndex = button === chosen ? 0 : -1;
    }
    detail.replaceChildren(...cellDetail(results, label, prediction));
    return chosen;
  };
  const head = (name, kind) => el("span", { class: `head ${kind}` }, span(name));
  grid.append(...names.map((name) => head(name, "top")));
  cells.forEach((row, label) => grid.append(head(names[label], ""), ...row));
  cells.forEach((row, label) => row.forEach((button, at) => listenToCell(button, label, at, choose)));
  choose(...worst(counts));
  return [grid, detail];
}

function cell({ names, counts, totals, highest }, label, prediction) {
  const [count, isHit] = [counts[label][prediction], label === prediction];
  const share = isHit ? count / (totals[label] || 1) : Math.sqrt(count / highest);
  const kind = isHit ? "hit" : count ? (share > 0.6 ? "miss strong" : "miss") : "none";
  const name = `${names[label]} taken for ${names[prediction]}: ${count}`;
  const properties = { class: kind, style: `--share:${share.toFixed(3)}`, "aria-label": name };
  return el("button", properties, names.length > MOST_NUMBERED || !count ? "" : String(count));
}

function listenToCell(button, label, prediction, choose) {
  button.addEventListener("click", () => choose(label, prediction));
  button.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "mouse" && !button.matches(".none")) choose(label, prediction);
  });
  button.addEventListener("keydown", (event) => {
    const way = WAYS[event.key];
    if (!way) return;
    event.preventDefault();
    const next = choose(label + way[0], prediction + way[1]);
    if (next) next.focus();
  });
}

function worst(counts) {
  let worst = [0, 0, 0];
  counts.forEach((row, label) =>
    row.forEach((count, prediction) => {
      if (label !== prediction && count > worst[2]) worst = [label, prediction, count];
    }),
  );
  return worst.slice(0, 2);
}

function confusion(run) {
  const results = outcome(run);
  if (!results) return null;
  const [grid, detail] = matrix(results);
  const axis = p("axis", "Rows: true class. Columns: predicted class. Choose a cell for its pictures.");
  const both = [div("card scroll", grid, axis), div("", detail, classes(results))];
  return [section("Confusion matrix", "test set", div("confusion", ...both)), mistakes(results)];
}

function classes({ names, counts, totals }) {
  const rows = counts.map((row, label) => {
    const wrong = row.map((count, prediction) => (prediction === label ? 0 : count));
    const worst = wrong.indexOf(most(wrong));
    const predicted = sum(counts.map((predictions) => predictions[label]));
    const rates = [percent(row[label] / totals[label]), percent(row[label] / predicted)];
    const taken = wrong[worst] ? `${names[worst]} (${wrong[worst]})` : "–";
    return [names[label], integer(totals[label]), ...rates, taken];
  });
  const head = ["class", "images", "recognized", "precision", "most often taken for"];
  const open = names.length > MOST_NUMBERED ? null : "";
  const summary = el("summary", {}, "Per class");
  return el("details", { class: "card", open }, summary, div("scroll", table("", head, rows)));
}

function mistakes(results) {
  if (!results.sheet) return null;
  const wrong = results.examples.filter(({ label, prediction }) => label !== prediction);
  wrong.sort((a, b) => b.confidence - a.confidence);
  if (!wrong.length) return section("Mistakes", null, p("card", "None in the test set."));
  const figures = wrong.slice(0, MISTAKES_SHOWN).map((example) => {
    const { label, prediction, confidence } = example;
    const sureness = el("small", {}, `${percent(confidence, 0)} sure`);
    const caption = el("figcaption", {}, taken(results.names, label, prediction), sureness);
    return el("figure", { class: "card" }, picture(results, example), caption);
  });
  return section("Mistakes", "most confident first", div("mistakes", ...figures));
}
