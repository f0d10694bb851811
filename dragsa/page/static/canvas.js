// The canvas on which a picture is dragged: press, pull, let go. The page and the notebook's widget share it.
// Points that come in and go out are [x, y] in pixels of the picture, pixel centres at whole numbers.

import { pressed } from "./keys.js";
import { Mask, whiteAsAlpha } from "./mask.js";
import { paint } from "./paint.js";
import { ACTIONS, TOOLS, built } from "./tools.js";
import { distance } from "./warp.js";

const NEAR = { mouse: 16, pen: 16, touch: 26 }; // CSS pixels within which a press takes hold of an end
const SHORTEST = 5; // CSS pixels that a pull has at least; less is a press
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
    this.end = 1; // of the chosen drag, what the arrow keys move: 0 the handle, 1 the target
    this.preview = true;
    this.wheels = true; // zooms by the wheel even where the canvas has no focus
    this.kept = {};
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
    this.kept = {};
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
    if (!this.picture || (this.shown.mode !== "draw" && name !== "fit")) return;
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

  // Add a drag, and choose it.
  add(drag) {
    [this.chosen, this.end] = [this.drags.length, 1];
    this.set({ ...this.now, drags: [...this.drags, drag] });
  }

  choose(drag, end) {
    [this.chosen, this.end] = [drag, end];
    this.told();
  }

  // ---- pointers

  down(event) {
    if (!this.picture || event.button > 1) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.focus({ preventScroll: true });
    this.near = NEAR[event.pointerType] ?? NEAR.mouse;
    const at = [event.offsetX, event.offsetY];
    this.pointers.set(event.pointerId, at);
    if (this.pointers.size === 2) {
      this.cancel();
      this.pinch = this.fingers();
      return;
    }
    if (this.pointers.size > 2) return;
    const drawing = this.shown.mode === "draw";
    if (event.button === 1 || this.space || this.tool === "pan" || (!drawing && this.shown.mode !== "compare")) {
      this.pan(at);
    } else if (this.shown.mode === "compare") {
      this.gesture = { kind: "divider" };
      this.move(event);
    } else if (this.tool === "drag") {
      this.press(at);
    } else {
      this.paint(at);
    }
  }

  pan(at) {
    this.gesture = { kind: "pan", from: at, view: { ...this.view } };
  }

  press(at) {
    const held = this.endAt(at), point = this.toPicture(at), beside = distance(this.toScreen(this.inside(point)), at);
    if (held) {
      [this.chosen, this.end] = [held.drag, held.end];
      this.gesture = { kind: "end", ...held, start: this.now, from: at, offset: minus(this.now.drags[held.drag][held.end], point) };
    } else if (beside > this.near) {
      this.pan(at);
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
      if (this.path.length > 3 && distance(first, at) < this.near) this.close();
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
      drags[gesture.drag][gesture.end] = rounded(this.inside(plus(point, gesture.offset)));
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
        this.add([from, to]);
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
      for (const drag of order) if (distance(this.toScreen(this.now.drags[drag][end]), at) < (this.near ?? NEAR.mouse)) return { drag, end };
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

  wheel(event) {
    if (!this.picture || !(this.wheels || event.ctrlKey || this.canvas.matches(":focus"))) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), [event.offsetX, event.offsetY]);
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
    paint(this);
  }

  // ---- drawing

  draw() {
    if (this.due) return;
    this.due = requestAnimationFrame(() => {
      this.due = null;
      paint(this);
    });
  }

  // The drags with the one that is being pulled.
  asked() {
    const { gesture } = this;
    return gesture?.kind === "drag" && gesture.pull[1] ? [...this.now.drags, gesture.pull] : this.now.drags;
  }

  // ---- the page's elements

  build(host) {
    this.host = host;
    host.dataset.mode = "draw";
    Object.assign(this, built(host)); // canvas, buttons, size, soft
    for (const name of Object.keys(TOOLS)) this.buttons[name].addEventListener("click", () => this.use(name));
    for (const name of Object.keys(ACTIONS)) this.buttons[name].addEventListener("click", () => this.act(name));
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
    on("wheel", (event) => this.wheel(event), { passive: false });
    on("blur", () => (this.space = false));
    on("dblclick", () => this.close());
    host.addEventListener("keydown", (event) => pressed(this, event));
    host.addEventListener("keyup", (event) => event.key === " " && (this.space = false));
    new ResizeObserver(() => this.layout()).observe(this.canvas.parentElement);
  }
}

// ---- small things

const plus = ([x, y], [u, v]) => [x + u, y + v];
const minus = ([x, y], [u, v]) => [x - u, y - v];
const rounded = ([x, y]) => [Math.round(x), Math.round(y)];
