// What an edit has changed, as a picture.

import { blank } from "./mask.js";

// How far each pixel has changed: dark where it has not, then red, yellow and white.
export function heat(before, after) {
  const scale = Math.min(1, 1024 / Math.max(before.width, before.height));
  const [w, h] = [Math.max(1, Math.round(before.width * scale)), Math.max(1, Math.round(before.height * scale))];
  const [old, now] = [before, after].map((image) => {
    const ctx = blank(w, h).getContext("2d");
    ctx.fillStyle = "#fff";
    ctx.fillRect(0, 0, w, h);
    ctx.drawImage(image, 0, 0, w, h);
    return ctx.getImageData(0, 0, w, h).data;
  });
  const canvas = blank(w, h), ctx = canvas.getContext("2d"), out = ctx.createImageData(w, h);
  for (let i = 0; i < out.data.length; i += 4) {
    const change = Math.max(...[0, 1, 2].map((c) => Math.abs(now[i + c] - old[i + c])));
    const grey = 0.12 * (old[i] + old[i + 1] + old[i + 2]) / 3, hot = Math.min(1, change / 128);
    out.data[i] = grey + 255 * Math.min(1, 2.2 * hot);
    out.data[i + 1] = grey + 255 * Math.max(0, 1.8 * hot - 0.5);
    out.data[i + 2] = grey + 40 * hot + 215 * Math.max(0, 4 * hot - 3);
    out.data[i + 3] = 255;
  }
  ctx.putImageData(out, 0, 0);
  return canvas;
}
