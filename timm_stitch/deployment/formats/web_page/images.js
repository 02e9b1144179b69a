// From an image file to what the network takes, pixel for pixel as timm prepares it: Pillow's resampling in whole
// numbers, crop in the centre, mean and standard deviation.
"use strict";

const BITS = 22; // of a weight behind the point, as in Pillow

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

const FILTERS = {
  bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    at: (x) => {
      const a = -0.5;
      x = Math.abs(x);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
  lanczos: { support: 3, at: (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

// For each place of the output: the first place of the input that counts, and the weights from there.
function weights(before, after, filter) {
  const scale = before / after, wide = Math.max(scale, 1), support = filter.support * wide;
  return Array.from({ length: after }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), before);
    const some = Array.from({ length: end - first }, (_, i) => filter.at((first + i - centre + 0.5) / wide));
    const sum = some.reduce((total, one) => total + one, 0);
    return { first, some: some.map((one) => Math.trunc((one / sum) * 2 ** BITS + Math.sign(one) * 0.5)) };
  });
}

// Resample one direction: `lines` lines of `before` values become lines of `after`. A value lies at
// line * lineStep + place * step, before and after.
function resample(from, before, after, lines, step, lineStep, toStep, toLineStep, filter) {
  const to = new Uint8ClampedArray(lines * after);
  weights(before, after, filter).forEach(({ first, some }, place) => {
    for (let line = 0; line < lines; line++) {
      let sum = 2 ** (BITS - 1);
      for (let i = 0; i < some.length; i++) sum += from[line * lineStep + (first + i) * step] * some[i];
      to[line * toLineStep + place * toStep] = Math.min(Math.max(Math.floor(sum / 2 ** BITS), 0), 255);
    }
  });
  return to;
}

// A plane of pixels in another size.
export function resized({ pixels, width, height }, toWidth, toHeight, interpolation) {
  const filter = FILTERS[interpolation];
  if (toWidth !== width) pixels = resample(pixels, width, toWidth, height, 1, width, 1, toWidth, filter);
  if (toHeight !== height) pixels = resample(pixels, height, toHeight, toWidth, toWidth, 1, toWidth, 1, filter);
  return { pixels, width: toWidth, height: toHeight };
}

// A half goes to the even number, as in Python.
function rounded(x) {
  return x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
}

// The planes of an image that is decoded: one of grey, or three of colours.
function planes({ data, width, height }, channels) {
  const count = width * height;
  const plane = (at) => ({ pixels: Uint8ClampedArray.from({ length: count }, (_, i) => at(4 * i)), width, height });
  if (channels === 1) {
    return [plane((i) => (data[i] * 19595 + data[i + 1] * 38470 + data[i + 2] * 7471 + 0x8000) >> 16)];
  }
  return [0, 1, 2].map((channel) => plane((i) => data[i + channel]));
}

// (1, C, size, size) of pixels as a canvas has them.
export function prepared(image, { interpolation, crop_pct, crop_mode, mean, std }, [channels, size]) {
  const scaled = Math.floor(size / crop_pct), { width, height } = image;
  let [toWidth, toHeight] = [scaled, scaled];
  if (crop_mode !== "squash") {
    if (width <= height) toHeight = Math.trunc((scaled * height) / width);
    else toWidth = Math.trunc((scaled * width) / height);
  }
  const top = rounded((toHeight - size) / 2), left = rounded((toWidth - size) / 2);
  const out = new Float32Array(channels * size * size);
  planes(image, channels).forEach((plane, channel) => {
    const { pixels } = resized(plane, toWidth, toHeight, interpolation);
    for (let y = 0; y < size; y++) {
      for (let x = 0; x < size; x++) {
        const value = pixels[(y + top) * toWidth + x + left] / 255;
        out[(channel * size + y) * size + x] = (value - mean[channel]) / std[channel];
      }
    }
  });
  return out;
}

// The pixels of an image file, upright.
export async function decoded(file) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), ink = canvas.getContext("2d");
  ink.drawImage(bitmap, 0, 0);
  bitmap.close();
  return ink.getImageData(0, 0, canvas.width, canvas.height);
}
