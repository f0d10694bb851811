// The form: texts, preset and settings, and what they say in a job.

const $ = (id) => document.getElementById(id);
const TEXTS = ["prompt", "target_prompt", "negative_prompt", "seed"];
const NAMED = { size: "Working size", drag_step: "Drag step S", updates: "Updates", lr: "Rate η", radius: "Radius r₁", guidance: "Guidance" };
let presets = {}, suited = {};

// Fill the form. `form`: the server's groups of settings, the presets' values, and which of them suits a model.
export function buildForm(models, form) {
  ({ presets, suited } = form);
  const rows = Object.fromEntries(form.groups.flatMap((group) => group.rows.map((row) => [row.name, row])));
  for (const name of form.first) {
    const label = setting(rows[name], NAMED[name] || name);
    label.title = rows[name].help;
    $("first").append(label);
  }
  for (const group of form.groups) {
    const rest = group.rows.filter((row) => !form.first.includes(row.name));
    if (!rest.length) continue;
    const head = document.createElement("h3");
    head.textContent = group.title;
    $("rest").append(head, ...rest.map((row) => {
      const label = setting(row, row.name.replaceAll("_", " ")), help = document.createElement("span");
      [label.className, help.className, help.textContent] = ["setting", "fine", row.help];
      label.append(help);
      return label;
    }));
  }
  fillSelect($("preset"), Object.keys(presets));
  fillSelect($("model"), models);
  $("model-label").hidden = models.length < 2;
  $("model").addEventListener("change", () => usePreset(suited[$("model").value]));
  $("preset").addEventListener("change", () => usePreset($("preset").value));
  usePreset(suited[models[0]]);
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

export function fillSelect(select, words) {
  select.replaceChildren(...words.map((word) => new Option(word, word)));
}

const settings = () => [...document.querySelectorAll("[data-setting]")];

function usePreset(preset) {
  $("preset").value = preset;
  for (const field of settings()) field.value = presets[preset][field.id];
  mark();
}

// Mark the settings that are not the preset's.
function mark() {
  const own = presets[$("preset").value];
  for (const field of settings()) {
    field.parentElement.classList.toggle("changed", field.value.trim() !== own[field.id]);
    field.parentElement.classList.remove("wrong");
  }
}

// Show the setting that a sentence names as the command line does.
export function markWrong(sentence) {
  const name = /--([a-z\d-]+)/.exec(sentence)?.[1].replaceAll("-", "_"), field = settings().find(({ id }) => id === name);
  if (!field) return;
  field.parentElement.classList.add("wrong");
  if ($("rest").contains(field)) $("rest").open = true;
  field.focus();
}

// What is asked for, as a job file has it; settings only where they are not the preset's.
export function asked() {
  const own = presets[$("preset").value], job = { preset: $("preset").value };
  for (const name of TEXTS) if ($(name).value.trim()) job[name] = $(name).value.trim();
  for (const field of settings()) if (field.value.trim() !== own[field.id]) job[field.id] = field.value.trim();
  return job;
}

// Take what a job asks for.
export function take(job) {
  if (job.model) $("model").value = job.model;
  usePreset(job.preset || suited[$("model").value]);
  for (const name of TEXTS) $(name).value = job[name] ?? (name === "seed" ? "42" : "");
  change(job);
}

// Change single settings.
export function change(values) {
  for (const field of settings()) field.value = values[field.id] ?? field.value;
  mark();
}
