"use strict";
// Requests to the model that this page belongs to, and what goes out: file names and the curl command.

const facts = JSON.parse(document.getElementById("facts").textContent);
const ENDPOINT = location.pathname;
const PATIENCE = [400, 1200, 3000]; // milliseconds before each new try when the server is full

/** What went wrong: `kind` is the server's type of error, or Unreachable, Busy, Empty, Gone, TooLarge, Unreadable. */
class Failure extends Error {
  constructor(kind, message) {
    super(message);
    this.kind = kind;
  }
}

const HEADINGS = {
  InvalidImage: "This picture cannot be read",
  UnsupportedFormat: "This kind of file is not accepted",
  Empty: "This file is empty",
  Gone: "This picture is not here",
  ImageTooLarge: "This picture is too large",
  TooLarge: "This file is too large",
  UnknownLabel: "No class of that name",
  InvalidOption: "That cannot be asked",
  Unreachable: "No answer from the server",
  Busy: "The server is busy",
  OutOfMemory: "The server has too little memory",
  InternalError: "The server failed",
};

/** Sends one request; options are strings. Retries while the server is full. */
async function send(picture, options, accept, signal) {
  const form = new FormData();
  form.append("data", new Blob([picture.blob], { type: "application/octet-stream" }), "picture");
  // one button asks for a check; an archive that checks everything would check each class of the list
  for (const [name, value] of Object.entries(facts.checked ? { check: "false", ...options } : options)) form.append(name, value);
  for (let turn = 0; ; turn += 1) {
    const response = await post(form, accept, signal);
    if (response.ok) return response;
    if (response.status !== 503 || turn === PATIENCE.length) throw await failureOf(response);
    await new Promise((resolve) => setTimeout(resolve, PATIENCE[turn]));
  }
}

async function post(form, accept, signal) {
  try {
    return await fetch(ENDPOINT, { method: "POST", body: form, headers: { accept }, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("Unreachable", "It may have stopped, be loading, or the network may be down. Your picture is still here.");
  }
}

async function failureOf(response) {
  const text = await response.text();
  try {
    const { type, message } = JSON.parse(text);
    if (response.status === 503) return new Failure("Busy", `All of its workers are taken. ${message}`);
    return new Failure(String(type), String(message));
  } catch {
    if (response.status === 413) return new Failure("TooLarge", "The server does not accept uploads of this size.");
    return new Failure("InternalError", `It answered with status ${response.status}.`);
  }
}

/** Explains a picture; `seconds` is the time from sending to the whole answer. */
async function explain(picture, options, signal) {
  const started = performance.now();
  const response = await send(picture, options, "application/json", signal);
  const text = await response.text();
  try {
    return { answer: JSON.parse(text), seconds: (performance.now() - started) / 1000 };
  } catch {
    throw new Failure("InternalError", "Its answer could not be read.");
  }
}

/** What may help: labels to try, from the message of an UnknownLabel error; indices as numbers. */
function suggestions(failure) {
  if (failure.kind !== "UnknownLabel") return [];
  const near = failure.message.split("the nearest are ")[1];
  if (near) return (near.match(/"(?:[^"\\]|\\.)*"/g) || []).map((quoted) => JSON.parse(quoted)).filter((label) => !label.endsWith("..."));
  const indices = failure.message.split("give its index: ")[1] || "";
  return (indices.match(/\d+(?! more)\b/g) || []).map(Number);
}

/** How a typed class is asked for: digits are an index, everything else is a label, whatever it looks like. */
function targetOf(typed) {
  if (facts.scores === "none" && /^-\d+$/.test(typed)) return typed;
  return /^\d+$/.test(typed) ? typed : JSON.stringify([typed]);
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The command that asks for one explanation; `options` without the archive's defaults. */
function curlCommand(name, options) {
  const file = name.replace(/[\x00-\x1f\x7f]/g, "?").replaceAll("\\", "\\\\").replaceAll('"', '\\"');
  const parts = Object.entries(options).map(([option, value]) => `--form-string ${quoted(`${option}=${value}`)}`);
  return ["curl", `-F ${quoted(`data=@"${file}"`)}`, ...parts, quoted(location.origin + ENDPOINT)].join(" \\\n  ");
}

/** A file name for downloads: letters, digits, dots and dashes of the picture's name. */
function fileName(name, ending) {
  const stem = name.replace(/\.[A-Za-z0-9]{1,5}$/, "").replace(/[^\p{L}\p{N}.-]+/gu, "_").slice(0, 80);
  return `${stem || "picture"}${ending}`;
}

function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
