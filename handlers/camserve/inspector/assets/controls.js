"use strict";
// What the controls do, and what the page shows before there is a picture.

/** Starts or ends a comparison: of the next class, or of another method. */
function compare(kind) {
  const [a] = state.wants;
  state.compare = kind;
  state.active = 0;
  state.wants = [a];
  if (!kind) return arrange();
  state.active = 1;
  const b = { ...a };
  if (kind === "class") b.target = state.classes.find((row) => row.index !== a.target)?.index ?? a.target;
  else b.method = [APART, ...facts.methods.map(({ name }) => name)].find((name) => name && name !== a.method) ?? a.method;
  state.wants.push(a);
  explained[1].show(state.explanations.get(keyOf(a)), "B");
  return want(1, { target: b.target, method: b.method });
}

/** The panes as one PNG at the picture's own size, with captions where there are several. */
async function picture() {
  const { size, scale } = fitSize(look.picture, 4096);
  const panes = [...(state.beside ? [original] : []), ...explained.slice(0, state.wants.length)];
  const strip = panes.length > 1 ? Math.round(Math.max(24, size.width / 18)) : 0;
  const canvas = new OffscreenCanvas(size.width * panes.length, size.height + strip);
  const context = canvas.getContext("2d");
  context.fillStyle = "#12161c";
  context.fillRect(0, 0, canvas.width, canvas.height);
  panes.forEach((pane, index) => {
    const { result } = pane;
    const tile = new OffscreenCanvas(size.width, size.height);
    const heat = result && paintHeat(toLevels(result.explanation.heatmap, viewOf(look.picture), size, scale), look.colours, size);
    paint(tile.getContext("2d"), size, scale, look.picture, result && look.picture.info.view, heat, look.opacity);
    if (result) paintContours(tile.getContext("2d"), result.explanation, size, scale);
    context.drawImage(tile, index * size.width, strip);
    if (strip) caption(context, result, index * size.width, strip, size.width);
  });
  return canvas.convertToBlob({ type: "image/png" });
}

function caption(context, result, left, height, width) {
  context.fillStyle = "#ffffff";
  context.font = `${Math.round(height * 0.5)}px Inter, system-ui, sans-serif`;
  context.textBaseline = "middle";
  const text = result ? `${result.explanation.label}, ${amount(result.explanation.probability)}, ${result.method}` : "Original";
  context.fillText(text, left + height / 3, height / 2, width - (2 * height) / 3);
}

function setOpacity(value) {
  look.opacity = value / 100;
  $("opacity").value = String(value);
  $("opacity").style.setProperty("--at", `${value}%`);
  $("percent").textContent = `${value} %`;
  $("opacity").setAttribute("aria-valuetext", `${value} percent`);
}

function setColours(name) {
  look.colours = readPalette(facts.colormaps[name]);
  const stops = Array.from({ length: 18 }, (_, index) => `rgb(${look.colours.subarray(3 * 240 * index, 3 * 240 * index + 3).join(" ")})`);
  $("ramp").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
}

const drawAllBoxes = () => [original, ...explained].filter((pane) => pane.root.isConnected).forEach((pane) => pane.drawBoxes());
const redraw = () => explained.slice(0, state.wants.length).forEach((pane) => pane.draw());

function showFacts() {
  const classes = `${facts.classes.toLocaleString("en")} class${facts.classes === 1 ? "" : "es"}`;
  $("model").textContent = facts.model;
  $("about").textContent = [facts.version && `version ${facts.version}`, classes].filter(Boolean).join(" · ");
  const untrained = facts.random_weights && "the model's weights are random, its answers mean nothing";
  $("foot").textContent = [`camserve ${facts.camserve}`, untrained, facts.weights && `weights ${facts.weights}`].filter(Boolean).join(" · ");
  fill($("colormap"), Object.keys(facts.colormaps).map((name) => [name, name[0].toUpperCase() + name.slice(1), ""]));
  $("colormap").value = facts.colormap;
  $("labels").replaceChildren(...(facts.labels || []).map((label) => new Option("", label)));
  if (facts.tensors) {
    document.querySelectorAll("input.file").forEach((input) => (input.accept = ".npy"));
    document.querySelector("#welcome .lead").textContent =
      `This model takes no pictures, but tensors of ${facts.tensors} channels. Give it one as an .npy file of floats: a heatmap shows where what speaks for its answer lies.`;
    document.querySelector("#welcome .drop .primary").textContent = "Choose a tensor (.npy)";
    document.querySelector("#welcome .drop .hint").textContent = "or drop one anywhere";
  }
  $("samples").hidden = !facts.samples.length;
  $("samples").querySelector("ul").append(...facts.samples.map(sample));
}

function sample({ name, data }) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const image = new Image();
  image.src = data;
  image.alt = name.replace(/\..*$/, "");
  button.type = "button";
  button.append(image);
  button.addEventListener("click", () => open(new Blob([Uint8Array.from(atob(data.split(",")[1]), (c) => c.charCodeAt(0))]), name));
  item.append(button);
  return item;
}

function listen() {
  document.querySelectorAll("input.file").forEach((input) =>
    input.addEventListener("change", () => {
      if (input.files.length) take([...input.files]);
      input.value = "";
    }),
  );
  $("dismiss").addEventListener("click", () => ($("failure").hidden = true));
  $("theme").addEventListener("click", changeTheme);
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = $("label").value.trim();
    if (typed) ask(typed);
  });
  $("layout").addEventListener("change", (event) => {
    state.beside = event.target.value === "beside";
    arrange();
  });
  $("compare").addEventListener("change", (event) => compare(event.target.value));
  $("chosen").addEventListener("change", (event) => choose(Number(event.target.value)));
  $("opacity").addEventListener("input", () => {
    setOpacity(Number($("opacity").value));
    redraw();
  });
  $("colormap").addEventListener("change", () => {
    setColours($("colormap").value);
    redraw();
  });
  for (const name of ["view", "region"]) {
    $(name).addEventListener("change", () => {
      look[name] = $(name).checked;
      drawAllBoxes();
    });
  }
  $("png").addEventListener("click", async () => download(await picture(), fileName(look.picture.name, "-heatmap.png")));
  $("json").addEventListener("click", () => {
    const all = answers();
    download(new Blob([JSON.stringify(all.length > 1 ? all : all[0])], { type: "application/json" }), fileName(look.picture.name, "-heatmap.json"));
  });
  $("copy").addEventListener("click", copyCurl);
  $("apart").addEventListener("click", () => {
    $("panes").querySelector("canvas").focus({ preventScroll: true }); // the button goes away
    state.wants.forEach((_, index) => want(index, { method: APART }));
  });
}

/** Copies the command, or selects it where the browser does not let a page copy. */
async function copyCurl() {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    $("copy").textContent = "Copied";
    say("Copied");
  } catch {
    getSelection().selectAllChildren($("curl"));
    say("Selected; copy it with the keyboard");
  }
}

function listenForPictures() {
  let depth = 0;
  const land = (on) => ($("landing").hidden = !on);
  addEventListener("dragenter", (event) => {
    event.preventDefault();
    depth += 1;
    land(true);
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("dragleave", () => {
    depth -= 1;
    if (depth <= 0) land(false);
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    land(false);
    take([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length || !event.target.closest?.("input")) take(files);
  });
}

/** Opens the kept picture that the address names, where this page's server has what was kept of watched predictions. */
async function openKept() {
  const kept = /^#evidence=([\w-][\w.-]*)\/([\w-][\w.-]*)$/.exec(location.hash);
  if (!kept) return;
  const response = await fetch(`/evidence/files/${kept[1]}/${kept[2]}`).catch(() => null);
  if (response?.ok) await open(await response.blob(), kept[2]);
  else fail(new Failure("Gone", "It was deleted meanwhile, or this server has none of what was kept."));
}

startTheme();
showFacts();
setOpacity(Math.round(100 * facts.opacity));
setColours(facts.colormap);
listen();
listenForArea();
listenForPictures();
openKept();
