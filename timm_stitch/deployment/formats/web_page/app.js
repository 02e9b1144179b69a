// The page: an image, a slider along the frontier, and what changes. All of it happens in this browser.
"use strict";

import * as ort from "./ort.wasm.bundle.min.mjs";
import { decoded, prepared } from "./images.js";
import { depths, drawOver, mask } from "./maps.js";

const OPEN = 3; // sessions at most: each has its own copy of the weights it uses
const CALLS = 7, PATIENCE = 500; // of a timing: at most so many calls, no further one after so many milliseconds
const byId = (id) => document.getElementById(id);

ort.env.wasm.numThreads = 1; // more would need headers that static hosts do not send
ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", document.baseURI).href };

let manifest, weights, input = null, picture = null;
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
  let values;
  await session.run({ images: input }); // to warm up
  const began = performance.now();
  while (times.length < CALLS && (!times.length || performance.now() - began < PATIENCE)) {
    const at = performance.now();
    values = (await session.run({ images: input }))[manifest.output.name].data;
    times.push(performance.now() - at);
  }
  times.sort((a, b) => a - b);
  return { values, ms: times[times.length >> 1] };
}

// The prediction, by the network's task: classes, a mask, or depths.
function showPrediction(values) {
  const shape = manifest.output.shape.slice(1);
  if (manifest.task === "depth") {
    const map = depths(values, shape);
    drawOver(byId("map"), picture, map, 1);
    byId("map").setAttribute("aria-label", `Depths of ${map.low.toFixed(2)} to ${map.high.toFixed(2)} m`);
  } else if (manifest.task === "segmentation") {
    const map = mask(values, shape);
    drawOver(byId("map"), picture, map, 0.55);
    showShares(map.shares);
  } else {
    const most = Math.max(...values), exp = Array.from(values, (x) => Math.exp(x - most));
    const sum = exp.reduce((total, one) => total + one, 0);
    showShares(exp.map((x, i) => [x / sum, i]).sort((a, b) => b[0] - a[0]));
  }
}

// The five classes with the largest shares.
function showShares(shares) {
  byId("prediction").replaceChildren(
    ...shares.slice(0, 5).map(([share, index]) => {
      const item = document.createElement("li"), name = document.createElement("span");
      const bar = document.createElement("meter"), number = document.createElement("span");
      name.textContent = manifest.labels[index];
      bar.value = share;
      number.textContent = `${(100 * share).toFixed(1)} %`;
      item.append(name, bar, number);
      return item;
    }),
  );
}

function showFacts(row, ms) {
  const known = scoreOf(row) === undefined ? "unknown" : written(scoreOf(row), manifest.score.digits);
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

const scoreOf = (row) => row[manifest.score.name];
const written = (value, digits) => `${value.toFixed(digits)}${manifest.score.percent ? " %" : ""}`;

function drawCurve() {
  const rows = manifest.stitches.filter((row) => scoreOf(row) !== undefined), curve = byId("curve");
  if (rows.length < 2) return curve.remove();
  const span = (values, grow) => {
    const [low, high] = [Math.min(...values), Math.max(...values)], edge = (high - low || 1) * grow;
    return [low - edge, high + edge];
  };
  const [fast, slow] = span(rows.map((row) => Math.log(row.macs)), 0.06);
  const [low, high] = span(rows.map(scoreOf), 0.12);
  const x = (row) => 56 + (570 * (Math.log(row.macs) - fast)) / (slow - fast);
  const y = (score) => 230 - (210 * (score - low)) / (high - low);
  svg(curve, "path", { class: "axis", d: "M56 12V230H632" });
  for (const share of [0, 0.5, 1]) {
    const score = low + (high - low) * (0.1 + 0.8 * share), digits = Math.max(manifest.score.digits - 1, 1);
    svg(curve, "text", { x: 50, y: y(score) + 4, "text-anchor": "end" }, written(score, digits));
    const row = rows[Math.round(share * (rows.length - 1))];
    svg(curve, "text", { x: x(row), y: 246, "text-anchor": "middle" }, short(row.macs));
  }
  svg(curve, "text", { x: 344, y: 262, "text-anchor": "middle" }, "multiply-adds of one image");
  svg(curve, "polyline", { points: rows.map((row) => `${x(row)},${y(scoreOf(row))}`).join(" ") });
  for (const row of rows) svg(curve, "circle", { cx: x(row), cy: y(scoreOf(row)), r: 4, "data-stitch-id": row.stitch_id });
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
      const { values, ms } = await look(row);
      if (mine !== wanted) return;
      showPrediction(values);
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
    picture = await createImageBitmap(image);
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
  byId("score").textContent = manifest.score.words;
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
