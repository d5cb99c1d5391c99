// Strips and grids: the same seed at several scales, with several LoRAs and prompts.

import { api, fetched } from "./api.js";
import { loraInputs } from "./chosen.js";
import { h } from "./dom.js";

export const MOST = 100;
const SIDE = 256, GAP = 8, LABEL = 170, LINE = 20;

/** Return the scales in a text, each once; null where one is none. */
export function scalesOf(text) {
  const scales = text.split(/[,;\s]+/).filter(Boolean).map(Number);
  return scales.length && scales.every((each) => Number.isFinite(each) && Math.abs(each) <= 10) ? [...new Set(scales)] : null;
}

/**
 * Ask for all pictures of a sheet; `keep` gets the sheet, or what of it was asked for before a refusal. `rows`:
 * `{label, prompt, loras, vary}`, `vary` is the index.
 */
export async function drawSheet({ title, isGrid, rows, scales, inputs, seed }, keep) {
  const columns = scales.map((scale) => `scale ${scale}`);
  const sheet = { title, isGrid, columns, seed, at: new Date().toISOString(), rows: [] };
  try {
    for (const row of rows) {
      const jobs = [];
      for (const scale of scales) {
        const loras = row.loras.map((lora, number) => (number === row.vary ? { ...lora, scale } : lora));
        const input = { ...inputs, ...loraInputs(loras), prompt: row.prompt, seed, num_outputs: 1 };
        jobs.push((await api("POST", "models/local/lora/predictions", { input })).id);
        if (jobs.length === 1) sheet.rows.push({ label: row.label, jobs });
      }
    }
  } finally {
    if (sheet.rows.length) keep(sheet);
  }
}

/** Save a sheet as one PNG with its labels. */
export async function saveSheet(sheet, jobs) {
  const left = sheet.isGrid ? LABEL : GAP;
  const canvas = new OffscreenCanvas(left + sheet.columns.length * (SIDE + GAP), 2 * LINE + GAP + sheet.rows.length * (SIDE + GAP));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#222";
  context.font = "14px sans-serif";
  sheet.columns.forEach((text, column) => context.fillText(text, left + column * (SIDE + GAP), LINE - 5, SIDE));
  for (const [index, row] of sheet.rows.entries()) {
    const top = LINE + index * (SIDE + GAP);
    if (sheet.isGrid) wrapped(row.label, 22).forEach((line, number) => context.fillText(line, GAP, top + 40 + number * LINE, LABEL - 2 * GAP));
    for (const [column, id] of row.jobs.entries()) {
      const link = jobs.get(id)?.output?.[0];
      if (!link) continue;
      const picture = await createImageBitmap(await fetched(link));
      const scale = SIDE / Math.max(picture.width, picture.height);
      context.imageSmoothingEnabled = scale < 1;
      context.drawImage(picture, left + column * (SIDE + GAP), top, picture.width * scale, picture.height * scale);
    }
  }
  context.fillText(`${sheet.title}, seed ${sheet.seed}`, GAP, canvas.height - 8, canvas.width - 2 * GAP);
  const url = URL.createObjectURL(await canvas.convertToBlob());
  h("a", { href: url, download: "sheet.png" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

function wrapped(text, length) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1).length + word.length > length && lines.at(-1)) lines.push("");
    lines.push(`${lines.pop()} ${word}`.trim());
  }
  return lines.slice(0, 8);
}
