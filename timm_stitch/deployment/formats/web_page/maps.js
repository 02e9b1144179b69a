// Masks and depths of every pixel, drawn over the image with the colours of timm_stitch's own files.
"use strict";

const LARGEST = 640; // pixels of the longer side that is drawn

// The red, green and blue of a class: black for the first, then hues that are far apart.
export function colour(number) {
  if (number === 0) return [0, 0, 0];
  const hue = 6 * ((number * 0.618034) % 1), strength = 0.55 + 0.4 * (number % 2);
  const value = number % 3 === 2 ? 0.7 : 0.95;
  const part = (place) => {
    const at = (place + hue) % 6;
    return Math.round(255 * (value - value * strength * Math.max(0, Math.min(at, 4 - at, 1))));
  };
  return [part(5), part(3), part(1)];
}

// RGBA of the class with the largest logit at each pixel, and each class's share of the pixels, the largest first.
export function mask(logits, [classes, height, width]) {
  const size = height * width, pixels = new Uint8ClampedArray(4 * size), counts = new Array(classes).fill(0);
  const colours = Array.from({ length: classes }, (_, number) => colour(number));
  for (let i = 0; i < size; i++) {
    let best = 0;
    for (let k = 1; k < classes; k++) if (logits[k * size + i] > logits[best * size + i]) best = k;
    counts[best]++;
    pixels.set([...colours[best], 255], 4 * i);
  }
  const shares = counts.map((count, number) => [count / size, number]).filter(([share]) => share);
  return { pixels, height, width, shares: shares.sort((a, b) => b[0] - a[0]) };
}

// RGBA of depths in grey, the nearer the brighter, and the range in metres.
export function depths(metres, [, height, width]) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of metres) [low, high] = [Math.min(low, value), Math.max(high, value)];
  const pixels = new Uint8ClampedArray(4 * height * width).fill(255);
  metres.forEach((value, i) => pixels.fill((255 * (high - value)) / Math.max(high - low, 1e-6), 4 * i, 4 * i + 3));
  return { pixels, height, width, low, high };
}

// Draw a map over its image (a bitmap); `share` of it covers the image.
export function drawOver(canvas, image, { pixels, height, width }, share) {
  const scale = Math.min(1, LARGEST / Math.max(image.width, image.height)), ink = canvas.getContext("2d");
  const map = new OffscreenCanvas(width, height);
  map.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  [canvas.width, canvas.height] = [image.width, image.height].map((side) => Math.max(1, Math.round(scale * side)));
  ink.drawImage(image, 0, 0, canvas.width, canvas.height);
  ink.imageSmoothingEnabled = false;
  ink.globalAlpha = share;
  ink.drawImage(map, 0, 0, canvas.width, canvas.height);
  canvas.hidden = false;
}
