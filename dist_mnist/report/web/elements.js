"use strict";
// Elements of the page, and the format of numbers.

const SVG = "http://www.w3.org/2000/svg";
const COLORS = ["accent", "orange", "green", "purple", "amber", "red", "teal", "muted"];

function add(node, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter(Boolean));
  return node;
}

const el = (tag, properties, ...children) => add(document.createElement(tag), properties, children);
const svg = (tag, properties, ...children) =>
  add(document.createElementNS(SVG, tag), properties, children);
const div = (kind, ...children) => el("div", { class: kind }, ...children);
const p = (kind, ...children) => el("p", { class: kind }, ...children);
const bold = (text) => el("b", {}, text);
const span = (...children) => el("span", {}, ...children);

// A heading and its content; null without content.
function section(title, note, ...parts) {
  if (!parts.some(Boolean)) return null;
  return el("section", {}, el("h2", {}, title, note && el("small", {}, note)), ...parts);
}

// head: titles; rows: lists of cells, texts or elements.
function table(kind, head, rows) {
  const cell = (content, index) =>
    content instanceof Node ? content : el(index ? "td" : "th", {}, String(content));
  const titles = head.map((title) => el("th", {}, title));
  const lines = rows.map((cells) => el("tr", {}, ...cells.map(cell)));
  const body = el("tbody", {}, ...lines);
  return el("table", { class: kind }, el("thead", {}, el("tr", {}, ...titles)), body);
}

const color = (index) => `var(--${COLORS[index % COLORS.length]})`;
const last = (values) => (values && values.length ? values[values.length - 1] : null);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

const integer = (value) =>
  Number.isFinite(value) ? Math.round(value).toLocaleString("en-US") : "–";
const number = (value, digits = 4) =>
  Number.isFinite(value) ? String(Number(value.toPrecision(digits))) : "–";
const percent = (value, digits = 2) =>
  Number.isFinite(value) ? `${(100 * value).toFixed(digits)} %` : "–";
const counted = (count, noun) => `${integer(count)} ${noun}${count === 1 ? "" : "s"}`;

function duration(seconds) {
  if (seconds < 59.5) return `${number(seconds, 2)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
}

function time(seconds, options = {}) {
  const clock = { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false };
  return new Date(1000 * seconds).toLocaleString("en-US", { ...options, ...clock });
}
