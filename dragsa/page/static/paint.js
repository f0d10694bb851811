// Paints what a board shows: the picture, the preview of what is asked, the mask's veil, drags, and the way of handles.

import { blank } from "./mask.js";
import { along, bent, distance, groups, hole } from "./warp.js";

const START = "#e8222e", TARGET = "#2060ff", PATH = "#f020c0", INK = "#303338";
const LARGE = 2048; // pixels of the longer side up to which a picture is painted as it is
const shrunk = new WeakMap();

// Paint the board, whose points are [x, y] in pixels of the picture. What it keeps of it is in `board.kept`.
export function paint(board) {
  const ctx = board.canvas.getContext("2d"), { view, picture } = board;
  ctx.setTransform(board.sharp, 0, 0, board.sharp, 0, 0);
  ctx.clearRect(0, 0, board.wide, board.high);
  if (!picture) return;
  const { width, height } = picture, { mode, image, frame, box } = board.shown;
  const scale = view.scale * board.sharp;
  ctx.save();
  ctx.translate(view.x, view.y);
  ctx.scale(view.scale, view.scale);
  ctx.imageSmoothingEnabled = view.scale < 12;
  ctx.imageSmoothingQuality = "high";
  ctx.fillStyle = "#fff"; // what is transparent is laid on white
  ctx.fillRect(0, 0, width, height);
  ctx.drawImage(sized(picture.image, scale), 0, 0, width, height);
  if (mode === "draw") drawAsked(ctx, board);
  if (frame) ctx.drawImage(frame, ...(box || [0, 0, width, height]));
  if (mode === "heat") ctx.drawImage(image, 0, 0, width, height);
  if (mode === "compare") drawCompared(ctx, board, sized(image, scale));
  ctx.restore();
  if (mode === "compare") drawDivider(ctx, board);
  if (mode === "live" || mode === "steps") drawCourse(ctx, board);
  if (mode === "draw") drawMarks(ctx, board);
}

// A large picture's smaller copy where that shows the same: the picture itself would be shrunk anew at every move.
function sized(image, scale) {
  const longer = Math.max(image.width, image.height);
  if (longer <= LARGE || scale * longer > LARGE) return image;
  if (!shrunk.has(image)) {
    const [w, h] = [image.width, image.height].map((side) => Math.max(1, Math.round((side * LARGE) / longer)));
    const copy = blank(w, h), ctx = copy.getContext("2d");
    ctx.imageSmoothingQuality = "high";
    ctx.drawImage(image, 0, 0, w, h);
    shrunk.set(image, copy);
  }
  return shrunk.get(image);
}

// ---- what is asked

function drawAsked(ctx, board) {
  const { width, height } = board.picture, drags = board.asked();
  const painting = board.gesture?.stroke?.kind === "brush";
  if (board.preview && drags.length && !painting) {
    for (const { image, move } of preview(board, drags)) {
      ctx.save();
      if (move) ctx.transform(...move);
      ctx.drawImage(image, 0, 0, width, height);
      ctx.restore();
    }
  }
  if (board.now.strokes.length || painting) drawVeil(ctx, board);
}

// The veil over what is to stay; its stripes are seen on a dark picture, too.
function drawVeil(ctx, { canvas, kept, mask, now, picture, sharp, view }) {
  const veil = (kept.veil ??= blank(1, 1)), on = veil.getContext("2d"), scale = sharp * view.scale;
  [veil.width, veil.height] = [canvas.width, canvas.height];
  on.setTransform(scale, 0, 0, scale, sharp * view.x, sharp * view.y);
  const striped = on.createPattern((kept.stripes ??= stripes()), "repeat");
  striped.setTransform(new DOMMatrix().scale(1 / view.scale));
  for (const colour of ["rgb(22 26 40 / 0.62)", striped]) {
    on.fillStyle = colour;
    on.fillRect(0, 0, picture.width, picture.height);
  }
  on.globalCompositeOperation = "destination-out";
  if (now.soft) on.filter = `blur(${now.soft * scale}px)`;
  on.drawImage(mask.canvas, 0, 0, picture.width, picture.height);
  ctx.save();
  ctx.setTransform(1, 0, 0, 1, 0, 0);
  ctx.drawImage(veil, 0, 0);
  ctx.restore();
}

function stripes() {
  const tile = blank(12, 12), ctx = tile.getContext("2d");
  for (const x of [-12, 0, 12]) line(ctx, [[x, 12], [x + 12, 0]], "rgb(255 255 255 / 0.22)", 1.5);
  return tile;
}

// The layers of the preview, each an image and how it is moved; they are made anew where drags or mask have changed.
function preview(board, drags) {
  const { kept, mask, now } = board, key = JSON.stringify([drags, now.strokes.length && mask.version]);
  if (kept.preview?.key !== key) {
    const masked = now.strokes.length > 0 && !mask.isEmpty();
    kept.preview = { key, layers: masked ? movedLayers(board, drags) : [bentLayer(board, drags)] };
  }
  return kept.preview.layers;
}

function bentLayer(board, drags) {
  const { w, h, pixels, scale } = smallPicture(board, 360);
  return { image: canvasOf(bent(pixels, w, h, scaled(drags, scale)), w, h) };
}

// The hole, and over it each part of the mask that moves alike.
function movedLayers(board, drags) {
  const { w, h, pixels, scale } = smallPicture(board, 200);
  const alpha = board.mask.drawn(w, h).getContext("2d").getImageData(0, 0, w, h).data.filter((_, i) => i % 4 === 3);
  const parts = groups(scaled(drags, scale), Math.max(w, h)), part = along(alpha, w, h, parts);
  const layers = parts.map(({ move }, i) => {
    const shape = new Uint8ClampedArray(4 * w * h);
    part.forEach((number, n) => (shape[4 * n + 3] = number === i + 1 ? 255 : 0));
    const image = cutOut(board.picture, canvasOf(shape, w, h));
    return { image, move: [move.a, move.b, -move.b, move.a, move.x0 / scale, move.y0 / scale] };
  });
  return [{ image: canvasOf(hole(pixels, w, h, part, parts), w, h) }, ...layers];
}

const scaled = (drags, scale) => drags.map((drag) => drag.map(([x, y]) => [(x + 0.5) * scale, (y + 0.5) * scale]));

// The picture where a shape is, at up to 1,024 pixels.
function cutOut({ width, height, image }, shape) {
  const scale = Math.min(1, 1024 / Math.max(width, height));
  const cut = blank(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
  const ctx = cut.getContext("2d");
  ctx.drawImage(shape, 0, 0, cut.width, cut.height);
  ctx.globalCompositeOperation = "source-in";
  ctx.drawImage(sized(image, scale), 0, 0, cut.width, cut.height);
  return cut;
}

function smallPicture({ kept, picture: { width, height, image } }, side) {
  if (kept.small?.side === side) return kept.small;
  const scale = Math.min(1, side / Math.max(width, height));
  const [w, h] = [Math.max(2, Math.round(width * scale)), Math.max(2, Math.round(height * scale))];
  const ctx = blank(w, h).getContext("2d");
  ctx.fillStyle = "#fff";
  ctx.fillRect(0, 0, w, h);
  ctx.drawImage(sized(image, scale), 0, 0, w, h);
  kept.small = { side, w, h, scale: w / width, pixels: ctx.getImageData(0, 0, w, h).data };
  return kept.small;
}

// ---- marks over the picture, in pixels of the screen

function drawMarks(ctx, board) {
  const { chosen, gesture, now, path, pointer, view } = board, screen = (point) => board.toScreen(point);
  board.asked().forEach((drag, i) => {
    const strong = i === chosen || i >= now.drags.length;
    drawArrow(ctx, drag.map(screen), i + 1, strong, i === chosen ? board.end : null);
  });
  if (gesture?.kind === "drag" && !gesture.pull[1]) dot(ctx, screen(gesture.pull[0]), 7, START);
  if (gesture?.stroke?.kind === "rectangle") outline(ctx, corners(gesture.stroke.points).map(screen), true);
  if (path) outline(ctx, [...path.map(screen), ...(pointer ? [pointer] : [])], false);
  if (["brush", "erase"].includes(board.tool) && pointer) {
    ring(ctx, pointer, (board.brush * view.scale) / 2, "#fff", 2.5);
    ring(ctx, pointer, (board.brush * view.scale) / 2, INK, 1);
  }
}

// held: the end that the arrow keys move, 0 or 1; null for an arrow that is not chosen.
function drawArrow(ctx, [start, end], number, strong, held) {
  const long = distance(start, end);
  if (long > 24) {
    const [ux, uy] = [(end[0] - start[0]) / long, (end[1] - start[1]) / long];
    const tip = [end[0] - ux * 11, end[1] - uy * 11], neck = [tip[0] - ux * 10, tip[1] - uy * 10];
    const wings = [[neck[0] - uy * 5.5, neck[1] + ux * 5.5], [neck[0] + uy * 5.5, neck[1] - ux * 5.5]];
    line(ctx, [start, neck], "#fff", strong ? 6 : 5);
    fill(ctx, [tip, ...wings], INK, "#fff", 3);
    line(ctx, [start, neck], INK, strong ? 3 : 2);
    fill(ctx, [tip, ...wings], INK);
  }
  ring(ctx, end, 8, "#fff", 6);
  ring(ctx, end, 8, TARGET, strong ? 4 : 3);
  dot(ctx, start, strong ? 11 : 10, START);
  if (held !== null) ring(ctx, [start, end][held], 14, "#fff", 1.5);
  ctx.fillStyle = "#fff";
  ctx.font = "600 12px system-ui, sans-serif";
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.fillText(String(number), start[0], start[1] + 0.5);
}

// The handles' way so far, and where they are.
function drawCourse(ctx, board) {
  const { handles = [], paths = [], drags = board.now.drags } = board.shown;
  drags.forEach(([from, to], i) => {
    const target = board.toScreen(to), way = [from, ...paths.map((row) => row[i])].map((point) => board.toScreen(point));
    line(ctx, [way[0], target], "rgb(255 255 255 / 0.75)", 1.5, [4, 4]);
    ring(ctx, target, 8, "#fff", 6);
    ring(ctx, target, 8, TARGET, 3);
    line(ctx, way, "#fff", 5);
    line(ctx, way, PATH, 2.5);
    dot(ctx, way[0], 4, START);
    if (handles[i]) dot(ctx, board.toScreen(handles[i]), 7, PATH);
  });
}

function drawCompared(ctx, { picture: { width, height }, shown }, image) {
  const from = shown.share * width;
  ctx.save();
  ctx.beginPath();
  ctx.rect(from, 0, width - from, height);
  ctx.clip();
  ctx.drawImage(image, 0, 0, width, height);
  ctx.restore();
}

function drawDivider(ctx, { picture: { width, height }, shown, view }) {
  const x = shown.share * width * view.scale + view.x;
  const [top, bottom] = [view.y, view.y + height * view.scale], middle = (top + bottom) / 2;
  line(ctx, [[x, top], [x, bottom]], "rgb(0 0 0 / 0.35)", 4);
  line(ctx, [[x, top], [x, bottom]], "#fff", 2);
  dot(ctx, [x, middle], 14, "#fff", "rgb(0 0 0 / 0.35)");
  fill(ctx, [[x - 8, middle], [x - 3, middle - 5], [x - 3, middle + 5]], INK);
  fill(ctx, [[x + 8, middle], [x + 3, middle - 5], [x + 3, middle + 5]], INK);
  label(ctx, "before", view.x + 10, top + 10, "left");
  label(ctx, "after", view.x + width * view.scale - 10, top + 10, "right");
}

// ---- small things

const corners = ([[x, y], [u, v]]) => [[x, y], [u, y], [u, v], [x, v]];

function canvasOf(data, w, h) {
  const canvas = blank(w, h);
  canvas.getContext("2d").putImageData(new ImageData(data, w, h), 0, 0);
  return canvas;
}

function trail(ctx, points) {
  ctx.beginPath();
  for (const point of points) ctx.lineTo(...point);
}

function line(ctx, points, colour, width, dashes = []) {
  trail(ctx, points);
  ctx.setLineDash(dashes);
  ctx.lineCap = ctx.lineJoin = "round";
  [ctx.strokeStyle, ctx.lineWidth] = [colour, width];
  ctx.stroke();
  ctx.setLineDash([]);
}

function fill(ctx, points, colour, rim, width) {
  trail(ctx, points);
  ctx.closePath();
  if (rim) {
    [ctx.strokeStyle, ctx.lineWidth, ctx.lineJoin] = [rim, width, "round"];
    ctx.stroke();
  }
  ctx.fillStyle = colour;
  ctx.fill();
}

function outline(ctx, points, closed) {
  for (const [colour, width] of [["#fff", 3], [INK, 1.5]]) line(ctx, closed ? [...points, points[0]] : points, colour, width);
}

function ring(ctx, [x, y], radius, colour, width) {
  ctx.beginPath();
  ctx.arc(x, y, radius, 0, 2 * Math.PI);
  [ctx.strokeStyle, ctx.lineWidth] = [colour, width];
  ctx.stroke();
}

function dot(ctx, [x, y], radius, colour, rim = "#fff") {
  ctx.beginPath();
  ctx.arc(x, y, radius, 0, 2 * Math.PI);
  [ctx.fillStyle, ctx.strokeStyle, ctx.lineWidth] = [colour, rim, 2];
  ctx.fill();
  ctx.stroke();
}

function label(ctx, text, x, y, align) {
  ctx.font = "500 12px system-ui, sans-serif";
  [ctx.textAlign, ctx.textBaseline] = [align, "top"];
  const wide = ctx.measureText(text).width + 12;
  ctx.fillStyle = "rgb(0 0 0 / 0.55)";
  ctx.fillRect(align === "left" ? x : x - wide, y, wide, 20);
  ctx.fillStyle = "#fff";
  ctx.fillText(text, align === "left" ? x + 6 : x - 6, y + 4);
}
