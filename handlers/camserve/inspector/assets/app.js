"use strict";
// The page's state, and what each control does to it.

const $ = (id) => document.getElementById(id);
const APART = facts.methods.find(({ name }) => name === "contrast")?.name; // the method that tells similar classes apart
const SEVERAL = facts.together && "refinecam"; // the method that takes all layers together
const FIRST = Math.min(5, facts.max_targets, facts.classes); // classes explained with the first request
const state = { answer: null, explanations: new Map(), classes: [], wants: [], active: 0, compare: "", beside: false, jobs: new Map(), coming: new Map() };
const callbacks = { changed: (pane, change) => want(pane.index, change), checked: (pane) => check(pane.index), pointed: point, touched: (pane) => choose(pane.index) };
const [original, ...explained] = [null, 0, 1].map((index) => new Pane(index, callbacks));

// ---- A picture arrives

/** Explains a picture's most probable classes, and shows the first. */
async function open(blob, name) {
  const picture = { blob, name, source: null, info: null, dimmed: false };
  const defaults = { method: facts.method, layer: facts.layer };
  const job = async (signal) => {
    const [source, { answer, seconds }] = await Promise.all([decode(blob), explain(picture, firstTargets(), signal)]);
    await complete(picture, source, answer, signal);
    Object.assign(state, { answer, explanations: new Map(), classes: rowsOf(answer), compare: "", active: 0 });
    keep(answer, defaults, seconds);
    Object.assign(look, { picture, first: state.classes[0].index, at: null });
    stopDrawing();
    showBox(null);
    state.wants = [{ ...defaults, target: idOf(answer.explanations[0]) }];
    document.querySelector('input[name="compare"][value=""]').checked = true;
    reveal();
    return answer;
  };
  if (!(await runJob(job, `Explaining ${name}`, () => open(blob, name)))) return;
  if (look.contours && look.picture === picture) await askAgain();
}

/** What is asked for first: the most probable classes, or of values what raises and what lowers each. */
function firstTargets() {
  if (facts.scores !== "none") return { top_k: String(FIRST) };
  const both = Array.from({ length: facts.classes }, (_, index) => [index, `-${index}`]).flat();
  return { target: JSON.stringify(both.slice(0, facts.max_targets)) };
}

/** The rows of the list of classes. */
function rowsOf(answer) {
  if (facts.scores !== "none") return [...answer.classes];
  return answer.explanations.map((each) => ({ index: idOf(each), label: each.label, probability: each.probability }));
}

/** Adds what the answer says about the picture, and the server's rendering of it where the browser has none. */
async function complete(picture, source, answer, signal) {
  if (!answer.image) {
    standInFor(picture, answer.explanations[0].heatmap);
    return;
  }
  picture.info = answer.image;
  picture.width = answer.image.width;
  picture.height = answer.image.height;
  const same = source && source.width === picture.width && source.height === picture.height;
  picture.source = same ? source : await renderByServer(picture, signal);
  picture.dimmed = !same;
}

function reveal() {
  const first = $("work").hidden;
  $("welcome").hidden = true;
  $("work").hidden = false;
  $("another").hidden = false;
  $("cut").hidden = !isCut(look.picture);
  $("area").hidden = $("lines").hidden = !look.picture.info.view;
  arrange();
  const { label, probability } = state.classes[0];
  if (facts.scores === "none") say(`${label}: ${amount(probability)}.`);
  else if (isUndecided(probability)) say(`The model does not decide: ${label} comes first, with ${percent(probability)}.`);
  else if (counts(probability)) say(`The model says ${label}, ${percent(probability)}.`);
  else say(`No label reaches ${percent(facts.threshold)}; the most probable is ${label}, ${percent(probability)}.`);
  if (first) $("main").focus({ preventScroll: true });
}

/** Accepts the first file of a drop, a paste or a choice. */
function take(files) {
  const [file] = files;
  if (file?.size === 0) fail(new Failure("Empty", `The file ${file.name} has 0 bytes. It may be a folder, or a copy that broke off: choose another.`));
  else if (file) open(file, file.name || "pasted picture");
  else fail(new Failure("Unreadable", "Only picture files can be dropped or pasted here, no links or text."));
}

// ---- Explanations

const keyOf = ({ target, method, layer }) => JSON.stringify([target, method, layer]);

function keep(answer, { method, layer }, seconds) {
  for (const explanation of answer.explanations) {
    const key = keyOf({ target: idOf(explanation), method, layer });
    const before = state.explanations.get(key); // it may have been checked, and is drawn already
    state.explanations.set(key, { ...before, explanation: { ...before?.explanation, ...explanation }, measured: answer.measured ?? before?.measured, method, layer, seconds });
  }
  $("took").textContent = `in ${seconds < 1 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : `${seconds.toFixed(1)} s`}`;
  $("took").title = "From sending the picture to the whole answer";
}

/** What is wanted after a change: all layers together go with the method that takes them, and it with them. */
function fit(wanted, change) {
  const next = { ...wanted, ...change };
  if (!SEVERAL || (next.method === SEVERAL) === (next.layer === facts.together)) return next;
  if (change.layer === facts.together) return { ...next, method: SEVERAL };
  if (change.layer) return { ...next, method: facts.methods[0].name };
  return { ...next, layer: next.method === SEVERAL ? facts.together : facts.layers[0] };
}

/** Changes what a pane shows, asking the server where it has not been asked yet. */
async function want(index, change) {
  const next = fit(state.wants[index], change);
  if (!isWhole(state.explanations.get(keyOf(next)))) {
    const others = state.classes.map((row) => row.index).filter((target) => target !== next.target);
    const targets = [next.target, ...others].slice(0, facts.max_targets);
    const again = () => want(index, change);
    state.coming.set(index, next);
    const answer = await request(JSON.stringify(targets), next, again, explained[index]);
    if (state.coming.get(index) === next) state.coming.delete(index);
    if (index >= state.wants.length) return; // the comparison ended meanwhile
    if (!answer) {
      arrange();
      return;
    }
  }
  state.wants[index] = next;
  arrange();
  announce(index);
}

/** Has the model asked how far what a pane shows is borne out. */
async function check(index) {
  const coming = state.coming.get(index);
  if (coming) { // it was asked for before, and its answer would be aborted
    await want(index, coming);
    if (keyOf(state.wants[index]) !== keyOf(coming)) return;
  }
  const { target, method, layer } = state.wants[index];
  const answer = await request(JSON.stringify([target]), { method, layer, check: "true" }, () => check(index), explained[index]);
  if (!answer) return;
  arrange();
  const result = state.explanations.get(keyOf({ target, method, layer }));
  if (result?.explanation.check) say(describeCheck(result.explanation));
}

/** Asks for targets with one method and layer, and keeps the answer; undefined when it failed. */
function request(target, { method, layer, ...more }, again, pane) {
  const options = asked();
  const job = async (signal) => {
    const { answer, seconds } = await explain(look.picture, { ...more, ...options, target, method, layer }, signal).catch((failure) => {
      giveUp(failure);
      throw failure;
    });
    removeOutdated(answer, options);
    keep(answer, { method, layer }, seconds);
    return answer;
  };
  return runJob(job, "Explaining", again, pane);
}

/** Explains a class that was typed, and lists it with the others. */
async function ask(typed) {
  const index = state.active;
  const answer = await request(targetOf(typed), state.wants[index], () => ask(typed), explained[index]);
  if (!answer) return;
  const [{ label, probability }] = answer.explanations;
  const target = idOf(answer.explanations[0]);
  if (!state.classes.some((row) => row.index === target)) state.classes.push({ index: target, label, probability });
  $("label").value = "";
  if (index < state.wants.length) want(index, { target });
  else arrange(); // the comparison ended meanwhile
}

/**
 * Runs one job for a pane (null: for all panes, when a new picture comes) and aborts the job before it.
 * An error is shown, with a button that calls `again`; the result is then undefined.
 */
async function runJob(job, what, again, pane = null) {
  for (const [other, running] of state.jobs) if (pane === null || other === pane || other === null) running.abort();
  const controller = new AbortController();
  state.jobs.set(pane, controller);
  const timer = setTimeout(() => {
    if (pane) pane.parts.busy.hidden = false;
    $("working").hidden = false;
    document.body.setAttribute("aria-busy", "true");
    say(`${what} …`);
  }, 150);
  try {
    const result = await job(controller.signal);
    $("failure").hidden = true;
    return result;
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    fail(error instanceof Failure ? error : new Failure("InternalError", "The page could not show the answer."), again);
    return undefined;
  } finally {
    clearTimeout(timer);
    finish(pane, controller);
  }
}

function finish(pane, controller) {
  if (state.jobs.get(pane) !== controller) return;
  state.jobs.delete(pane);
  if (pane) pane.parts.busy.hidden = true;
  if (state.jobs.size) return;
  $("working").hidden = true;
  document.body.setAttribute("aria-busy", "false");
}

// ---- Showing

/** Lays out the panes and everything beside them, as the state says. */
function arrange() {
  const two = Boolean(state.compare);
  const panes = [...(state.beside ? [original] : []), ...explained.slice(0, state.wants.length)];
  const columns = panes.length;
  $("panes").style.setProperty("--columns", columns);
  if (panes.length !== $("panes").children.length || panes.some((pane, at) => pane.root !== $("panes").children[at])) {
    $("panes").replaceChildren(...panes.map((pane) => pane.root));
  }
  if (state.beside) original.show(null);
  state.wants.forEach((wanted, index) => explained[index].show(state.explanations.get(keyOf(wanted)), two ? "AB"[index] : ""));
  $("chosen").hidden = !two;
  $("chosen").querySelectorAll("input").forEach((input, index) => (input.checked = index === state.active));
  listClasses();
  describeComparison();
  showCurl();
}

function listClasses() {
  const rows = state.classes.map((row) => {
    const item = $("class").content.firstElementChild.cloneNode(true);
    const button = item.querySelector("button");
    const shown = state.wants.flatMap((wanted, index) => (wanted.target === row.index ? [index] : []));
    button.querySelector(".label").textContent = row.label;
    button.querySelector(".share").textContent = amount(row.probability);
    button.style.setProperty("--share", facts.scores === "none" ? "0%" : `${100 * row.probability}%`);
    button.classList.toggle("below", !counts(row.probability));
    button.setAttribute("aria-pressed", String(shown.includes(state.active)));
    button.classList.toggle("b", state.active === 1);
    button.dataset.target = row.index;
    if (state.compare) button.querySelector(".badges").append(...shown.map(badge));
    button.addEventListener("click", () => want(state.active, { target: row.index }));
    return item;
  });
  const held = document.activeElement?.dataset?.target;
  $("classes").replaceChildren(...rows);
  if (held !== undefined) $("classes").querySelector(`[data-target="${held}"]`)?.focus();
}

function badge(index) {
  const mark = document.createElement("span");
  mark.className = index ? "badge b" : "badge";
  mark.textContent = "AB"[index];
  return mark;
}

function describeComparison() {
  const [a, b] = state.wants.map((wanted) => state.explanations.get(keyOf(wanted))?.explanation);
  const shared = b ? overlap(a.heatmap, b.heatmap) : null;
  $("together").hidden = shared === null;
  if (shared !== null) $("agreement").textContent = `A and B share ${Math.round(100 * shared)} % of their brightest cells.`;
  $("apart").hidden = state.compare !== "class" || !APART || state.wants.every(({ method }) => method === APART);
}

function showCurl() {
  $("copy").textContent = "Copy";
  $("where").textContent = `To be run where ${look.picture.name} is.`;
  $("curl").textContent = groups().map(([options]) => curlCommand(look.picture.name, options)).join("\n\n");
}

/** The requests that would give what is shown, one for each method and layer: [options, targets]. */
function groups() {
  const requests = new Map();
  for (const { target, method, layer } of state.wants) {
    const key = JSON.stringify([method, layer]);
    requests.set(key, { method, layer, targets: [...new Set([...(requests.get(key)?.targets || []), target])] });
  }
  return [...requests.values()].map(({ method, layer, targets }) => {
    const options = { target: targets.length > 1 ? JSON.stringify(targets) : String(targets[0]), ...asked() };
    if (method !== facts.method) options.method = method;
    if (layer !== facts.layer) options.layer = layer;
    return [options, { method, layer, targets }];
  });
}

/** The answers to `groups`, as the server gives them. */
function answers() {
  return groups().map(([, { method, layer, targets }]) => {
    const explanations = targets.map((target) => state.explanations.get(keyOf({ target, method, layer })).explanation);
    return { ...state.answer, explanations, method, layer };
  });
}

// ---- Words

function say(text) {
  $("status").textContent = text;
}

function announce(index) {
  const result = state.explanations.get(keyOf(state.wants[index]));
  say(`${result.explanation.label}, ${amount(result.explanation.probability)}. ${sentence(result)} ${describeInside(result.explanation)}`.trim());
}

/** Shows the value under a point in every pane; `aloud` for a keyboard's user. */
function point(at, aloud = false) {
  look.at = at;
  stretch(at);
  const values = explained.slice(0, state.wants.length).map((pane) => pane.point(at));
  if (state.beside) original.point(at);
  if (!at) {
    $("readout").textContent = "Point at the picture to read its heatmap";
    return;
  }
  const words = values.map((value, index) => `${state.compare ? `${"AB"[index]} ` : ""}${value === null ? "not seen" : value.toFixed(2)}`);
  $("readout").textContent = `x ${Math.floor(at.x)}, y ${Math.floor(at.y)}: ${words.join(", ")}`;
  if (aloud) $("spoken").textContent = words.join(", ");
}

function fail(failure, again) {
  const box = $("failure");
  box.querySelector("h2").textContent = HEADINGS[failure.kind] || "That did not work";
  box.querySelector("p").textContent = toSentence(failure.message);
  const ways = suggestions(failure).map((label) => makeButton(typeof label === "number" ? `class ${label}` : label, () => ask(String(label))));
  if (again && ["Unreachable", "Busy", "OutOfMemory"].includes(failure.kind)) ways.push(makeButton("Try again", again));
  box.querySelector(".ways").replaceChildren(...ways);
  box.hidden = false;
  box.scrollIntoView({ block: "nearest" });
}

/** A message as a sentence of its own, without what is for programs: the option's name, and how several are sent. */
function toSentence(message) {
  const text = message.replace(/^(target|data|inside|contours): /, "").replace(/; give several as a list: .*? \(in headers .*?\)/, "");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function makeButton(text, action) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "button";
  button.textContent = text;
  button.addEventListener("click", () => {
    $("failure").hidden = true;
    action();
  });
  return button;
}

function choose(index) {
  if (index === null || index === state.active || index >= state.wants.length) return;
  state.active = index;
  $("chosen").querySelectorAll("input")[index].checked = true;
  listClasses();
}
