// Changes by others: when to look for them, and how to update a list that is being read.

import { byId } from "./dom.js";

const EACH_MS = 5000;
const LONGEST_MS = 120000;
const POINTED_MS = 1500;

/**
 * Looks every few seconds while the page is visible, one request at a time. If the server is unreachable, it retries
 * with back-off. (The browser logs each failed request in its console; a page cannot prevent that.)
 */
export class Watch {
  /** look: resolves to whether the server was asked, and throws if it was unreachable. */
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

  /** The server was reached: return to the usual interval. */
  soon() {
    if (this.wait === EACH_MS) return;
    this.wait = EACH_MS;
    this.plan();
  }

  /** Whether the mouse moved over the list just now, so that its items should not move. */
  isPointedAt() {
    return performance.now() - this.pointed < POINTED_MS;
  }
}

/** Give the list these items in this order, without moving those that it has already. */
export function arrange(list, items) {
  const wanted = new Set(items);
  for (const item of [...list.children]) if (!wanted.has(item)) item.remove();
  items.forEach((item, place) => {
    if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null);
  });
}

/** Change the list, and keep the focus, open details and the scroll position. */
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

/** The item that should not move: the one with the focus, or the first in view if others lie above. */
function itemInView(list, held) {
  const edge = Math.max(0, list.closest(".history").getBoundingClientRect().top);
  const focused = held && itemNamed(list, held).getBoundingClientRect();
  if (focused && focused.bottom > edge && focused.top < innerHeight) return itemNamed(list, held);
  if (!list.firstElementChild || list.firstElementChild.getBoundingClientRect().top >= edge) return null;
  return [...list.children].find((item) => item.getBoundingClientRect().bottom > edge) ?? null;
}

/** The element that scrolls: the panel if it has a height of its own, else the page. */
function scrollOf(list) {
  const panel = list.closest(".history");
  return getComputedStyle(panel).overflowY === "auto" ? panel : document.scrollingElement;
}
