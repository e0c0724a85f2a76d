"use strict";
// A box that is drawn on the picture, what of each heatmap lies in it, and contours as lines over the picture.

const EDGES = ["left", "top", "right", "bottom"];
const CLICK = 4; // a pointer that moved less on the screen, in pixels, clicked and did not drag
const drawing = { on: false, from: null, press: null }; // `from`: the first corner; `press`: where the pointer went down on the screen

/** What is asked for beyond heatmaps, as options of a request; a tensor has no picture that it could be of. */
function asked() {
  const options = {};
  if (!look.picture?.info?.view) return options;
  if (look.box) options.inside = JSON.stringify(look.box);
  if (look.contours) options.contours = look.contours;
  return options;
}

/** Whether a kept result has all that is asked for now. */
const isWhole = (result) => Boolean(result) && Object.keys(asked()).every((name) => name in result.explanation);

/** Takes from kept results what one option gave them. */
function forget(name) {
  for (const { explanation } of state.explanations.values()) delete explanation[name];
}

/** Takes out of an answer what is asked otherwise by now. */
function removeOutdated(answer, options) {
  const now = asked();
  for (const name of ["inside", "contours"]) {
    if (options[name] !== now[name]) for (const explanation of answer.explanations) delete explanation[name];
  }
}

/** Gives up what the server refuses of this picture, so that not all that follows is refused too. */
function giveUp({ kind, message }) {
  if (kind !== "InvalidOption") return;
  if (message.startsWith("inside:")) showBox(null);
  if (message.startsWith("contours:")) look.contours = $("contours").value = "";
}

/** Shows what is asked for now, one pane after the other: the first one's answer may hold what the second lacks. */
async function askAgain() {
  arrange();
  for (let index = 0; index < state.wants.length; index += 1) await want(index, {});
}

function setContours(levels) {
  look.contours = levels;
  forget("contours");
  return askAgain();
}

/** Asks what of the heatmaps lies in a box of whole pixels of the picture; null: in none. */
function setBox(box) {
  stopDrawing();
  showBox(box);
  return askAgain();
}

/** Shows a box without asking about it. */
function showBox(box) {
  look.box = box;
  forget("inside");
  EDGES.forEach((edge, place) => ($(edge).value = box ? box[place] : ""));
  $("unbox").hidden = !box;
  note();
  drawAllBoxes();
}

/** Reads the box that was typed, as soon as it has all its edges. */
function readBox() {
  const inputs = EDGES.map($);
  if (inputs.every((input) => input.validity.valid && input.value === "")) return look.box ? setBox(null) : note();
  if (inputs.some((input) => input.validity.valid && input.value === "")) return note();
  const { width, height } = look.picture;
  const [left, top, right, bottom] = inputs.map((input) => Number(input.value));
  const whole = inputs.every((input) => input.validity.valid) && right <= width && bottom <= height;
  if (!whole) return note(`Edges are whole pixels of the picture, which has ${width} × ${height}.`);
  if (left >= right || top >= bottom) return note("Left must be less than right, and top less than bottom.");
  return setBox([left, top, right, bottom]);
}

/** Says below the edges what is to be done, or what is wrong with them. */
function note(problem = "") {
  const still = drawing.from ? "Now the opposite corner." : "Drag over the picture, or click two corners; with the keyboard, move the cursor and press Enter at two corners.";
  const text = problem || (drawing.on ? still : "");
  $("note").textContent = text;
  $("note").classList.toggle("wrong", Boolean(problem));
  if (text) say(text);
}

// ---- Drawing

function startDrawing() {
  drawing.on = true;
  document.body.classList.add("drawing");
  $("draw").setAttribute("aria-pressed", "true");
  note();
  const { canvas } = explained[state.active];
  canvas.focus({ preventScroll: true });
  canvas.scrollIntoView({ block: "nearest" });
}

function stopDrawing() {
  Object.assign(drawing, { on: false, from: null, press: null });
  look.draft = null;
  document.body.classList.remove("drawing");
  $("draw").setAttribute("aria-pressed", "false");
  note();
  drawAllBoxes();
}

/** The box between two points of the picture: all pixels that they touch. */
function boxBetween(a, b) {
  const { width, height } = look.picture;
  const span = (one, other, most) => {
    const low = Math.min(Math.max(Math.floor(Math.min(one, other)), 0), most - 1);
    return [low, Math.min(Math.max(Math.ceil(Math.max(one, other)), low + 1), most)];
  };
  const [left, right] = span(a.x, b.x, width);
  const [top, bottom] = span(a.y, b.y, height);
  return [left, top, right, bottom];
}

/** Takes a point as the first corner, or as the last. */
function takeCorner(at) {
  if (drawing.from) return setBox(boxBetween(drawing.from, at));
  drawing.from = at;
  return note();
}

/** Draws the box from the first corner to a point. */
function stretch(at) {
  if (!drawing.from || !at) return;
  look.draft = boxBetween(drawing.from, at);
  drawAllBoxes();
}

/** Lets corners be set on a pane: by dragging, by clicks, or with the keyboard's cursor. */
function listenForCorners({ canvas, place }) {
  canvas.addEventListener("pointerdown", (event) => {
    if (!drawing.on || !event.isPrimary || event.button) return;
    canvas.setPointerCapture(event.pointerId);
    drawing.press = { x: event.clientX, y: event.clientY, first: !drawing.from };
    drawing.from ??= place(event);
    note();
  });
  canvas.addEventListener("pointerup", (event) => {
    const { press } = drawing;
    if (!press || !event.isPrimary) return;
    drawing.press = null;
    const clicked = Math.hypot(event.clientX - press.x, event.clientY - press.y) < CLICK;
    if (!(press.first && clicked)) takeCorner(place(event));
  });
  canvas.addEventListener("pointercancel", () => drawing.press && stopDrawing());
  canvas.addEventListener("keydown", (event) => {
    if (!drawing.on) return;
    if (event.key === "Escape") stopDrawing();
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    if (look.at) takeCorner(look.at);
  });
}

function listenForArea() {
  [original, ...explained].forEach(listenForCorners);
  $("draw").addEventListener("click", () => (drawing.on ? stopDrawing() : startDrawing()));
  $("unbox").addEventListener("click", () => {
    $("draw").focus(); // the button goes away
    setBox(null);
  });
  $("edges").addEventListener("change", readBox);
  $("contours").addEventListener("change", () => setContours($("contours").value));
}

// ---- Showing

/** What of a heatmap lies in the box, in two sentences. */
function describeInside({ label, direction, inside }) {
  if (!inside) return "";
  const what = direction ? `what ${direction} ${direction === "lowers" ? label.slice(1) : label}` : `what speaks for ${label}`;
  const where = inside.peak ? "in it" : "outside of it";
  return `${percent(inside.share)} of ${what} lies in the box, which covers ${percent(inside.area)} of what the model saw. The brightest cell lies ${where}.`;
}

/** The contours of an explanation as the `d` of one SVG path, in the picture's pixels. */
function outline({ contours }) {
  const rings = (contours || []).flatMap(({ coordinates }) => coordinates.flat());
  return rings.map((ring) => `M${ring.slice(0, -1).join("L")}Z`).join("");
}

/** Draws contours as the server does: white on black, which stands out on any colour. A canvas draws thinner lines than OpenCV. */
function paintContours(context, explanation, size, scale) {
  const path = new Path2D();
  path.addPath(new Path2D(outline(explanation)), new DOMMatrix([scale, 0, 0, scale, 0, 0]));
  const line = Math.max(1, Math.round(Math.max(size.width, size.height) / 400));
  context.lineJoin = "round";
  for (const [colour, width] of [["#000", line + 4], ["#fff", line]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke(path);
  }
}
