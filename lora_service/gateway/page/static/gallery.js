// What was drawn: single jobs with their pictures, and sheets of several jobs; both outlive a reload.

import { $, act, h, repeat, show, when } from "./dom.js";
import { FINAL, api, local } from "./api.js";

const SECONDS = 1.5, MOST = 24, KEY = "lora-service-sheets", MOST_SHEETS = 8, MOST_PAGES = 20;
const RENEWED_MS = 15 * 60 * 1000; // links to pictures end: they are asked for again
const WORDS = { starting: "waiting", processing: "drawing", succeeded: "done", failed: "failed", canceled: "cancelled" };
const HIDDEN = ["prompt", "lora_urls", "image", "mask", "adapter_condition_image", "api_token"];

/** Sheets are `{columns: [text], rows: [{label, jobs: [id]}], seed, at}`, in this tab's memory. */
export class Gallery {
  constructor(place, actions) {
    this.place = place;
    this.actions = actions;
    this.sheets = JSON.parse(sessionStorage.getItem(KEY) ?? "[]");
    this.drawn = new Map();
    this.ended = new Map(); // jobs of sheets by id, as they ended; undefined for those that are gone
    this.age = 0;
  }

  addSheet(sheet) {
    this.sheets = [sheet, ...this.sheets].slice(0, MOST_SHEETS);
    sessionStorage.setItem(KEY, JSON.stringify(this.sheets));
    this.look();
  }

  follow() {
    return repeat(SECONDS, () => this.look());
  }

  /** Return the newest jobs, and by id these and all of the sheets, which may be older. */
  async jobs(inSheets) {
    const age = Math.floor(Date.now() / RENEWED_MS);
    if (age !== this.age) this.ended.clear();
    this.age = age;
    let page = await api("GET", "predictions");
    const newest = page.results;
    const found = new Map(newest.map((job) => [job.id, job]));
    const missing = () => [...inSheets].filter((id) => !found.has(id) && !this.ended.has(id));
    for (let count = 1; page.next && count < MOST_PAGES && missing().length; count++) {
      page = await api("GET", local(page.next).replace("/v1/", ""));
      for (const job of page.results) found.set(job.id, job);
    }
    for (const id of missing()) this.ended.set(id, undefined);
    for (const [id, job] of found) if (inSheets.has(id) && FINAL.includes(job.status)) this.ended.set(id, job);
    return { newest, jobs: new Map([...this.ended, ...found]) };
  }

  async look() {
    const inSheets = new Set(this.sheets.flatMap((sheet) => sheet.rows.flatMap((row) => row.jobs)));
    const { newest, jobs } = await this.jobs(inSheets);
    const single = newest.filter((job) => !inSheets.has(job.id) && job.status !== "canceled" && !job.data_removed).slice(0, MOST);
    const items = [
      ...this.sheets.map((sheet) => ({ id: sheet.rows[0].jobs[0], at: sheet.at ?? jobs.get(sheet.rows[0].jobs[0])?.created_at ?? "", state: this.age + sheet.rows.flatMap((row) => row.jobs).map((id) => jobs.get(id)?.status).join(), make: () => sheetCard(sheet, jobs, this.actions) })),
      ...single.map((job) => ({ id: job.id, at: job.created_at, state: this.age + job.status, make: () => jobCard(job, this.actions) })),
    ].filter((item) => item.at).sort((one, other) => other.at.localeCompare(one.at));
    const kept = new Map();
    for (const item of items) {
      const before = this.drawn.get(item.id);
      kept.set(item.id, before?.state === item.state ? before : { state: item.state, element: item.make() });
    }
    const elements = [...kept.values()].map((each) => each.element);
    if (!this.place.childElementCount || elements.length !== this.place.childElementCount || elements.some((each, index) => each !== this.place.children[index])) {
      show(this.place, elements.length ? elements : h("p", { class: "empty" }, "Nothing is drawn yet."));
    }
    this.drawn = kept;
  }
}

function seedsOf(job) {
  return String(job.metrics?.seeds ?? job.input.seed ?? "").split(" ").filter(Boolean);
}

/** The number of the LoRA that each picture has for itself; none where they have all. */
function lorasOf(job) {
  return String(job.metrics?.lora_numbers ?? "").split(" ").filter(Boolean);
}

function jobCard(job, actions) {
  const pictures = Array.isArray(job.output) ? job.output : [];
  const seeds = seedsOf(job), loras = lorasOf(job);
  return h("article", { class: "card drawn", "aria-label": job.input.prompt ?? "a drawing", "aria-busy": String(!FINAL.includes(job.status)) },
    pictures.length > 0 && h("div", { class: "shots" }, pictures.map((link, index) => picture(link, `Picture ${index + 1}: ${job.input.prompt ?? ""}`))),
    h("p", { class: "said" }, job.input.prompt ?? "a photo of <1>"),
    h("p", { class: "hint" }, seeds.length ? `seed ${seeds.join(", ")}, ` : "", loras.length ? `of LoRA ${loras.join(", ")}, ` : "", when(job.created_at), " ", job.status !== "succeeded" && h("span", { class: `tag ${job.status}` }, WORDS[job.status])),
    job.error && h("p", { class: "problem" }, job.error),
    job.status === "failed" && h("details", {}, h("summary", {}, "Log"), h("pre", { tabindex: 0, "aria-label": "Log" }, job.logs || "It has no log.")),
    h("div", { class: "row" },
      !FINAL.includes(job.status) && cancelButton([job.id]),
      pictures.length > 0 && [
        h("button", { type: "button", onclick: () => actions.again(job, seeds[0]) }, "Use these settings"),
        h("button", { type: "button", onclick: (event) => act(event.target, () => actions.start(pictures[0])) }, "Start from it"),
      ]),
    settings(job.input));
}

function picture(link, alt) {
  const source = local(link);
  return h("a", { href: source, target: "_blank", rel: "noopener" }, h("img", { src: source, alt, loading: "lazy" }));
}

function settings(input) {
  const shown = Object.entries(input).filter(([name, value]) => !HIDDEN.includes(name) && value !== "" && value != null);
  if (!shown.length) return null;
  return h("details", {}, h("summary", {}, "Settings"), h("dl", { class: "pairs" }, shown.map(([name, value]) => [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, String(value))])));
}

function cancelButton(ids) {
  return h("button", { type: "button", class: "danger", onclick: (event) => act(event.target, async () => {
    for (const id of ids) await api("POST", `predictions/${id}/cancel`);
  }) }, ids.length > 1 ? "Cancel the rest" : "Cancel");
}

function sheetCard(sheet, jobs, actions) {
  const open = sheet.rows.flatMap((row) => row.jobs).filter((id) => jobs.get(id) && !FINAL.includes(jobs.get(id).status));
  const cell = (id, label) => {
    const job = jobs.get(id);
    const link = Array.isArray(job?.output) && job.output[0];
    if (link) return picture(link, label);
    return h("span", { class: `blank ${job && !FINAL.includes(job.status) ? "busy" : ""}` }, job?.error ? "failed" : job ? WORDS[job.status] : "gone");
  };
  return h("article", { class: "card drawn sheet", "aria-label": sheet.title, "aria-busy": String(open.length > 0) },
    h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": `${sheet.title}, from left to right` }, h("table", {},
      h("thead", {}, h("tr", {}, sheet.isGrid && h("td", {}), sheet.columns.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, sheet.rows.map((row) => h("tr", {}, sheet.isGrid && h("th", { scope: "row" }, row.label),
        row.jobs.map((id, index) => h("td", {}, cell(id, `${row.label}, ${sheet.columns[index]}`)))))))),
    h("p", { class: "hint" }, `${sheet.title}, seed ${sheet.seed}`),
    h("div", { class: "row" }, open.length > 0 && cancelButton(open),
      !open.length && h("button", { type: "button", onclick: (event) => act(event.target, () => actions.save(sheet, jobs)) }, "Save as one picture")));
}
