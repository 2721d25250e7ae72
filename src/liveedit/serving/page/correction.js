// Correcting an answer, and the evidence of what the correction did.

import { createEdit } from "./api.js";
import { button, byId, clearProblem, make, say, showProblem, whileBusy } from "./dom.js";
import { cost, findings } from "./evidence.js";

/** The form below an answer, and the evidence. */
export class Correction {
  constructor(page, settings) {
    this.page = page;
    this.view = page.view;
    this.history = page.history;
    this.settings = settings;
    this.form = byId("correction-form");
    this.made = null;
    byId("correct-button").addEventListener("click", () => (this.form.hidden ? this.open() : this.close()));
    byId("cancel-correction").addEventListener("click", () => this.close());
    this.form.addEventListener("keydown", (event) => event.key === "Escape" && this.close());
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      whileBusy(byId("correct"), "Correcting …", () => this.send());
    });
    byId("author-field").hidden = settings.asks_for_keys;
  }

  open() {
    clearProblem(byId("correction-problem"));
    byId("evidence").hidden = true;
    byId("right-answer").value = "";
    byId("note").value = "";
    byId("keep-anyway").checked = false;
    byId("rephrasings").value = this.alike(this.view.asked.prompt).join("\n");
    this.form.hidden = false;
    byId("correct-button").setAttribute("aria-expanded", "true");
    byId("right-answer").focus();
  }

  /** Hide the form and the evidence. The focus returns to the button. */
  close() {
    const held = this.form.contains(document.activeElement) || byId("evidence").contains(document.activeElement);
    this.reset();
    if (held) byId("correct-button").focus();
  }

  /** An edit was undone or redone: the evidence of an undone edit is hidden. */
  edited(card) {
    if (card.id === this.made && !card.active) this.close();
  }

  /** The same by another client: what is being read or written stays visible. */
  editedElsewhere(card) {
    if (!byId("evidence").contains(document.activeElement)) this.edited(card);
  }

  reset() {
    this.made = null;
    this.form.hidden = true;
    byId("evidence").hidden = true;
    byId("correct-button").setAttribute("aria-expanded", "false");
    byId("correct-button").hidden = !this.history.mayEdit;
  }

  alike(prompt) {
    const group = this.settings.questions.find((texts) => texts.includes(prompt)) ?? [];
    return group.filter((text) => text !== prompt);
  }

  async send() {
    const asked = this.view.asked;
    const problem = byId("correction-problem");
    clearProblem(problem);
    const answer = byId("right-answer").value.trim();
    if (!answer) {
      showProblem(problem, { message: "Give the answer that the model should have given." });
      byId("right-answer").focus();
      return;
    }
    const rephrasings = byId("rephrasings")
      .value.split("\n")
      .map((line) => line.trim())
      .filter(Boolean);
    const wanted = { prompt: asked.prompt, answer, rephrasings, must_take: !byId("keep-anyway").checked };
    if (asked.image) wanted.image = asked.image.uri;
    if (byId("note").value.trim()) wanted.note = byId("note").value.trim();
    if (!byId("author-field").hidden && byId("author").value.trim()) wanted.author = byId("author").value.trim();
    let made;
    try {
      made = await this.history.during(() => createEdit(wanted));
    } catch (error) {
      showProblem(problem, error, () => this.send());
      return;
    }
    this.form.hidden = true;
    byId("correct-button").setAttribute("aria-expanded", "false");
    this.showEvidence(asked, made);
    this.history.refresh();
  }

  // -- the evidence

  showEvidence(asked, made) {
    const { evidence } = made;
    this.made = made.id;
    const box = byId("evidence");
    box.classList.toggle("is-good", evidence.took);
    box.replaceChildren(
      make("h3", {}, evidence.took ? "✓ Learned" : "It did not take"),
      make(
        "p",
        { class: "before-after" },
        make("del", {}, evidence.answer_before || "(nothing)"),
        make("span", { class: "arrow", "aria-hidden": "true" }, "→"),
        make("span", { class: "for-readers" }, "is now"),
        make("strong", {}, evidence.answer_after || "(nothing)"),
      ),
      make("p", { class: "small muted" }, `${cost(evidence)} The model’s weights did not change.`),
      ...findings(evidence, { changerOf: (card) => this.history.changer(card, byId("answer-problem")) }),
      this.next(asked, made),
    );
    box.hidden = false;
    box.focus({ preventScroll: true });
    box.scrollIntoView({ block: "nearest" });
    say(
      evidence.took
        ? `Learned. It now says ${evidence.answer_after}.`
        : `It did not take: it now says ${evidence.answer_after || "nothing"}.`,
    );
  }

  next(asked, made) {
    const words = this.alike(asked.prompt).map((text) =>
      button(text, () => this.page.askAbout({ prompt: text, image: asked.image }), { class: "chip" }),
    );
    const undoing = () => this.history.change(made.id, "undo", byId("answer-problem"));
    const undo = button("Undo this correction", () => whileBusy(undo, "Undoing …", undoing), { class: "quiet" });
    return make(
      "div",
      { class: "next" },
      make("p", { class: "label" }, "See whether it holds"),
      make(
        "div",
        { class: "chips" },
        button("Ask it again", () => this.page.askAbout({ prompt: asked.prompt, image: asked.image }), {
          class: "chip chip-strong",
        }),
        ...words,
        button("In other words", () => this.page.reword(), { class: "chip" }),
        button("With another image", () => this.page.reimage(), { class: "chip" }),
      ),
      make("p", { class: "undo-line" }, undo),
    );
  }
}
