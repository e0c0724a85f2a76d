"use strict";
const report = JSON.parse(document.getElementById("report").textContent);
const digits = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));

function make(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function figures() {
  const body = document.getElementById("figures");
  for (const [name, value] of Object.entries(report.figures)) {
    const row = make("tr");
    const beyond = report.exceeded.includes(name);
    const heading = make("th", report.meanings[name]);
    heading.scope = "row";
    row.append(heading, make("td", digits(value), beyond ? "beyond" : ""), make("td", name in report.limits ? `at most ${report.limits[name]}${beyond ? ": exceeded" : ""}` : ""));
    body.append(row);
  }
}

function pair(card) {
  const item = make("li", undefined, "pair");
  const both = make("div", undefined, "both");
  [[report.first, card.first], [report.second, card.second]].forEach(([name, label], index) => {
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
  text.append(make("div", `heatmaps of ${card.target}: ${card.silent ? `that of ${report.second} says nothing` : measures}`, card.silent ? "more beyond" : "more"));
  text.append(make("div", card.file, "file"));
  item.append(both, text);
  return item;
}

document.getElementById("summary").textContent = `${report.first} and ${report.second}, ${report.pictures} pictures`;
const verdict = document.getElementById("verdict");
if (report.exceeded.length) {
  verdict.textContent = `Beyond its limit: ${report.exceeded.join(", ")}`;
  verdict.className = "beyond";
} else {
  verdict.textContent = Object.keys(report.limits).length ? "Every limit is kept." : "No limits were set.";
}
figures();
document.getElementById("pairs").append(...report.cards.map(pair));
const classes = document.getElementById("classes");
classes.hidden = !report.classes;
classes.textContent = report.classes;
for (const name of ["failed", "skipped"]) {
  const files = Object.entries(report[name]);
  const section = document.getElementById(name);
  section.hidden = !files.length;
  section.querySelector("ul").append(...files.map(([file, why]) => make("li", `${file}: ${why}`)));
}
