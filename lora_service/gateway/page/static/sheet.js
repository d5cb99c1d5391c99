// The contact sheet: every crop as it will be taught, its mask, and its captions, which can be changed here.

import { $, h, plural, say, show } from "./dom.js";
import { local } from "./api.js";

const SHOWN = 3; // a picture with more captions has those of the templates; they would only fill the page

/** `changed` is called when a caption was; `remove(name)` leaves a picture out and returns whether it could. */
export class Sheet {
  constructor(place, changed, remove) {
    Object.assign(this, { place, changed, remove, pictures: [], edits: {}, undone: [], masks: false });
  }

  /** Captions that were edited, of pictures that are there: a text, or several as a list. */
  edited() {
    return Object.fromEntries(Object.entries(this.edits).map(([name, text]) => {
      const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
      return [name, lines.length === 1 ? lines[0] : lines];
    }).filter(([, captions]) => captions.length));
  }

  clear() {
    this.pictures = [];
    this.edits = {};
    this.undone = [];
    show(this.place);
    this.settle();
  }

  wait() {
    this.place.setAttribute("aria-busy", "true");
    if (!this.pictures.length) show(this.place, h("p", { class: "hint busy" }, "Looking at the pictures … "));
  }

  settle() {
    this.place.setAttribute("aria-busy", "false");
  }

  fail() {
    this.pictures = [];
    show(this.place);
    this.settle();
  }

  report(report) {
    this.pictures = report.pictures;
    const names = new Set(this.pictures.map((picture) => picture.name));
    this.edits = Object.fromEntries(Object.entries(this.edits).filter(([name]) => names.has(name)));
    const left = [...report.left_out, ...report.duplicates.filter((each) => each.exact).map((each) => (
      { name: each.name, reason: `is the same file as ${each.same_as}` }))];
    const warnings = [...report.warnings, ...report.duplicates.filter((each) => !each.exact).map((each) => (
      `${each.name} is nearly the same picture as ${each.same_as}`))];
    const focused = document.activeElement?.dataset?.caption;
    show(this.place,
      this.tools(report),
      warnings.length > 0 && h("div", { class: "note warn" }, h("ul", {}, warnings.map((text) => h("li", {}, text)))),
      left.length > 0 && h("details", { class: "note warn" }, h("summary", {}, `${plural(left.length, "file")} left out`),
        h("ul", {}, left.map((each) => h("li", {}, h("b", {}, each.name), ": ", each.reason)))),
      h("ul", { class: "tiles" }, this.pictures.map((picture) => this.tile(picture))));
    this.settle();
    if (focused) $(`[data-caption="${CSS.escape(focused)}"]`, this.place)?.focus();
  }

  tools(report) {
    const find = h("input", { type: "text", id: "find", autocomplete: "off" });
    const replace = h("input", { type: "text", id: "replace", autocomplete: "off" });
    const hasMasks = this.pictures.some((picture) => picture.mask);
    return [
      h("div", { class: "row tools" },
        h("p", { class: "grow" }, h("b", {}, plural(report.pictures.length, "picture")), " will be taught, cropped as shown."),
        h("button", { type: "button", id: "undo", hidden: !this.undone.length, onclick: () => this.undo() }, "Undo"),
        hasMasks && h("label", { class: "check" }, h("input", {
          type: "checkbox", checked: this.masks, onchange: (event) => this.showMasks(event.target.checked),
        }), "Show what counts less")),
      h("details", { class: "tools" }, h("summary", {}, "Captions"),
        h("p", { class: "hint" }, "A caption says what else is in the picture. ", h("code", {}, "{}"), " stands for what is taught; without it, it is put in front."),
        h("div", { class: "row" },
          h("label", { for: "find" }, "Find"), h("span", { class: "grow" }, find),
          h("label", { for: "replace" }, "Replace with"), h("span", { class: "grow" }, replace),
          h("button", { type: "button", onclick: () => this.replaceAll(find.value, replace.value) }, "Replace in all"))),
    ];
  }

  tile(picture) {
    const id = `caption-${this.pictures.indexOf(picture)}`;
    const caption = h("textarea", {
      id, rows: 2, "data-caption": picture.name, placeholder: picture.caption, spellcheck: "false",
      onchange: (event) => this.edit(picture.name, event.target.value),
    }, this.text(picture));
    return h("li", { class: "tile" },
      h("div", { class: "crop" },
        h("img", { src: local(picture.image), alt: picture.name, width: picture.size[0], height: picture.size[1] }),
        picture.mask && h("img", { class: "mask", src: local(picture.mask), alt: "", hidden: !this.masks }),
        picture.repeats > 1 && h("span", { class: "tag repeats" }, `× ${picture.repeats}`),
        h("button", { type: "button", class: "quiet drop-one", "aria-label": `Leave out ${picture.name}`, onclick: () => this.leaveOut(picture) }, "×")),
      h("label", { for: id, class: "aside" }, `Caption of ${picture.name}`), caption,
      picture.warnings.map((text) => h("p", { class: "hint warned" }, text)));
  }

  /** The text of a picture's captions, one a line; empty where they are the templates'. */
  text(picture) {
    const own = picture.captions.length <= SHOWN && picture.caption_source !== "template" ? picture.captions.join("\n") : "";
    return this.edits[picture.name] ?? own;
  }

  edit(name, text) {
    this.undone.push({ ...this.edits });
    if (text.trim()) this.edits[name] = text;
    else delete this.edits[name];
    this.refresh();
  }

  replaceAll(find, replace) {
    if (!find) return say("Write what to find first.", true);
    const edits = { ...this.edits };
    let count = 0;
    for (const picture of this.pictures) {
      const text = this.edits[picture.name] ?? (this.text(picture) || picture.caption);
      if (!text.includes(find)) continue;
      edits[picture.name] = text.replaceAll(find, () => replace);
      count += 1;
    }
    if (count) {
      this.undone.push(this.edits);
      this.edits = edits;
      this.refresh();
    }
    say(`Replaced in ${plural(count, "caption")}.`);
  }

  undo() {
    this.edits = this.undone.pop() ?? {};
    this.refresh();
  }

  refresh() {
    for (const area of this.place.querySelectorAll("[data-caption]")) {
      area.value = this.text(this.pictures.find((picture) => picture.name === area.dataset.caption));
    }
    $("#undo", this.place).hidden = !this.undone.length;
    this.changed();
  }

  showMasks(on) {
    this.masks = on;
    for (const mask of this.place.querySelectorAll(".mask")) mask.hidden = !on;
  }

  leaveOut(picture) {
    if (!this.remove(picture.name)) say("This picture is inside an archive: leave it out there.", true);
  }
}
