"use strict";

const PAGE = 200; // cards drawn at a time
const $ = (id) => document.getElementById(id);
const cards = JSON.parse($("data").textContent);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const compared = new Intl.Collator("en", { numeric: true }).compare;
/** Orders by a number, up or down; cards without one come last either way. */
const by = (name, sign) => (a, b) => (a[name] ?? null) === null || (b[name] ?? null) === null
  ? ((a[name] ?? null) === null) - ((b[name] ?? null) === null)
  : sign * (a[name] - b[name]);
const orders = {
  file: (a, b) => compared(a.file, b.file),
  label: (a, b) => compared(a.label ?? "\uffff", b.label ?? "\uffff") || compared(a.file, b.file),
  up: by("probability", 1),
  down: by("probability", -1),
  small: by("region", 1),
  large: by("region", -1),
};
let shown = [];

const kinds = {
  "": () => true,
  error: (card) => Boolean(card.error),
  warning: (card) => Boolean(card.warnings?.length),
  other: (card) => Boolean(card.first),
};

/** Whether a value lies in the range of a pair of fields; what has no value does only where the range is open. */
function within(name, value) {
  const [from, to] = [Number($(`${name}-from`).value || 0), Number($(`${name}-to`).value || 100)];
  if (value === undefined || value === null) return from <= 0 && to >= 100;
  return 100 * value >= from && 100 * value <= to;
}

function matches(card) {
  const find = $("find").value.trim().toLocaleLowerCase();
  return (
    kinds[$("kind").value](card) &&
    (!$("label").value || card.label === $("label").value) &&
    (!find || `${card.file}\n${card.label ?? ""}`.toLocaleLowerCase().includes(find)) &&
    within("confidence", card.probability) &&
    within("region", card.region)
  );
}

function show() {
  shown = cards.filter(matches).sort(orders[$("sort").value]);
  const failures = shown.filter((card) => card.error).length;
  $("count").textContent = `${shown.length} of ${cards.length}${failures ? `, ${failures} failed` : ""}`;
  $("none").hidden = shown.length > 0;
  $("cards").replaceChildren();
  draw();
}

function draw() {
  const from = $("cards").children.length;
  $("cards").append(...shown.slice(from, from + PAGE).map(made));
  $("more").hidden = $("cards").children.length >= shown.length;
}

function made(card) {
  const item = $("card").content.firstElementChild.cloneNode(true);
  const set = (name, text) => (item.querySelector(`.${name}`).textContent = text);
  item.classList.toggle("bad", Boolean(card.error || card.warnings.length));
  set("file", card.file);
  if (card.error) {
    set("label", "failed");
    set("more", card.error);
    return item;
  }
  set("label", card.label);
  set("share", card.amount ?? percent(card.probability));
  const region = card.region === null ? "" : `region ${percent(card.region)}`;
  const other = card.first ? `predicted ${card.first}` : "";
  set("more", [other, region, ...card.warnings.map((warning) => `map: ${warning}`), card.verdict, card.method, card.layer].filter(Boolean).join(" · "));
  if (card.picture) {
    const link = item.querySelector("a");
    link.hidden = false;
    link.href = card.overlay;
    link.querySelector("img").src = card.picture;
    link.querySelector("img").alt = `${card.file}: heatmap of ${card.label}`;
  }
  return item;
}

const labels = [...new Set(cards.flatMap((card) => (card.label === undefined ? [] : [card.label])))].sort(compared);
$("label").append(...labels.map((label) => new Option(label, label)));
$("filters").addEventListener("input", show);
$("filters").addEventListener("reset", () => setTimeout(show));
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("more").addEventListener("click", draw);
show();
