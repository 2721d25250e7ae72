// The evidence of a correction in words, right after it was made and later.

import { cardOf } from "./cards.js";
import { make, percent } from "./dom.js";

/**
 * The findings of a trial, one element per part that was tried. changerOf(card) makes a button that undoes another
 * correction; without it there is none. narrow: there is no room for a table.
 */
export function findings(evidence, { changerOf = null, narrow = false } = {}) {
  const { rephrasings = [], locality = [], earlier_edits: earlier = [] } = evidence;
  const { collisions = [], supersedes = [] } = evidence;
  return [
    rephrasings.length ? (narrow ? rephrasingList : rephrasingTable)(rephrasings) : null,
    supersedes.length ? superseded(supersedes) : null,
    kept("unrelated question", locality, (one) => make("q", {}, one.prompt)),
    kept("earlier correction", earlier, (one) => named(one.edit_id)),
    ...collisions.map((one) => collision(one, changerOf)),
  ].filter(Boolean);
}

/** The cost of making it. */
export function cost({ milliseconds, refine_steps: steps, store_bytes: bytes }) {
  const refined = steps ? `, with ${steps} gradient ${steps === 1 ? "step" : "steps"}` : "";
  return `Made in ${Math.round(milliseconds)} ms${refined}; it takes ${(bytes / 1024).toFixed(0)} KiB.`;
}

/** Another correction by its question and answer, or by its id until those are known. */
export function named(id, changerOf = null) {
  const place = make("span", {}, make("code", {}, id));
  cardOf(id).then(
    (card) => {
      if (!card.prompt) return; // It was purged.
      place.replaceChildren(make("q", {}, `${card.prompt} ${card.answer}`));
      if (card.active && changerOf) place.append(" ", changerOf(card));
    },
    () => {},
  );
  return place;
}

/** A mark that screen readers skip, because the text beside it says the same. */
export function mark(good) {
  return make("span", { class: good ? "yes" : "no", "aria-hidden": "true" }, good ? "✓" : "!");
}

function rephrasingTable(rephrasings) {
  const rows = rephrasings.map((one) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, one.prompt),
      make("td", {}, one.answer_before || "–"),
      make("td", {}, one.answer_after || "–"),
      make("td", { class: one.took ? "yes" : "no" }, one.took ? "✓ yes" : one.broken ? "✗ broken" : "✗ no"),
    ),
  );
  return make(
    "table",
    { class: "wordings" },
    make("caption", {}, howMany(rephrasings)),
    make(
      "thead",
      {},
      make("tr", {}, ...["Asked", "Before", "After", "Follows"].map((text) => make("th", { scope: "col" }, text))),
    ),
    make("tbody", {}, ...rows),
  );
}

function rephrasingList(rephrasings) {
  const lines = rephrasings.map((one) => make("li", {}, ...beforeAndAfter(make("q", {}, one.prompt), one)));
  const good = rephrasings.every((one) => one.took);
  return make("div", {}, line(good, ` ${howMany(rephrasings)}`), make("ul", { class: "asked" }, ...lines));
}

function howMany(rephrasings) {
  const right = rephrasings.filter((one) => one.took).length;
  return `In other words: ${right} of ${rephrasings.length} follow`;
}

function beforeAndAfter(name, { answer_before: before, answer_after: after, broken }) {
  const last = ` → ${after || "(nothing)"}${broken ? ", broken" : ""}`;
  return [name, ": ", make("del", {}, before || "(nothing)"), last];
}

function superseded(ids) {
  const text =
    ids.length === 1
      ? " It replaced an earlier correction: "
      : ` It replaced ${ids.length} earlier corrections: `;
  const names = ids.flatMap((id, place) => [place ? ", " : "", named(id)]);
  return line(true, text, ...names);
}

/** Whether the answers to other questions stayed, with a list of those that changed. */
function kept(what, asked, nameOf) {
  if (!asked.length) return null;
  const changed = asked.filter((one) => !one.kept);
  const all = `${asked.length} ${what}${asked.length === 1 ? "" : "s"}`;
  if (!changed.length)
    return line(true, ` ${all} asked again: ${asked.length === 1 ? "the answer" : "every answer"} stayed.`);
  const lines = changed.map((one) => make("li", {}, ...beforeAndAfter(nameOf(one), one)));
  const text = line(false, ` ${all} asked again: ${changed.length} changed.`);
  return make("div", {}, text, make("ul", { class: "asked" }, ...lines));
}

function collision({ edit_id: id, weight_here: here, weight_there: there, is_estimate, answers_differ }, changerOf) {
  const text = answers_differ
    ? " It collides with another correction that has another answer: "
    : " It collides with another correction that has the same answer: ";
  const weights = ` (weight ${percent(here)} here, ${is_estimate ? "about " : ""}${percent(there)} there)`;
  return line(!answers_differ, text, named(id, changerOf), make("span", { class: "muted" }, weights));
}

function line(good, ...content) {
  return make("p", { class: "check-line" }, mark(good), ...content);
}
