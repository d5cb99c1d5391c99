// A training: while it waits and runs, and what came of it.

import { $, act, bytes, confirmed, duration, h, plural, ready, repeat, say, show, when } from "./dom.js";
import { FINAL, api, lasting, local, nameIn, user } from "./api.js";
import { lossChart } from "./chart.js";

const SECONDS = 2;
const WORDS = { starting: "waiting", processing: "being taught", succeeded: "taught", failed: "failed", canceled: "cancelled" };
const id = decodeURIComponent(location.pathname.split("/").at(-1));
const path = `trainings/${encodeURIComponent(id)}`;
let shown = {}; // the texts of the parts as they are, so that only what changed is drawn anew

await user();
ready();
try {
  await repeat(SECONDS, async () => {
    const [job, progress] = await Promise.all([api("GET", path), api("GET", `${path}/progress`)]);
    await draw(job, progress);
    return !FINAL.includes(job.status);
  });
} catch (problem) {
  $("#facts").textContent = problem.message;
}

async function draw(job, progress) {
  const isFinal = FINAL.includes(job.status);
  const name = job.destination?.split("/").at(-1) ?? job.id;
  const share = overall(job, progress);
  document.title = `${isFinal || !progress.step ? WORDS[job.status] : `${Math.round(100 * share)} %`} · ${name} · lora-service`;
  $("#title").textContent = name;
  part("state", job.status, (place) => show(place, h("span", { class: `tag ${job.status}` }, WORDS[job.status])));
  show($("#facts"), facts(job));
  $("#progress").hidden = isFinal;
  if (!isFinal) await drawProgress(job, progress, share);
  part("chart-place", progress.points.length, (place) => {
    $("#chart").hidden = !progress.points.length;
    if (progress.points.length) show(place, lossChart(progress.points));
  });
  part("samples-place", progress.samples.length, (place) => drawSamples(place, progress.samples));
  part("saved-place", progress.saved.length, (place) => {
    $("#saved").hidden = !progress.saved.length;
    show(place, progress.saved.map((file) => h("li", {}, h("a", { href: local(file.url), download: file.name }, file.name),
      h("span", { class: "hint" }, ` ${file.stage}, step ${file.step}, ${bytes(file.size)}, `, when(file.created_at)))));
  });
  part("log-text", job.logs ?? "", (place, text) => { place.textContent = text || "Nothing yet."; });
  part("given-list", JSON.stringify(job.input), (place) => show(place, pairs(job.input ?? {})));
  if (isFinal) await drawResult(job, progress);
}

/** Draw a part again if it is not what it was. */
function part(place, key, drawing) {
  if (shown[place] === key) return;
  shown[place] = key;
  drawing($(`#${place}`), key);
}

function facts(job) {
  const { task = "face" } = job.input ?? {};
  return [`${task[0].toUpperCase()}${task.slice(1)}, `,
    ...(job.completed_at ? ["ended ", when(job.completed_at), job.started_at && `, took ${duration((new Date(job.completed_at) - new Date(job.started_at)) / 1000)}`]
      : job.started_at ? ["begun ", when(job.started_at)] : ["asked for ", when(job.created_at)])];
}

/** The share of all steps that is done; stage 2 is not known before it begins, and taken for as long as stage 1. */
function overall({ input }, { stage, step, of, points }) {
  if (!of) return 0;
  const isFirst = /^stage 1/.test(stage ?? "");
  const isOnly = isFirst ? input?.max_train_steps_tuning === 0 : !points.some((each) => /^stage 1/.test(each.stage ?? ""));
  return isOnly ? step / of : (isFirst ? 0 : 0.5) + (step / of) * 0.5;
}

async function drawProgress(job, progress, share) {
  const bar = $("#done");
  if (progress.step) bar.value = share;
  else bar.removeAttribute("value");
  const left = progress.seconds_left == null ? "" : `, about ${duration(progress.seconds_left)} left`;
  const line = progress.is_stopping ? "Stopping: what was learned so far is being kept …"
    : progress.step ? `${progress.stage}, step ${progress.step} of ${progress.of}${left}`
      : job.status === "processing" ? "Preparing the pictures …" : await waiting(job);
  part("stage", line, (place) => { place.textContent = line; });
  const word = progress.is_stopping ? "Stopping." : progress.stage ? `${progress.stage} has begun.` : line;
  part("spoken", word, (place) => { place.textContent = word; });
  part("actions", [progress.can_save, progress.can_stop, progress.is_stopping, job.status].join(), (place) => show(place,
    action("Save now", progress.can_save, async () => {
      await api("POST", `${path}/save`);
      say("The state after this step will be among the saved files in a moment.");
    }),
    action("Stop and keep", progress.can_stop && !progress.is_stopping, async () => {
      if (!(await confirmed("Stop here?", "Stop and keep", "The file holds what was learned so far."))) return;
      await api("POST", `${path}/stop`);
    }),
    action("Cancel", true, async () => {
      if (await confirmed("Cancel this training?", "Cancel it", "What was learned is thrown away.")) await api("POST", `${path}/cancel`);
    }, "danger")));
}

function action(text, isPossible, run, style = "") {
  const button = h("button", { type: "button", class: style, disabled: !isPossible, onclick: () => act(button, run) }, text);
  return button;
}

async function waiting(job) {
  const { waiting: entries } = await api("GET", "queue");
  const position = entries.find((entry) => entry.id === job.id)?.position;
  return position > 1 ? `Waiting: ${plural(position - 1, "training")} before this one.` : "Waiting for the training server …";
}

function drawSamples(place, samples) {
  $("#samples").hidden = !samples.length;
  const newest = samples.at(-1);
  const picture = (sample, small) => h("figure", {},
    h("a", { href: local(sample.url), target: "_blank", rel: "noopener" },
      h("img", { src: local(sample.url), alt: `Samples of ${sample.stage} at step ${sample.step}`, loading: small ? "lazy" : "eager" })),
    h("figcaption", { class: "hint" }, `${sample.stage}, step ${sample.step}`));
  if (newest) show(place, picture(newest, false),
    samples.length > 1 && h("details", {}, h("summary", {}, `${samples.length - 1} before`), samples.slice(0, -1).reverse().map((each) => picture(each, true))));
}

async function drawResult(job, progress) {
  const place = $("#result");
  if (job.status === "succeeded") {
    const { results } = await api("GET", "loras");
    const lora = results.find((each) => each.training === job.id);
    part("spoken", "done", (spoken) => { spoken.textContent = "The training is done."; });
    return show(place, lora ? taught(lora) : h("p", { class: "note" }, elsewhere(job.output)));
  }
  const isFailed = job.status === "failed";
  part("spoken", "done", (spoken) => { spoken.textContent = isFailed ? "The training failed." : "The training was cancelled."; });
  if (isFailed) $("#log").open = true;
  show(place, h("div", { class: `card ${isFailed ? "failure" : ""}` },
    h("h2", {}, isFailed ? "It failed" : "It was cancelled"), job.error && h("p", { class: "problem" }, job.error),
    h("div", { class: "row" }, h("button", { type: "button", class: "main", onclick: () => again(job) }, "Try again with these inputs"))));
}

/** What is said of a file that is not in one's own library: of somebody else's training, or removed. */
function elsewhere(output) {
  const link = typeof output === "string" ? output : output?.weights;
  return link ? ["It is taught: ", h("a", { href: local(link), download: nameIn(link) }, nameIn(link))] : "Its file was removed.";
}

function taught(lora) {
  const prompt = lora.prompt ?? "a photo of <1>";
  return h("section", { class: "card result", "aria-labelledby": "result-title" },
    lora.thumbnail && h("img", { src: local(lora.thumbnail), alt: "A picture drawn with it", width: 160, height: 160 }),
    h("div", { class: "grow" },
      h("h2", { id: "result-title" }, "It is taught"),
      h("dl", { class: "pairs" },
        lora.trigger && [h("dt", {}, "Trigger word"), h("dd", {}, copied(lora.trigger), h("span", { class: "hint" }, " calls it in every tool"))],
        [h("dt", {}, "Prompt"), h("dd", {}, copied(prompt), h("span", { class: "hint" }, " for here"))],
        [h("dt", {}, "File"), h("dd", {}, lora.name, h("span", { class: "hint" }, ` ${bytes(lora.size)}`))]),
      h("div", { class: "row" },
        h("a", { class: "button main", href: `/draw?lora=${encodeURIComponent(lora.id)}` }, "Draw with it"),
        h("a", { class: "button", href: local(lora.url), download: lora.name }, "Download"),
        h("a", { class: "button", href: `/?start_from=${encodeURIComponent(lora.id)}` }, "Teach further"))));
}

/** A text with a button that copies it. */
function copied(text) {
  return [h("code", {}, text), h("button", { type: "button", class: "quiet", "aria-label": `Copy ${text}`, onclick: async () => {
    await navigator.clipboard.writeText(text).then(() => say("Copied."), () => say("This browser does not let pages copy; select it instead.", true));
  } }, "Copy")];
}

function pairs(input) {
  return Object.entries(input).map(([name, value]) => [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, short(value))]);
}

function short(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  const links = text.split("\n").filter((line) => /^https?:/.test(line));
  return links.length ? links.map(nameIn).join(", ") : text;
}

/** Take the inputs of this training to the page Teach. */
function again({ input, destination, urls }) {
  const { task = "face", instance_data, instance_data_urls = "", captions = "{}", ...rest } = input;
  const stays = (value) => (typeof value === "string" ? lasting(value, urls.get) : value);
  const given = Object.entries(rest).filter(([, value]) => value !== "[hidden]"); // a secret is not shown again
  const texts = Object.fromEntries(given.map(([name, value]) => [name, stays(value)]));
  const links = [instance_data, ...instance_data_urls.split("\n")].filter(Boolean);
  const pictures = links.map((link) => ({ name: nameIn(link), size: 0, get: stays(link) }));
  const edits = Object.fromEntries(Object.entries(JSON.parse(captions)).map(([name, text]) => [name, [text].flat().join("\n")]));
  sessionStorage.setItem("lora-service-teach", JSON.stringify({ task, name: destination.split("/").at(-1), texts, pictures, edits }));
  location.assign("/");
}
