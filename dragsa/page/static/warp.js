// What a pull asks for, guessed at once and without any network: the masked part moved as a whole, or, without a mask,
// the picture bent smoothly. Points are [x, y] in pixels, edge to edge: a pixel's centre is at x + 0.5.

const WORST = 0.024; // of the longer side: handles that one similarity leaves further off move in groups

// The similarity (x, y) -> (a x - b y + x0, b x + a y + y0) that brings handles nearest to targets, by least squares.
export function fitted(drags) {
  const n = drags.length, mean = (end, axis) => drags.reduce((sum, drag) => sum + drag[end][axis], 0) / n;
  const [hx, hy, tx, ty] = [mean(0, 0), mean(0, 1), mean(1, 0), mean(1, 1)];
  let [re, im, spread] = [0, 0, 0];
  for (const [[x, y], [u, v]] of drags) {
    re += (x - hx) * (u - tx) + (y - hy) * (v - ty);
    im += (x - hx) * (v - ty) - (y - hy) * (u - tx);
    spread += (x - hx) ** 2 + (y - hy) ** 2;
  }
  const [a, b] = spread > 1e-6 ? [re / spread, im / spread] : [1, 0];
  return { a, b, x0: tx - a * hx + b * hy, y0: ty - b * hx - a * hy };
}

export function moved({ a, b, x0, y0 }, [x, y]) {
  return [a * x - b * y + x0, b * x + a * y + y0];
}

export function unmoved({ a, b, x0, y0 }, [x, y]) {
  const size = a * a + b * b || 1e-9, u = x - x0, v = y - y0;
  return [(a * u + b * v) / size, (a * v - b * u) / size];
}

// The drags in groups that each move alike, with their similarity.
export function groups(drags, side) {
  const move = fitted(drags);
  const off = drags.map(([handle, target]) => distance(moved(move, handle), target));
  if (drags.length === 1 || Math.max(...off) <= WORST * side) return [{ drags, move }];
  const place = ([[x, y], [u, v]]) => [u - x, v - y, x / 2, y / 2];
  const apart = (one, other) => Math.hypot(...one.map((value, i) => value - other[i]));
  let centres = [drags[0], drags[0]].map(place);
  centres[1] = drags.map(place).reduce((far, one) => (apart(one, centres[0]) > apart(far, centres[0]) ? one : far));
  let parts = [drags, []];
  for (let round = 0; round < 8; round++) {
    parts = [[], []];
    for (const drag of drags) parts[apart(place(drag), centres[0]) <= apart(place(drag), centres[1]) ? 0 : 1].push(drag);
    if (!parts[0].length || !parts[1].length) return drags.map((drag) => ({ drags: [drag], move: fitted([drag]) }));
    centres = parts.map((part) => part.map(place).reduce((sum, one) => sum.map((v, i) => v + one[i] / part.length), [0, 0, 0, 0]));
  }
  return parts.flatMap((part) => groups(part, side));
}

// Which pixels go along: those of the mask (alpha, w × h) whose way lies within it, numbered by group from 1.
// They go with the nearest handle's group. The drags are in pixels of this mask.
export function along(alpha, w, h, parts) {
  const part = new Uint8Array(w * h), white = (x, y) => x >= 0 && y >= 0 && x < w && y < h && alpha[(y | 0) * w + (x | 0)] >= 128;
  const handles = parts.flatMap(({ drags }, i) => drags.map(([handle]) => [...handle, i]));
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      if (alpha[y * w + x] < 128) continue;
      let [best, nearest] = [0, Infinity];
      for (const [hx, hy, i] of handles) {
        const away = (hx - x) ** 2 + (hy - y) ** 2;
        if (away < nearest) [best, nearest] = [i, away];
      }
      const from = [x + 0.5, y + 0.5], to = moved(parts[best].move, from);
      const steps = Math.min(32, Math.ceil(distance(from, to)));
      let inside = true;
      for (let n = 1; inside && n <= steps; n++) {
        inside = white(from[0] + ((to[0] - from[0]) * n) / steps, from[1] + ((to[1] - from[1]) * n) / steps);
      }
      if (inside) part[y * w + x] = best + 1;
    }
  }
  return part;
}

// The picture (RGBA, w × h) where something has left and nothing has come: filled from the ground round it, each pixel
// the mean of its neighbours. What has come keeps its own edge. Elsewhere the answer is transparent.
export function hole(pixels, w, h, part, parts) {
  const out = new Uint8ClampedArray(4 * w * h), open = [];
  const comes = (x, y) => parts.some(({ move }, i) => {
    const [u, v] = unmoved(move, [x + 0.5, y + 0.5]);
    return u >= 0 && v >= 0 && u < w && v < h && part[(v | 0) * w + (u | 0)] === i + 1;
  });
  const left = new Uint8Array(w * h); // 1: to fill; 2: something comes there
  for (let i = 0; i < w * h; i++) {
    if (!part[i]) continue;
    left[i] = comes(i % w, (i / w) | 0) ? 2 : 1;
    if (left[i] === 1) open.push(i);
  }
  const value = new Float32Array(3 * w * h);
  for (let i = 0; i < w * h; i++) for (let c = 0; c < 3; c++) value[3 * i + c] = pixels[4 * i + c];
  const near = open.map((i) => {
    const x = i % w, all = [x > 0 && i - 1, x < w - 1 && i + 1, i >= w && i - w, i < w * (h - 1) && i + w];
    return all.filter((j) => j !== false && left[j] !== 2);
  });
  // From the rim inwards a first guess, then a few rounds of means.
  const known = new Uint8Array(w * h).map((_, i) => (left[i] ? 0 : 1));
  let waiting = open.map((_, n) => n);
  while (waiting.length) {
    const found = waiting.filter((n) => near[n].some((j) => known[j]));
    if (!found.length) break;
    for (const n of found) mean(value, open[n], near[n].filter((j) => known[j]));
    for (const n of found) known[open[n]] = 1;
    waiting = waiting.filter((n) => !known[open[n]]);
  }
  for (let round = 0; round < 40; round++) for (let n = 0; n < open.length; n++) mean(value, open[n], near[n]);
  for (const i of open) {
    for (let c = 0; c < 3; c++) out[4 * i + c] = value[3 * i + c];
    out[4 * i + 3] = 255;
  }
  return out;
}

// The picture (RGBA, w × h) bent so that each handle's surroundings come to its target, less and less with distance.
export function bent(pixels, w, h, drags) {
  const out = new Uint8ClampedArray(4 * w * h), side = Math.max(w, h);
  const pulls = drags.map(([from, to]) => {
    const reach = Math.max(0.1 * side, 0.8 * distance(from, to));
    return { by: [to[0] - from[0], to[1] - from[1]], at: to, spread: 2 * reach * reach };
  });
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      let [u, v, sum] = [0, 0, 0];
      for (const { by, at, spread } of pulls) {
        const share = Math.exp(-((x + 0.5 - at[0]) ** 2 + (y + 0.5 - at[1]) ** 2) / spread);
        u += share * by[0];
        v += share * by[1];
        sum += share;
      }
      if (sum > 1) [u, v] = [u / sum, v / sum];
      if (Math.abs(u) + Math.abs(v) < 0.03) continue;
      sample(pixels, w, h, x - u, y - v, out, 4 * (y * w + x));
    }
  }
  return out;
}

function sample(pixels, w, h, x, y, out, at) {
  x = Math.min(w - 1.001, Math.max(0, x));
  y = Math.min(h - 1.001, Math.max(0, y));
  const i = x | 0, j = y | 0, fx = x - i, fy = y - j, first = 4 * (j * w + i), below = first + 4 * w;
  for (let c = 0; c < 3; c++) {
    const above = pixels[first + c] * (1 - fx) + pixels[first + 4 + c] * fx;
    out[at + c] = above * (1 - fy) + (pixels[below + c] * (1 - fx) + pixels[below + 4 + c] * fx) * fy;
  }
  out[at + 3] = 255;
}

function mean(value, at, from) {
  if (!from.length) return;
  for (let c = 0; c < 3; c++) value[3 * at + c] = from.reduce((sum, j) => sum + value[3 * j + c], 0) / from.length;
}

export function distance([x, y], [u, v]) {
  return Math.hypot(u - x, v - y);
}
