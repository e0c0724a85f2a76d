"use strict";
// One picture at large: beside what is normal, with what is known of it, and how it is marked.

const LARGE = 1024; // longest side, in pixels

function openPicture(card) {
  state.at = card;
  state.from ??= document.activeElement;
  showPicture();
  if (!$("picture").open) $("picture").showModal();
}

function showPicture() {
  const card = state.at;
  const { report } = state;
  $("name").textContent = [card.normal && "Normal", card.label, percentOr(card.confidence)].filter(Boolean).join(", ");
  draw($("large"), card, LARGE);
  $("large").setAttribute("aria-label", `Heatmap of ${card.label} over the picture`);
  $("said").textContent = [card.map ? "" : "The map says nothing.", card.picture ? "" : "No picture was kept of this one: the map is drawn on a plate.", ...(card.unusual || [])].filter(Boolean).join(" ");
  $("said").hidden = !$("said").textContent;
  const normal = card.normal ? [] : [...normalOf(binOf(card), card.label), ...normalOf(null, card.label).filter((each) => each.label === card.label)];
  const few = [...new Set(normal)].slice(0, 4);
  $("normal").replaceChildren(...few.map(shotOf));
  $("abnormal").hidden = few.length > 0;
  $("abnormal").textContent = card.normal ? "" : report.no_examples;
  const at = state.shown.indexOf(card);
  $("previous").disabled = at <= 0;
  $("next").disabled = at < 0 || at === state.shown.length - 1;
  showWays(card);
  showMark(card);
  showFacts(card);
}

function showWays(card) {
  $("inspect").hidden = card.normal || !card.picture || !state.report.inspector;
  $("inspect").href = `${state.report.inspector}#evidence=${state.report.folder}/${card.name}`;
  $("save").hidden = card.normal || !card.picture;
  $("save").href = card.picture || "";
  $("save").download = `${card.id}.${(card.picture || "").startsWith("data:image/webp") ? "webp" : "jpg"}`;
}

function showMark(card) {
  $("marking").hidden = card.normal || !state.report.live;
  for (const input of $("marking").verdict) input.checked = card.mark?.verdict === input.value;
  $("note").value = card.mark?.note ?? "";
  const { mark } = card;
  const when = mark && new Date(1000 * mark.time).toISOString().slice(0, 16).replace("T", " ");
  $("marked").textContent = mark ? `${wordsOf(mark)}${mark.note ? `: ${mark.note}` : ""} (${mark.who || "nobody was named"}, ${when} UTC)` : "";
}

function showFacts(card) {
  const { names } = state.report;
  const time = card.time ? `${new Date(1000 * card.time).toISOString().replace("T", " ").slice(0, 19)} UTC` : null;
  const rows = [
    ["time", time],
    ["request", card.request],
    ["id", card.id],
    ["kept", card.normal ? null : [card.sample ? `as one of the random sample (stands for ${digits(card.weight)})` : "", ...card.unusual].filter(Boolean).join("; ")],
    ["classes", card.classes],
    ...names.map((name, index) => [name, name === "class" ? null : card.values[index] === null ? null : digits(card.values[index], 4)]),
  ];
  $("facts-of").replaceChildren(...rows.filter(([, value]) => value).flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
}

function step(by) {
  const next = state.shown[state.shown.indexOf(state.at) + by];
  if (!next || !state.shown.includes(state.at)) return;
  openPicture(next);
  say($("name").textContent);
}

async function mark(event) {
  event.preventDefault();
  const card = state.at;
  const verdict = $("marking").verdict.value;
  if (!verdict) {
    $("marked").textContent = "Choose what it is first.";
    return;
  }
  try {
    const response = await fetch(`${location.pathname.replace(/\/$/, "")}/marks`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ name: card.name, model: state.report.folder, verdict, note: $("note").value.trim() }),
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.message);
    card.mark = answer;
    showMark(card);
    drawBins();
    drawGroups();
    say(`${card.label} is ${wordsOf(answer)}`);
  } catch (error) {
    $("marked").textContent = `It could not be marked: ${error.message}`;
  }
}

function listenForPicture() {
  const dialog = $("picture");
  $("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    const { id } = state.at;
    const again = [...document.querySelectorAll(`#groups [data-id="${id}"], #bins [data-id="${id}"]`)];
    (state.from?.isConnected ? state.from : again[0] || $("pictures")).focus();
    state.from = null;
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.target.matches("input") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("marking").addEventListener("submit", mark);
}

startTheme();
$("theme").addEventListener("click", changeTheme);
adopt(state.report);
listenForPeriods();
listenForFilters();
listenForPicture();
