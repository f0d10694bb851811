// The page: opens pictures and jobs, asks for edits, and shows what the server tells of them.

import { Board } from "./canvas.js";
import { drawCurve } from "./curve.js";
import { asked, buildForm, change, fillSelect, markWrong, take } from "./form.js";
import { heat } from "./heat.js";
import { pressed } from "./keys.js";
import { base64 } from "./mask.js";

const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token");
const STAGES = {
  encode: "Encoding the picture", lora: "Training the picture's LoRA", inversion: "Inverting the picture",
  drag: "Dragging", denoising: "Denoising", decode: "Decoding",
};
const REASONS = {
  reached: "every handle is at its target", budget: "the updates were used up", "not moving": "the handles no longer moved",
  "no nearer": "the handles came no nearer", "tracking lost": "the handles were lost", stopped: "stopped by you",
  "not finite": "the numbers were no longer finite",
};
const GONE = "the server does not answer: is `dragsa ui` still running?";
let tab = null, about = null, picture = null, result = null, course = null, running = false, asking = 0, painting = null, silent, posted, list = null;
const board = new Board($("board"), () => changed());
const job = () => ({ ...asked(), drag: board.drags });

// What is said to whoever sees the page.
class Wrong extends Error {}

// ---- talking to the server

function address(path, more = {}) {
  const query = new URLSearchParams({ ...(tab && { tab }), ...(token && { token }), ...more });
  return `${path}?${query}`;
}

const ask = (path, body, more) => got(path, more, { method: "POST", body });

async function got(path, more, how) {
  let response;
  try {
    response = await fetch(address(path, more), how);
  } catch {
    throw new Wrong(GONE);
  }
  if (!response.ok) throw new Wrong((await response.json().catch(() => ({}))).error || `the server said ${response.status}`);
  return response;
}

// A picture of the server's.
async function bitmap(path, more) {
  return createImageBitmap(await (await got(path, more)).blob());
}

// Do something, and say what went wrong with it.
async function attempt(what) {
  try {
    return await what();
  } catch (error) {
    say(error.message);
    markWrong(error.message);
    if (!(error instanceof Wrong)) reportError(error); // a fault of the page's own is seen in the browser's log, too
  }
}

function say(text) {
  $("toast").hidden = !text;
  $("toast").firstElementChild.textContent = text ? text[0].toUpperCase() + text.slice(1) : "";
}

// ---- what is asked

async function request() {
  const file = await board.maskFile();
  return JSON.stringify({ model: $("model").value, job: job(), mask: file && (await base64(file)) });
}

// ---- opening

async function openFiles(list) {
  const files = [...list], isJob = (file) => /\.(json|zip)$/i.test(file.name) || /json|zip/.test(file.type);
  const jobFile = files.find(isJob);
  await attempt(() => (jobFile ? openJob(jobFile, files) : files.length && openPicture(files[0])));
}

async function openPicture(file) {
  const { megabytes } = about.limits;
  if (file.size > megabytes * 2 ** 20) throw new Wrong(`${file.name}: more than ${megabytes} MB: make the file smaller`);
  const opened = await (await ask("picture", file, { name: file.name || "pasted.png" })).json();
  await showPicture(opened, file);
}

// Show the picture that the server has opened: from the file itself where the browser can read it.
async function showPicture(opened, file) {
  const [width, height] = opened.size;
  let image = file && (await createImageBitmap(file).catch(() => null));
  if (!image || image.width !== width || image.height !== height) {
    image = await bitmap("picture");
  }
  picture = { ...opened, image };
  [result, course, running] = [null, null, false];
  $("name").textContent = `${opened.name}, ${width}×${height}`;
  $("empty").hidden = true;
  for (const id of ["course", "result", "views", "jobs-label"]) $(id).hidden = true;
  say("");
  board.open(image, width, height);
  showView("draw");
  if (opened.prompt !== undefined) $("prompt").value = opened.prompt;
  change(opened.settings ?? {});
  prepare();
}

async function openJob(file, files) {
  const loaded = await (await ask("load", file)).json(), [first] = loaded.jobs;
  if (loaded.mask) files.unshift(new File([Uint8Array.from(atob(loaded.mask), (letter) => letter.charCodeAt(0))], first.mask));
  if (loaded.picture) await showPicture(loaded.picture, null);
  else await openPictureOf(first, files, picture);
  list = { jobs: loaded.jobs, files, at: 0 };
  fillSelect($("jobs"), list.jobs.map((_, i) => `${i + 1} of ${list.jobs.length}`));
  await useJob(0);
}

// Open a job's picture from the files that were chosen with it; what stands for it where they lack it may stay.
async function openPictureOf({ image }, files, stays) {
  const file = files.find(({ name }) => name === image);
  if (file) await openPicture(file);
  else if (!stays) throw new Wrong(`the job's picture, ${image || "which it does not name"}, is not open: choose it together with the job`);
}

// Take a job of the list, with its mask, and with its picture where that is not the one of the job before.
async function useJob(n) {
  const { jobs, files, at } = list, { image, mask, drag } = jobs[n], file = files.find(({ name }) => name === mask);
  const painted = file ? await createImageBitmap(file) : null;
  if (image && ![jobs[at].image, picture.name].includes(image)) await openPictureOf(jobs[n], files, false);
  list.at = n;
  $("jobs-label").hidden = jobs.length < 2;
  say(mask && !file ? `the job's mask, ${mask}, was not chosen with it: paint one, or choose both together` : "");
  take(jobs[n]);
  board.take(drag, painted);
  showView("draw");
  prepare();
}

// Let the server invert the picture while drags are drawn.
function prepare() {
  clearTimeout(asking);
  if (!picture || running) return;
  asking = setTimeout(() => attempt(async () => {
    const body = JSON.stringify({ model: $("model").value, job: { ...job(), drag: [] } });
    await ask("prepare", body);
  }), 400);
}

// ---- running

function run() {
  say("");
  clearTimeout(asking);
  begin(); // before the mask's file is waited for: a second press must not ask for a second edit
  posted = attempt(async () => {
    try {
      await ask("edit", await request());
    } catch (error) {
      finish("Not begun");
      throw error;
    }
  });
}

function begin() {
  running = true;
  result = null;
  course = { drags: board.drags, losses: [], left: [], handles: [], frame: null, box: null, frames: [] };
  $("notes").replaceChildren();
  for (const id of ["result", "views", "curve"]) $(id).hidden = true;
  $("course").hidden = false;
  $("stop").textContent = "Stop";
  $("state").textContent = "";
  showStage("Waiting", 0, 0);
  board.show({ mode: "live", drags: course.drags });
  changed();
}

function end() {
  running = false;
  $("course").querySelector("progress").hidden = true;
  changed();
}

function showStage(name, done, total) {
  $("stage-name").textContent = name;
  $("stage-count").textContent = total > 1 ? `${done} of ${total}` : "";
  const bar = $("course").querySelector("progress");
  bar.hidden = false;
  if (total > 0 && (total > 1 || done)) bar.value = done / total;
  else bar.removeAttribute("value");
}

const TOLD = {
  queued: ({ ahead }) => ahead && showStage(`Waiting: ${ahead} before this`, 0, 0),
  begin: () => showStage("Beginning", 0, 0),
  ready: () => ($("state").textContent = "The picture is inverted: a drag starts at once."),
  stage({ stage, done, total }) {
    const name = STAGES[stage] || stage[0].toUpperCase() + stage.slice(1);
    if (running) showStage(name, done, total);
    else $("state").textContent = total > 1 ? `${name}, ${done} of ${total}` : `${name} …`;
  },
  update({ update, total, loss, handles, left }) {
    if (!running) return;
    course.losses.push(loss);
    course.left.push(left);
    course.handles.push(handles);
    course.stage = [STAGES.drag, update, total];
    painting ??= setTimeout(showCourse, 80); // updates may come faster than a page can show them
  },
  async frame({ update, box }) {
    const here = course, image = running && (await bitmap("frame", { update }).catch(() => null));
    if (!image || !running || here !== course) return;
    [course.frame, course.box] = [image, box];
    course.frames.push({ update, box });
    showLive();
  },
  warning({ text }) {
    const note = document.createElement("li");
    note.textContent = text[0].toUpperCase() + text.slice(1);
    $("notes").append(note);
  },
  stopping: () => running && ($("state").textContent = "The drag ends with this update, and its picture is finished."),
  async done(told) {
    const here = course;
    if (!running) return; // of a picture that was left meanwhile
    end();
    const image = await bitmap("result");
    if (here !== course) return;
    result = { ...told, image, frames: course.frames };
    const seconds = Object.values(told.seconds).reduce((sum, one) => sum + one, 0);
    const worst = told.left.length ? `, ${Math.max(...told.left.at(-1)).toFixed(1)} px left` : "";
    const why = told.stop ? `After ${told.losses.length} updates: ${REASONS[told.stop] || told.stop}${worst}.` : "The prompt's change is done.";
    $("outcome").textContent = `${why} ${seconds.toFixed(1)} s.`;
    $("stage-name").textContent = "Done";
    $("stage-count").textContent = "";
    for (const id of ["result", "views"]) $(id).hidden = false;
    $("state").textContent = "";
    document.querySelector('[data-view="steps"]').hidden = !told.losses.length;
    if (told.losses.length) drawCurve($("curve"), result);
    showView("compare");
  },
  ended: () => running && finish("Stopped before there was anything to keep"),
  error({ text }) {
    if (running) finish("Failed");
    throw new Wrong(text);
  },
};

function finish(words) {
  showStage(words, 0, 0);
  end();
  showView("draw");
}

function showCourse() {
  painting = null;
  if (!running || !course.losses.length) return;
  showStage(...course.stage);
  $("curve").hidden = false;
  drawCurve($("curve"), course);
  showLive();
}

function showLive() {
  if (!running) return;
  const { drags, handles, frame, box } = course;
  board.show({ mode: "live", drags, handles: handles.at(-1) || [], paths: handles, frame, box });
}

// ---- looking at the result

async function showView(view) {
  for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", button.dataset.view === view);
  $("step").hidden = view !== "steps";
  if (view === "draw") board.show({ mode: "draw" });
  if (view === "compare") board.show({ mode: "compare", image: result.image });
  if (view === "heat") board.show({ mode: "heat", image: (result.heat ??= heat(picture.image, result.image)) });
  if (view === "steps") {
    const slider = $("step").querySelector("input");
    slider.max = result.losses.length;
    slider.value = slider.max;
    showStep();
  }
}

async function showStep() {
  const n = Number($("step").querySelector("input").value), left = Math.max(...result.left[n - 1]).toFixed(1);
  $("step").querySelector("output").textContent = `update ${n}: ${left} px left`;
  drawCurve($("curve"), result, n);
  const seen = result.frames.filter(({ update }) => update <= n).at(-1), paths = result.handles.slice(0, n);
  if (seen && !seen.image) {
    seen.image = await bitmap("frame", { update: seen.update }).catch(() => null);
  }
  board.show({ mode: "steps", drags: result.drags, handles: paths.at(-1), paths, frame: seen?.image, box: seen?.box });
}

// ---- saving

// Save what the server answers with; `what` gives what it is to be told, if anything.
async function save(path, name, what) {
  await attempt(async () => {
    const response = await (what ? ask(path, await what()) : got(path));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

const stem = () => picture.name.replace(/\.[^.]*$/, "");

function changed() {
  if (!about) return;
  const something = picture && (board.drags.length > 0 || $("target_prompt").value.trim());
  $("run").hidden = running;
  $("stop").hidden = !running;
  $("run").disabled = !something;
  $("run").title = something ? "Ctrl Enter" : "Open a picture and pull a point of it, or give a target prompt";
  $("save-job").disabled = !picture || running;
  $("go-on").disabled = running;
}

// ---- the beginning

function listen() {
  $("open").onclick = $("open-too").onclick = () => $("files").click();
  $("files").onchange = async () => {
    await openFiles($("files").files);
    $("files").value = "";
  };
  $("example").onclick = () => attempt(async () => showPicture(await (await ask("example")).json(), null));
  $("run").onclick = run;
  $("stop").onclick = ({ detail }) => attempt(async () => {
    if (detail > 1 && $("stop").textContent === "Stop") return; // the second press of a double click on Run
    $("stop").textContent = "Stop at once";
    await posted.then(() => ask("stop"));
  });
  $("save-picture").onclick = () => save("result", `${stem()}-dragged.png`);
  $("save-trace").onclick = () => save("trace", `${stem()}-dragged.json`);
  $("save-job").onclick = () => save("job", `${stem()}-job.zip`, request);
  $("go-on").onclick = () => attempt(async () => {
    const opened = await (await ask("on")).json(), target = $("target_prompt").value.trim();
    await showPicture(opened, null);
    if (target) [$("prompt").value, $("target_prompt").value] = [target, ""];
  });
  $("jobs").onchange = async () => {
    await attempt(() => useJob($("jobs").selectedIndex));
    $("jobs").selectedIndex = list.at;
  };
  $("toast").querySelector("button").onclick = () => say("");
  $("step").querySelector("input").oninput = showStep;
  for (const button of document.querySelectorAll("[data-view]")) button.onclick = () => showView(button.dataset.view);
  $("settings").addEventListener("input", changed);
  $("settings").addEventListener("change", prepare);
  $("model").addEventListener("change", prepare);
  const stage = $("stage");
  addEventListener("paste", (event) => event.clipboardData.files.length && openFiles(event.clipboardData.files));
  // A file that misses its place, or a link, would be opened in place of the page; text goes into its field.
  const isText = ({ target, dataTransfer }) => /TEXTAREA|INPUT/.test(target.tagName) && !dataTransfer.types.includes("Files");
  for (const name of ["dragover", "drop"]) addEventListener(name, (event) => isText(event) || event.preventDefault());
  stage.addEventListener("dragenter", () => stage.classList.add("over"));
  stage.addEventListener("dragleave", (event) => stage.contains(event.relatedTarget) || stage.classList.remove("over"));
  addEventListener("drop", (event) => {
    stage.classList.remove("over");
    if (event.dataTransfer.files.length) openFiles(event.dataTransfer.files);
    else if (!isText(event)) say("no file was dropped: save the picture first, and drop that");
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running && !$("run").disabled) run();
    else if (!event.target.closest("input, textarea, select, #board")) pressed(board, event);
  });
  addEventListener("pagehide", () => navigator.sendBeacon(address("close")));
  addEventListener("pageshow", (event) => event.persisted && location.reload()); // the tab was closed on the server
}

await attempt(async () => {
  about = await (await got("about")).json();
  buildForm(about.models, about.form);
  $("example").hidden = !about.example;
  tab = (await (await ask("tab")).json()).tab;
  const events = new EventSource(address("events"));
  events.onmessage = ({ data }) => {
    const told = JSON.parse(data);
    attempt(() => TOLD[told.kind](told));
  };
  events.onopen = () => (silent = clearTimeout(silent));
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) say("this tab was closed on the server: load the page again");
    else silent ??= setTimeout(() => say(GONE), 5000); // it tries again meanwhile
  };
  listen();
  changed();
  document.body.dataset.ready = "yes";
});
