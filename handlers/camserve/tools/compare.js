"use strict";
const told = JSON.parse(document.getElementById("told").textContent);
const digits = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));

function make(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function figures() {
  const body = document.getElementById("figures");
  for (const [name, value] of Object.entries(told.figures)) {
    const row = make("tr");
    const beyond = told.exceeded.includes(name);
    const heading = make("th", told.meanings[name]);
    heading.scope = "row";
    row.append(heading, make("td", digits(value), beyond ? "beyond" : ""), make("td", name in told.limits ? `at most ${told.limits[name]}${beyond ? ": exceeded" : ""}` : ""));
    body.append(row);
  }
}

function pair(card) {
  const item = make("li", undefined, "pair");
  const both = make("div", undefined, "both");
  [[told.first, card.first], [told.second, card.second]].forEach(([name, label], index) => {
    const figure = make("figure");
    const picture = make("img");
    picture.src = card.pictures[index];
    picture.alt = `What ${name} looked at for ${card.target}`;
    figure.append(picture, make("figcaption", `${name}: ${label}`));
    both.append(figure);
  });
  const text = make("div", undefined, "text");
  text.append(make("div", card.first === card.second ? card.first : `${card.first} became ${card.second}`, card.first === card.second ? "label" : "label beyond"));
  text.append(make("div", `heatmaps of ${card.target}: overlap ${digits(card.overlap)}, rank correlation ${digits(card.rank)}, shift ${digits(card.shift)}`, "more"));
  text.append(make("div", card.file, "file"));
  item.append(both, text);
  return item;
}

document.getElementById("summary").textContent = `${told.first} and ${told.second}, ${told.pictures} pictures`;
const verdict = document.getElementById("verdict");
if (told.exceeded.length) {
  verdict.textContent = `Beyond its limit: ${told.exceeded.join(", ")}`;
  verdict.className = "beyond";
} else {
  verdict.textContent = Object.keys(told.limits).length ? "Every limit is kept." : "No limits were set.";
}
figures();
document.getElementById("pairs").append(...told.cards.map(pair));
const failed = Object.entries(told.failed);
document.getElementById("failed").hidden = !failed.length;
document.getElementById("failures").append(...failed.map(([file, why]) => make("li", `${file}: ${why}`)));
