"use strict";
// One pane shows one explanation over the picture. What all panes share is in `look`.

const FINE = 1600; // longest side drawn on screen, in pixels
const COARSE = 960; // smaller pictures are enlarged to this, so that heatmaps stay smooth
// `box`: whose share is told, `draft`: while it is drawn; `contours`: levels, as the option has them
const look = { picture: null, first: null, view: true, region: true, opacity: 0.5, colours: null, at: null, box: null, draft: null, contours: "" };

const percent = (share) => {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${value.toFixed(1)} %`;
};
/** A probability, or a value where the scores are no probabilities. */
const amount = (score) => (facts.scores === "none" ? String(Number(score.toPrecision(5))) : percent(score));
const counts = (score) => facts.scores !== "sigmoid" || score >= facts.threshold;
/** Whether the first class is hardly more probable than any other; a model of random weights never decides. */
const isUndecided = (score) => facts.scores === "softmax" && (facts.random_weights || score < Math.min(0.1, 2 / facts.classes));
/** What a target is asked for by: its index, behind a minus for what lowers its value. */
const idOf = ({ target, direction }) => (direction === "lowers" ? `-${target}` : target);
const short = (value) => (value === 0 ? "0" : Math.abs(value) >= 0.01 && Math.abs(value) < 1000 ? value.toPrecision(3) : value.toExponential(1));

const WARNINGS = {
  zero: "Nothing at this layer speaks for this class: the map is zero everywhere.",
  constant: "The map is the same everywhere: it points at no part of the picture.",
  not_finite: "The model's numbers overflowed at this layer; there is no map to show.",
};

class Pane {
  /**
   * `index`: 0 is A, 1 is B, null is the picture without a heatmap. Called back: `changed` with a new method or layer,
   * `checked` when it is to be checked, `pointed` with a point of the picture or null, `touched` when the pane is clicked or focused.
   */
  constructor(index, { changed, checked, pointed, touched }) {
    this.index = index;
    this.root = document.getElementById("pane").content.firstElementChild.cloneNode(true);
    this.canvas = this.root.querySelector("canvas");
    this.parts = Object.fromEntries(["badge", "label", "share", "how", "boxes", "cursor", "busy", "says", "inside", "proof", "proven", "verdict", "measured", "curves", "use", "made"].map((name) => [name, this.root.querySelector(`.${name}`)]));
    this.method = this.root.querySelector("select.method");
    this.layer = this.root.querySelector("select.layer");
    fill(this.method, facts.methods.map((method) => [method.name, method.name, method.use]));
    fill(this.layer, facts.layers.map((layer) => [layer, layer, layer]));
    if (facts.together) this.layer.append(new Option("all, multiplied", facts.together));
    this.method.addEventListener("change", () => changed(this, { method: this.method.value }));
    this.layer.addEventListener("change", () => changed(this, { layer: this.layer.value }));
    this.parts.proof.addEventListener("click", () => checked(this));
    this.root.addEventListener("pointerdown", () => touched(this));
    this.root.addEventListener("focusin", () => touched(this));
    this.listen(pointed);
    this.parts.how.hidden = index === null;
    this.layer.parentElement.hidden = facts.layers.length < 2;
    this.result = null;
  }

  listen(pointed) {
    /** The point of the picture under a pointer. */
    this.place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return { x: ((event.clientX - box.left) / box.width) * look.picture.width, y: ((event.clientY - box.top) / box.height) * look.picture.height };
    };
    for (const kind of ["pointermove", "pointerdown"]) this.canvas.addEventListener(kind, (event) => pointed(this.place(event)));
    this.canvas.addEventListener("pointerleave", () => pointed(null));
    this.canvas.addEventListener("blur", () => pointed(null));
    this.canvas.addEventListener("keydown", (event) => {
      const at = nextPoint(event);
      if (at === undefined) return;
      event.preventDefault();
      pointed(at, true);
    });
  }

  /** Shows a result (null: the picture without a heatmap), as pane `letter` where there are two. */
  show(result, letter) {
    this.result = result;
    const { picture } = look;
    this.root.style.setProperty("--ratio", picture.width / picture.height);
    this.parts.badge.hidden = !letter;
    this.parts.badge.textContent = letter || "";
    this.parts.badge.classList.toggle("b", letter === "B");
    this.parts.label.textContent = result ? result.explanation.label : "Original";
    this.parts.share.textContent = result ? amount(result.explanation.probability) : "";
    if (result) this.method.value = result.method;
    if (result) this.layer.value = result.layer;
    this.describe();
    this.draw();
  }

  describe() {
    const { result } = this;
    const name = result ? `Heatmap of ${result.explanation.label}, ${result.method}` : "The picture without a heatmap";
    this.canvas.setAttribute("aria-label", `${name}. Arrow keys move a cursor that reads its values.`);
    this.parts.says.textContent = result ? sentence(result) : `${look.picture.width} × ${look.picture.height} pixels`;
    this.parts.inside.textContent = result ? describeInside(result.explanation) : "";
    this.parts.inside.hidden = !this.parts.inside.textContent;
    this.root.classList.toggle("flat", Boolean(result && result.explanation.warnings.length));
    const method = result && facts.methods.find(({ name }) => name === result.method);
    const check = result && result.explanation.check;
    this.parts.proof.hidden = !result || check !== undefined || !facts.checks || result.explanation.warnings.length > 0;
    this.parts.proven.hidden = !check;
    if (check) {
      this.parts.verdict.textContent = describeCheck(result.explanation);
      this.parts.measured.textContent = describeMeasured(result);
      drawCurves(this.parts.curves, result.explanation);
    }
    this.parts.use.textContent = method ? `${method.name}, ${method.use}` : "";
    this.parts.made.textContent = result ? details(result) : "";
  }

  draw() {
    const { size, scale } = fitSize(look.picture, FINE, COARSE);
    Object.assign(this.canvas, size);
    const heat = this.result && this.heat(size, scale);
    const view = this.result && look.picture.info.view;
    paint(this.canvas.getContext("2d"), size, scale, look.picture, view, heat, look.opacity);
    this.drawBoxes();
  }

  /** The heatmap as a canvas, cached with the result until the colours change. */
  heat(size, scale) {
    const { result } = this;
    if (result.heat?.colours !== look.colours) {
      result.levels ??= toLevels(result.explanation.heatmap, viewOf(look.picture), size, scale);
      result.heat = { colours: look.colours, canvas: paintHeat(result.levels, look.colours, size) };
    }
    return result.heat.canvas;
  }

  drawBoxes() {
    this.parts.boxes.setAttribute("viewBox", `0 0 ${look.picture.width} ${look.picture.height}`);
    this.parts.boxes.setAttribute("preserveAspectRatio", "none");
    this.parts.boxes.replaceChildren();
    for (const [kind, box] of boxesOf(this.result)) {
      for (const style of ["halo", kind]) this.parts.boxes.append(rectangle(box, style));
    }
    const lines = this.result && outline(this.result.explanation);
    if (lines) for (const style of ["halo", "contour"]) this.parts.boxes.append(makeSvg("path", { d: lines, class: style }));
  }

  /** Moves the cursor to a point of the picture (null: hides it). Returns the value there, null outside of what the model saw. */
  point(at) {
    const value = at && this.result ? valueAt(this.result.explanation.heatmap, viewOf(look.picture), at.x, at.y) : null;
    const { cursor } = this.parts;
    cursor.hidden = !at;
    if (!at) return value;
    cursor.style.left = `${(100 * at.x) / look.picture.width}%`;
    cursor.style.top = `${(100 * at.y) / look.picture.height}%`;
    cursor.classList.toggle("left", at.x > 0.75 * look.picture.width);
    cursor.classList.toggle("up", at.y > 0.85 * look.picture.height);
    cursor.dataset.value = !this.result ? "original" : value === null ? "not seen" : value.toFixed(2);
    return value;
  }
}

/** The rectangle that the heatmap covers: the whole picture where the server does not know it. */
function viewOf(picture) {
  return picture.info.view || [0, 0, picture.width, picture.height];
}

/** The boxes that are switched on, as [kind, [left, top, right, bottom]]. */
function boxesOf(result) {
  const { view } = look.picture.info;
  const region = result && result.explanation.region;
  const drawn = look.draft || look.box;
  return [...(look.view && view ? [["view", view]] : []), ...(look.region && region ? [["region", region]] : []), ...(drawn ? [["drawn", drawn]] : [])];
}

function makeSvg(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

function rectangle([left, top, right, bottom], style) {
  const { width, height } = look.picture;
  const inset = Math.max(width, height) / 500; // so that a box on the picture's edge is seen whole
  const [x, y] = [Math.max(left, inset), Math.max(top, inset)];
  return makeSvg("rect", { x, y, width: Math.max(0, Math.min(right, width - inset) - x), height: Math.max(0, Math.min(bottom, height - inset) - y), class: style });
}

/** Where an arrow key moves the cursor: 2 % of the picture, 10 % with Shift; null on Escape, undefined for other keys. */
function nextPoint(event) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key === "Escape" && look.at) return null;
  if (!steps[event.key] || event.altKey || event.ctrlKey || event.metaKey) return undefined;
  const { width, height } = look.picture;
  if (!look.at) return { x: width / 2, y: height / 2 };
  const share = event.shiftKey ? 0.1 : 0.02;
  const within = (value, most) => Math.min(Math.max(value, 0.5), most - 0.5);
  const [across, down] = steps[event.key];
  return { x: within(look.at.x + across * share * width, width), y: within(look.at.y + down * share * height, height) };
}

/** The explanation in one sentence. */
function sentence(result) {
  const { label, target, probability, direction, region, warnings } = result.explanation;
  if (warnings.length) return warnings.map((warning) => WARNINGS[warning] || warning).join(" ");
  if (direction) {
    const what = `What ${direction} ${direction === "lowers" ? label.slice(1) : label}, ${amount(probability)}, lies`;
    if (!region) return `${what} in the brightest parts.`;
    return `${what} mostly ${describePlace(region, look.picture.width, look.picture.height)}.`;
  }
  const below = counts(probability) ? "" : `${label} does not count: ${percent(probability)} is below ${percent(facts.threshold)}. `;
  if (below) return `${below}The brightest parts are what there is of evidence for it.`;
  if (!region) return `The brightest parts are the strongest evidence for ${label}.`;
  const { picture } = look;
  const where = describePlace(region, picture.width, picture.height);
  const share = ((region[2] - region[0]) * (region[3] - region[1])) / (picture.width * picture.height);
  const size = share < 0.005 ? "less than 1\u00a0%" : `${Math.round(100 * share)}\u00a0%`;
  const box = `the brightest region takes ${size} of the picture.`;
  if (["contrast", "refinecam"].includes(result.method)) return `What speaks for ${label} and not for the classes most like it lies mostly ${where}: ${box}`;
  if (target === look.first && isUndecided(probability)) return `The model does not decide, ${label} comes first. What speaks for it lies mostly ${where}: ${box}`;
  if (target === look.first) return `The model says ${label}. It looked mostly ${where}: ${box}`;
  return `What speaks for ${label} lies mostly ${where}: ${box}`;
}

const VERDICTS = {
  supported: "Borne out",
  weak: "Weakly borne out",
  unsupported: "Not borne out, for other cells do as much",
};
const FIFTH = 1; // the place of a fifth of the cells among a check's shares

const average = (byFill, place) => Object.values(byFill).reduce((sum, row) => sum + (Array.isArray(row) ? row[place] : row), 0) / Object.keys(byFill).length;

/** What a check found, in one sentence. */
function describeCheck({ label, probability, check }) {
  const { brightest, random, moved, verdict, support } = check;
  const said = (what) => `${amount(average(what.hidden, FIFTH))} and ${amount(average(what.shown, FIFTH))}`;
  return (
    `${VERDICTS[verdict]}${Number.isFinite(support) ? ` (support ${support.toFixed(2)})` : ""}: ${label} has ${amount(probability)}; with the brightest fifth hidden, and with only it shown, ${said(brightest)}. ` +
    `As many other cells: ${said(random)} at random, ${said(moved)} with the heatmap moved elsewhere.`
  );
}

/** What was measured of the layer and the method on pictures before, in one sentence; "" where the archive has no report of that. */
function describeMeasured({ method, layer, measured }) {
  if (!measured) return "";
  const { chosen, out, pictures, support, made } = measured;
  const interval = `${support.mean.toFixed(2)} (${support.low.toFixed(2)} to ${support.high.toFixed(2)})`;
  return `${method} of ${layer} was ${chosen ? "chosen by measuring" : "measured"} on ${pictures} pictures${made ? `, ${made.slice(0, 10)}` : ""}: support ${interval} on average${out ? "; its maps stay alike when the weights are drawn anew, so they may show the picture alone" : ""}.`;
}

/** Draws the score by the share of the cells that are hidden (solid) and shown (dashed), brightest first. */
function drawCurves(svg, { label, probability, check }) {
  const empty = average(check.empty, 0);
  const shares = [0, ...check.shares, 1];
  const ways = {
    hidden: [probability, ...check.shares.map((_, place) => average(check.brightest.hidden, place)), empty],
    shown: [empty, ...check.shares.map((_, place) => average(check.brightest.shown, place)), probability],
  };
  const all = [...ways.hidden, ...ways.shown];
  const [low, high] = facts.scores === "none" ? [Math.min(...all), Math.max(...all)] : [0, 1];
  const y = (score) => 36 - (34 * (score - low)) / (high - low || 1);
  const lines = Object.entries(ways).map(([way, row]) => makeSvg("polyline", { class: way, points: row.map((score, place) => `${100 * shares[place]},${y(score)}`).join(" ") }));
  const words = [makeSvg("text", { x: 0, y: 43 }, "brightest cells hidden: solid; shown alone: dashed")];
  svg.setAttribute("aria-label", `How the score of ${label} changes as its brightest cells are hidden, or shown alone`);
  svg.replaceChildren(...lines, ...words);
}

function details({ explanation, layer }) {
  const cells = `${explanation.heatmap[0].length} × ${explanation.heatmap.length} cells`;
  const range = explanation.range ? `, map from ${short(explanation.range[0])} to ${short(explanation.range[1])}` : "";
  const where = layer === facts.together ? facts.together.replaceAll(",", ", ") : layer;
  return `class ${explanation.target}, ${cells} at ${where}${range}`;
}

/** Fills a select with [value, text, title] rows. */
function fill(select, rows) {
  select.replaceChildren(
    ...rows.map(([value, text, title]) => {
      const option = new Option(text, value);
      option.title = title;
      return option;
    }),
  );
}
