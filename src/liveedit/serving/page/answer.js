// The answer: its text, the corrections that fired, and the heat maps.

import { makeHeatMaps } from "./api.js";
import { cardOf, thumbnailOf } from "./cards.js";
import { bar, byId, clearProblem, make, percent, say, showProblem } from "./dom.js";
import { describeHeat, drawHeat, scaleOfHeat, tableOfHeat } from "./heat.js";

const SHOWN = 4;
const CHANGE_CELLS = 4;
const LONG = 90; // Characters. Longer answers get a smaller font.

/** Shows one asked question at a time: { image, prompt, text, edits, withheld, maps }. */
export class AnswerView {
  constructor(history) {
    this.history = history;
    this.asked = null;
    for (const choice of document.querySelectorAll("[name=heat]"))
      choice.addEventListener("change", () => this.showHeat());
  }

  /** Prepare for an answer that starts to arrive. */
  begin(asked) {
    this.asked = asked;
    byId("welcome").hidden = true;
    byId("answer").hidden = false;
    byId("stale").hidden = true;
    clearProblem(byId("answer-problem"));
    byId("asked-prompt").textContent = asked.prompt;
    this.text("");
    byId("fired").replaceChildren();
    const image = byId("exhibit-image");
    image.hidden = !asked.image;
    byId("exhibit-none").hidden = Boolean(asked.image);
    byId("heat-options").disabled = true;
    if (asked.image) {
      image.src = asked.image.uri;
      image.alt = asked.image.shows ?? `The image that was asked about: ${asked.image.name}`;
    }
    this.hideHeat();
    document.querySelector(".said").scrollIntoView({ block: "nearest" });
  }

  /** Show the text so far. */
  text(text) {
    const box = byId("answer-text");
    box.textContent = text;
    box.classList.toggle("is-long", text.length > LONG);
  }

  /** Show the whole answer. */
  async finish(asked) {
    this.text(asked.text || "(nothing)");
    byId("heat-options").disabled = !asked.image;
    const count = asked.edits.length;
    const fired =
      count === 0
        ? "No correction fired."
        : count === 1
          ? "One correction fired."
          : `${count} corrections fired.`;
    say(`The answer: ${asked.text || "nothing"}. ${fired}`);
    await Promise.all([this.showFired(asked), this.showHeat()]);
  }

  /** A correction was undone or redone since. */
  edited(card) {
    if (this.asked === null) return;
    byId("stale").hidden = false;
    this.showChange(card);
  }

  /** Others changed corrections since. The notice does not move a form that is being filled in. */
  outdate() {
    if (this.asked && this.asked.text !== null && byId("correction-form").hidden) byId("stale").hidden = false;
  }

  hasFired(id) {
    return Boolean(this.asked?.edits.some((fired) => fired.id === id));
  }

  /** Update a correction that fired. */
  async showChange(card) {
    if (!this.hasFired(card.id)) return;
    const box = byId("fired");
    const held = box.contains(document.activeElement);
    await this.showFired(this.asked);
    if (held) box.querySelector(`[data-id="${card.id}"] button`)?.focus();
  }

  // -- the corrections that fired

  async showFired(asked) {
    const box = byId("fired");
    if (!asked.edits.length) {
      const why = asked.withheld.length
        ? "A correction fired, but the model was in doubt: this is its own answer."
        : "No correction fired: this is the model’s own answer.";
      box.replaceChildren(make("p", { class: "fired-none muted" }, why));
      return;
    }
    const sorted = [...asked.edits].sort((one, other) => other.weight - one.weight);
    const shown = sorted.slice(0, SHOWN);
    await this.history.settled;
    const found = await Promise.all(shown.map((fired) => this.known(fired.id)));
    if (this.asked !== asked) return;
    const heading = asked.edits.length === 1 ? "A correction fired" : `${asked.edits.length} corrections fired`;
    box.replaceChildren(
      make("p", { class: "label" }, heading),
      make("ul", { class: "fired-list" }, ...shown.map((fired, place) => this.fired(fired, found[place]))),
      sorted.length > SHOWN ? make("p", { class: "small muted" }, `and ${sorted.length - SHOWN} with less weight`) : "",
    );
  }

  /** A correction, or null if the key may only ask. */
  async known(id) {
    return this.history.mayEdit ? cardOf(id).catch(() => null) : null;
  }

  fired(fired, card) {
    const title =
      `Weight ${fired.weight.toFixed(3)}: its share in the answer. Margin ${fired.margin.toFixed(3)}: ` +
      "by how much its similarity exceeded the threshold.";
    return make(
      "li",
      { class: `fired-edit ${card?.active === false ? "is-out" : ""}`, title, "data-id": fired.id },
      card && thumbnailOf(card),
      make(
        "div",
        { class: "fired-text" },
        make("p", {}, nameOf(fired.id, card)),
        make(
          "p",
          { class: "weight" },
          bar(fired.weight),
          make("span", { class: "figure" }, `weight ${percent(fired.weight)}`),
        ),
      ),
      card && this.history.changer(card, byId("answer-problem")),
    );
  }

  // -- heat maps

  hideHeat() {
    byId("heat").hidden = true;
    byId("heat-explained").hidden = true;
    clearProblem(byId("heat-problem"));
  }

  async showHeat() {
    const asked = this.asked;
    const kind = document.querySelector("[name=heat]:checked").value;
    this.hideHeat();
    if (!asked?.image || asked.text === null || kind === "off") return;
    const frame = byId("exhibit-frame");
    try {
      if (!asked.maps[kind]) {
        frame.setAttribute("aria-busy", "true");
        await this.fetchMaps(asked, kind);
      }
    } catch (error) {
      if (this.asked === asked) showProblem(byId("heat-problem"), error, () => this.showHeat());
      return;
    } finally {
      frame.removeAttribute("aria-busy");
    }
    if (this.asked !== asked || document.querySelector("[name=heat]:checked").value !== kind) return;
    const map = asked.maps[kind];
    drawHeat(byId("heat"), asked.image, map);
    byId("heat").hidden = map.over !== "cells";
    byId("heat-summary").textContent = describeHeat(map, kind);
    const [low, high] = scaleOfHeat(map, kind);
    byId("legend-low").textContent = low;
    byId("legend-high").textContent = high;
    byId("heat-table").replaceChildren(tableOfHeat(map, kind));
    byId("heat-explained").hidden = false;
  }

  async fetchMaps(asked, kind) {
    const wanted = { image: asked.image.uri, prompt: asked.prompt };
    if (kind === "change") wanted.change_cells = CHANGE_CELLS;
    const maps = await makeHeatMaps(wanted);
    if (maps.attention) asked.maps.attention = maps.attention;
    if (maps.change) asked.maps.change = maps.change;
  }
}

/** The name of a correction, as a link if the list shows it. */
function nameOf(id, card) {
  const name = make("span", {}, card?.prompt ? `${card.prompt} ` : "Correction ");
  name.append(card?.answer ? make("strong", {}, card.answer) : make("code", {}, id));
  return byId(`edit-${id}`) ? make("a", { class: "fired-name", href: `#edit-${id}` }, name) : name;
}
