// A cache of corrections and thumbnails.

import { getEdit, getThumbnail } from "./api.js";
import { make } from "./dom.js";

const cards = new Map();
const thumbnails = new Map();

/** A correction by its id, from the cache or from the server. */
export function cardOf(id) {
  if (!cards.has(id)) {
    const asked = getEdit(id);
    cards.set(id, asked);
    asked.catch(() => cards.get(id) === asked && cards.delete(id));
  }
  return Promise.resolve(cards.get(id));
}

/** Put these into the cache. */
export function remember(...known) {
  for (const card of known) cards.set(card.id, card);
}

/** Clear the cache: one change can activate or undo other corrections too. */
export function forgetCards() {
  cards.clear();
}

/** The thumbnail of a correction, or an empty frame if it has none. */
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
