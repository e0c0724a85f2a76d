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
    if (card.pictures[index]) {
      const picture = make("img");
      picture.src = card.pictures[index];
      picture.alt = `What ${name} looked at for ${card.target}`;
      figure.append(picture);
    }
    figure.append(make("figcaption", `${name}: ${label}`));
    both.append(figure);
  });
  const text = make("div", undefined, "text");
  text.append(make("div", card.changed ? `${card.first} became ${card.second}` : card.first, card.changed ? "label beyond" : "label"));
  const measures = `overlap ${digits(card.overlap)}, rank correlation ${digits(card.rank)}, shift ${digits(card.shift)}`;
  text.append(make("div", `heatmaps of ${card.target}: ${card.silent ? `that of ${told.second} says nothing` : measures}`, card.silent ? "more beyond" : "more"));
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
const classes = document.getElementById("classes");
classes.hidden = !told.classes;
classes.textContent = told.classes;
for (const name of ["failed", "skipped"]) {
  const files = Object.entries(told[name]);
  const section = document.getElementById(name);
  section.hidden = !files.length;
  section.querySelector("ul").append(...files.map(([file, why]) => make("li", `${file}: ${why}`)));
}
