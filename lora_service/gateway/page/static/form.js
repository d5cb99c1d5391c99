// Form fields from the schema of a model's inputs, with the schema's own descriptions.

import { $, h, show } from "./dom.js";
import { upload } from "./api.js";

const LONG = 500; // characters that a text may have from which on it gets several lines

/** The inputs of a model's newest version, in order: `{name, type, options, isFile, description, default, …}`. */
export function inputsOf(model) {
  const { schemas } = model.latest_version.openapi_schema.components;
  const inputs = Object.entries(schemas.Input.properties).map(([name, property]) => {
    const reference = property.allOf?.[0]?.$ref ?? property.$ref;
    const merged = { ...(reference && schemas[reference.split("/").at(-1)]), ...property };
    return { ...merged, name, options: merged.enum ?? null, isFile: merged.format === "uri" };
  });
  return inputs.sort((one, other) => one["x-order"] - other["x-order"]);
}

/** The fields of one form, by name. */
export class Fields {
  constructor(inputs) {
    this.inputs = inputs;
    this.elements = new Map(inputs.map((input) => [input.name, field(input)]));
  }

  /** Return the elements of the fields of these names that there are. */
  of(names) {
    return names.map((name) => this.elements.get(name)).filter(Boolean);
  }

  control(name) {
    return $("[name]", this.elements.get(name));
  }

  set(name, value) {
    const control = this.control(name);
    if (control.type === "file") keep(this.elements.get(name), value);
    else if (control.type === "checkbox") control.checked = value === true;
    else control.value = value ?? "";
  }

  /** Return what differs from the defaults, as the API takes it; files are uploaded on the way. */
  async values() {
    const values = {};
    for (const input of this.inputs) {
      const value = await given(input, this.control(input.name));
      if (value !== null && value !== (input.default ?? null)) values[input.name] = value;
    }
    return values;
  }

  /** Return the texts of all fields without secrets, to be put back by `restore`; of files, the link of one that is kept. */
  texts() {
    const kept = this.inputs.filter((input) => input.format !== "password");
    return Object.fromEntries(kept.map(({ name }) => {
      const control = this.control(name);
      if (control.type === "file") return [name, control.dataset.link ?? ""];
      return [name, control.type === "checkbox" ? control.checked : control.value];
    }));
  }

  restore(texts) {
    for (const [name, value] of Object.entries(texts)) if (this.elements.has(name)) this.set(name, value);
  }

  /** Show what is wrong with each field, unfold and (if `isAsked`) focus the first; returns what belongs to no field here. */
  problems(fields, isAsked = true) {
    const others = [];
    let first = null;
    for (const each of this.elements.values()) mark(each, "");
    for (const [field, text] of Object.entries(fields)) {
      const element = this.elements.get(field.replace(/^input\./, ""));
      if (element) first = mark(element, text) ?? first;
      else others.push(text);
    }
    if (first) {
      first.hidden = false; // it may be one that "Find an input" has hidden
      first.closest("details")?.setAttribute("open", "");
      if (isAsked) $("[name]", first).focus();
    }
    return others;
  }
}

function mark(element, text) {
  const control = $("[name]", element);
  $(".problem", element).textContent = text;
  if (!text) return control.removeAttribute("aria-invalid");
  control.setAttribute("aria-invalid", "true");
  return element;
}

/** Have a file's field stand for a stored file, as a browser lets no page choose one: a link, or none. */
function keep(element, link) {
  $("[name]", element).dataset.link = link ?? "";
  $(".kept", element).hidden = !link;
}

function keptFile(control) {
  return h("p", { class: "hint kept", hidden: true }, "The file of that training is kept unless another is chosen. ",
    h("button", { type: "button", class: "quiet", onclick: () => {
      keep(control.parentElement, null);
      control.dispatchEvent(new Event("input", { bubbles: true }));
    } }, "Leave it out"));
}

function field(input) {
  const id = `input-${input.name}`;
  const label = input.name.replaceAll("_", " ");
  const describedBy = `${id}-about ${id}-problem`;
  const control = controlOf(input, { id, name: input.name, "aria-describedby": describedBy });
  const about = [
    h("p", { class: "hint", id: `${id}-about` }, input.description ?? ""),
    h("p", { class: "problem", id: `${id}-problem`, role: "alert" }),
  ];
  if (control.type === "checkbox") {
    return h("div", { class: "field" }, h("label", { class: "check" }, control, label), about);
  }
  return h("div", { class: "field" }, h("label", { for: id }, label), control, input.isFile && keptFile(control), about);
}

function controlOf(input, attributes) {
  const value = input.default ?? "";
  if (input.options) {
    return h("select", attributes, input.options.map((each) =>
      h("option", { value: each, selected: each === value }, each === "" ? "–" : String(each))));
  }
  if (input.isFile) return h("input", { ...attributes, type: "file" });
  if (input.type === "boolean" && !input.nullable) {
    return h("input", { ...attributes, type: "checkbox", checked: value === true });
  }
  if (input.type === "boolean") {
    return h("select", attributes, [["", "–"], ["true", "yes"], ["false", "no"]].map(([key, text]) =>
      h("option", { value: key, selected: key === String(value) }, text)));
  }
  if (input.type === "integer" || input.type === "number") {
    const step = input.type === "integer" ? 1 : "any";
    return h("input", {
      ...attributes, type: "number", step, min: input.minimum, max: input.maximum, value, placeholder: "–",
    });
  }
  const limits = { maxlength: input.maxLength, spellcheck: "false", autocomplete: "off" };
  if (input.format === "password") return h("input", { ...attributes, ...limits, type: "password" });
  if (input.maxLength > LONG) return h("textarea", { ...attributes, ...limits, rows: 2 }, value);
  return h("input", { ...attributes, ...limits, type: "text", value });
}

const links = new WeakMap(); // of files that were uploaded, or are being: forms are read after each change

function linkOf(file) {
  if (!links.has(file)) {
    links.set(file, upload(file).then(({ urls }) => urls.get, (problem) => {
      links.delete(file);
      throw problem;
    }));
  }
  return links.get(file);
}

async function given(input, control) {
  if (input.isFile) return control.files[0] ? linkOf(control.files[0]) : control.dataset.link || null;
  if (control.type === "checkbox") return control.checked;
  if (control.value === "") return input.type === "string" && input.default ? "" : null;
  if (input.type === "boolean") return control.value === "true";
  return input.type === "integer" || input.type === "number" ? Number(control.value) : control.value;
}

/** Fill a `<details>` with fields and a box that finds those whose name or description has a word. */
export function fold(place, fields) {
  const count = h("p", { class: "hint", role: "status" });
  const find = h("input", { type: "search", id: "find-input", placeholder: "Find an input", "aria-label": "Find an input" });
  find.addEventListener("input", () => {
    const word = find.value.trim().toLowerCase();
    for (const each of fields) each.hidden = !each.textContent.toLowerCase().includes(word);
    count.textContent = word ? `${fields.filter((each) => !each.hidden).length} of ${fields.length}` : "";
  });
  show(place, h("summary", {}, `${fields.length} more inputs`),
    h("div", { class: "row" }, find, count), h("div", { class: "fields" }, fields));
}
