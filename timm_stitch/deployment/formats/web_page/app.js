// The page: an image, a slider along the frontier, and what changes. All of it happens in this browser.
"use strict";

import * as ort from "./ort.wasm.bundle.min.mjs";
import { decoded, prepared } from "./images.js";

const OPEN = 3; // sessions at most: each has its own copy of the weights it uses
const CALLS = 7, PATIENCE = 500; // of a timing: at most so many calls, no further one after so many milliseconds
const byId = (id) => document.getElementById(id);

ort.env.wasm.numThreads = 1; // more would need headers that static hosts do not send
ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", document.baseURI).href };

let manifest, weights, input = null;
let wanted = 0; // counts what was asked for, so that an answer to an older question is dropped
let queue = Promise.resolve(); // one run at a time, so that one's latency is not another's load
const sessions = new Map();

function svg(parent, kind, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function short(count) {
  const [unit, name] = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => count >= size) ?? [1, ""];
  return `${(count / unit).toPrecision(3)}${name}`;
}

async function bytesOf(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name} is not there (${answer.status})`);
  return new Uint8Array(await answer.arrayBuffer());
}

// The session of a stitch; the one that was used longest ago is closed where there are too many.
async function sessionOf(row) {
  let found = sessions.get(row.stitch_id);
  if (found) {
    sessions.delete(row.stitch_id);
  } else {
    const externalData = [{ path: "weights.bin", data: weights }];
    found = await ort.InferenceSession.create(await bytesOf(row.file), { externalData });
  }
  sessions.set(row.stitch_id, found);
  for (const [id, old] of sessions) {
    if (sessions.size <= OPEN) break;
    sessions.delete(id);
    await old.release();
  }
  return found;
}

async function look(row) {
  const session = await sessionOf(row), times = [];
  let logits;
  await session.run({ images: input }); // to warm up
  const began = performance.now();
  while (times.length < CALLS && (!times.length || performance.now() - began < PATIENCE)) {
    const at = performance.now();
    logits = (await session.run({ images: input })).logits.data;
    times.push(performance.now() - at);
  }
  times.sort((a, b) => a - b);
  return { logits, ms: times[times.length >> 1] };
}

function showPrediction(logits) {
  const most = Math.max(...logits), exp = Array.from(logits, (x) => Math.exp(x - most));
  const sum = exp.reduce((total, one) => total + one, 0);
  const top = exp.map((x, i) => [x / sum, manifest.labels[i]]).sort((a, b) => b[0] - a[0]).slice(0, 5);
  byId("prediction").replaceChildren(
    ...top.map(([share, label]) => {
      const item = document.createElement("li"), name = document.createElement("span");
      const bar = document.createElement("meter"), number = document.createElement("span");
      name.textContent = label;
      bar.value = share;
      number.textContent = `${(100 * share).toFixed(1)} %`;
      item.append(name, bar, number);
      return item;
    }),
  );
}

function showFacts(row, ms) {
  const known = row.top1 === undefined ? "unknown" : `${row.top1.toFixed(2)} %`;
  byId("stitch").textContent = `stitch ${row.stitch_id}`;
  byId("name").textContent = row.name;
  byId("top1").textContent = known;
  byId("macs").textContent = short(row.macs);
  byId("params").textContent = short(row.params);
  byId("latency").textContent = ms === undefined ? "–" : `${ms.toFixed(ms < 10 ? 2 : 0)} ms`;
  byId("slider").setAttribute("aria-valuetext", `stitch ${row.stitch_id}, ${short(row.macs)} multiply-adds, ${known}`);
  for (const dot of document.querySelectorAll("#curve circle")) {
    dot.classList.toggle("here", Number(dot.dataset.stitchId) === row.stitch_id);
  }
}

function drawCurve() {
  const rows = manifest.stitches.filter((row) => row.top1 !== undefined), curve = byId("curve");
  if (rows.length < 2) return curve.remove();
  const span = (values, grow) => {
    const [low, high] = [Math.min(...values), Math.max(...values)], edge = (high - low || 1) * grow;
    return [low - edge, high + edge];
  };
  const [fast, slow] = span(rows.map((row) => Math.log(row.macs)), 0.06);
  const [low, high] = span(rows.map((row) => row.top1), 0.12);
  const x = (row) => 56 + (570 * (Math.log(row.macs) - fast)) / (slow - fast);
  const y = (top1) => 230 - (210 * (top1 - low)) / (high - low);
  svg(curve, "path", { class: "axis", d: "M56 12V230H632" });
  for (const share of [0, 0.5, 1]) {
    const top1 = low + (high - low) * (0.1 + 0.8 * share);
    svg(curve, "text", { x: 50, y: y(top1) + 4, "text-anchor": "end" }, `${top1.toFixed(1)} %`);
    const row = rows[Math.round(share * (rows.length - 1))];
    svg(curve, "text", { x: x(row), y: 246, "text-anchor": "middle" }, short(row.macs));
  }
  svg(curve, "text", { x: 344, y: 262, "text-anchor": "middle" }, "multiply-adds of one image");
  svg(curve, "polyline", { points: rows.map((row) => `${x(row)},${y(row.top1)}`).join(" ") });
  for (const row of rows) svg(curve, "circle", { cx: x(row), cy: y(row.top1), r: 4, "data-stitch-id": row.stitch_id });
}

// Show the stitch under the slider: its facts at once, the prediction when it is there.
function show() {
  const row = manifest.stitches[Number(byId("slider").value)], mine = ++wanted;
  showFacts(row);
  if (!input) return;
  queue = queue.then(async () => {
    if (mine !== wanted) return;
    byId("status").textContent = "Running …";
    try {
      const { logits, ms } = await look(row);
      if (mine !== wanted) return;
      showPrediction(logits);
      showFacts(row, ms);
      byId("status").textContent = "";
      document.body.dataset.shown = row.stitch_id;
    } catch (error) {
      byId("status").textContent = `Stitch ${row.stitch_id} cannot run: ${error.message}`;
    }
  });
}

async function take(file) {
  if (!file) return;
  try {
    const image = await decoded(file), shape = manifest.input.shape.slice(1);
    byId("image").classList.toggle("small", image.height < 100);
    input = new ort.Tensor("float32", prepared(image, manifest.preprocessing, shape), [1, ...shape]);
  } catch (error) {
    byId("status").textContent = `${file.name} cannot be read as an image.`;
    return;
  }
  URL.revokeObjectURL(byId("image").src);
  byId("image").src = URL.createObjectURL(file);
  byId("image").hidden = false;
  show();
}

async function start() {
  manifest = await (await fetch("manifest.json")).json();
  manifest.stitches.sort((a, b) => a.macs - b.macs);
  const slider = byId("slider"), last = manifest.stitches.length - 1;
  [slider.max, slider.value, slider.disabled] = [Math.max(last, 1), last, last === 0];
  byId("count").textContent = `${last + 1} networks in one set of weights (${short(manifest.bytes)}B), switched here.`;
  drawCurve();
  show();
  byId("status").textContent = "Loading the weights …";
  weights = await bytesOf("weights.bin");
  byId("status").textContent = "";
  slider.addEventListener("input", show);
  byId("file").addEventListener("change", (event) => take(event.target.files[0]));
  byId("file").disabled = false;
  const drop = byId("drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
  }
  document.body.dataset.ready = "yes";
}

start().catch((error) => {
  byId("status").textContent = `The page cannot start: ${error.message}. Serve this folder: python -m http.server`;
});
