// The pictures that were chosen or dropped: uploaded one by one, so that each can be left out again.

import { $, bytes, h, plural, say, show } from "./dom.js";
import { upload } from "./api.js";

const AT_ONCE = 3;
const ARCHIVE = /\.(zip|tar|tgz|gz|bz2|xz|7z|rar)$/i;

/** Uploads as `{name, size, get}`; `changed` is called after each change. */
export class Pictures {
  constructor(changed) {
    this.uploads = [];
    this.changed = changed;
    this.left = 0;
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

  /** Upload files, a few at a time; those that cannot be are named. */
  async add(files) {
    const queue = files.filter((file) => !file.name.startsWith("."));
    this.left += queue.length;
    this.show();
    const work = async () => {
      for (let file; (file = queue.shift()); ) {
        try {
          const { urls } = await upload(file);
          this.uploads.push({ name: file.name, size: file.size, get: urls.get });
        } catch (problem) {
          say(`${file.name}: ${problem.message}`, true);
        }
        this.left -= 1;
        this.show();
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
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

  has(name) {
    return this.uploads.some((each) => each.name === name);
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

/** Return the files of a drop, those in folders included. */
async function dropped(data) {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  return entries.length ? (await Promise.all(entries.map(filesOf))).flat() : [...data.files];
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (let batch; (batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length; ) {
    found.push(...batch);
  }
  return (await Promise.all(found.map(filesOf))).flat();
}
