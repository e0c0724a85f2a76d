"use strict";
// Drawing: small maps become colours over a picture. Nothing here knows the page or the server.

const BETWEEN = 16; // colours are interpolated this finely between the 256 of a table
const LAST = 255 * BETWEEN; // the colour of 1
const OUTSIDE = 65535; // a pixel that the model did not see

/** Reads a table "rrggbbrrggbb..." of 256 colours, and interpolates it to LAST + 1 colours of three bytes each. */
function readPalette(hex) {
  const table = Array.from({ length: hex.length / 2 }, (_, index) => parseInt(hex.slice(2 * index, 2 * index + 2), 16));
  return Uint8ClampedArray.from({ length: 3 * (LAST + 1) }, (_, index) => {
    const step = Math.floor(index / 3) / BETWEEN;
    const at = 3 * Math.min(Math.floor(step), 254) + (index % 3);
    return table[at] + (step - (at - (index % 3)) / 3) * (table[at + 3] - table[at]);
  });
}

/**
 * Locates pixel centres along one axis among cells that divide [low, high], in original pixels, evenly. For each centre:
 * the two cells it lies between and its share of the way from the first to the second; null outside of the cells.
 * `scale` is drawn pixels per original pixel.
 */
function locatePixels(pixels, scale, low, high, cells) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const edge = (pixel + 0.5) / scale;
    if (edge < low || edge >= high) return null;
    const at = Math.min(Math.max(((edge - low) / (high - low)) * cells - 0.5, 0), cells - 1);
    const first = Math.min(Math.floor(at), Math.max(cells - 2, 0));
    return { first, second: Math.min(first + 1, cells - 1), share: at - first };
  });
}

/** Interpolates bilinearly between four cells; `across` and `down` come from `locatePixels`. */
function interpolate(heatmap, across, down) {
  const mix = (row) => row[across.first] * (1 - across.share) + row[across.second] * across.share;
  return mix(heatmap[down.first]) * (1 - down.share) + mix(heatmap[down.second]) * down.share;
}

/** The heatmap's value at a point of the original picture; null outside of what the model saw. */
function valueAt(heatmap, view, x, y) {
  const [left, top, right, bottom] = view;
  const across = locatePixels(1, 1, left + 0.5 - x, right + 0.5 - x, heatmap[0].length)[0];
  const down = locatePixels(1, 1, top + 0.5 - y, bottom + 0.5 - y, heatmap.length)[0];
  return across && down ? interpolate(heatmap, across, down) : null;
}

/** Computes each drawn pixel's place in a palette, 0 to LAST; OUTSIDE where the model did not see. */
function toLevels(heatmap, view, size, scale) {
  const [left, top, right, bottom] = view;
  const across = locatePixels(size.width, scale, left, right, heatmap[0].length);
  const down = locatePixels(size.height, scale, top, bottom, heatmap.length);
  const levels = new Uint16Array(size.width * size.height).fill(OUTSIDE);
  const [begin, end] = [across.findIndex(Boolean), across.findLastIndex(Boolean) + 1];
  const seen = across.slice(Math.max(begin, 0), end);
  const [first, second] = ["first", "second"].map((side) => Int32Array.from(seen, (column) => column[side]));
  const share = Float64Array.from(seen, (column) => column.share);
  down.forEach((row, y) => {
    if (!row) return;
    const line = heatmap[row.first].map((value, cell) => value * (1 - row.share) + heatmap[row.second][cell] * row.share);
    const start = y * size.width + begin;
    for (let x = 0; x < share.length; x += 1) {
      levels[start + x] = Math.round(LAST * (line[first[x]] * (1 - share[x]) + line[second[x]] * share[x]));
    }
  });
  return levels;
}

/** Paints levels in a palette's colours onto a new canvas, transparent where the model did not see. */
function paintHeat(levels, colours, size) {
  const canvas = new OffscreenCanvas(size.width, size.height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(size.width, size.height);
  const { data } = image;
  for (let pixel = 0; pixel < levels.length; pixel += 1) {
    if (levels[pixel] === OUTSIDE) continue;
    const from = 3 * levels[pixel];
    const to = 4 * pixel;
    data[to] = colours[from];
    data[to + 1] = colours[from + 1];
    data[to + 2] = colours[from + 2];
    data[to + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Draws the picture, at half brightness where the model did not see, and the heatmap over it. */
function paint(context, size, scale, picture, view, heat, opacity) {
  context.drawImage(picture.source, 0, 0, size.width, size.height);
  if (view && !picture.dimmed) {
    const [left, top, right, bottom] = view.map((edge) => Math.ceil(edge * scale - 0.5));
    context.fillStyle = "rgb(0 0 0 / 50%)";
    context.beginPath();
    context.rect(0, 0, size.width, size.height);
    context.rect(left, top, right - left, bottom - top);
    context.fill("evenodd");
  }
  if (!heat) return;
  context.globalAlpha = opacity;
  context.drawImage(heat, 0, 0);
  context.globalAlpha = 1;
}

/** Fits a picture's longest side between `least` and `most`: { size, scale }, `scale` in drawn pixels per original pixel. */
function fitSize(picture, most, least = 0) {
  const longest = Math.max(picture.width, picture.height);
  const scale = Math.min(most, Math.max(least, longest)) / longest;
  const size = { width: Math.max(1, Math.round(picture.width * scale)), height: Math.max(1, Math.round(picture.height * scale)) };
  return { size, scale };
}

/** Says in words where a box lies in a picture. */
function describePlace(box, width, height) {
  const third = (middle, whole) => Math.min(2, Math.floor((3 * middle) / whole));
  const across = third((box[0] + box[2]) / 2, width);
  const down = third((box[1] + box[3]) / 2, height);
  const rows = ["at the top", "", "at the bottom"];
  const columns = ["left", "", "right"];
  if (across === 1 && down === 1) return "in the middle";
  if (down === 1) return `on the ${columns[across]}`;
  return across === 1 ? rows[down] : `${rows[down]} ${columns[across]}`;
}

/** Intersection over union of two maps' bright cells, those of at least half the maximum; null if not comparable. */
function overlap(one, other) {
  if (one.length !== other.length || one[0].length !== other[0].length) return null;
  const bright = (map) => {
    const values = map.flat();
    const half = Math.max(...values) / 2;
    return half > 0 ? values.map((value) => value >= half) : null;
  };
  const [a, b] = [bright(one), bright(other)];
  if (!a || !b) return null;
  const count = (test) => a.filter((_, cell) => test(a[cell], b[cell])).length;
  return count((x, y) => x && y) / count((x, y) => x || y);
}
