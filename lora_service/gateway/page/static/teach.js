// Teach: what it is, pictures with their contact sheet, inputs, start. What was entered outlives a reload of the tab.

import { $, act, duration, h, plural, ready, say, show } from "./dom.js";
import { Problem, api, lasting, user } from "./api.js";
import { Fields, fold, inputsOf } from "./form.js";
import { Pictures } from "./pictures.js";
import { Sheet } from "./sheet.js";

const DRAFT = "lora-service-teach";
const OWN = ["task", "instance_data", "instance_data_urls", "captions"]; // the page has something better for them
const ABOUT = { face: "One person", object: "A thing, an animal, a character", style: "How pictures look", location: "A place" };
const CHANGE_MS = 700; // of quiet after a change, before the sheet is asked for again

const BUSY_MS = 2000;

const form = $("#teach");
const name = await user();
const trainer = await api("GET", "models/local/lora-training").catch((problem) => {
  throw new Error(problem.status === 404 ? "The training server has not started yet; reload in a moment." : problem.message);
});
const inputs = inputsOf(trainer);
const fields = new Fields(inputs.filter((input) => !OWN.includes(input.name)));
const pictures = new Pictures(changed);
const sheet = new Sheet($("#sheet"), changed, (picture) => pictures.remove(picture));
let shownFor = "";
let timer = 0;
let isAsking = false;

show($("#tasks"), inputs.find((input) => input.name === "task").options.map((task, index) => h("label", { class: "choice" },
  h("input", { type: "radio", name: "task", value: task, checked: index === 0, onchange: changed }),
  h("span", {}, h("b", {}, task), h("span", { class: "hint" }, ABOUT[task] ?? "")))));
const front = JSON.parse(form.dataset.front).filter((each) => !OWN.includes(each));
$("#front").append(...fields.of(front));
fold($("#more"), fields.of(inputs.map((input) => input.name).filter((each) => !front.includes(each))));
tellBase();
await restore();
form.addEventListener("input", (event) => event.target.type !== "search" && changed());
form.addEventListener("submit", (event) => {
  event.preventDefault();
  act($("#start"), start);
});
ready();
await Promise.all([furtherFrom(new URLSearchParams(location.search).get("start_from")), showRunning()]);

function task() {
  return $("input[name=task]:checked").value;
}

/** The input of the training as it stands: what its preview and its start send alike. */
async function given() {
  const captions = sheet.edited();
  return {
    task: task(),
    ...(await fields.values()),
    instance_data_urls: pictures.links().join("\n"),
    ...(Object.keys(captions).length && { captions: JSON.stringify(captions) }),
  };
}

function changed() {
  const draft = { task: task(), name: $("#name").value, texts: fields.texts(), pictures: pictures.uploads, edits: sheet.edits };
  sessionStorage.setItem(DRAFT, JSON.stringify(draft));
  $("#pictures-problem").textContent = "";
  $("#name").placeholder = suggestedName();
  clearTimeout(timer);
  timer = setTimeout(preview, CHANGE_MS);
}

async function restore() {
  const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
  if (draft) {
    const choice = $(`input[name=task][value="${CSS.escape(draft.task)}"]`);
    if (choice) choice.checked = true;
    $("#name").value = draft.name;
    fields.restore(draft.texts);
    sheet.edits = draft.edits;
    pictures.restore(draft.pictures);
  }
  changed();
}

/** Ask for the contact sheet, if what it depends on is not what is shown. */
async function preview() {
  if (pictures.isBusy) return;
  if (!pictures.links().length) {
    shownFor = "";
    sheet.clear();
    return summarize();
  }
  const input = await given();
  const key = JSON.stringify(input);
  if (key === shownFor) return;
  if (isAsking) { // the gateway makes one sheet at a time for a user
    timer = setTimeout(preview, CHANGE_MS);
    return;
  }
  isAsking = true;
  shownFor = key;
  sheet.wait();
  try {
    const report = await api("POST", "previews", { input });
    if (shownFor !== key) return; // another one is on its way
    fields.problems({});
    sheet.report(report);
  } catch (problem) {
    if (shownFor !== key) return;
    if (problem.status === 429) { // another tab's is still being made
      shownFor = "";
      timer = setTimeout(preview, BUSY_MS);
      return;
    }
    sheet.fail();
    refuse(problem, false);
  } finally {
    isAsking = false;
  }
  summarize();
}

function summarize() {
  const used = sheet.pictures.length;
  $("#start-bar").classList.toggle("ready", used > 0);
  $("#summary").textContent = used
    ? `${plural(used, "picture")}, ${task()}, as “${destination()}”`
    : "Begin with some pictures.";
}

function suggestedName() {
  const word = fields.control("class_word").value.trim().toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  return word || `my-${task()}`;
}

function destination() {
  return $("#name").value.trim() || suggestedName();
}

/** Show a refusal where it belongs; the focus moves only where the user asked for what is refused. */
function refuse(problem, isAsked) {
  const rest = fields.problems(problem.fields ?? {}, isAsked);
  const named = Object.keys(problem.fields ?? {}).some((field) => field.includes("destination"));
  if (named) $("#name-problem").textContent = problem.message;
  else if (rest.length || !Object.keys(problem.fields ?? {}).length) $("#pictures-problem").textContent = problem.message;
}

async function start() {
  $("#name-problem").textContent = "";
  if (!$("#name").checkValidity()) {
    $("#name-problem").textContent = "Letters, digits, dots and dashes, beginning with a letter or digit.";
    return $("#name").focus();
  }
  if (pictures.isBusy) return say("The pictures are still being uploaded.", true);
  if (!pictures.links().length) {
    $("#pictures-problem").textContent = "Choose some pictures first.";
    return $("#files").focus();
  }
  try {
    const version = trainer.latest_version.id;
    const job = await api("POST", `models/local/lora-training/versions/${version}/trainings`, {
      destination: `${name}/${destination()}`, input: await given(),
    });
    sessionStorage.removeItem(DRAFT);
    location.assign(`/trainings/${job.id}`);
  } catch (problem) {
    if (!(problem instanceof Problem) || problem.status !== 422) throw problem;
    refuse(problem, true);
  }
}

/** Say when the base is the small one that is part of the package, which newcomers may take for all there is. */
function tellBase() {
  if (!/\bbase embedded\b/.test(trainer.description ?? "")) return;
  show($("#base"), "This gateway uses the small base model that comes with it: 64 × 64 cartoons, for trying everything out within minutes. For photographs, start it with ", h("code", {}, "BASE_MODEL=sd15 lora-service up"), ".");
  $("#base").hidden = false;
}

async function furtherFrom(lora) {
  if (!lora) return;
  const file = await api("GET", `loras/${encodeURIComponent(lora)}`);
  fields.set("start_from", lasting(file.url, file.url));
  if (!$("#name").value) $("#name").value = file.model?.split("/").at(-1) ?? "";
  show($("#further"), "Going on from ", h("b", {}, file.name), ": choose the pictures for it.", h("button", {
    type: "button", class: "quiet", onclick: () => {
      fields.set("start_from", "");
      $("#further").hidden = true;
      changed();
    },
  }, "Begin anew instead"));
  $("#further").hidden = false;
  changed();
}

/** Link to the trainings of this user that wait or run. */
async function showRunning() {
  const { running, waiting } = await api("GET", "queue");
  const own = [...running, ...waiting].filter((job) => job.mine && job.kind === "training");
  show($("#running"), own.map((job) => h("p", { class: "note good row" },
    h("span", { class: "grow" }, job.started_at ? "Being taught now: " : "Waits to be taught: ", h("b", {}, job.destination.split("/").at(-1)),
      job.metrics?.seconds_left ? `, about ${duration(job.metrics.seconds_left)} left` : ""),
    h("a", { href: `/trainings/${job.id}` }, "Watch"))));
}
