"use strict";
// When a run was started, how each start ended, and where the last one ran.

const DATE = { year: "numeric", month: "short", day: "numeric" };
const TONES = { finished: "good", stopped: "warm", failed: "bad", killed: "bad" };

const begins = (run) => run.starts.filter((each) => each.event === "start");

// A start that was killed has no end of its own: the journal's last line was its last sign of life.
function attempts(run) {
  const found = [];
  for (const each of run.starts) {
    const open = last(found);
    if (each.event === "start") {
      if (open && !open.to) open.to = Math.max(open.from, each.journal_time || open.from);
      found.push({ from: each.time, first: each.step, to: null, last: null, kind: "killed" });
    } else if (open) {
      const word = each.reason.split(" ")[0];
      const kind = word in TONES ? word : "failed";
      Object.assign(open, { to: each.time, last: each.step, reason: each.reason, kind });
    }
  }
  return found;
}

function status(run) {
  const end = last(attempts(run));
  if (!end) return run.test ? ["finished", "good"] : ["unfinished", "warm"];
  return end.to ? [end.kind, TONES[end.kind]] : ["running or killed", "warm"];
}

function fate(attempt) {
  if (attempt.reason) return attempt.reason;
  return attempt.to ? "killed: it noted no end" : "no end is noted: still running, or killed";
}

function timeline(run) {
  const found = attempts(run);
  if (!found.length) return null;
  const [from, to] = [found[0].from, last(found).to || last(found).from];
  const place = (at) => (100 * (at - from)) / (to - from || 1);
  const bars = found.map((each) => {
    const width = Math.max(0.4, place(each.to || each.from) - place(each.from));
    const style = `left:${place(each.from)}%;width:${width}%`;
    return el("i", { class: each.kind, style, title: fate(each) });
  });
  const ends = div("ends", span(time(from)), span(time(to)));
  const list = el("ol", {}, ...found.flatMap((each, index) => entry(each, found[index - 1])));
  const note = `${counted(found.length, "start")}, ${duration(to - from)} in all`;
  return section("Time line", note, div("card timeline", div("bars", ...bars), ends, list));
}

function entry(attempt, before) {
  const { from, to, first, last } = attempt;
  const steps =
    last === null ? `from step ${integer(first)}` : `steps ${integer(first)} to ${integer(last)}`;
  const lasted = to ? ` · ${duration(to - from)}` : "";
  const gap = before && el("li", { class: "gap" }, `${duration(from - before.to)} in between`);
  const text = [bold(time(from, DATE)), ` · ${steps}${lasted}`, div("", fate(attempt))];
  return [gap, el("li", { class: attempt.kind }, ...text)];
}

function origin(run) {
  const start = last(begins(run));
  if (!start) return null;
  const facts = Object.entries({ ...start.machine, ...start.versions });
  const known = facts.filter(([, value]) => value !== null);
  const pair = ([key, value]) => el("div", {}, el("dt", {}, key), el("dd", {}, String(value)));
  const command = el("pre", { class: "command", title: "the command" }, start.command);
  const list = el("dl", {}, ...known.map(pair));
  return section(
    "Where it ran",
    null,
    div("card origin", command, p("pre", start.description), list),
  );
}
