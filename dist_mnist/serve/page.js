"use strict";
(() => {
  const SIDE = 280;               // pixels of the picture sent to the server
  const CLOSEST = 0.004;          // between two points of a stroke, in shares of the canvas
  const LARGEST = 1600;           // pixels of a photograph's longer side when it is sent
  const ASK_EVERY = 60;           // milliseconds between requests while drawing
  const IN_FLIGHT = 3;            // requests at a time
  const BARS = 10;
  const PAPER = "#ffffff", INK = "#000000";

  const at = (id) => document.getElementById(id);
  const pad = at("pad"), canvas = at("canvas"), answer = at("answer");
  const context = canvas.getContext("2d");

  // The paper holds strokes or one picture. Earlier states are kept for undo.
  let paper = { strokes: [], picture: null };
  let history = [];
  let boxes = [], chosen = 0;     // of the digits, in shares of the picture; the digit shown

  const isEmpty = () => !paper.strokes.length && !paper.picture;
  const pen = () => Number(document.querySelector("[name=pen]:checked").value);

  function change(next) {
    history.push(paper);
    paper = next;
    boxes = [];
    redraw();
    isEmpty() ? forget() : ask();
  }

  function undo() {
    if (!history.length) return;
    paper = history.pop();
    stroke = null;
    boxes = [];
    redraw();
    isEmpty() ? forget() : ask();
  }

  const clear = () => { stroke = null; if (!isEmpty()) change({ strokes: [], picture: null }); };

  // Drawing. A stroke is a list of points in shares of the canvas, so it is the same on any screen.
  // The line goes through all points: smoothly, but with a corner at turns of over 60 degrees.
  const minus = ([x1, y1], [x2, y2]) => [x1 - x2, y1 - y2];
  const unit = ([x, y]) => { const size = Math.hypot(x, y) || 1; return [x / size, y / size]; };

  function directions(points, i) {
    const before = unit(minus(points[i], points[i - 1] ?? points[i]));
    const after = unit(minus(points[i + 1] ?? points[i], points[i]));
    const isRound = before[0] * after[0] + before[1] * after[1] > 0.5;
    const through = isRound && unit(minus(points[i + 1], points[i - 1]));
    return isRound ? [through, through] : [before, after];
  }

  function trace(context, side, { points, width }) {
    context.lineWidth = width * side;
    context.beginPath();
    context.moveTo(points[0][0] * side, points[0][1] * side);
    if (points.length === 1) context.lineTo(points[0][0] * side, points[0][1] * side);
    for (let i = 1; i < points.length; i++) {
      const [from, to] = [points[i - 1], points[i]];
      const third = Math.hypot(...minus(to, from)) / 3;
      const leaving = directions(points, i - 1)[1], arriving = directions(points, i)[0];
      context.bezierCurveTo(
        (from[0] + leaving[0] * third) * side, (from[1] + leaving[1] * third) * side,
        (to[0] - arriving[0] * third) * side, (to[1] - arriving[1] * third) * side,
        to[0] * side, to[1] * side);
    }
    context.stroke();
  }

  function drawStrokes(context, side, color) {
    context.strokeStyle = color;
    context.lineCap = context.lineJoin = "round";
    for (const stroke of paper.strokes) trace(context, side, stroke);
  }

  // The place of a picture on the square paper: centered, as large as fits.
  function frame(side) {
    const { width, height } = paper.picture ?? { width: 1, height: 1 };
    const scale = side / Math.max(width, height);
    const [w, h] = [width * scale, height * scale];
    return [(side - w) / 2, (side - h) / 2, w, h];
  }

  let isDue = false;
  function redraw() {
    pad.classList.toggle("used", !isEmpty());
    at("undo").disabled = !history.length;
    at("clear").disabled = isEmpty();
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => { isDue = false; paint(); });
  }

  function paint() {
    const side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const ink = getComputedStyle(pad).color;
    context.clearRect(0, 0, side, side);
    if (paper.picture) context.drawImage(paper.picture, ...frame(side));
    drawStrokes(context, side, ink);
    if (boxes.length > 1) paintBoxes(side, ink);
    if (cursor && document.activeElement === canvas) paintCursor(side, ink);
  }

  function paintBoxes(side, ink) {
    const [left, top, width, height] = frame(side), margin = 0.015 * side;
    boxes.forEach(([x1, y1, x2, y2], number) => {
      context.globalAlpha = number === chosen ? 0.9 : 0.25;
      context.strokeStyle = ink;
      context.lineWidth = 1.5 * devicePixelRatio;
      context.beginPath();
      context.roundRect(left + x1 * width - margin, top + y1 * height - margin,
        (x2 - x1) * width + 2 * margin, (y2 - y1) * height + 2 * margin, margin);
      context.stroke();
    });
    context.globalAlpha = 1;
  }

  function paintCursor(side, ink) {
    context.fillStyle = context.strokeStyle = ink;
    context.lineWidth = 2 * devicePixelRatio;
    context.beginPath();
    context.arc(cursor[0] * side, cursor[1] * side, Math.max(4, pen() * side / 2), 0, 7);
    stroke ? context.fill() : context.stroke();
  }

  // Pointers: mouse, pen, finger. One draws at a time; a second finger does nothing.
  let stroke = null, pointer = null;

  function place(event) {
    const area = canvas.getBoundingClientRect();
    const share = (value, start, size) => Math.min(1, Math.max(0, (value - start) / size));
    return [share(event.clientX, area.left, area.width), share(event.clientY, area.top, area.height)];
  }

  function begin(point) {
    stroke = { points: [point], width: pen() };
    change({ strokes: [...paper.strokes, stroke], picture: null });
  }

  function extend(points) {
    for (const point of points) {
      const last = stroke.points[stroke.points.length - 1];
      if (Math.hypot(...minus(point, last)) >= CLOSEST) stroke.points.push(point);
    }
    redraw();
    ask();
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button !== 0) return;
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    cursor = null;
    begin(place(event));
  });

  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer || !stroke) return;
    const events = event.getCoalescedEvents?.() ?? [];
    extend((events.length ? events : [event]).map(place));
  });

  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    canvas.addEventListener(end, (event) => {
      if (event.pointerId === pointer) pointer = stroke = null;
    });
  }

  // The keyboard as a pen.
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  let cursor = null;

  canvas.addEventListener("keydown", (event) => {
    if (event.key === " ") {
      cursor ??= [0.5, 0.25];
      stroke ? stroke = null : begin(cursor);
      announce(stroke ? "Pen down" : "Pen up", 0);
    } else if (event.key in ARROWS) {
      const step = event.shiftKey ? 0.01 : 0.04, [dx, dy] = ARROWS[event.key];
      const [x, y] = cursor ?? [0.5, 0.25];
      cursor = [x + dx * step, y + dy * step].map((value) => Math.min(0.97, Math.max(0.03, value)));
      if (stroke) extend([cursor]);
    } else return;
    event.preventDefault();
    redraw();
  });
  canvas.addEventListener("focus", () => { if (canvas.matches(":focus-visible")) redraw(); });
  canvas.addEventListener("blur", () => { if (pointer === null) stroke = null; redraw(); });

  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
      event.preventDefault();
      undo();
    } else if (event.key === "Escape") clear();
  });

  // Pictures: dropped, pasted, chosen, photographed.
  async function show(file) {
    if (!file) return;
    try {
      const picture = await createImageBitmap(file);
      change({ strokes: [], picture });
    } catch {
      problem("This file is not a picture that the browser can open", "Try a PNG or a JPEG.");
    }
  }

  const firstPicture = (data) => [...(data?.files ?? [])].find((file) => file.type.startsWith("image/"))
    ?? data?.files?.[0];

  for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
    at(button).addEventListener("click", () => at(input).click());
    at(input).addEventListener("change", (event) => {
      show(event.target.files[0]);
      event.target.value = "";      // the same file may be chosen again
    });
  }
  document.addEventListener("paste", (event) => show(firstPicture(event.clipboardData)));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    pad.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) pad.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    pad.classList.remove("over");
    show(firstPicture(event.dataTransfer));
  });
  at("undo").addEventListener("click", undo);
  at("clear").addEventListener("click", clear);

  // Requests are numbered; an answer older than the one shown is dropped.
  let asked = 0, shown = 0, inFlight = 0, timer = null;

  function ask() {
    answer.ariaBusy = "true";
    timer ??= setTimeout(send, ASK_EVERY);
  }

  function forget() {
    clearTimeout(timer);
    timer = null;
    shown = ++asked;                // answers still to come are too old
    answer.ariaBusy = "false";
    empty();
  }

  async function send() {
    timer = null;
    if (inFlight >= IN_FLIGHT) return ask();
    const number = ++asked;
    inFlight++;
    try {
      const sheet = sheetToSend();  // of now: the paper may change while this request waits
      const response = await fetch("predict", { method: "POST", body: await encoded(sheet) });
      const isJson = response.headers.get("content-type") === "application/json";
      const content = isJson ? await response.json() : {};
      if (number > shown) {
        shown = number;
        response.ok ? accept(content, sheet) : refuse(response.status, content);
      }
    } catch {
      if (number > shown) {
        shown = number;
        problem("The server does not answer", "Keep drawing to try again.");
      }
    } finally {
      inFlight--;
      if (shown === asked && timer === null) answer.ariaBusy = "false";
    }
  }

  function sheetToSend() {
    const sheet = document.createElement("canvas");
    const size = paper.picture ?? { width: SIDE, height: SIDE };
    const scale = Math.min(1, LARGEST / Math.max(size.width, size.height));
    sheet.width = Math.max(1, Math.round(size.width * scale));
    sheet.height = Math.max(1, Math.round(size.height * scale));
    const context = sheet.getContext("2d");
    context.fillStyle = PAPER;
    context.fillRect(0, 0, sheet.width, sheet.height);
    if (paper.picture) context.drawImage(paper.picture, 0, 0, sheet.width, sheet.height);
    else drawStrokes(context, SIDE, INK);
    return sheet;
  }

  function encoded(sheet) {
    const type = sheet.width * sheet.height > 1e6 ? "image/jpeg" : "image/png";
    return new Promise((resolve) => sheet.toBlob(resolve, type, 0.92));
  }

  // Answers.
  let digits = [];
  const percent = (share) => `${Math.min(Math.round(100 * share), share < 1 ? 99 : 100)}%`;

  function accept(content, { width, height }) {
    digits = [content, ...content.more];
    chosen = Math.min(chosen, digits.length - 1);
    boxes = digits.map(({ box: [x1, y1, x2, y2] }) =>
      [x1 / width, y1 / height, x2 / width, y2 / height]);
    showAnswer();
  }

  function showAnswer() {
    answer.dataset.state = "answered";
    const isSeveral = digits.length > 1;
    const numerals = digits.map((digit, number) => {
      const part = document.createElement(isSeveral ? "button" : "span");
      part.textContent = digit.label;
      part.classList.toggle("unsure", !digit.sure);
      if (isSeveral) {
        part.type = "button";
        part.ariaPressed = String(number === chosen);
        part.addEventListener("click", () => { chosen = number; showAnswer(); at("numerals").children[number].focus(); });
      }
      return part;
    });
    at("numerals").replaceChildren(...numerals);
    at("numerals").classList.toggle("several", isSeveral);
    at("numerals").classList.toggle("many", digits.length > 8);
    const { label, confidence, runner_up, sure, probabilities, picture } = digits[chosen];
    at("verdict").textContent = sure ? `${percent(confidence)} sure` : "Not sure";
    const second = [...probabilities].sort((a, b) => b - a)[1];
    at("runner-up").textContent = sure
      ? `The runner-up is ${runner_up}, ${second < 0.005 ? "under 1%" : `at ${percent(second)}`}.`
      : `Perhaps ${label} (${percent(confidence)}), or ${runner_up} (${percent(second)}).`;
    bars(probabilities);
    at("seen").src = `data:image/png;base64,${picture}`;
    at("seen").alt = `${label}, as the network sees it`;
    at("seen").hidden = false;
    redraw();
    const all = digits.map((digit) => digit.label).join(" ");
    announce(`${all}. ${at("verdict").textContent}. ${at("runner-up").textContent}`);
  }

  function empty(verdict = "Nothing drawn yet", advice = "Any digit from 0 to 9, or several.") {
    answer.dataset.state = "empty";
    digits = [];
    boxes = [];
    chosen = 0;
    const mark = document.createElement("span");
    mark.textContent = "?";
    mark.ariaHidden = "true";
    at("numerals").replaceChildren(mark);
    at("numerals").classList.remove("several");
    at("verdict").textContent = verdict;
    at("runner-up").textContent = advice;
    at("seen").hidden = true;
    bars(classes.map(() => 0));
    redraw();
  }

  function problem(verdict, advice) {
    empty(verdict, advice);
    answer.dataset.state = "problem";
    announce(`${verdict}. ${advice}`);
  }

  function refuse(status, { detail }) {
    const text = String(detail ?? "Keep drawing to try again.");
    problem(status < 500 ? "No digit read" : "The server is busy", text[0].toUpperCase() + text.slice(1));
  }

  // Ten bars: the classes in order, or the ten most likely of more.
  let classes = [..."0123456789"];

  function bars(probabilities) {
    let rows = classes.map((name, number) => ({ name, share: probabilities[number] ?? 0 }));
    if (rows.length > BARS) rows = rows.sort((a, b) => b.share - a.share).slice(0, BARS);
    const list = at("bars");
    while (list.children.length < rows.length) list.append(bar());
    const most = Math.max(...rows.map((row) => row.share));
    rows.forEach(({ name, share }, number) => {
      const item = list.children[number], [above, column, below, text] = item.children;
      item.classList.toggle("best", share > 0 && share === most);
      above.textContent = share >= 0.005 ? percent(share).slice(0, -1) : "";
      column.firstChild.style.transform = `translateY(${100 * (1 - share)}%)`;
      below.textContent = name;
      text.textContent = `${name}: ${percent(share)}`;
    });
  }

  function bar() {
    const item = document.createElement("li");
    for (const name of ["share", "column", "name", "hidden"]) {
      const part = document.createElement("span");
      part.className = name;
      if (name !== "hidden") part.ariaHidden = "true";
      item.append(part);
    }
    item.children[1].append(Object.assign(document.createElement("span"), { className: "level" }));
    return item;
  }

  // A screen reader announces an answer once it has settled.
  let announcing = null;
  function announce(text, wait = 700) {
    clearTimeout(announcing);
    announcing = setTimeout(() => { at("announcement").textContent = text; }, wait);
  }

  fetch("model").then((response) => response.json()).then((model) => {
    classes = model.classes;
    at("model").textContent =
      `${model.network}, ${model.parameters.toLocaleString("en")} parameters. No picture is kept.`;
    if (!digits.length) bars(classes.map(() => 0));
  }).catch(() => {});

  if (/Mac|iP(ad|hone)/.test(navigator.platform)) {
    for (const key of document.querySelectorAll("kbd")) {
      key.textContent = key.textContent.replace("Ctrl ", "\u2318");
    }
  }

  new ResizeObserver(redraw).observe(canvas);
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  empty();
})();
