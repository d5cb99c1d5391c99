// Library: what was taught, and files that were uploaded to be looked into.

import { $, act, bytes, confirmed, h, ready, say, show, when } from "./dom.js";
import { api, local, upload, user } from "./api.js";
import { lossChart } from "./chart.js";
import { nameOf } from "./chosen.js";

const PERIODS = [["an hour", 3600], ["a day", 86400], ["a week", 604800], ["30 days", 2592000]];
const SHOWN = [["trigger", "Trigger word"], ["base", "Base"], ["rank", "Rank"]];
let loras = [];
let asked = 0; // how often details were; an answer to another time than the last comes too late

await user();
await load();
$("#find").addEventListener("input", draw);
$("#file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file) await open(async () => {
    const stored = await upload(file);
    return { ...(await api("GET", `loras/${stored.id}`)), isUpload: true };
  });
});
$("#details").addEventListener("click", (event) => event.target === $("#details") && $("#details").close());
$("#details").addEventListener("close", () => history.replaceState(null, "", location.pathname));
ready();
const named = loras.find((lora) => lora.id === location.hash.slice(1));
if (named) openLora(named);

async function load() {
  loras = (await api("GET", "loras")).results;
  draw();
}

function draw() {
  const word = $("#find").value.trim().toLowerCase();
  const found = loras.filter((lora) => [lora.name, lora.model, lora.trigger, lora.base].join(" ").toLowerCase().includes(word));
  $("#shelf").setAttribute("aria-busy", "false");
  if (found.length) return show($("#shelf"), found.map(card));
  show($("#shelf"), h("div", { class: "card empty" }, loras.length ? "Nothing of that name." : [
    h("p", {}, "Nothing is taught yet."), h("a", { class: "button main", href: "/" }, "Teach something")]));
}

function cover(lora) {
  if (lora.thumbnail) return h("img", { src: local(lora.thumbnail), alt: `Drawn with ${nameOf(lora)}`, width: 256, height: 256, loading: "lazy" });
  return h("span", { class: "blank" }, "no picture");
}

function card(lora) {
  const name = nameOf(lora);
  return h("article", { class: "card book", "aria-label": name },
    h("button", { type: "button", class: "cover", "aria-label": `Look into ${name}`, onclick: () => openLora(lora) }, cover(lora)),
    h("h2", {}, name),
    h("p", {}, lora.trigger && h("span", { class: "tag accent" }, lora.trigger), " ", h("span", { class: "hint" }, lora.base ?? "unknown base")),
    h("p", { class: "hint" }, when(lora.created_at), `, ${bytes(lora.size)}`),
    h("div", { class: "row" },
      h("a", { class: "button main", href: `/draw?lora=${lora.id}`, "aria-label": `Draw with ${name}` }, "Draw"),
      h("button", { type: "button", "aria-label": `Details of ${name}`, onclick: () => openLora(lora) }, "Details")));
}

function openLora(lora) {
  history.replaceState(null, "", `#${lora.id}`);
  return open(async () => {
    const [whole, progress] = await Promise.all([api("GET", `loras/${lora.id}`), lora.training && api("GET", `trainings/${lora.training}/progress`)]);
    return { ...whole, points: progress?.points ?? [], saved: progress?.saved ?? [] };
  }, nameOf(lora));
}

/** Show the details of what `find` resolves to, unless those of something else are asked for meanwhile. */
async function open(find, name = "file") {
  const mine = ++asked;
  const dialog = $("#details");
  show(dialog, h("h2", { id: "details-title" }, name), h("p", { class: "hint busy", role: "status" }, "Looking into it … "));
  if (!dialog.open) dialog.showModal();
  try {
    const lora = await find();
    if (mine !== asked) return;
    show(dialog, head(lora), h("div", { class: "columns" },
      h("div", {}, facts(lora), actions(lora)), h("div", {}, chart(lora), samples(lora), header(lora))));
  } catch (problem) {
    if (mine !== asked) return;
    dialog.close();
    say(problem.message, true);
  }
}

function head(lora) {
  return h("div", { class: "row head" }, h("h2", { id: "details-title", class: "grow" }, nameOf(lora)),
    h("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: () => $("#details").close() }, "×"));
}

function facts(lora) {
  const { inspect } = lora;
  const rows = [...SHOWN.map(([key, text]) => [text, lora[key] ?? inspect[key]]),
    ["Layout", inspect.layout], ["Kind", Object.keys(inspect.kinds).join(", ") || "learned tokens only"],
    ["Tokens", lora.tokens.join(" ") || "none"], ["Alpha", inspect.alpha],
    ["Modules", Object.entries(inspect.modules).map(([part, count]) => `${part} ${count}`).join(", ")], ["Size", bytes(lora.size)]];
  return h("div", { class: "facts" }, h("div", { class: "cover" }, cover(lora)),
    h("dl", { class: "pairs" }, rows.filter(([, value]) => value != null && value !== "").map(([text, value]) => [h("dt", {}, text), h("dd", {}, String(value))])),
    inspect.warnings.map((text) => h("p", { class: "note warn" }, text)));
}

function actions(lora) {
  const other = lora.formats.find((each) => each !== lora.inspect.layout);
  const format = h("select", { id: "format" }, lora.formats.map((each) => h("option", { value: each, selected: each === other }, each)));
  const period = h("select", { id: "period" }, PERIODS.map(([text, seconds]) => h("option", { value: seconds, selected: seconds === 86400 }, text)));
  const converted = h("p", { class: "hint", role: "status" }), shared = h("div", { role: "status" });
  const convert = h("button", { type: "button", onclick: () => act(convert, async () => {
    const file = await api("POST", `loras/${lora.id}/convert`, { format: format.value });
    show(converted, "Converted: ", h("a", { href: local(file.urls.download), download: file.name }, file.name), `, ${bytes(file.size)}`);
  }) }, "Convert");
  const share = h("button", { type: "button", onclick: () => act(share, async () => {
    const link = await api("POST", `loras/${lora.id}/share`, { seconds: Number(period.value) });
    const text = h("input", { type: "text", readonly: true, value: link.url, "aria-label": "The shared link" });
    show(shared, text, h("p", { class: "hint" }, `Whoever has it can fetch the file and draw with it until ${new Date(link.expires_at).toLocaleString()}.`));
    text.select();
  }) }, "Make a link");
  return [
    h("div", { class: "row actions" },
      h("a", { class: "button main", href: `/draw?lora=${lora.id}` }, "Draw with it"),
      h("a", { class: "button", href: `/?start_from=${lora.id}` }, "Teach further"),
      h("a", { class: "button", href: local(lora.url), download: lora.isUpload ? lora.name : `${nameOf(lora)}.safetensors` }, "Download"),
      lora.training && h("a", { class: "button", href: `/trainings/${lora.training}` }, "Its training")),
    h("h3", {}, "Another layout"),
    h("div", { class: "row" }, h("div", { class: "grow" }, h("label", { class: "aside", for: "format" }, "Layout"), format), convert), converted,
    h("h3", {}, "Share"),
    h("div", { class: "row" }, h("div", { class: "grow" }, h("label", { class: "aside", for: "period" }, "For how long"), period), share), shared,
    h("h3", {}, "Delete"), removal(lora),
  ];
}

function removal(lora) {
  const button = h("button", { type: "button", class: "danger", onclick: () => act(button, async () => {
    if (!(await confirmed(`Delete ${nameOf(lora)}?`, "Delete it", "The file, its samples and shared links are gone for good."))) return;
    await api("DELETE", `loras/${lora.id}`);
    $("#details").close();
    await load();
    say(`${nameOf(lora)} is deleted.`);
  }) }, "Delete …");
  return button;
}

/** The losses that were reported, or else those in the file's header, which are means of equal stretches. */
function chart(lora) {
  const points = lora.points?.length ? lora.points : Object.entries(lora.losses ?? {}).flatMap(([stage, means]) => {
    const heldOut = lora.held_out_losses?.[stage] ?? [];
    const of = heldOut.at(-1)?.[0] ?? means.length;
    return [...means.map((loss, index) => ({ stage, of, step: ((index + 1) / means.length) * of, loss })),
      ...heldOut.map(([step, value]) => ({ stage, of, step, held_out_loss: value }))];
  });
  return points.length > 0 && h("section", { "aria-label": "Losses" }, h("h3", {}, "Losses"), lossChart(points));
}

function samples(lora) {
  const newest = lora.samples.at(-1);
  return [newest && h("section", { "aria-label": "Samples" }, h("h3", {}, "Samples"), figure(newest),
    lora.samples.length > 1 && h("details", {}, h("summary", {}, `${lora.samples.length - 1} before`), lora.samples.slice(0, -1).reverse().map(figure))),
  lora.saved?.length > 0 && h("section", {}, h("h3", {}, "Files of earlier steps"), h("ul", { class: "plain" }, lora.saved.map((file) =>
    h("li", {}, h("a", { href: local(file.url), download: file.name }, `${file.stage}, step ${file.step}`), ` ${bytes(file.size)}`))))];
}

function figure(sample) {
  return h("figure", {}, h("a", { href: local(sample.url), target: "_blank", rel: "noopener" },
    h("img", { src: local(sample.url), alt: `Samples of ${sample.stage} at step ${sample.step}`, loading: "lazy" })),
  h("figcaption", { class: "hint" }, `${sample.stage}, step ${sample.step}`));
}

/** Bars of the size of the change by block, and the strings of the header. */
function header({ inspect }) {
  const sizes = Object.entries(inspect.change).filter(([, size]) => size != null);
  const most = Math.max(...sizes.map(([, size]) => size), 1e-9);
  const strings = Object.entries(inspect.metadata).filter(([, text]) => text.length < 2000);
  return [
    sizes.length > 0 && h("details", {}, h("summary", {}, "Size of the change, by block"), h("table", { class: "bars" }, h("tbody", {}, sizes.map(([block, size]) =>
      h("tr", {}, h("th", { scope: "row" }, block), h("td", {}, h("meter", { min: 0, max: most, value: size, "aria-label": block })), h("td", {}, size.toFixed(2))))))),
    strings.length > 0 && h("details", {}, h("summary", {}, "Header"), h("dl", { class: "pairs" }, strings.map(([key, text]) => [h("dt", {}, key), h("dd", {}, text)]))),
  ];
}
