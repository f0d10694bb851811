// The page: opens pictures and jobs, asks for edits, and shows what the server tells of them.

import { Board } from "./canvas.js";
import { blank } from "./mask.js";
import { drawCurve } from "./curve.js";

const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token");
const TEXTS = ["prompt", "target_prompt", "negative_prompt", "seed"];
const STAGES = {
  encode: "Encoding the picture", lora: "Training the picture's LoRA", inversion: "Inverting the picture",
  drag: "Dragging", denoising: "Denoising", decode: "Decoding",
};
const REASONS = {
  reached: "every handle is at its target", budget: "the updates were used up", "not moving": "the handles no longer moved",
  "no nearer": "the handles came no nearer", "tracking lost": "the handles were lost", stopped: "stopped by you",
  "not finite": "the numbers were no longer finite",
};
let tab = null, about = null, picture = null, result = null, course = null, running = false, asking = 0, jobs = [];
const board = new Board($("board"), () => changed());

// ---- talking to the server

function address(path, more = {}) {
  const query = new URLSearchParams({ ...(tab && { tab }), ...(token && { token }), ...more });
  return `${path}?${query}`;
}

async function ask(path, body, more) {
  let response;
  try {
    response = await fetch(address(path, more), { method: "POST", body });
  } catch {
    throw new Error("the server does not answer: is `dragsa ui` still running?");
  }
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error || `the server said ${response.status}`);
  return response;
}

// Do something, and say what went wrong with it.
async function attempt(what) {
  try {
    return await what();
  } catch (error) {
    say(error.message);
  }
}

function say(text) {
  $("toast").hidden = !text;
  $("toast").firstElementChild.textContent = text ? text[0].toUpperCase() + text.slice(1) : "";
}

// ---- the form

function buildForm({ first, groups, presets, suited }) {
  const rows = Object.fromEntries(groups.flatMap((group) => group.rows.map((row) => [row.name, row])));
  const named = { size: "Working size", drag_step: "Drag step S", updates: "Updates", lr: "Rate η", radius: "Radius r₁", guidance: "Guidance" };
  for (const name of first) {
    const label = setting(rows[name], named[name] || name);
    label.title = rows[name].help;
    $("first").append(label);
  }
  for (const { title, rows } of groups) {
    const rest = rows.filter((row) => !first.includes(row.name));
    if (!rest.length) continue;
    const head = document.createElement("h3");
    head.textContent = title;
    $("rest").append(head, ...rest.map((row) => {
      const label = setting(row, row.name.replaceAll("_", " ")), help = document.createElement("span");
      [label.className, help.className, help.textContent] = ["setting", "fine", row.help];
      label.append(help);
      return label;
    }));
  }
  fillSelect($("preset"), Object.keys(presets));
  fillSelect($("model"), about.models);
  $("model-label").hidden = about.models.length < 2;
  $("model").addEventListener("change", () => usePreset(suited[$("model").value]));
  $("preset").addEventListener("change", () => usePreset($("preset").value));
  usePreset(suited[about.models[0]]);
}

function setting({ name, words }, text) {
  const label = document.createElement("label"), field = document.createElement(words.length ? "select" : "input");
  label.append(text, field);
  field.id = name;
  field.dataset.setting = name;
  if (words.length) fillSelect(field, words);
  field.addEventListener("input", mark);
  return label;
}

function fillSelect(select, words) {
  select.replaceChildren(...words.map((word) => new Option(word, word)));
}

const settings = () => [...document.querySelectorAll("[data-setting]")];

function usePreset(preset) {
  $("preset").value = preset;
  for (const field of settings()) field.value = about.form.presets[preset][field.id];
  mark();
}

function mark() {
  const own = about.form.presets[$("preset").value];
  for (const field of settings()) field.parentElement.classList.toggle("changed", field.value.trim() !== own[field.id]);
}

// What is asked for, as a job file has it; settings only where they are not the preset's.
function job() {
  const own = about.form.presets[$("preset").value], asked = { preset: $("preset").value, drag: board.drags };
  for (const name of TEXTS) if ($(name).value.trim()) asked[name] = $(name).value.trim();
  for (const field of settings()) if (field.value.trim() !== own[field.id]) asked[field.id] = field.value.trim();
  return asked;
}

async function request() {
  const file = await board.maskFile();
  return JSON.stringify({ model: $("model").value, job: job(), mask: file && (await base64(file)) });
}

async function base64(blob) {
  const url = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.readAsDataURL(blob);
  });
  return url.slice(url.indexOf(",") + 1);
}

// ---- opening

async function openFiles(list) {
  const files = [...list], isJob = (file) => /\.(json|zip)$/i.test(file.name) || /json|zip/.test(file.type);
  const jobFile = files.find(isJob);
  await attempt(() => (jobFile ? openJob(jobFile, files) : files.length && openPicture(files[0])));
}

async function openPicture(file) {
  const { megabytes } = about.limits;
  if (file.size > megabytes * 2 ** 20) throw new Error(`${file.name}: more than ${megabytes} MB: make the file smaller`);
  const opened = await (await ask("picture", file, { name: file.name || "pasted.png" })).json();
  await showPicture(opened, file);
}

// Show the picture that the server has opened: from the file itself where the browser can read it.
async function showPicture(opened, file) {
  const [width, height] = opened.size;
  let image = file && (await createImageBitmap(file).catch(() => null));
  if (!image || image.width !== width || image.height !== height) {
    image = await createImageBitmap(await (await fetch(address("picture"))).blob());
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
  for (const [name, value] of Object.entries(opened.settings ?? {})) $(name).value = value;
  mark();
  prepare();
}

async function openJob(file, files) {
  const loaded = await (await ask("load", file)).json();
  jobs = loaded.jobs;
  const named = (name) => files.find((one) => one.name === name), first = jobs[0];
  if (loaded.picture) await showPicture(loaded.picture, null);
  else if (first.image && named(first.image)) await openPicture(named(first.image));
  else if (!picture) throw new Error(`the job's picture, ${first.image || "which it does not name"}, is not open: choose it together with the job`);
  let mask = loaded.mask && Uint8Array.from(atob(loaded.mask), (letter) => letter.charCodeAt(0));
  mask = mask ? new Blob([mask]) : first.mask && named(first.mask);
  if (first.mask && !mask) say(`the job's mask, ${first.mask}, was not chosen with it: paint one, or choose both together`);
  fillSelect($("jobs"), jobs.map((_, i) => `${i + 1} of ${jobs.length}`));
  $("jobs-label").hidden = jobs.length < 2;
  useJob(first, mask ? await createImageBitmap(mask) : null);
}

function useJob(asked, mask = null) {
  if (asked.model) $("model").value = asked.model;
  usePreset(asked.preset || about.form.suited[$("model").value]);
  for (const name of TEXTS) $(name).value = asked[name] ?? (name === "seed" ? "42" : "");
  for (const field of settings()) field.value = asked[field.id] ?? field.value;
  mark();
  board.take(asked.drag, mask);
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

async function run() {
  say("");
  await attempt(async () => {
    clearTimeout(asking);
    const body = await request();
    begin();
    try {
      await ask("edit", body);
    } catch (error) {
      end();
      throw error;
    }
  });
}

function begin() {
  running = true;
  result = null;
  course = { losses: [], left: [], handles: [], frame: null, box: null, frames: [] };
  $("notes").replaceChildren();
  for (const id of ["result", "views", "curve"]) $(id).hidden = true;
  $("course").hidden = false;
  $("stop").textContent = "Stop";
  $("state").textContent = "";
  showStage("Waiting", 0, 0);
  board.show({ mode: "live", drags: board.drags });
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
    showStage(STAGES.drag, update, total);
    $("curve").hidden = false;
    drawCurve($("curve"), course);
    showLive();
  },
  async frame({ update, box }) {
    const here = course, response = await fetch(address("frame", { update }));
    if (!response.ok || !running || here !== course) return;
    [course.frame, course.box] = [await createImageBitmap(await response.blob()), box];
    course.frames.push({ update, box });
    showLive();
  },
  warning({ text }) {
    const note = document.createElement("li");
    note.textContent = text[0].toUpperCase() + text.slice(1);
    $("notes").append(note);
  },
  async done(told) {
    end();
    const response = await fetch(address("result"));
    result = { ...told, image: await createImageBitmap(await response.blob()), frames: course?.frames || [] };
    const seconds = Object.values(told.seconds).reduce((sum, one) => sum + one, 0);
    const worst = told.left.length ? `, ${Math.max(...told.left.at(-1)).toFixed(1)} px left` : "";
    const why = told.stop ? `After ${told.losses.length} updates: ${REASONS[told.stop] || told.stop}${worst}.` : "The prompt's change is done.";
    $("outcome").textContent = `${why} ${seconds.toFixed(1)} s.`;
    showStage("Done", 0, 0);
    end();
    for (const id of ["result", "views"]) $(id).hidden = false;
    $("state").textContent = "";
    document.querySelector('[data-view="steps"]').hidden = !told.losses.length;
    if (told.losses.length) drawCurve($("curve"), result);
    showView("compare");
  },
  ended: () => running && finish("Stopped before there was anything to keep"),
  error({ text }) {
    if (running) finish("Failed");
    say(text);
  },
};

function finish(words) {
  showStage(words, 0, 0);
  end();
  showView("draw");
}

function showLive() {
  if (!running) return;
  const { handles, frame, box } = course;
  board.show({ mode: "live", drags: board.drags, handles: handles.at(-1) || [], paths: handles, frame, box });
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
    const response = await fetch(address("frame", { update: seen.update }));
    if (response.ok) seen.image = await createImageBitmap(await response.blob());
  }
  board.show({ mode: "steps", drags: result.drags, handles: paths.at(-1), paths, frame: seen?.image, box: seen?.box });
}

// How far each pixel has changed: dark where it has not, then red, yellow and white.
function heat(before, after) {
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

// ---- saving

async function save(path, name, body) {
  await attempt(async () => {
    const response = await (body ? ask(path, body) : fetch(address(path)));
    if (!response.ok) throw new Error((await response.json()).error);
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
  const asked = picture && (board.drags.length > 0 || $("target_prompt").value.trim());
  $("run").hidden = running;
  $("stop").hidden = !running;
  $("run").disabled = !asked;
  $("save-job").disabled = !picture || running;
  $("go-on").disabled = running;
  if (result && board.shown.mode !== "draw" && !running && board.gesture) showView("draw");
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
  $("stop").onclick = () => attempt(async () => {
    $("stop").textContent = "Stop at once";
    await ask("stop");
  });
  $("save-picture").onclick = () => save("result", `${stem()}-dragged.png`);
  $("save-trace").onclick = () => save("trace", `${stem()}-dragged.json`);
  $("save-job").onclick = async () => save("job", `${stem()}-job.zip`, await request());
  $("go-on").onclick = () => attempt(async () => {
    const opened = await (await ask("on")).json(), target = $("target_prompt").value.trim();
    await showPicture(opened, null);
    if (target) [$("prompt").value, $("target_prompt").value] = [target, ""];
  });
  $("jobs").onchange = () => useJob(jobs[$("jobs").selectedIndex]);
  $("toast").querySelector("button").onclick = () => say("");
  $("step").querySelector("input").oninput = showStep;
  for (const button of document.querySelectorAll("[data-view]")) button.onclick = () => showView(button.dataset.view);
  $("settings").addEventListener("input", changed);
  $("settings").addEventListener("change", prepare);
  $("model").addEventListener("change", prepare);
  const stage = $("stage");
  addEventListener("paste", (event) => event.clipboardData.files.length && openFiles(event.clipboardData.files));
  for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());
  stage.addEventListener("dragenter", () => stage.classList.add("over"));
  stage.addEventListener("dragleave", (event) => stage.contains(event.relatedTarget) || stage.classList.remove("over"));
  addEventListener("drop", (event) => {
    stage.classList.remove("over");
    openFiles(event.dataTransfer.files);
  });
  addEventListener("pagehide", () => navigator.sendBeacon(address("close")));
  addEventListener("pageshow", (event) => event.persisted && location.reload()); // the tab was closed on the server
}

await attempt(async () => {
  const response = await fetch(address("about"));
  about = await response.json();
  if (!response.ok) throw new Error(about.error);
  buildForm(about.form);
  $("example").hidden = !about.example;
  tab = (await (await ask("tab")).json()).tab;
  const events = new EventSource(address("events"));
  events.onmessage = ({ data }) => {
    const told = JSON.parse(data);
    TOLD[told.kind](told);
  };
  events.onerror = () => events.readyState === EventSource.CLOSED && say("this tab was closed on the server: load the page again");
  listen();
  changed();
  document.body.dataset.ready = "yes";
});
