// The pictures that were chosen or dropped: uploaded one by one, so that each can be left out again.

import { $, bytes, h, plural, say, show } from "./dom.js";
import { upload } from "./api.js";

const AT_ONCE = 3;
const ARCHIVE = /\.(zip|tar|tgz|gz|bz2|xz|7z|rar)$/i;

/** Uploads as `{name, size, get}`, `name` as the gateway keeps it; `changed` is called after each change. */
export class Pictures {
  constructor(changed) {
    this.uploads = [];
    this.changed = changed;
    this.left = 0;
    this.coming = new Set(); // the names of uploads on their way
    const drop = $("#drop");
    const input = $("#files");
    const chosen = () => {
      this.add([...input.files]);
      input.value = "";
    };
    input.addEventListener("change", chosen);
    if (input.files.length) queueMicrotask(chosen); // before this script was there
    // Wherever a file is dropped, the browser must not leave the page for it.
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("dragenter", () => drop.classList.add("over"));
    document.addEventListener("dragleave", (event) => event.relatedTarget ?? drop.classList.remove("over"));
    document.addEventListener("drop", async (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      this.add(await dropped(event.dataTransfer));
    });
  }

  get isBusy() {
    return this.left > 0;
  }

  links() {
    return this.uploads.map((each) => each.get);
  }

  restore(uploads) {
    this.uploads = uploads;
    this.show();
  }

  /** Upload files, a few at a time, and keep them in this order; those that cannot be are named. */
  async add(files) {
    const order = files.filter((file) => !file.name.startsWith("."));
    const names = distinctNames(order, new Set([...this.coming, ...this.uploads.map((each) => each.name)]));
    for (const name of names.values()) this.coming.add(name);
    const queue = [...order];
    const done = new Map();
    this.left += queue.length;
    this.show();
    const work = async () => {
      for (let file; (file = queue.shift()); ) {
        try {
          const { name, urls } = await upload(file, names.get(file));
          done.set(file, { name, size: file.size, get: urls.get });
          this.uploads.push(done.get(file));
        } catch (problem) {
          say(`${file.name}: ${problem.message}`, true);
        }
        this.coming.delete(names.get(file));
        this.left -= 1;
        this.show();
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    const added = order.map((file) => done.get(file)).filter((each) => this.uploads.includes(each));
    this.uploads = [...this.uploads.filter((each) => !added.includes(each)), ...added];
    if (!this.left) this.changed();
  }

  /** Leave out the picture of that name; returns whether it is a file of its own. */
  remove(name) {
    const index = this.uploads.findIndex((each) => each.name === name);
    if (index < 0) return false;
    this.uploads.splice(index, 1);
    this.show();
    this.changed();
    return true;
  }

  show() {
    const archives = this.uploads.filter((each) => ARCHIVE.test(each.name));
    const others = this.uploads.length - archives.length;
    const all = this.uploads.length + this.left;
    $("#drop").classList.toggle("some", all > 0);
    show($("#uploads"),
      this.left > 0 && [h("progress", { max: all, value: all - this.left, "aria-label": "Uploading" }), h("span", { class: "hint" }, `Uploading, ${this.left} to go …`)],
      archives.map((each) => h("span", { class: "tag" }, `${each.name}, ${bytes(each.size)} `,
        h("button", { type: "button", class: "quiet", "aria-label": `Remove ${each.name}`, onclick: () => this.remove(each.name) }, "×"))),
      others > 0 && h("span", { class: "tag" }, plural(others, "file")),
      this.uploads.length > 0 && !this.left && h("button", { type: "button", class: "quiet", onclick: () => {
        this.restore([]);
        this.changed();
      } }, "Remove all"));
  }
}

const folders = new WeakMap(); // where dropped files lie
const kept = (name) => name.replace(/[^\p{L}\p{N}_.() -]/gu, "_").toLowerCase(); // much as the gateway keeps names

/**
 * Return a name for each file that no other has: where a folder has one that is taken, a number is put before all of
 * its names, so that pictures, captions and masks still belong together.
 */
function distinctNames(files, taken) {
  const names = new Map();
  const used = new Set([...taken].map(kept));
  const groups = new Map();
  for (const file of files) {
    const folder = folders.get(file) ?? "";
    groups.set(folder, [...(groups.get(folder) ?? []), file]);
  }
  for (const group of groups.values()) {
    let before = "";
    for (let number = 2; group.some((file) => used.has(kept(before + file.name))); number++) before = `${number}-`;
    for (const file of group) {
      names.set(file, before + file.name);
      used.add(kept(before + file.name));
    }
  }
  return names;
}

/** Return the files of a drop, those in folders included. */
async function dropped(data) {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  return entries.length ? (await Promise.all(entries.map(filesOf))).flat() : [...data.files];
}

async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    folders.set(file, entry.fullPath.slice(0, -file.name.length));
    return [file];
  }
  const reader = entry.createReader();
  const found = [];
  for (let batch; (batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length; ) {
    found.push(...batch);
  }
  return (await Promise.all(found.map(filesOf))).flat();
}
