// Draw: a prompt, LoRAs with sliders, a picture to start from, and what came of it.

import { $, act, h, plural, ready, say, show } from "./dom.js";
import { api, fetched, lasting, user } from "./api.js";
import { Fields, fold, inputsOf } from "./form.js";
import { Brush } from "./brush.js";
import { Chosen, loraInputs, taught } from "./chosen.js";
import { Gallery } from "./gallery.js";
import { MOST, drawSheet, saveSheet, scalesOf } from "./sheets.js";

const KEY = "lora-service-draw";
const OWN = ["prompt", "lora_urls", "lora", "lora_scales", "image", "mask", "replicate_weights", "preview_every"];
const FRONT = ["num_outputs", "aspect_ratio", "seed"];
const START = ["prompt_strength", "mask_feather", "keep_unmasked"];
const LORAS = ["lora_mode"];
const prompt = $("#prompt");
let offered = ""; // the LoRAs that the grid has boxes for

await user();
const model = await api("GET", "models/local/lora");
const inputs = inputsOf(model);
const fields = new Fields(inputs.filter((each) => !OWN.includes(each.name)));
show($("#front"), fields.of(FRONT));
show($("#start-fields"), fields.of(START));
show($("#loras-fields"), fields.of(LORAS));
fold($("#more"), fields.of(fields.inputs.map((each) => each.name).filter((name) => ![...FRONT, ...START, ...LORAS].includes(name))));
prompt.value = inputs.find((each) => each.name === "prompt").default ?? "";

const brush = new Brush($("#canvas-place"), () => { $("#start-fields").hidden = !brush.picture; });
$("#start-fields").hidden = true;
const chosen = new Chosen(changed);
const gallery = new Gallery($("#gallery"), { again, start: startFrom, save: saveSheet });
restore();
await chosen.refresh();
await open(new URLSearchParams(location.search).get("lora"));
changed();

$("#draw").addEventListener("submit", (event) => {
  event.preventDefault();
  act($("#go"), draw);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("#draw").requestSubmit();
});
$("#draw-strip").addEventListener("click", (event) => act(event.target, strip));
$("#draw-grid").addEventListener("click", (event) => act(event.target, grid));
for (const each of [prompt, $("#grid-scales"), $("#grid-prompts"), $("#strip-scales")]) each.addEventListener("input", changed);
$("#grid-loras").addEventListener("change", changed);
$("#loras-fields").addEventListener("change", offerTokens);
$("#draw").addEventListener("change", keep);
ready();
await gallery.follow();

/** Choose the LoRA that a link to this page names. */
async function open(id) {
  if (!id) return;
  history.replaceState(null, "", location.pathname);
  const lora = chosen.library.find((each) => each.id === id) ?? (await api("GET", `loras/${id}`).catch((problem) => {
    say(problem.status === 404 ? "The LoRA of this link is not there any more." : problem.message, true);
  }));
  if (!lora) return;
  chosen.loras = [];
  chosen.add(taught(lora));
  prompt.value = lora.prompt ?? prompt.value;
}

function changed() {
  offerTokens();
  const names = chosen.loras.map((lora, index) => h("option", { value: index }, lora.name));
  const before = $("#strip-lora").value;
  show($("#strip-lora"), names);
  $("#strip-lora").value = names[before] ? before : 0;
  const isReady = chosen.loras.length > 0;
  $("#loras-fields").hidden = chosen.loras.length < 2;
  if (chosen.loras.length < 2) for (const each of fields.inputs.filter((input) => LORAS.includes(input.name))) fields.set(each.name, each.default);
  for (const id of ["#strip", "#grid"]) $(`${id} button`).disabled = !isReady;
  $("#strip-hint").textContent = isReady ? plural(scalesOf($("#strip-scales").value)?.length ?? 0, "picture") : "Add a LoRA first.";
  offerCheckpoints();
  const count = gridRows().length * (scalesOf($("#grid-scales").value)?.length ?? 0);
  $("#grid-hint").textContent = isReady ? plural(count, "picture") + (count > MOST ? `; ${MOST} at most` : "") : "Add a LoRA first.";
  keep();
}

/** Buttons that put what the LoRAs understand into the prompt. */
function offerTokens() {
  const isEach = fields.inputs.some(({ name }) => name === "lora_mode") && fields.control("lora_mode").value === "each";
  const chips = isEach ? [{ text: "<1>", about: "each LoRA" }] : chosen.loras.flatMap((lora, index) => [
    { text: `<${index + 1}>`, about: lora.name },
    ...(lora.trigger ? lora.trigger.split(", ").map((text) => ({ text, about: "trigger" })) : []),
  ]);
  $("#tokens").hidden = !chips.length;
  show($("#tokens"), chips.map(({ text, about }) => h("button", { type: "button", onclick: () => {
    prompt.setRangeText(text, prompt.selectionStart, prompt.selectionEnd, "end");
    prompt.focus();
    changed();
  } }, text, h("span", { class: "hint" }, about))));
}

/** Boxes for the LoRAs of a grid: those that were chosen, those taught here, and their files of earlier steps. */
async function offerCheckpoints() {
  const first = chosen.loras[0];
  const loras = [...chosen.loras, ...chosen.library.map(taught)].filter((lora, index, all) => all.findIndex((each) => each.key === lora.key) === index);
  const key = loras.map((each) => each.key).join() + first?.key;
  if (key === offered) return;
  offered = key;
  const box = (lora, name, isOn) => Object.assign(h("label", { class: "check" }, h("input", { type: "checkbox", checked: isOn, value: lora.link, "data-name": name }), name));
  show($("#grid-loras"), loras.map((lora) => box(lora, lora.name, lora.key === first?.key)));
  const training = chosen.library.find((each) => each.id === first?.id)?.training;
  const saved = training ? (await api("GET", `trainings/${training}/progress`)).saved : [];
  if (offered === key) $("#grid-loras").append(...saved.map((file) => box({ link: lasting(file.url, file.url) }, `${first.name}, ${file.stage}, step ${file.step}`, false)));
}

function gridRows() {
  const prompts = $("#grid-prompts").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const texts = prompts.length ? prompts : [prompt.value];
  const boxes = [...$("#grid-loras").querySelectorAll("input:checked")];
  return texts.flatMap((text) => boxes.map((each) => ({
    label: texts.length > 1 ? `${each.dataset.name}: ${text}` : each.dataset.name, prompt: text, vary: 0,
    loras: [{ link: each.value }, ...chosen.loras.slice(1)],
  })));
}

/** The inputs of the form but for prompt and LoRAs, with what is wrong in the form told. */
async function values() {
  await chosen.refresh();
  for (const id of ["#prompt-problem", "#loras-problem"]) $(id).textContent = "";
  return { ...(await fields.values()), ...(await brush.inputs()) };
}

async function ask(action) {
  try {
    return await action();
  } catch (problem) {
    const { "input.prompt": ofPrompt, "input.lora_urls": ofLoras, "input.lora_scales": ofScales, ...rest } = problem.fields ?? {};
    $("#prompt-problem").textContent = ofPrompt ?? "";
    $("#loras-problem").textContent = ofLoras ?? ofScales ?? "";
    if (ofPrompt || ofLoras || ofScales || (Object.keys(rest).length && !fields.problems(rest).length)) return null;
    throw problem;
  }
}

function draw() {
  return ask(async () => {
    const input = { ...(await values()), ...loraInputs(chosen.loras), prompt: prompt.value };
    await api("POST", "models/local/lora/predictions", { input });
    await gallery.look();
  });
}

async function sheet(title, isGrid, rows, text) {
  const scales = scalesOf(text);
  if (!scales) return say("Scales are numbers from -10 to 10, split by commas.", true);
  if (rows.length * scales.length > MOST) return say(`These are ${rows.length * scales.length} pictures; ${MOST} at most are drawn at once.`, true);
  return ask(async () => {
    const { seed, lora_mode, ...inputs } = await values(); // a sheet's pictures have all LoRAs of their row
    await drawSheet({ title, isGrid, rows, scales, inputs, seed: seed ?? Math.floor(Math.random() * 2 ** 32) }, (drawn) => gallery.addSheet(drawn));
  });
}

function strip() {
  const vary = Number($("#strip-lora").value);
  const rows = [{ label: chosen.loras[vary].name, prompt: prompt.value, loras: chosen.loras, vary }];
  return sheet(`${chosen.loras[vary].name}: ${prompt.value}`, false, rows, $("#strip-scales").value);
}

function grid() {
  const rows = gridRows();
  if (!rows.length) return say("Choose a LoRA for the grid.", true);
  return sheet($("#grid-prompts").value.trim() ? "Grid" : prompt.value, true, rows, $("#grid-scales").value);
}

/** Put a job's settings into the form; LoRAs, pictures and secrets stay as they are. */
function again(job, seed) {
  const texts = fields.inputs.filter((each) => !each.isFile && each.format !== "password");
  for (const each of texts) fields.set(each.name, job.input[each.name] ?? each.default);
  fields.set("seed", seed);
  prompt.value = job.input.prompt ?? prompt.value;
  changed();
  prompt.focus();
}

async function startFrom(link) {
  await brush.open(await fetched(link), "drawn.png");
  $("#start").open = true;
  $("#start summary").focus();
}

function keep() {
  sessionStorage.setItem(KEY, JSON.stringify({ prompt: prompt.value, loras: chosen.loras, texts: fields.texts() }));
}

function restore() {
  const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "null");
  if (!kept) return;
  prompt.value = kept.prompt;
  fields.restore(kept.texts);
  chosen.loras = kept.loras;
  chosen.show();
}
