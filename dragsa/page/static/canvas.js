// The canvas on which a picture is dragged: press, pull, let go. The page and the notebook's widget share it.
// Points that come in and go out are [x, y] in pixels of the picture, pixel centres at whole numbers.

import { Mask, blank, whiteAsAlpha } from "./mask.js";
import { along, bent, distance, groups, hole } from "./warp.js";

const START = "#e8222e", TARGET = "#2060ff", PATH = "#f020c0", INK = "#303338";
const NEAR = 16; // CSS pixels within which a press takes hold of an end
const SHORTEST = 5; // CSS pixels that a pull has at least; less is a press
const ICONS = {
  drag: '<path d="M4 16 L14 6 M8 5.5 H14.5 V12"/><circle cx="4" cy="16" r="1.6"/>',
  pan: '<path d="M10 2.5v15M2.5 10h15M10 2.5l-2 2M10 2.5l2 2M10 17.5l-2-2M10 17.5l2-2M2.5 10l2-2M2.5 10l2 2M17.5 10l-2-2M17.5 10l-2 2"/>',
  brush: '<path d="M16.5 3.5 9 11M9 11c-2.5-.5-4 1-4 3 0 1-1 2-2 2 3 1.5 7 .5 7-2.5z"/>',
  erase: '<path d="M8 16.5 3.5 12 11.5 4l5 5-7.5 7.5zM7 8.5l5 5M8 16.5h8.5"/>',
  rectangle: '<rect x="3.5" y="5" width="13" height="10"/>',
  polygon: '<path d="M4 13 7 4l9 2 .5 7-6 4z"/>',
  invert: '<circle cx="10" cy="10" r="6.5"/><path d="M10 3.5a6.5 6.5 0 0 1 0 13z" fill="currentColor"/>',
  undo: '<path d="M4 8h8a4 4 0 0 1 0 8H8M4 8l3.5-3.5M4 8l3.5 3.5"/>',
  redo: '<path d="M16 8H8a4 4 0 0 0 0 8h4M16 8l-3.5-3.5M16 8l-3.5 3.5"/>',
  remove: '<path d="M5 6h10M8 6V4h4v2M6 6l.7 10h6.6L14 6"/>',
  clear: '<path d="M5 5l10 10M15 5 5 15"/>',
  eye: '<path d="M2.5 10S5 5 10 5s7.5 5 7.5 5-2.5 5-7.5 5-7.5-5-7.5-5z"/><circle cx="10" cy="10" r="2.2"/>',
  fit: '<path d="M3.5 7.5v-4h4M12.5 3.5h4v4M16.5 12.5v4h-4M7.5 16.5h-4v-4"/>',
};
const TOOLS = {
  drag: "Drag: press on the picture, pull, let go (D)",
  pan: "Move the view: pull; wheel or two fingers zoom (H, or hold Space)",
  brush: "Mask brush: what is painted may move (B)",
  erase: "Mask eraser (E)",
  rectangle: "Mask rectangle (R)",
  polygon: "Mask polygon: press corner by corner, Enter or the first corner closes it (P)",
};
const ACTIONS = {
  invert: "Invert the mask",
  undo: "Undo (Ctrl Z)",
  redo: "Redo (Ctrl Shift Z)",
  remove: "Delete the chosen drag (Delete)",
  clear: "Clear drags and mask",
  eye: "Preview under the pointer",
  fit: "Whole picture (0)",
};
const KEYS = { d: "drag", h: "pan", b: "brush", e: "erase", r: "rectangle", p: "polygon" };
const EMPTY = { drags: [], strokes: [], soft: 0 };

export class Board {
  // host: the element to fill. changed: called after every change of drags or mask.
  constructor(host, changed = () => {}) {
    this.changed = changed;
    this.picture = null;
    this.now = EMPTY;
    this.past = [];
    this.future = [];
    this.tool = "drag";
    this.chosen = -1;
    this.preview = true;
    this.shown = { mode: "draw" };
    this.brush = 40;
    this.pointers = new Map();
    this.view = { scale: 1, x: 0, y: 0 };
    this.build(host);
  }

  // ---- what others use

  // Show another picture, anything that a canvas draws, of this size in pixels.
  open(image, width, height) {
    this.picture = { image, width, height };
    this.mask = new Mask(width, height);
    [this.now, this.past, this.future, this.chosen, this.shown] = [EMPTY, [], [], -1, { mode: "draw" }];
    this.fitted = true;
    this.cut = this.small = null;
    this.brush = Math.max(4, Math.round(Math.max(width, height) / 14));
    this.size.value = this.brush;
    this.size.max = Math.round(Math.max(width, height) / 3);
    this.host.classList.add("has-picture");
    this.layout();
    this.told();
  }

  get drags() {
    return this.now.drags;
  }

  // Take drags and, of a mask, its picture or null in place of what is there; one step for undo.
  take(drags, mask = null) {
    const strokes = mask ? [{ kind: "picture", image: whiteAsAlpha(mask) }] : [];
    this.set({ drags, strokes, soft: 0 });
  }

  // The mask as a PNG of the picture's size; null where there is none.
  maskFile() {
    return this.mask ? this.mask.file(this.now.soft) : Promise.resolve(null);
  }

  // What is seen: {mode: "draw"}, {mode: "live", handles, paths, frame, box}, {mode: "compare", image},
  // {mode: "heat", image}, or {mode: "steps", …} like "live".
  show(what) {
    if (what.mode === "compare") what.share ??= this.shown.mode === "compare" ? this.shown.share : 0.5;
    this.shown = what;
    this.host.dataset.mode = what.mode;
    this.draw();
  }

  // ---- the document: drags and strokes, with undo

  set(next, keep = true) {
    if (keep) {
      this.past.push(this.now);
      this.future = [];
    }
    this.now = next;
    this.chosen = Math.min(this.chosen, next.drags.length - 1);
    this.mask.paint(next.strokes);
    this.told();
  }

  step(from, to) {
    if (!from.length) return;
    to.push(this.now);
    this.set(from.pop(), false);
  }

  told() {
    this.soft.value = this.now.soft;
    this.buttons.undo.disabled = !this.past.length;
    this.buttons.redo.disabled = !this.future.length;
    this.buttons.remove.disabled = this.chosen < 0;
    this.buttons.clear.disabled = !this.now.drags.length && !this.now.strokes.length;
    this.draw();
    this.changed();
  }

  act(name) {
    if (!this.picture) return;
    if (name === "undo") this.step(this.past, this.future);
    if (name === "redo") this.step(this.future, this.past);
    if (name === "clear") this.set({ ...EMPTY });
    if (name === "invert") this.set({ ...this.now, strokes: [...this.now.strokes, { kind: "invert" }] });
    if (name === "remove" && this.chosen >= 0) {
      const drags = this.now.drags.filter((_, i) => i !== this.chosen);
      this.chosen = -1;
      this.set({ ...this.now, drags });
    }
    if (name === "fit") {
      this.fitted = true;
      this.layout();
    }
    if (name === "eye") {
      this.preview = !this.preview;
      this.buttons.eye.setAttribute("aria-pressed", this.preview);
      this.draw();
    }
  }

  use(tool) {
    this.tool = tool;
    this.path = null;
    for (const name of Object.keys(TOOLS)) this.buttons[name].setAttribute("aria-pressed", name === tool);
    this.host.dataset.tool = tool;
    this.draw();
  }

  // ---- pointers

  down(event) {
    if (!this.picture) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.focus({ preventScroll: true });
    const at = [event.offsetX, event.offsetY];
    this.pointers.set(event.pointerId, at);
    if (this.pointers.size === 2) {
      this.cancel();
      this.pinch = this.fingers();
      return;
    }
    if (this.pointers.size > 2 || event.button > 1) return;
    const drawing = this.shown.mode === "draw";
    if (event.button === 1 || this.space || this.tool === "pan" || (!drawing && this.shown.mode !== "compare")) {
      this.gesture = { kind: "pan", from: at, view: { ...this.view } };
    } else if (this.shown.mode === "compare") {
      this.gesture = { kind: "divider" };
      this.move(event);
    } else if (this.tool === "drag") {
      this.press(at);
    } else {
      this.paint(at);
    }
  }

  press(at) {
    const held = this.endAt(at), point = this.toPicture(at);
    if (held) {
      this.chosen = held.drag;
      this.gesture = { kind: "end", ...held, start: this.now, from: at, offset: sub(this.now.drags[held.drag][held.end], point) };
    } else {
      this.chosen = -1;
      this.gesture = { kind: "drag", from: at, pull: [rounded(this.inside(point)), null] };
    }
    this.told();
  }

  paint(at) {
    const point = this.toPicture(at), erase = this.tool === "erase";
    if (this.tool === "polygon") {
      this.path = [...(this.path || []), point];
      const first = this.toScreen(this.path[0]);
      if (this.path.length > 3 && distance(first, at) < NEAR) this.close();
      this.draw();
      return;
    }
    const kind = this.tool === "rectangle" ? "rectangle" : "brush";
    const stroke = { kind, erase, width: this.brush, points: kind === "brush" ? [point] : [point, point] };
    this.gesture = { kind: "stroke", stroke };
    if (kind === "brush") this.mask.add(stroke);
    this.draw();
  }

  move(event) {
    const at = [event.offsetX, event.offsetY];
    this.pointer = at;
    if (this.pointers.has(event.pointerId)) this.pointers.set(event.pointerId, at);
    if (this.pinch && this.pointers.size === 2) return this.pinched();
    const { gesture } = this, point = this.picture && this.toPicture(at);
    if (!gesture) {
      this.hover(at);
      return;
    }
    if (gesture.kind === "pan") {
      this.view = { ...gesture.view, x: gesture.view.x + at[0] - gesture.from[0], y: gesture.view.y + at[1] - gesture.from[1] };
      this.fitted = false;
    } else if (gesture.kind === "divider") {
      this.shown.share = Math.min(1, Math.max(0, (point[0] + 0.5) / this.picture.width));
    } else if (gesture.kind === "drag") {
      gesture.pull[1] = rounded(this.inside(point));
    } else if (gesture.kind === "end") {
      if (!gesture.moved && distance(at, gesture.from) < 2) return;
      gesture.moved = true;
      const drags = this.now.drags.map((drag) => [...drag]);
      drags[gesture.drag][gesture.end] = rounded(this.inside(add(point, gesture.offset)));
      this.now = { ...this.now, drags };
    } else if (gesture.kind === "stroke" && gesture.stroke.kind === "rectangle") {
      gesture.stroke.points[1] = point;
    } else if (gesture.kind === "stroke") {
      gesture.stroke.points.push(point);
      this.mask.add(gesture.stroke, gesture.stroke.points.length - 1);
    }
    this.draw();
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (this.pinch) {
      if (!this.pointers.size) this.pinch = null;
      return;
    }
    const { gesture } = this;
    this.gesture = null;
    if (!gesture) return;
    if (gesture.kind === "drag") {
      const [from, to] = gesture.pull;
      if (to && distance(this.toScreen(from), this.toScreen(to)) >= SHORTEST && distance(from, to) > 0) {
        this.chosen = this.now.drags.length;
        this.set({ ...this.now, drags: [...this.now.drags, [from, to]] });
      }
    } else if (gesture.kind === "end" && gesture.moved) {
      this.past.push(gesture.start);
      this.future = [];
      this.told();
    } else if (gesture.kind === "stroke") {
      if (gesture.stroke.kind === "brush") this.mask.strokes = [...this.now.strokes, gesture.stroke];
      this.set({ ...this.now, strokes: [...this.now.strokes, gesture.stroke] });
    }
    this.draw();
  }

  // Take back what the gesture has begun.
  cancel() {
    const { gesture } = this;
    this.gesture = this.path = null;
    if (!gesture) return;
    if (gesture.kind === "end") this.now = gesture.start;
    if (gesture.kind === "stroke") {
      this.mask.strokes = [{}]; // no longer what is painted: paint it anew
      this.mask.paint(this.now.strokes);
    }
    this.draw();
  }

  close() {
    const points = this.path;
    this.path = null;
    if (points && points.length > 2) this.set({ ...this.now, strokes: [...this.now.strokes, { kind: "polygon", points }] });
    this.draw();
  }

  hover(at) {
    const drawing = this.shown.mode === "draw" && this.tool === "drag" && this.picture;
    this.canvas.classList.toggle("over-end", Boolean(drawing && this.endAt(at)));
    if (["brush", "erase", "polygon"].includes(this.tool)) this.draw();
  }

  // The end of a drag near a place of the screen: targets before handles, the chosen one and later ones first.
  endAt(at) {
    const order = this.now.drags.map((_, i) => i).reverse().sort((i, j) => (j === this.chosen) - (i === this.chosen));
    for (const end of [1, 0]) {
      for (const drag of order) if (distance(this.toScreen(this.now.drags[drag][end]), at) < NEAR) return { drag, end };
    }
    return null;
  }

  fingers() {
    const [one, other] = [...this.pointers.values()];
    return { middle: [(one[0] + other[0]) / 2, (one[1] + other[1]) / 2], apart: Math.max(1, distance(one, other)) };
  }

  pinched() {
    const now = this.fingers();
    this.zoom(now.apart / this.pinch.apart, now.middle);
    this.view.x += now.middle[0] - this.pinch.middle[0];
    this.view.y += now.middle[1] - this.pinch.middle[1];
    this.pinch = now;
    this.draw();
  }

  zoom(by, [x, y]) {
    const scale = Math.min(64, Math.max(0.02, this.view.scale * by)), factor = scale / this.view.scale;
    this.view = { scale, x: x - (x - this.view.x) * factor, y: y - (y - this.view.y) * factor };
    this.fitted = false;
    this.draw();
  }

  key(event) {
    const name = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey;
    if (name === " ") this.space = true;
    else if (command && name === "z") this.act(event.shiftKey ? "redo" : "undo");
    else if (command && name === "y") this.act("redo");
    else if (command || event.altKey) return;
    else if (name === "delete" || name === "backspace") this.act("remove");
    else if (name === "escape") this.cancel();
    else if (name === "enter") this.close();
    else if (name === "0") this.act("fit");
    else if (name === "+" || name === "-") this.zoom(name === "+" ? 1.25 : 0.8, [this.wide / 2, this.high / 2]);
    else if (name.startsWith("arrow") && this.chosen >= 0) this.nudge(name, event.shiftKey ? 10 : 1);
    else if (KEYS[name]) this.use(KEYS[name]);
    else return;
    event.preventDefault();
  }

  nudge(arrow, by) {
    const way = { arrowleft: [-by, 0], arrowright: [by, 0], arrowup: [0, -by], arrowdown: [0, by] }[arrow];
    const drags = this.now.drags.map(([from, to], i) => [from, i === this.chosen ? this.inside(add(to, way)) : to]);
    this.set({ ...this.now, drags });
  }

  // ---- places

  toPicture([x, y]) {
    return [(x - this.view.x) / this.view.scale - 0.5, (y - this.view.y) / this.view.scale - 0.5];
  }

  toScreen([x, y]) {
    return [(x + 0.5) * this.view.scale + this.view.x, (y + 0.5) * this.view.scale + this.view.y];
  }

  inside([x, y]) {
    return [Math.min(this.picture.width - 1, Math.max(0, x)), Math.min(this.picture.height - 1, Math.max(0, y))];
  }

  layout() {
    const box = this.canvas.parentElement.getBoundingClientRect(), sharp = window.devicePixelRatio || 1;
    [this.wide, this.high, this.sharp] = [box.width, box.height, sharp];
    [this.canvas.width, this.canvas.height] = [Math.round(box.width * sharp), Math.round(box.height * sharp)];
    if (this.picture && this.fitted) {
      const { width, height } = this.picture, room = Math.min(28, box.width * 0.04);
      const scale = Math.max(0.01, Math.min((box.width - 2 * room) / width, (box.height - 2 * room) / height));
      this.view = { scale, x: (box.width - width * scale) / 2, y: (box.height - height * scale) / 2 };
    }
    this.paintNow();
  }

  // ---- drawing

  draw() {
    if (this.due) return;
    this.due = requestAnimationFrame(() => {
      this.due = null;
      this.paintNow();
    });
  }

  paintNow() {
    const ctx = this.canvas.getContext("2d");
    ctx.setTransform(this.sharp, 0, 0, this.sharp, 0, 0);
    ctx.clearRect(0, 0, this.wide, this.high);
    if (!this.picture) return;
    const { width, height, image } = this.picture, { mode } = this.shown;
    ctx.save();
    ctx.translate(this.view.x, this.view.y);
    ctx.scale(this.view.scale, this.view.scale);
    ctx.imageSmoothingEnabled = this.view.scale < 12;
    ctx.imageSmoothingQuality = "high";
    ctx.fillStyle = "#fff"; // what is transparent is laid on white
    ctx.fillRect(0, 0, width, height);
    ctx.drawImage(image, 0, 0, width, height);
    if (mode === "draw") this.drawAsked(ctx, width, height);
    if (this.shown.frame) ctx.drawImage(this.shown.frame, ...(this.shown.box || [0, 0, width, height]));
    if (mode === "heat") ctx.drawImage(this.shown.image, 0, 0, width, height);
    if (mode === "compare") this.drawCompared(ctx, width, height);
    ctx.restore();
    if (mode === "compare") this.drawDivider(ctx);
    if (mode === "live" || mode === "steps") this.drawCourse(ctx);
    if (mode === "draw") this.drawMarks(ctx);
  }

  // The preview of what is asked, and the veil over what is to stay.
  drawAsked(ctx, width, height) {
    const drags = this.asked(), stroke = this.gesture?.stroke;
    const painting = stroke && stroke.kind === "brush";
    const masked = this.now.strokes.length > 0 || painting;
    if (this.preview && drags.length && !painting) this.drawPreview(ctx, drags, masked && !this.mask.isEmpty());
    if (!masked) return;
    const veil = (this.veil ??= blank(1, 1));
    [veil.width, veil.height] = [this.mask.canvas.width, this.mask.canvas.height];
    const on = veil.getContext("2d");
    on.fillStyle = "rgb(22 26 40 / 0.62)";
    on.fillRect(0, 0, veil.width, veil.height);
    on.globalCompositeOperation = "destination-out";
    if (this.now.soft) on.filter = `blur(${this.now.soft * this.mask.scale}px)`;
    on.drawImage(this.mask.canvas, 0, 0);
    ctx.drawImage(veil, 0, 0, width, height);
  }

  // The drags with the one that is being pulled.
  asked() {
    const { gesture } = this;
    return gesture?.kind === "drag" && gesture.pull[1] ? [...this.now.drags, gesture.pull] : this.now.drags;
  }

  drawPreview(ctx, drags, masked) {
    const small = this.smallPicture(masked ? 200 : 360), { w, h, pixels } = small;
    const scale = w / this.picture.width;
    const scaled = drags.map((drag) => drag.map(([x, y]) => [(x + 0.5) * scale, (y + 0.5) * scale]));
    if (!masked) {
      ctx.drawImage(canvasOf(bent(pixels, w, h, scaled), w, h), 0, 0, this.picture.width, this.picture.height);
      return;
    }
    const alpha = this.mask.drawn(w, h).getContext("2d").getImageData(0, 0, w, h).data.filter((_, i) => i % 4 === 3);
    const parts = groups(scaled, Math.max(w, h)), part = along(alpha, w, h, parts);
    ctx.drawImage(canvasOf(hole(pixels, w, h, part, parts), w, h), 0, 0, this.picture.width, this.picture.height);
    parts.forEach(({ move }, i) => {
      const shape = new Uint8ClampedArray(4 * w * h);
      part.forEach((number, n) => (shape[4 * n + 3] = number === i + 1 ? 255 : 0));
      const cut = this.cutOut(canvasOf(shape, w, h));
      ctx.save();
      ctx.transform(move.a, move.b, -move.b, move.a, move.x0 / scale, move.y0 / scale);
      ctx.drawImage(cut, 0, 0, this.picture.width, this.picture.height);
      ctx.restore();
    });
  }

  // The picture where a shape is, at up to 1,024 pixels.
  cutOut(shape) {
    const { width, height, image } = this.picture, scale = Math.min(1, 1024 / Math.max(width, height));
    const cut = (this.cut ??= blank(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))));
    const ctx = cut.getContext("2d");
    ctx.globalCompositeOperation = "copy";
    ctx.drawImage(shape, 0, 0, cut.width, cut.height);
    ctx.globalCompositeOperation = "source-in";
    ctx.drawImage(image, 0, 0, cut.width, cut.height);
    return cut;
  }

  smallPicture(side) {
    if (this.small?.side === side) return this.small;
    const { width, height, image } = this.picture, scale = Math.min(1, side / Math.max(width, height));
    const [w, h] = [Math.max(2, Math.round(width * scale)), Math.max(2, Math.round(height * scale))];
    const ctx = blank(w, h).getContext("2d");
    ctx.fillStyle = "#fff";
    ctx.fillRect(0, 0, w, h);
    ctx.drawImage(image, 0, 0, w, h);
    this.small = { side, w, h, pixels: ctx.getImageData(0, 0, w, h).data };
    return this.small;
  }

  drawMarks(ctx) {
    const drags = this.asked();
    drags.forEach((drag, i) => this.drawArrow(ctx, drag, i, i === this.chosen || i >= this.now.drags.length));
    const { gesture } = this;
    if (gesture?.kind === "drag" && !gesture.pull[1]) dot(ctx, this.toScreen(gesture.pull[0]), 7, START);
    if (gesture?.stroke?.kind === "rectangle") outline(ctx, corners(gesture.stroke.points).map((p) => this.toScreen(p)), true);
    if (this.path) outline(ctx, [...this.path.map((p) => this.toScreen(p)), ...(this.pointer ? [this.pointer] : [])], false);
    if ((this.tool === "brush" || this.tool === "erase") && this.pointer) {
      ring(ctx, this.pointer, (this.brush * this.view.scale) / 2, "#fff", 2.5);
      ring(ctx, this.pointer, (this.brush * this.view.scale) / 2, INK, 1);
    }
  }

  drawArrow(ctx, [from, to], number, strong) {
    const start = this.toScreen(from), end = this.toScreen(to), long = distance(start, end);
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
    ctx.fillStyle = "#fff";
    ctx.font = "600 12px system-ui, sans-serif";
    ctx.textAlign = "center";
    ctx.textBaseline = "middle";
    ctx.fillText(String(number + 1), start[0], start[1] + 0.5);
  }

  // The handles' way so far, and where they are.
  drawCourse(ctx) {
    const { handles = [], paths = [], drags = this.now.drags } = this.shown;
    drags.forEach(([from, to], i) => {
      const target = this.toScreen(to), way = [from, ...paths.map((row) => row[i])].map((point) => this.toScreen(point));
      line(ctx, [way[0], target], "rgb(255 255 255 / 0.75)", 1.5, [4, 4]);
      ring(ctx, target, 8, "#fff", 6);
      ring(ctx, target, 8, TARGET, 3);
      line(ctx, way, "#fff", 5);
      line(ctx, way, PATH, 2.5);
      dot(ctx, way[0], 4, START);
      if (handles[i]) dot(ctx, this.toScreen(handles[i]), 7, PATH);
    });
  }

  drawCompared(ctx, width, height) {
    const from = this.shown.share * width;
    ctx.save();
    ctx.beginPath();
    ctx.rect(from, 0, width - from, height);
    ctx.clip();
    ctx.drawImage(this.shown.image, 0, 0, width, height);
    ctx.restore();
  }

  drawDivider(ctx) {
    const { width, height } = this.picture, x = this.shown.share * width * this.view.scale + this.view.x;
    const [top, bottom] = [this.view.y, this.view.y + height * this.view.scale], middle = (top + bottom) / 2;
    line(ctx, [[x, top], [x, bottom]], "rgb(0 0 0 / 0.35)", 4);
    line(ctx, [[x, top], [x, bottom]], "#fff", 2);
    dot(ctx, [x, middle], 14, "#fff", "rgb(0 0 0 / 0.35)");
    fill(ctx, [[x - 8, middle], [x - 3, middle - 5], [x - 3, middle + 5]], INK);
    fill(ctx, [[x + 8, middle], [x + 3, middle - 5], [x + 3, middle + 5]], INK);
    label(ctx, "before", this.view.x + 10, top + 10, "left");
    label(ctx, "after", this.view.x + width * this.view.scale - 10, top + 10, "right");
  }

  // ---- the page's elements

  build(host) {
    this.host = host;
    host.classList.add("board");
    host.dataset.tool = "drag";
    host.dataset.mode = "draw";
    const button = ([name, title]) => `<button type="button" data-name="${name}" title="${title}" aria-label="${title}">
      <svg viewBox="0 0 20 20" aria-hidden="true">${ICONS[name]}</svg></button>`;
    const tools = Object.entries(TOOLS).map(button), actions = Object.entries(ACTIONS).map(button);
    host.innerHTML = `
      <div class="board-tools" role="toolbar" aria-label="Tools">
        <span>${tools.slice(0, 2).join("")}</span><span>${tools.slice(2).join("")}${actions[0]}</span>
        <span>${actions.slice(1, 5).join("")}</span><span>${actions.slice(5).join("")}</span>
        <label class="board-size">Size<input type="range" min="1" max="200" aria-label="Brush size, pixels"></label>
        <label class="board-soft">Soft edge<input type="range" min="0" max="40" aria-label="Soft edge, pixels"></label>
      </div>
      <div class="board-view"><canvas tabindex="0" aria-label="The picture: press, pull, let go"></canvas></div>`;
    this.canvas = host.querySelector("canvas");
    this.buttons = Object.fromEntries([...host.querySelectorAll("button")].map((one) => [one.dataset.name, one]));
    for (const name of Object.keys(TOOLS)) this.buttons[name].addEventListener("click", () => this.use(name));
    for (const name of Object.keys(ACTIONS)) this.buttons[name].addEventListener("click", () => this.act(name));
    [this.size, this.soft] = host.querySelectorAll("input");
    this.size.addEventListener("input", () => (this.brush = Number(this.size.value)));
    this.soft.addEventListener("change", () => this.picture && this.set({ ...this.now, soft: Number(this.soft.value) }));
    this.buttons.eye.setAttribute("aria-pressed", true);
    this.use("drag");
    const on = (name, what, how) => this.canvas.addEventListener(name, what, how);
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.move(event));
    on("pointerup", (event) => this.up(event));
    on("pointercancel", (event) => (this.cancel(), this.up(event)));
    on("pointerleave", () => ((this.pointer = null), this.draw()));
    on("wheel", (event) => {
      if (!this.picture) return;
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), [event.offsetX, event.offsetY]);
    }, { passive: false });
    on("keydown", (event) => this.key(event));
    on("keyup", (event) => event.key === " " && (this.space = false));
    on("dblclick", () => this.path && this.close());
    new ResizeObserver(() => this.layout()).observe(this.canvas.parentElement);
  }
}

// ---- small things

const add = ([x, y], [u, v]) => [x + u, y + v];
const sub = ([x, y], [u, v]) => [x - u, y - v];
const rounded = ([x, y]) => [Math.round(x), Math.round(y)];
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
