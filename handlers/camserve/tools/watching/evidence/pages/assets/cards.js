"use strict";
// The pictures: which are shown, in what order, and how each is drawn.

const SMALL = 240; // longest side of a small picture, in pixels
const SEARCHED = ["id", "request", "note", "label"];
const colours = readPalette(state.report.colours);
const drawn = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    drawn.unobserve(target);
    draw(target, target.card, SMALL);
  }
}, { rootMargin: "300px" });

const place = () => state.report.names.indexOf(state.statistic);
const binOf = (card) => card.bins[place()] ?? null;
const valueOf = (card) => (state.statistic === "class" ? card.target : card.values[place()] ?? null);
const rateOf = (card) => card.rates[place()] ?? 0;

/** Orders by a number; cards without one come last either way. */
const by = (number, sign) => (a, b) => (number(a) === null) - (number(b) === null) || sign * (number(a) - number(b));
/** Those first that likeliest moved the statistic; of these the ones that are counted. */
const byRate = (a, b) => rateOf(b) - rateOf(a) || b.sample - a.sample || b.time - a.time;
const orders = {
  moved: byRate,
  down: by(valueOf, -1),
  up: by(valueOf, 1),
  new: by((card) => card.time, -1),
  old: by((card) => card.time, 1),
  unsure: by((card) => card.confidence, 1),
};
const kinds = {
  "": () => true,
  sample: (card) => card.sample,
  unusual: (card) => card.unusual.length > 0,
  silent: (card) => !card.map,
  unmarked: (card) => !card.mark,
  right: (card) => card.mark?.verdict === "right",
  wrong: (card) => card.mark?.verdict === "wrong",
  bad_input: (card) => card.mark?.verdict === "bad_input",
};

function matches(card) {
  const find = $("find").value.trim().toLocaleLowerCase();
  const texts = { ...card, note: card.mark?.note };
  return kinds[$("kind").value](card) && (!$("label").value || card.label === $("label").value) && (!find || SEARCHED.some((name) => (texts[name] ?? "").toLocaleLowerCase().includes(find)));
}

const cardsIn = (bin) => state.report.cards.filter((card) => binOf(card) === bin && matches(card)).sort(byRate);

/** The groups to show, as [bin or null, cards]: bin by bin, those first that moved PSI most upwards; or all in one order. */
function grouped() {
  const each = statisticOf(state.statistic);
  const cards = state.report.cards.filter((card) => matches(card) && (state.bin === null || binOf(card) === state.bin));
  const order = $("sort").value;
  if (!each || order !== "moved") return [[state.bin, cards.sort(orders[order])]];
  const bins = each.labels.map((_, bin) => bin).sort((a, b) => each.moved[b] - each.moved[a]);
  const groups = [...bins, null].map((bin) => [bin, cards.filter((card) => binOf(card) === bin).sort(byRate)]);
  return groups.filter(([, found]) => found.length);
}

function drawGroups() {
  const groups = grouped();
  state.shown = groups.flatMap(([, cards]) => cards.slice(0, state.most));
  const all = groups.reduce((sum, [, cards]) => sum + cards.length, 0);
  const { cards, kept } = state.report;
  const sent = cards.length < kept ? `${cards.length} of ${kept.toLocaleString("en")} that were kept` : `${kept.toLocaleString("en")} kept`;
  $("count").textContent = `${all} of ${sent}`;
  $("none").hidden = all > 0;
  $("none").textContent = cards.length ? "Nothing matches. Reset the filters to see everything." : "Nothing was kept in this time.";
  $("more").hidden = state.shown.length === all;
  $("groups").replaceChildren(...groups.map(groupOf));
}

function groupOf([bin, cards]) {
  const group = $("group").content.firstElementChild.cloneNode(true);
  const each = statisticOf(state.statistic);
  const known = bin !== null && each;
  group.querySelector("h3").textContent = known ? `${each.name} ${each.labels[bin]}` : state.report.statistics.length && $("sort").value === "moved" ? `Without ${state.statistic}` : "All";
  const added = known && `${percent(each.now[bin])} now, ${percent(each.expected[bin])} expected; PSI ${each.moved[bin] < 0 ? "−" : "+"}${digits(Math.abs(each.moved[bin]), 2)}`;
  group.querySelector("p").textContent = added || "";
  group.querySelector("p").hidden = !added;
  group.querySelector(".cards").append(...cards.slice(0, state.most).map(shotOf));
  const normal = known ? normalOf(bin).slice(0, FEW) : [];
  group.querySelector("aside").hidden = !normal.length;
  group.querySelector("aside .cards").append(...normal.map(shotOf));
  return group;
}

/** The reference's own examples in a bin; of one class first, where that is given. */
function normalOf(bin, label) {
  const there = state.report.normal.filter((each) => bin === null || binOf(each) === bin);
  return there.sort((a, b) => (b.label === label) - (a.label === label));
}

function shotOf(card) {
  const item = $("card").content.firstElementChild.cloneNode(true);
  const button = item.querySelector("button");
  const value = state.statistic === "class" ? "" : `${state.statistic} ${digits(valueOf(card))}`;
  item.querySelector(".name").textContent = card.label;
  item.querySelector(".more").textContent = [card.normal ? "normal" : "", percentOr(card.confidence), value, card.unusual?.length ? "unusual" : "", wordsOf(card.mark)].filter(Boolean).join(" · ");
  if (card.unusual?.length) button.classList.add("unusual");
  if (card.mark) button.classList.add(card.mark.verdict);
  button.dataset.id = card.id;
  button.addEventListener("click", () => openPicture(card));
  const canvas = item.querySelector("canvas");
  canvas.card = card;
  drawn.observe(canvas);
  return item;
}

const percentOr = (confidence) => (confidence === null ? "" : state.report.scores === "none" ? digits(confidence, 4) : percent(confidence));
const VERDICTS = { right: "marked right", wrong: "marked wrong", bad_input: "marked bad input" };
const wordsOf = (mark) => (mark ? VERDICTS[mark.verdict] : "");

/** Reads a map as rows of numbers, 0 to 1. */
function rowsOf({ rows, columns, data }) {
  return Array.from({ length: rows }, (_, row) => Array.from({ length: columns }, (_, column) => parseInt(data.substr(2 * (row * columns + column), 2), 16) / 255));
}

/** Draws a card's picture, and its heatmap over it; a picture that was not kept is an even plate. */
async function draw(canvas, card, side) {
  const picture = { width: card.width, height: card.height, source: null, dimmed: false };
  const { size, scale } = fitSize(picture, side, card.picture ? 0 : side);
  Object.assign(canvas, size);
  const context = canvas.getContext("2d");
  picture.source = await sourceOf(card, size);
  const view = card.view || [0, 0, card.width, card.height];
  const heat = card.map && state.opacity > 0 ? paintHeat(toLevels(rowsOf(card.map), view, size, scale), colours, size) : null;
  paint(context, size, scale, picture, card.view, heat, state.opacity);
  canvas.dataset.drawn = "true";
}

async function sourceOf(card, size) {
  if (card.picture) {
    const image = new Image();
    image.src = card.picture;
    try {
      await image.decode();
      return image;
    } catch {
      // it was deleted meanwhile; the map is still there
    }
  }
  const plate = new OffscreenCanvas(size.width, size.height);
  const context = plate.getContext("2d");
  context.fillStyle = "#808080";
  context.fillRect(0, 0, plate.width, plate.height);
  return plate;
}

function listenForFilters() {
  const again = () => {
    state.most = PART;
    drawBins();
    drawGroups();
  };
  for (const id of ["sort", "label", "kind"]) $(id).addEventListener("change", again);
  $("find").addEventListener("input", again);
  $("opacity").addEventListener("input", () => {
    state.opacity = Number($("opacity").value) / 100;
    again();
  });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", () =>
    setTimeout(() => {
      Object.assign(state, { opacity: 0.5, bin: null });
      again();
    }),
  );
  $("more").addEventListener("click", () => {
    state.most += 4 * PART;
    drawGroups();
  });
}
