// The public API, asked as any client would: with the user's token in a header. See docs/page.md on where it is kept.

import { $ } from "./dom.js";

const KEY = "lora-service-token";
const stored = () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";

export const FINAL = ["succeeded", "failed", "canceled"];

/** An answer that is an error: its sentence, `status`, and `fields` with what is wrong with each. */
export class Problem extends Error {
  constructor(message, status = 0, fields = []) {
    super(message);
    this.status = status;
    this.fields = Object.fromEntries(fields.map((each) => [each.field, each.description]));
  }
}

/** Ask the API; `path` follows /v1/. Returns what was answered, null where that is nothing. */
export async function api(method, path, body = undefined, headers = {}) {
  const answer = await request(method, `/v1/${path}`, body, headers);
  return answer.status === 204 ? null : answer.json();
}

async function request(method, path, body, headers) {
  const isForm = body instanceof FormData;
  for (;;) {
    const token = stored();
    const options = { method, headers: { ...headers }, credentials: "omit", redirect: "error" };
    if (token) options.headers.Authorization = `Bearer ${token}`;
    if (body !== undefined) options.body = isForm ? body : JSON.stringify(body);
    if (body !== undefined && !isForm) options.headers["Content-Type"] = "application/json";
    const answer = await fetch(path, options).catch(() => {
      throw new Problem("The gateway does not answer.");
    });
    if (answer.ok) return answer;
    if (answer.status === 401) {
      await login(token ? "The token is not known." : "");
      continue;
    }
    const problem = await answer.json().catch(() => ({}));
    throw new Problem(problem.detail ?? `The gateway answered ${answer.status}.`, answer.status, problem.invalid_fields);
  }
}

/** Upload a file; returns its record, whose `urls.get` stands for it in inputs. */
export function upload(file, name = file.name) {
  const form = new FormData();
  form.append("content", file, name);
  return api("POST", "files", form);
}

/** A link of the API under the page's own address, as the gateway may have another name for clients; or a picture. */
export function local(link) {
  const url = new URL(link, location.href);
  if (["http:", "https:"].includes(url.protocol)) return url.pathname + url.search;
  return link.startsWith("data:image/") ? link : "";
}

/** A text with links that stay in place of those to files that end: `own` is any link of the gateway's, others' are left. */
export function lasting(text, own) {
  const origin = new URL(own).origin;
  const ending = /(https?:\/\/[^/\s|]+)\/files\/(\w+)\/[^\s|?"]*\?expires=\d+&signature=[0-9a-f]+/g;
  return text.replace(ending, (link, host, id) => (new URL(host).origin === origin ? `${origin}/v1/files/${id}` : link));
}

/** The name at the end of a link, as people read it. */
export function nameIn(link) {
  const name = link.split(/[?#]/)[0].split("/").filter(Boolean).at(-1) ?? link;
  try {
    return decodeURIComponent(name);
  } catch { // a lone %: it is no escaped name
    return name;
  }
}

/** The bytes of a picture of the gateway. */
export async function fetched(link) {
  const answer = await fetch(local(link)).catch(() => {
    throw new Problem("The gateway does not answer.");
  });
  if (!answer.ok) throw new Problem("This picture is not there any more; reload the page.", answer.status);
  return answer.blob();
}

let asking = null;

/** Ask for a token until one is given; requests that run at the same time wait for the same answer. */
function login(problem) {
  asking ??= new Promise((resolve) => {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
    const dialog = $("#login");
    $("#login-problem").textContent = problem;
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    $("#login-form").addEventListener("submit", () => {
      const keep = $("#token-stays").checked ? localStorage : sessionStorage;
      keep.setItem(KEY, $("#token").value.trim());
      $("#token").value = "";
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

/** Return the name of who asks, and show it with a way out where there are several. */
export async function user() {
  const { username } = await api("GET", "account");
  if (stored()) {
    $("#user").textContent = username;
    $("#who").hidden = false;
    $("#leave").addEventListener("click", () => {
      sessionStorage.removeItem(KEY);
      localStorage.removeItem(KEY);
      location.reload();
    });
  }
  return username;
}
