// Following what others do: when to look, and how to change a list under somebody's eyes.

import { byId } from "./dom.js";

const EACH_MS = 5000;
const LONGEST_MS = 120000;
const POINTED_MS = 1500;

/**
 * Looks every few seconds while the page is visible, one request after the other; more and more rarely while the
 * server is away. (The browser itself notes each failed request in its console; no page can prevent that.)
 */
export class Watch {
  /** look: resolves to whether the server was asked, and throws where it could not be. */
  constructor(look) {
    this.look = look;
    this.wait = EACH_MS;
    this.pointed = -Infinity;
    byId("history-list").addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse") this.pointed = performance.now();
    });
    this.plan();
  }

  plan() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.turn(), this.wait);
  }

  async turn() {
    try {
      if (!document.hidden && (await this.look())) this.wait = EACH_MS;
    } catch {
      this.wait = Math.min(LONGEST_MS, 2 * this.wait);
    }
    this.plan();
  }

  /** The server was reached: no more waiting than usual. */
  soon() {
    if (this.wait === EACH_MS) return;
    this.wait = EACH_MS;
    this.plan();
  }

  /** Whether a mouse is on its way to something in the list, which must not slip from under it. */
  isPointedAt() {
    return performance.now() - this.pointed < POINTED_MS;
  }
}

/** Let the list have these items in this order; those that are in it already are not moved. */
export function arrange(list, items) {
  const wanted = new Set(items);
  for (const item of [...list.children]) if (!wanted.has(item)) item.remove();
  items.forEach((item, place) => {
    if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null);
  });
}

/** Change the list, and leave the focus, what was opened, and what is looked at where they were. */
export function keepingPlace(list, change) {
  const active = document.activeElement;
  const held = list.contains(active) ? active.closest("li[data-id]").dataset.id : null;
  const inActions = active.closest?.(".edit-actions") !== null;
  const opened = [...list.querySelectorAll("details[open]")].map((details) => itemOf(details).dataset.id);
  const seen = itemInView(list, held);
  const top = seen?.getBoundingClientRect().top;
  change();
  for (const id of opened) itemNamed(list, id)?.querySelector("details").setAttribute("open", "");
  const still = seen && itemNamed(list, seen.dataset.id);
  if (still) scrollOf(list).scrollTop += still.getBoundingClientRect().top - top;
  if (!held || list.contains(active)) return;
  const target =
    itemNamed(list, held)?.querySelector(inActions ? ".edit-actions button" : "summary") ??
    document.querySelector("[name=state]:checked");
  target.focus({ preventScroll: true });
}

const itemOf = (element) => element.closest("li[data-id]");
const itemNamed = (list, id) => list.querySelector(`:scope > [data-id="${id}"]`);

/** The item that is to stay where it is: the one with the focus, or the first in view where others lie above. */
function itemInView(list, held) {
  const edge = Math.max(0, list.closest(".history").getBoundingClientRect().top);
  const focused = held && itemNamed(list, held).getBoundingClientRect();
  if (focused && focused.bottom > edge && focused.top < innerHeight) return itemNamed(list, held);
  if (!list.firstElementChild || list.firstElementChild.getBoundingClientRect().top >= edge) return null;
  return [...list.children].find((item) => item.getBoundingClientRect().bottom > edge) ?? null;
}

/** What scrolls: the panel where it has a height of its own, else the page. */
function scrollOf(list) {
  const panel = list.closest(".history");
  return getComputedStyle(panel).overflowY === "auto" ? panel : document.scrollingElement;
}
