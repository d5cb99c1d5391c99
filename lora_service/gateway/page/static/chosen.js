// The LoRAs that are drawn with: taught here, by link or by file, each with its scale.

import { $, act, h, say, show } from "./dom.js";
import { api, lasting, local, nameIn, upload } from "./api.js";

const SCALE = 0.8;

/** LoRAs as `{key, id, link, name, scale, trigger, tokens, thumbnail}`; `changed` is called after each change. */
export class Chosen {
  constructor(changed) {
    this.loras = [];
    this.library = [];
    this.changed = changed;
    $("#taught").addEventListener("change", (event) => {
      const lora = this.library.find((each) => each.id === event.target.value);
      if (lora) this.add(taught(lora));
      event.target.value = "";
    });
    $("#add-link").addEventListener("click", () => this.addLink());
    $("#link").addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.addLink();
    });
    $("#lora-file").addEventListener("change", async (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) await act($("#add-link"), () => this.addFile(file));
    });
  }

  /** Ask for the library; thumbnails of LoRAs that were chosen before get fresh links. */
  async refresh() {
    this.library = (await api("GET", "loras")).results;
    for (const each of this.loras) {
      const known = this.library.find((lora) => lora.id === each.id);
      if (known) each.thumbnail = known.thumbnail;
    }
    show($("#taught"), h("option", { value: "" }, this.library.length ? "Choose …" : "Nothing yet"),
      this.library.map((lora) => h("option", { value: lora.id }, nameOf(lora))));
    $("#taught").disabled = !this.library.length;
  }

  add(lora) {
    if (this.loras.some((each) => each.key === lora.key)) return;
    this.loras.push({ scale: SCALE, ...lora });
    this.show();
    this.changed();
  }

  addLink() {
    const link = $("#link").value.trim();
    if (!link) return;
    if (/[|\s]/.test(link)) return say("A link has no spaces and no |; add links one by one.", true);
    $("#link").value = "";
    this.add({ key: link, link, name: nameIn(link), tokens: [] });
  }

  async addFile(file) {
    const stored = await upload(file);
    const lora = await api("GET", `loras/${stored.id}`);  // says what is wrong with a file that is none
    this.add({ ...taught(lora), link: stored.urls.get, name: file.name });
  }

  show() {
    show($("#loras"), this.loras.map((lora, index) => this.item(lora, index)));
  }

  item(lora, index) {
    const id = `scale-${index}`;
    const number = h("output", { for: id }, lora.scale.toFixed(2));
    const slider = h("input", {
      id, type: "range", min: 0, max: 1.5, step: 0.05, value: lora.scale, "aria-label": `Scale of ${lora.name}`, oninput: () => {
        lora.scale = Number(slider.value);
        number.textContent = lora.scale.toFixed(2);
        this.changed();
      },
    });
    return h("li", {},
      lora.thumbnail ? h("img", { src: local(lora.thumbnail), alt: "", width: 48, height: 48 }) : h("span", { class: "blank" }, `<${index + 1}>`),
      h("div", { class: "grow" },
        h("p", { class: "name" }, h("b", {}, lora.name), " ", h("code", {}, `<${index + 1}>`), lora.trigger && h("span", { class: "hint" }, ` or ${lora.trigger}`)),
        h("div", { class: "slider" }, slider, number)),
      h("button", { type: "button", class: "quiet", "aria-label": `Remove ${lora.name}`, onclick: () => {
        this.loras.splice(index, 1);
        this.show();
        this.changed();
      } }, "×"));
  }
}

export const nameOf = (lora) => lora.model?.split("/").at(-1) ?? lora.name;

export function taught(lora) {
  return { key: lora.id, id: lora.id, link: lasting(lora.url, lora.url), name: nameOf(lora), trigger: lora.trigger, tokens: lora.tokens, thumbnail: lora.thumbnail, prompt: lora.prompt };
}

/** The inputs that stand for LoRAs at their scales. */
export function loraInputs(loras) {
  if (!loras.length) return {};
  return { lora_urls: loras.map((each) => each.link).join("|"), lora_scales: loras.map((each) => each.scale).join("|") };
}
