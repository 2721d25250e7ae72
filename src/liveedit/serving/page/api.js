// All requests of the page to the server.

const KEY = "liveedit-key";

/** An error of the server, or of the connection. `status` is 0 if the server was not reached. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, requestId = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.requestId = requestId;
  }

  /** Whether the same request may succeed in a moment. */
  get mayPass() {
    return [0, 408, 429, 500, 502, 503, 504].includes(this.status);
  }
}

// Only for this tab: a key on disk would outlive the session.
export const storedKey = () => sessionStorage.getItem(KEY);
export const keepKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

let onKeyRefused = () => {};

/** Call this function if the server requires a key, or another one. */
export function whenKeyRefused(listener) {
  onKeyRefused = listener;
}

export const getSettings = () => json("page/settings.json");
export const getModels = () => json("v1/models");
export const listEdits = (query, options) => json(`v1/edits?${new URLSearchParams(query)}`, options);
export const getEdit = (id) => json(`v1/edits/${id}`);
export const getHistory = (id) => json(`v1/edits/${id}/history`);
export const getNear = (id) => json(`v1/edits/${id}/near`);
export const changeEdit = (id, change) => json(`v1/edits/${id}/${change}`, { method: "POST", once: true });
export const createEdit = (wanted) => json("v1/edits", { method: "POST", body: wanted, once: true });
export const checkEdits = (wanted, signal) => json("v1/check", { method: "POST", body: wanted, signal });
export const makeHeatMaps = (wanted) => json("v1/heat-maps", { method: "POST", body: wanted });

/** A thumbnail as an address for `<img>`, which could not send the key itself. */
export async function getThumbnail(id) {
  const response = await send(`v1/edits/${id}/thumbnail`);
  return URL.createObjectURL(await response.blob());
}

/**
 * Ask, and receive the answer while it is generated. Returns { text, edits, withheld, revision }.
 * onText is called with the whole text so far.
 */
export async function ask({ model, prompt, image, signal, onText }) {
  const parts = [{ type: "text", text: prompt }];
  if (image) parts.unshift({ type: "image_url", image_url: { url: image } });
  const body = { model, messages: [{ role: "user", content: parts }], temperature: 0, stream: true };
  const response = await send("v1/chat/completions", { method: "POST", body, signal });
  let text = "";
  let extension = null;
  for await (const event of events(response)) {
    if (event.error) throw new ApiError(event.error.message, { status: 500, code: event.error.code });
    text += event.choices[0]?.delta?.content ?? "";
    extension = event.liveedit ?? extension;
    onText(text);
  }
  if (extension === null) throw new ApiError("The connection ended before the answer was complete. Ask again.");
  return { text, edits: extension.edits, withheld: extension.withheld, revision: extension.revision };
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const lines = waiting.split("\n\n");
    waiting = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}

async function json(path, options) {
  return (await send(path, options)).json();
}

/** `unasked`: a background request, which never asks for another key. */
async function send(path, { method = "GET", body, signal, once = false, unasked = false } = {}) {
  const headers = {};
  const key = storedKey();
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (once) headers["Idempotency-Key"] = randomName();
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const refused = await refusal(response);
  if (refused.status === 401 && !unasked) onKeyRefused(refused);
  throw refused;
}

async function refusal(response) {
  const about = { status: response.status, requestId: response.headers.get("X-Request-ID") };
  try {
    const { error } = await response.json();
    return new ApiError(error.message, { ...about, code: error.code });
  } catch {
    return new ApiError(`The server answered with status ${response.status}.`, about);
  }
}

function randomName() {
  // crypto.randomUUID exists only on secure origins, which a server in a local network is not.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
