// The canvas in a notebook's cell: what is drawn goes to Python, and what Python tells of an edit is shown here.

import { Board } from "./canvas.js";
import { drawCurve } from "./curve.js";

async function render({ model, el }) {
  el.classList.add("dragsa-widget");
  el.innerHTML = `<div></div><div class="below"><button type="button" class="run">Run</button>
    <button type="button" class="stop" hidden>Stop</button>
    <button type="button" class="view" hidden>Drags</button><progress max="1" hidden></progress><span class="said"></span>
    <span class="said hint" hidden>Interrupt the kernel (■) to end the drag and keep what there is.</span>
    <figure hidden><svg viewBox="0 0 300 90" preserveAspectRatio="none"></svg>
    <figcaption><span class="left-key"></span><span class="loss-key"></span></figcaption></figure></div>`;
  const part = (name) => el.querySelector(name), said = (text) => (part(".said").textContent = text);
  const bitmap = (bytes) => createImageBitmap(new Blob([bytes]));
  let course = null, result = null, told = Promise.resolve(), sending = Promise.resolve();
  let file = null, painted = null; // the mask's file that the model has, and the canvas's document that it was made of

  const board = new Board(el.firstElementChild);
  const wrong = (error) => {
    said(error.message);
    reportError(error);
  };
  // Keys that are pressed here are not the notebook's, whose D D would delete the cell.
  for (const one of el.querySelectorAll("canvas, button, input")) one.dataset.lmSuppressShortcuts = "true";
  board.wheels = false; // a notebook is scrolled by the wheel
  const image = await bitmap(model.get("_picture_file"));

  // Show the mask that the model has: that of an earlier view, or what was painted in another one meanwhile.
  const takeMask = async () => {
    file = model.get("_mask_file");
    const mask = file.byteLength ? await bitmap(file) : null;
    if (!painted) board.open(image, image.width, image.height);
    if (mask || painted || model.get("drags").length) board.take(model.get("drags"), mask);
    painted = board.now;
  };
  // What is drawn goes to Python, of the mask only what was painted here.
  const send = async () => {
    if (JSON.stringify(board.drags) !== JSON.stringify(model.get("drags"))) model.set("drags", board.drags);
    const { strokes, soft } = board.now;
    if (strokes !== painted.strokes || soft !== painted.soft) {
      painted = board.now;
      const made = await board.maskFile();
      file = new DataView(made ? await made.arrayBuffer() : new ArrayBuffer(0));
      model.set("_mask_file", file);
    }
    model.save_changes();
  };
  board.changed = () => {
    part(".run").disabled = !board.drags.length;
    sending = sending.then(send).catch(wrong);
  };
  await takeMask();

  const live = () => board.show({ mode: "live", drags: course.drags, handles: course.handles.at(-1) || [], paths: course.handles, ...course.seen });
  const look = (mode) => {
    board.show(mode === "draw" ? { mode } : { mode, image: result });
    part(".view").textContent = mode === "draw" ? "Before and after" : "Drags";
  };
  const running = (on, inCell = false) => {
    part(".run").hidden = on;
    part("progress").hidden = !on;
    part(".stop").hidden = !on || inCell; // a kernel that runs a cell hears of no button
    part(".hint").hidden = !inCell;
    part(".stop").textContent = "Stop";
  };
  const ended = (text) => {
    running(false);
    said(text);
    course = null;
  };
  const TOLD = {
    begin({ in_cell }) {
      course = { drags: board.drags, losses: [], left: [], handles: [], seen: {} };
      running(true, in_cell);
      part(".view").hidden = true;
      live();
    },
    stage({ stage, done, total }) {
      said(total > 1 ? `${stage}, ${done} of ${total}` : stage);
      part("progress").value = total ? done / total : 0;
    },
    update({ update, total, loss, handles, left }) {
      if (!course) return; // an edit that this view of the widget has not seen begin
      course.losses.push(loss);
      course.left.push(left);
      course.handles.push(handles);
      TOLD.stage({ stage: "drag", done: update, total });
      part("figure").hidden = false;
      drawCurve(part("figure"), course);
      live();
    },
    stopping() {
      part(".stop").textContent = "Stop at once";
    },
    async frame({ box }, [bytes]) {
      const frame = await bitmap(bytes);
      if (!course) return;
      course.seen = { frame, box };
      live();
    },
    async done({ losses, stop, left }, [bytes]) {
      const worst = left.length ? `, ${Math.max(...left.at(-1)).toFixed(1)} px left` : "";
      ended(stop ? `${losses.length} updates, ${stop}${worst}` : "done");
      result = await bitmap(bytes);
      part(".view").hidden = false;
      look("compare");
    },
    error({ text }) {
      ended(text);
      look("draw");
    },
  };
  model.on("msg:custom", (message, buffers) => {
    // One after another: pictures are read meanwhile.
    told = told.then(() => TOLD[message.kind]?.(message, buffers)).catch(wrong);
  });
  model.on("change:drags", () => {
    const drags = model.get("drags");
    if (JSON.stringify(board.drags) !== JSON.stringify(drags)) board.set({ ...board.now, drags });
  });
  model.on("change:_mask_file", () => model.get("_mask_file") === file || takeMask().catch(wrong));
  part(".run").addEventListener("click", () => sending.then(() => model.send("run"))); // with what was just painted
  part(".stop").addEventListener("click", () => model.send("stop"));
  part(".view").addEventListener("click", () => look(board.shown.mode === "draw" ? "compare" : "draw"));
}

export default { render };
