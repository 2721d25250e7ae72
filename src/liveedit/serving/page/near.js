// The corrections nearest to another one, and whether they collide with it.

import { getNear } from "./api.js";
import { remember, thumbnailOf } from "./cards.js";
import { make, percent } from "./dom.js";
import { mark } from "./evidence.js";

/** A part of the details of a correction. The server is asked when it is opened, because it then asks the model. */
export function nearCorrections(id) {
  const content = make("div", { "aria-live": "polite" });
  const details = make("details", { class: "near" }, make("summary", { class: "small" }, "Near corrections"), content);
  details.addEventListener("toggle", async () => {
    if (!details.open) return;
    content.replaceChildren(make("p", { class: "muted" }, "Asking …"));
    try {
      const { data } = await getNear(id);
      remember(...data);
      content.replaceChildren(
        data.length
          ? make("ul", { class: "near-list" }, ...data.map(nearItem))
          : make("p", { class: "muted" }, "No other correction is active."),
      );
    } catch (error) {
      content.replaceChildren(make("p", { class: "muted" }, error.message));
    }
  });
  return details;
}

function nearItem(near) {
  const spoils = near.collides && near.answers_differ;
  const relation = make(
    "p",
    { class: "small" },
    near.collides === null ? null : mark(!spoils),
    ` ${inWords(near)} `,
    make("span", { class: "muted" }, `Similarity ${near.similarity.toFixed(2)}.`),
  );
  return make(
    "li",
    { class: spoils ? "near-item is-spoiling" : "near-item", "data-id": near.id },
    thumbnailOf(near),
    make(
      "div",
      { class: "near-text" },
      make("a", { href: `#edit-${near.id}` }, near.prompt),
      " ",
      make("strong", {}, near.answer),
      relation,
    ),
  );
}

function inWords(near) {
  if (near.collides === null) return "Whether they collide is not known: an image was not kept.";
  if (!near.collides) return "They do not collide.";
  const there = near.weight_there === null ? "an unknown weight" : percent(near.weight_there);
  const here = near.weight_here === null ? "an unknown weight" : percent(near.weight_here);
  const about = near.is_estimate ? "about " : "";
  const answers = near.answers_differ ? "another answer" : "the same answer";
  return `They collide, with ${answers}: weight ${here} here, ${about}${there} there.`;
}
