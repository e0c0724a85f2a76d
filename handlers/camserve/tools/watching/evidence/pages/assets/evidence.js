"use strict";
// The page's state, the list of statistics and the histogram. What a report holds is said in report.py.

const $ = (id) => document.getElementById(id);
const THIN = "\u202f";
const FEW = 3; // pictures under each bin
const PART = 12; // pictures of a bin that are shown before the rest is asked for
const state = { report: JSON.parse($("report").textContent), statistic: null, bin: null, opacity: 0.5, most: PART, shown: [], at: null };

const statisticOf = (name) => state.report.statistics.find((each) => each.name === name);
const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}${THIN}%`;
const digits = (value, count = 3) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(count))));
const say = (text) => ($("status").textContent = text);

function make(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// ---- Statistics

function listStatistics() {
  const held = document.activeElement?.dataset?.statistic;
  const rows = state.report.statistics.map((each) => {
    const item = $("row").content.firstElementChild.cloneNode(true);
    const button = item.querySelector("button");
    button.dataset.statistic = each.name;
    button.querySelector(".label").textContent = each.name;
    button.querySelector(".share").textContent = each.enough ? `${each.psi.toFixed(2)} of ${each.threshold.toFixed(2)}` : "too few to tell";
    button.style.setProperty("--share", `${Math.min(100, (40 * each.psi) / each.threshold)}%`); // .bound stands at 40 %
    button.classList.toggle("drifted", each.drifted);
    button.setAttribute("aria-pressed", String(each.name === state.statistic));
    button.addEventListener("click", () => chooseStatistic(each.name));
    return item;
  });
  $("statistics").replaceChildren(...rows);
  if (held) $("statistics").querySelector(`[data-statistic="${held}"]`)?.focus();
}

function chooseStatistic(name) {
  if (state.report.live && name !== state.report.first) {
    ask({ stat: name }); // which pictures are sent goes by the statistic
    return;
  }
  Object.assign(state, { statistic: name, bin: null, most: PART });
  show();
  const { drifted, psi, threshold } = statisticOf(name);
  say(`${name}: PSI ${psi.toFixed(2)}, threshold ${threshold.toFixed(2)}, ${drifted ? "drifted" : "not drifted"}`);
}

// ---- The histogram

function describe() {
  const { report } = state;
  const each = statisticOf(state.statistic);
  $("statistic").textContent = each ? each.name : "No statistics";
  $("psi").textContent = each ? `PSI ${each.psi.toFixed(3)} · threshold ${each.threshold.toFixed(3)}` : "";
  $("meaning").textContent = each ? each.meaning : report.why;
  $("then").textContent = report.against;
  $("now").textContent = report.period;
  if (!each) {
    $("rests").textContent = "";
    return;
  }
  const verdict = !each.enough ? "Too few pictures to tell drift from chance." : each.drifted ? "Chance does not explain the difference." : "Chance explains the difference.";
  const worth = each.images < report.sampled ? ` (worth ${each.images.toLocaleString("en")} here)` : "";
  const sampled = `${report.sampled.toLocaleString("en")} pictures of the random sample${worth}, which stand for about ${report.stand_for.toLocaleString("en")} predictions`;
  const counted = `${verdict} Now: ${report.counted ? `all ${report.counted.toLocaleString("en")} watched predictions, as Prometheus counted them` : sampled}`;
  $("rests").textContent = `${counted}; before: ${report.against_images.toLocaleString("en")}. What was kept because it is unusual lies under its bin and is not counted. What is expected goes by the classes that come now.`;
}

function drawBins() {
  const each = statisticOf(state.statistic);
  $("bins").hidden = !each;
  if (!each) return;
  const highest = Math.max(...each.now, ...each.expected);
  const held = document.activeElement?.dataset?.bin;
  const bins = each.labels.map((label, place) => {
    const item = $("bin").content.firstElementChild.cloneNode(true);
    const button = item.querySelector("button");
    const [now, then] = [each.now[place], each.expected[place]];
    button.dataset.bin = place;
    button.setAttribute("aria-pressed", String(state.bin === place));
    button.setAttribute("aria-label", `${label}: ${percent(now)} now, ${percent(then)} expected`);
    button.title = `${label}: ${percent(now)} now, ${percent(then)} expected`;
    button.querySelector(".then").style.setProperty("--share", `${(100 * then) / highest}%`);
    button.querySelector(".now").style.setProperty("--share", `${(100 * now) / highest}%`);
    item.classList.toggle("up", each.drifted && each.moved[place] > 0);
    item.querySelector(".range").textContent = label;
    item.querySelector(".few").append(...cardsIn(place).slice(0, FEW).map(shotOf));
    button.addEventListener("click", () => chooseBin(state.bin === place ? null : place));
    return item;
  });
  $("bins").replaceChildren(...bins);
  if (held !== undefined) $("bins").querySelector(`[data-bin="${held}"]`)?.focus();
}

/** Shows the pictures of one bin alone, or (null) of all. */
function chooseBin(place) {
  Object.assign(state, { bin: place, most: PART });
  drawBins();
  drawGroups();
  say(place === null ? "Pictures of all bins" : `Pictures of the bin ${statisticOf(state.statistic).labels[place]}`);
}

// ---- Arranging

function show() {
  const { report } = state;
  document.title = `${report.model}: what moved`;
  $("model").textContent = report.model;
  $("about").textContent = report.about;
  $("foot").textContent = [`camserve ${report.camserve}`, report.left_out].filter(Boolean).join(" · ");
  listStatistics();
  describe();
  drawBins();
  drawGroups();
}

function adopt(report) {
  const wanted = report.first ?? report.statistics[0]?.name ?? null;
  Object.assign(state, { report, statistic: wanted, bin: null, most: PART });
  const labels = [...new Set(report.cards.map((card) => card.label))].sort(new Intl.Collator("en", { numeric: true }).compare);
  const chosen = report.chosen ?? $("label").value;
  $("label").replaceChildren(new Option("all", ""), ...labels.map((label) => new Option(label, label)));
  $("label").value = labels.includes(chosen) ? chosen : "";
  if (report.kind) $("kind").value = report.kind;
  show();
}

/** Asks the server for another period, comparison or statistic; the address is that of what is shown. */
async function ask(change) {
  const asked = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries({ class: $("label").value, ...change })) value ? asked.set(name, value) : asked.delete(name);
  document.body.setAttribute("aria-busy", "true");
  try {
    const response = await fetch(`${location.pathname.replace(/\/$/, "")}/report.json?${asked}`);
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.message);
    history.replaceState(null, "", `?${asked}`);
    $("failure").hidden = true;
    adopt(answer);
    say(`${state.statistic}: ${$("psi").textContent}`);
  } catch (error) {
    fail("That cannot be shown", error.message);
  } finally {
    document.body.setAttribute("aria-busy", "false");
  }
}

function fail(heading, text) {
  $("failure").querySelector("h2").textContent = heading;
  $("failure").querySelector("p").textContent = text;
  $("failure").hidden = false;
}

function listenForPeriods() {
  const asked = new URLSearchParams(location.search);
  $("period").hidden = !state.report.live;
  $("since").value = asked.get("since") || state.report.since;
  $("until").value = asked.get("until") || "now";
  $("against").value = asked.get("against") || "";
  $("period").addEventListener("submit", (event) => {
    event.preventDefault();
    ask({ since: $("since").value.trim(), until: $("until").value.trim(), against: $("against").value });
  });
}
