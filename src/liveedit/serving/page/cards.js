// What is known of corrections, so that nothing is fetched twice.

import { getEdit, getThumbnail } from "./api.js";
import { make } from "./dom.js";

const cards = new Map();
const thumbnails = new Map();

/** A correction by its id, from what is known or from the server. */
export function cardOf(id) {
  if (!cards.has(id)) {
    const asked = getEdit(id);
    cards.set(id, asked);
    asked.catch(() => cards.get(id) === asked && cards.delete(id));
  }
  return Promise.resolve(cards.get(id));
}

/** Take these for what they are now. */
export function remember(...known) {
  for (const card of known) cards.set(card.id, card);
}

/** With one change others may have come into force, or left. */
export function forgetCards() {
  cards.clear();
}

/** The small image of a correction; an empty frame where it has none. */
export function thumbnailOf(card) {
  const frame = make("span", { class: "thumb" });
  if (!card.has_thumbnail) return frame;
  if (!thumbnails.has(card.id)) {
    thumbnails.set(
      card.id,
      getThumbnail(card.id).catch(() => (thumbnails.delete(card.id), null)),
    );
  }
  thumbnails.get(card.id).then((url) => url && frame.append(make("img", { src: url, alt: "" })));
  return frame;
}
