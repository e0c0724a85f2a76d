"use strict";
// Pictures in: as the model gets them, not as a browser would show them.

const HEAD = 1 << 17; // bytes of a JPEG that are searched for its orientation
const ORIENTATION = 0x0112; // its tag in EXIF

/**
 * Has the server draw a picture without its heatmap: scaled down where it is large, unseen parts at half brightness.
 * As PNG, or as JPEG where a PNG would be larger than an answer may be.
 */
async function renderByServer(picture, signal) {
  const rendered = async (format) => send(picture, { format, opacity: "0" }, `image/${format}`, signal);
  const response = await rendered("png").catch((failure) => {
    if (failure.kind !== "ResponseTooLarge") throw failure;
    return rendered("jpeg");
  });
  return createImageBitmap(await response.blob());
}

/**
 * Decodes a picture as the server does: rotated by its EXIF orientation only where the archive says so.
 * Null where the browser cannot, or would show something else than the model got: transparency, or another rotation.
 */
async function decode(blob) {
  try {
    const upright = facts.exif ? blob : await removeOrientation(blob);
    const source = upright && (await createImageBitmap(upright));
    return source && isOpaque(source) ? source : null;
  } catch {
    return null;
  }
}

/** Removes the EXIF orientation of a file, which browsers always apply; null where the file may have one that is not found. */
async function removeOrientation(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const isJpeg = bytes[0] === 0xff && bytes[1] === 0xd8;
  const text = new TextDecoder("latin1").decode(isJpeg ? bytes.subarray(0, HEAD) : bytes);
  if (!isJpeg) return /eXIf|EXIF/.test(text) ? null : blob;
  const exif = text.indexOf("Exif\0\0");
  if (exif < 0) return blob;
  const at = findOrientation(new DataView(bytes.buffer, exif + 6));
  if (at === null) return blob;
  bytes.fill(0, exif + 6 + at, exif + 8 + at); // no orientation: as it is stored
  return new Blob([bytes]);
}

/** Finds the orientation's two bytes in the first directory of a TIFF header: their offset, or null. */
function findOrientation(view) {
  const little = view.getUint16(0) === 0x4949;
  const directory = view.getUint32(4, little);
  const entries = view.getUint16(directory, little);
  for (let entry = 0; entry < entries; entry += 1) {
    const at = directory + 2 + 12 * entry;
    if (view.getUint16(at, little) === ORIENTATION) return at + 8;
  }
  return null;
}

function isOpaque(source) {
  const { size } = fitSize(source, 256);
  const context = new OffscreenCanvas(size.width, size.height).getContext("2d");
  context.drawImage(source, 0, 0, size.width, size.height);
  const { data } = context.getImageData(0, 0, size.width, size.height);
  for (let at = 3; at < data.length; at += 4) if (data[at] < 255) return false;
  return true;
}

/** A tensor has no picture: an even plate of its heatmap's proportions stands in for it. */
function standInFor(picture, heatmap) {
  const [rows, columns] = [heatmap.length, heatmap[0].length];
  const side = Math.max(1, Math.round(448 / Math.max(rows, columns)));
  const plate = new OffscreenCanvas(side * columns, side * rows);
  const context = plate.getContext("2d");
  context.fillStyle = "#808080";
  context.fillRect(0, 0, plate.width, plate.height);
  const info = { width: plate.width, height: plate.height, view: null };
  Object.assign(picture, { info, width: plate.width, height: plate.height, source: plate.transferToImageBitmap() });
}

/** Whether a part of the picture did not reach the model. */
function isCut({ width, height, info: { view } }) {
  return Boolean(view) && (view[0] > 0.5 || view[1] > 0.5 || view[2] < width - 0.5 || view[3] < height - 0.5);
}
