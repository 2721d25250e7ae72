// Small helpers around the document.

/** The element of this id. */
export const byId = (id) => document.getElementById(id);

/** A new element: `make("p", { class: "small", onclick: f }, "text", child, null)`. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A button that works with a mouse, a keyboard and a screen reader. */
export function button(text, onclick, properties = {}) {
  return make("button", { type: "button", onclick, ...properties }, text);
}

/** Announce a text to screen readers. */
export function say(text) {
  byId("live").textContent = text;
}

/** A share in percent. */
export function percent(share) {
  if (share > 0 && share < 0.01) return "below 1%";
  return `${Math.round(100 * share)}%`;
}

/** A bar filled to a share. Screen readers skip it, because the number stands beside it. */
export function bar(share) {
  const filled = make("span", { class: "bar-filled" });
  filled.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return make("span", { class: "bar", "aria-hidden": "true" }, filled);
}

const UNITS = [
  ["day", 86400],
  ["hour", 3600],
  ["minute", 60],
];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

/** How long ago that was, in words. */
export function inWords(iso) {
  const then = new Date(iso);
  const seconds = (then.getTime() - Date.now()) / 1000;
  if (Math.abs(seconds) > 30 * 86400) return then.toLocaleDateString("en", { dateStyle: "medium" });
  const unit = UNITS.find(([, length]) => Math.abs(seconds) >= length);
  return unit ? relative.format(Math.round(seconds / unit[1]), unit[0]) : "just now";
}

/** A time in words, with the exact time as a tooltip. */
export function moment(iso) {
  const then = new Date(iso);
  if (!iso || Number.isNaN(then.getTime())) return make("span", {}, "");
  return make("time", { datetime: iso, title: then.toLocaleString() }, inWords(iso));
}

/** Show an error, with a button to try again if that may help. */
export function showProblem(box, error, retry = null) {
  box.replaceChildren(make("p", {}, error.message || "Something went wrong."));
  const facts = [error.status ? `Status ${error.status}` : null, error.requestId ? `request ${error.requestId}` : null];
  const known = facts.filter(Boolean).join(", ");
  const line = make("p", { class: "problem-line" });
  if (known) line.append(make("span", { class: "small" }, known));
  if (retry && error.mayPass) {
    line.append(
      button(
        "Try again",
        () => {
          clearProblem(box);
          retry();
        },
        { class: "link" },
      ),
    );
  }
  if (line.childNodes.length) box.append(line);
  box.hidden = false;
}

/** Hide it again. */
export function clearProblem(box) {
  box.hidden = true;
  box.replaceChildren();
}

/** Run `work` and return its result. Meanwhile the button shows a text, keeps the focus, and cannot be pressed. */
export async function whileBusy(element, text, work) {
  if (element.getAttribute("aria-disabled") === "true") return undefined;
  const before = element.textContent;
  element.setAttribute("aria-disabled", "true");
  element.textContent = text;
  try {
    return await work();
  } finally {
    element.removeAttribute("aria-disabled");
    element.textContent = before;
  }
}
