// Elements, texts for people, and looking again. Text becomes text nodes only: nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (selector, within = document) => within.querySelector(selector);

/**
 * Make an element. `on…` properties are listeners, others attributes: true is an empty one, false, null and undefined
 * none. Children are elements, texts, or lists of them; null and false are left out.
 */
export function h(name, properties = {}, ...children) {
  return fill(document.createElement(name), properties, children);
}

/** The same for SVG. */
export function svg(name, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, name), properties, children);
}

function fill(element, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

/** Put children into an element in place of what it has. */
export function show(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child != null && child !== false));
}

/** Let people use the page, which is inert until its script listens. */
export function ready() {
  $("#main").inert = false;
}

/** Say something at the edge of the page, aloud for screen readers; problems stay until the next word. */
export function say(text, isProblem = false) {
  const place = $("#says");
  clearTimeout(say.timer);
  show(place, h("p", { class: isProblem ? "bad" : "" }, text, h("button", {
    type: "button", class: "quiet", "aria-label": "Close this message", onclick: () => show(place),
  }, "×")));
  if (!isProblem) say.timer = setTimeout(() => show(place), 6000);
}

for (const kind of ["error", "unhandledrejection"]) {
  addEventListener(kind, (event) => say((event.reason ?? event.error)?.message ?? event.message ?? "Something went wrong.", true));
}

/** Run what a button stands for; while it runs the button waits, and a problem is said. */
export async function act(button, action) {
  button.disabled = true;
  button.setAttribute("aria-busy", "true");
  try {
    return await action();
  } catch (problem) {
    if (problem.status === undefined) throw problem; // none of the API's: a defect
    say(problem.message, true);
  } finally {
    button.disabled = false;
    button.removeAttribute("aria-busy");
  }
}

/** Ask in the browser's own modal dialog; resolves to true or false. */
export function confirmed(question, yes, details = "") {
  const dialog = h("dialog", { class: "card", "aria-labelledby": "question" },
    h("form", { method: "dialog" },
      h("h2", { id: "question" }, question), details && h("p", {}, details),
      h("div", { class: "row" }, h("button", { value: "yes", class: "main" }, yes), h("button", { value: "no" }, "No"))));
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    dialog.remove();
    resolve(dialog.returnValue === "yes");
  }));
}

/**
 * Call a function now and again every so many seconds until it returns false; less often while nobody looks. A failure
 * is said once, and asked after again later: gateways restart.
 */
export async function repeat(seconds, action) {
  for (let failed = false; ; ) {
    try {
      if ((await action()) === false) return;
      if (failed) say("The gateway answers again.");
      failed = false;
    } catch (problem) {
      if (problem.status === undefined || problem.status === 404) throw problem; // a defect, or gone
      if (!failed) say(`${problem.message} Trying again …`, true);
      failed = true;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds * (document.hidden ? 5 : 1)));
  }
}

export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB"];
  let unit = 0;
  for (; count >= 1000 && unit < 3; unit++) count /= 1000;
  return `${unit && count < 10 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

/** A `<time>` of the API as people say it: how long ago, and exactly when it is pointed at. */
export function when(text) {
  const date = new Date(text);
  const ago = (Date.now() - date) / 1000;
  const words = ago < 5 ? "just now" : ago < 86400 ? `${duration(ago)} ago` : date.toLocaleDateString();
  return h("time", { datetime: text, title: date.toLocaleString() }, words);
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}
