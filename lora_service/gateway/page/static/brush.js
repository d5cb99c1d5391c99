// The picture to start from, and the part of it that is drawn anew, painted with a brush.

import { $, h, show } from "./dom.js";
import { upload } from "./api.js";

const LONGEST = 1024;
const PAINT = "rgb(15 118 110 / 60%)";

/** A picture with a painted mask; `changed` is called when there is another picture. */
export class Brush {
  constructor(place, changed) {
    this.changed = changed;
    this.picture = null;
    this.given = null;
    const choose = (id, text, take) => [h("label", { class: "button", for: id }, text), h("input", {
      id, class: "aside", type: "file", accept: "image/*", onchange: (event) => {
        const [file] = event.target.files;
        event.target.value = "";
        if (file) take(file);
      },
    })];
    this.canvas = h("canvas", { hidden: true, role: "img" });
    this.size = h("input", { id: "brush-size", type: "range", min: 4, max: 200, value: 40 });
    this.tools = h("div", { hidden: true },
      h("p", { class: "hint", id: "brush-about" }, "Paint over what is to be drawn anew; without paint it is the whole picture."),
      h("div", { class: "row" },
        h("div", { class: "grow" }, h("label", { for: "brush-size" }, "Brush"), this.size),
        h("button", { type: "button", onclick: () => this.undo() }, "Undo"),
        h("button", { type: "button", onclick: () => this.clear() }, "Clear paint"),
        choose("mask-file", "Mask by file …", (file) => this.mask(file)),
        h("button", { type: "button", onclick: () => this.remove() }, "Remove picture")));
    show(place, h("div", { class: "row" }, choose("start-file", "Choose a picture …", (file) => this.open(file))), this.canvas, this.tools);
    this.canvas.addEventListener("pointerdown", (event) => this.begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => { this.stroke = null; });
  }

  /** Take a picture: a file, or a blob of one that was drawn. */
  async open(file, name = file.name) {
    this.picture = await createImageBitmap(file);
    this.file = new File([file], name ?? "start.png", { type: file.type });
    this.link = "";
    const scale = Math.min(1, LONGEST / Math.max(this.picture.width, this.picture.height));
    this.canvas.width = Math.round(this.picture.width * scale);
    this.canvas.height = Math.round(this.picture.height * scale);
    this.size.max = Math.max(8, Math.round(this.canvas.width / 2));
    this.size.value = Math.max(4, Math.round(this.canvas.width / 8));
    this.canvas.setAttribute("aria-label", `The picture to start from, ${this.picture.width} × ${this.picture.height}; paint on it, or give a mask by file`);
    this.canvas.hidden = this.tools.hidden = false;
    this.clear();
    this.changed();
  }

  remove() {
    this.picture = this.file = null;
    this.canvas.hidden = this.tools.hidden = true;
    this.clear();
    this.changed();
  }

  clear() {
    this.strokes = [];
    this.given = null;
    this.draw();
  }

  undo() {
    this.strokes.pop();
    this.draw();
  }

  /** Take a mask that was painted elsewhere: white is drawn anew. */
  async mask(file) {
    this.given = await createImageBitmap(file);
    this.strokes = [];
    this.draw();
  }

  begin(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.stroke = { width: Number(this.size.value), points: [this.at(event)] };
    this.strokes.push(this.stroke);
    this.draw();
  }

  move(event) {
    if (!this.stroke) return;
    this.stroke.points.push(this.at(event));
    this.draw();
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.canvas.width, ((event.clientY - box.top) / box.height) * this.canvas.height];
  }

  draw() {
    if (!this.picture) return;
    const { width, height } = this.canvas;
    const paint = new OffscreenCanvas(width, height).getContext("2d");
    this.paint(paint, "#fff");
    paint.globalCompositeOperation = "source-in";
    paint.fillStyle = PAINT;
    paint.fillRect(0, 0, width, height);
    const context = this.canvas.getContext("2d");
    context.drawImage(this.picture, 0, 0, width, height);
    context.drawImage(paint.canvas, 0, 0);
  }

  /** Paint the mask's white on what is transparent. */
  paint(context, color) {
    context.strokeStyle = context.fillStyle = color;
    context.lineCap = context.lineJoin = "round";
    if (this.given) {
      context.drawImage(this.given, 0, 0, context.canvas.width, context.canvas.height);
      const pixels = context.getImageData(0, 0, context.canvas.width, context.canvas.height);
      for (let i = 0; i < pixels.data.length; i += 4) pixels.data[i + 3] = pixels.data[i] * (pixels.data[i + 3] / 255);
      context.putImageData(pixels, 0, 0);
    }
    for (const { width, points } of this.strokes) {
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(...points[0]);
      for (const point of points) context.lineTo(...point);
      if (points.length === 1) context.lineTo(points[0][0] + 0.01, points[0][1]);
      context.stroke();
    }
  }

  /** Upload what is to be started from, the picture once; returns the inputs for it. */
  async inputs() {
    if (!this.picture) return {};
    const { file } = this;
    const link = this.link || (await upload(file)).urls.get;
    if (file === this.file) this.link = link;
    const inputs = { image: link };
    if (this.strokes.length || this.given) {
      const canvas = new OffscreenCanvas(this.canvas.width, this.canvas.height);
      const context = canvas.getContext("2d");
      this.paint(context, "#fff");
      context.globalCompositeOperation = "destination-over";
      context.fillStyle = "#000";
      context.fillRect(0, 0, canvas.width, canvas.height);
      inputs.mask = (await upload(new File([await canvas.convertToBlob()], "mask.png", { type: "image/png" }))).urls.get;
    }
    return inputs;
  }
}
