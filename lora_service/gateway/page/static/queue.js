// Queue: what runs and waits, for whom, since when; one's own jobs in another order, or cancelled; what has ended.

import { $, act, confirmed, duration, h, ready, repeat, show, when } from "./dom.js";
import { FINAL, api, local, user } from "./api.js";

const SECONDS = 2;
const ENDED = 20;
const WORDS = { starting: "waiting", processing: "running", succeeded: "done", failed: "failed", canceled: "cancelled" };
let ended = null; // the open jobs at the last look at those that have ended
let drawn = "";

await user();
ready();
await repeat(SECONDS, look);

async function look() {
  const queue = await api("GET", "queue");
  const minute = Math.floor(Date.now() / 60000); // "3 min ago" is said anew
  const key = minute + JSON.stringify(queue, (name, value) => (name === "urls" ? undefined : value)); // links differ each time
  if (key !== drawn) drawQueue(queue);
  drawn = key;
  const open = [...queue.running, ...queue.waiting].map((job) => job.id).join();
  if (ended !== open) await drawEnded();
  ended = open;
}

function drawQueue({ running, waiting }) {
  const focused = document.activeElement?.id;
  show($("#running"), running.length ? running.map((job) => item(job)) : nothing("Nothing runs."));
  show($("#waiting"), waiting.length ? waiting.map((job) => item(job, waiting)) : nothing("Nobody waits."));
  if (focused) document.getElementById(focused)?.focus();
}

function nothing(text) {
  return h("li", { class: "hint" }, text);
}

function item(job, waiting = null) {
  const what = h("div", { class: "grow" }, title(job), h("p", { class: "hint" }, subtitle(job)));
  if (!job.mine) return h("li", {}, what);
  return h("li", {}, what, h("div", { class: "row" }, waiting && moves(job, waiting), cancelButton(job)));
}

function title(job) {
  const kind = h("span", { class: "tag" }, job.kind === "training" ? "teach" : "draw");
  const name = job.destination?.split("/").at(-1) ?? (job.mine || job.model ? job.model : null);
  const text = name ?? (job.kind === "training" ? "A training" : "A drawing");
  return h("p", {}, kind, " ", job.kind === "training" && job.id ? h("a", { href: `/trainings/${job.id}` }, text) : h("b", {}, text));
}

function subtitle(job) {
  const { step, of, seconds_left: left } = job.metrics ?? {};
  return [job.mine ? "yours" : job.user ? `of ${job.user}` : "somebody else's", ", ",
    job.started_at ? ["begun ", when(job.started_at)] : [job.position && `number ${job.position} in line, `, "asked for ", when(job.created_at)],
    job.started_at && of ? `, step ${step} of ${of}` : "", job.started_at && left ? `, about ${duration(left)} left` : ""];
}

/** Buttons that let a job change places with one's own before and behind it. */
function moves(job, waiting) {
  const own = waiting.filter((each) => each.mine && each.kind === job.kind && each.priority === job.priority);
  const index = own.indexOf(job);
  const name = job.destination?.split("/").at(-1) ?? job.model;
  return [["up", -1, "↑", "earlier"], ["down", 1, "↓", "later"]].map(([key, by, arrow, word]) => {
    const button = h("button", { type: "button", id: `${key}-${job.id}`, disabled: !own[index + by], "aria-label": `Move ${name} ${word}`, onclick: () => act(button, async () => {
      const order = own.map((each) => each.id);
      [order[index], order[index + by]] = [order[index + by], order[index]];
      await api("POST", "queue/order", { jobs: order });
      await look();
      document.getElementById(`${key}-${job.id}`)?.focus();
    }) }, arrow);
    return button;
  });
}

function cancelButton(job) {
  const button = h("button", { type: "button", class: "danger", id: `cancel-${job.id}`, onclick: () => act(button, async () => {
    if (job.started_at && !(await confirmed("Cancel this job?", "Cancel it", "What it has done so far is thrown away."))) return;
    await api("POST", `${job.kind}s/${job.id}/cancel`);
    await look();
  }) }, "Cancel");
  return button;
}

async function drawEnded() {
  const lists = await Promise.all(["training", "prediction"].map(async (kind) =>
    (await api("GET", `${kind}s`)).results.map((job) => ({ ...job, kind }))));
  const jobs = lists.flat().filter((job) => FINAL.includes(job.status));
  jobs.sort((one, other) => new Date(other.completed_at) - new Date(one.completed_at));
  show($("#ended"), jobs.length ? jobs.slice(0, ENDED).map(endedItem) : nothing("Nothing has ended yet."));
}

function endedItem(job) {
  return h("li", {}, h("div", { class: "grow" },
    title({ ...job, mine: true }),
    h("p", { class: "hint" }, job.kind === "prediction" && job.input?.prompt ? `“${job.input.prompt.slice(0, 100)}”, ` : "", "ended ", when(job.completed_at)),
    job.status === "failed" && h("p", { class: "problem" }, job.error ?? "It failed."),
    job.status === "failed" && h("details", {}, h("summary", {}, "Log"), h("pre", { tabindex: 0, "aria-label": "Log" }, job.logs || "It has no log."))),
  pictures(job), h("span", { class: `tag ${job.status}` }, WORDS[job.status]));
}

function pictures(job) {
  if (job.kind !== "prediction" || !Array.isArray(job.output)) return null;
  return h("div", { class: "row thumbs" }, job.output.slice(0, 4).map((link, index) =>
    h("img", { src: local(link), alt: `Picture ${index + 1}`, width: 48, height: 48, loading: "lazy" })));
}
