"use strict";
// The starts of a run, the end of each, and the machine of the last.

const DATE = { year: "numeric", month: "short", day: "numeric" };
const TONES = { finished: "good", stopped: "warm", failed: "bad", killed: "bad" };

const begins = (run) => run.starts.filter(({ event }) => event === "start");

// A killed start recorded no end: the time of the journal's last line stands in for it.
function attempts(run) {
  const attempts = [];
  for (const { event, time, step, journal_time, reason } of run.starts) {
    const open = last(attempts);
    if (event === "start") {
      if (open && !open.to) open.to = Math.max(open.from, journal_time || open.from);
      attempts.push({ from: time, first: step, to: null, last: null, kind: "killed" });
    } else if (open) {
      const word = reason.split(" ")[0];
      const kind = word in TONES ? word : "failed";
      Object.assign(open, { to: time, last: step, reason, kind });
    }
  }
  return attempts;
}

function status(run) {
  const end = last(attempts(run));
  if (!end) return run.test ? ["finished", "good"] : ["unfinished", "warm"];
  return end.to ? [end.kind, TONES[end.kind]] : ["running or killed", "warm"];
}

function fate(attempt) {
  if (attempt.reason) return attempt.reason;
  return attempt.to ? "killed: it recorded no end" : "still running, or killed";
}

function timeline(run) {
  const all = attempts(run);
  if (!all.length) return null;
  const [from, to] = [all[0].from, last(all).to || last(all).from];
  const place = (at) => (100 * (at - from)) / (to - from || 1);
  const bars = all.map((attempt) => {
    const width = Math.max(0.4, place(attempt.to || attempt.from) - place(attempt.from));
    const style = `left:${place(attempt.from)}%;width:${width}%`;
    return el("i", { class: attempt.kind, style, title: fate(attempt) });
  });
  const ends = div("ends", span(time(from)), span(time(to)));
  const list = el("ol", {}, ...all.flatMap((attempt, index) => entry(attempt, all[index - 1])));
  const note = `${counted(all.length, "start")}, ${duration(to - from)} in all`;
  return section("Timeline", note, div("card timeline", div("bars", ...bars), ends, list));
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
  const facts = Object.entries({ ...start.machine, ...start.versions }).filter(
    ([, value]) => value !== null,
  );
  const pair = ([key, value]) => el("div", {}, el("dt", {}, key), el("dd", {}, String(value)));
  const command = el("pre", { class: "command", title: "the command" }, start.command);
  const list = el("dl", {}, ...facts.map(pair));
  return section(
    "Where it ran",
    null,
    div("card origin", command, p("pre", start.description), list),
  );
}
