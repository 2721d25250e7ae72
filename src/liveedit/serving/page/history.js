// The panel of corrections: every one, newest first, with undo, redo and what happened to it.

import { changeEdit, getEdit, getHistory, getThumbnail, listEdits } from "./api.js";
import { button, byId, clearProblem, make, moment, say, showProblem, whileBusy } from "./dom.js";

const PAGE = 20;
const MOST = 100; // The server lists no more at once.
const HAPPENED = {
  edit: "made",
  undo: "undone",
  redo: "put back",
  supersede: "made, in place of an earlier one",
  purge: "purged",
};

/** What is known of edits, so that nothing is fetched twice. */
const cards = new Map();
const thumbnails = new Map();

/** An edit by its id, from what is known or from the server. */
export async function cardOf(id) {
  if (!cards.has(id)) cards.set(id, await getEdit(id));
  return cards.get(id);
}

/** The small picture of an edit; an empty frame where it has none. */
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

/** The list itself. `onChange` is called with an edit after it was undone or redone here. */
export class History {
  constructor(onChange) {
    this.onChange = onChange;
    this.last = null;
    this.mayEdit = true;
    this.refreshed = 0;
    this.opened = false;
    this.failed = false;
    byId("older").addEventListener("click", () => whileBusy(byId("older"), "Loading …", () => this.load(false)));
    for (const choice of document.querySelectorAll("[name=state]"))
      choice.addEventListener("change", () => this.refresh());
    // Others may have corrected meanwhile.
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.opened) this.refresh();
    });
  }

  /** From the newest on again, as many as are shown. */
  refresh() {
    const shown = PAGE * Math.ceil(byId("history-list").childElementCount / PAGE);
    return this.load(true, Math.min(MOST, Math.max(PAGE, shown)));
  }

  async load(anew, limit = PAGE) {
    this.opened = true;
    const turn = ++this.refreshed;
    const state = document.querySelector("[name=state]:checked").value;
    const query = { state, order: "desc", limit };
    if (!anew && this.last) query.after = this.last;
    const problem = byId("history-problem");
    try {
      const page = await listEdits(query);
      if (turn !== this.refreshed) return;
      if (this.failed) clearProblem(problem); // What a change was refused for stays to be read.
      this.failed = false;
      this.mayEdit = true;
      this.show(page, anew, state);
    } catch (error) {
      if (turn !== this.refreshed) return;
      this.failed = true;
      this.mayEdit = error.status !== 403 && error.status !== 401;
      if (!this.mayEdit) this.show({ data: [], has_more: false }, true, state);
      if (error.status === 403)
        error.message = "This key may ask. To correct, and to see the corrections, give one of the role “edit”.";
      showProblem(problem, error, () => this.load(anew));
    }
  }

  show(page, anew, state) {
    for (const card of page.data) cards.set(card.id, card);
    const items = page.data.map((card) => this.item(card));
    const list = byId("history-list");
    anew ? keepingPlace(list, () => list.replaceChildren(...items)) : list.append(...items);
    this.last = page.data.at(-1)?.id ?? this.last;
    byId("older").hidden = !page.has_more;
    const empty = byId("history-empty");
    empty.hidden = list.childElementCount > 0;
    empty.textContent =
      state === "undone" ? "None is undone." : this.mayEdit ? "None yet. Ask something, and correct the answer." : "";
  }

  /** Undo or redo, from here or from anywhere else on the page; returns whether it was done. */
  async change(id, change, problem = byId("history-problem")) {
    clearProblem(problem);
    let card;
    try {
      card = await changeEdit(id, change);
    } catch (error) {
      showProblem(problem, error, () => this.change(id, change, problem));
      if (error.status === 409 || error.status === 404) this.refresh();
      return false;
    }
    cards.clear(); // With it others may have come into force, or left.
    cards.set(id, card);
    this.refresh();
    say(
      change === "undo"
        ? `Undone: ${card.prompt} is answered as before.`
        : `In force again: ${card.prompt} is answered ${card.answer}.`,
    );
    this.onChange(card);
    return true;
  }

  item(card) {
    const state = card.purged_at ? "purged" : card.in_force ? "in force" : "undone";
    const about = [moment(card.created_at)];
    if (card.author) about.push(` by ${card.author}`);
    const before = card.answer_before ? make("del", {}, card.answer_before) : null;
    return make(
      "li",
      { class: `edit ${card.in_force ? "" : "is-out"}`, "data-id": card.id },
      thumbnailOf(card),
      make(
        "div",
        { class: "edit-text" },
        make("p", { class: "edit-prompt" }, card.prompt || "(purged)"),
        make("p", { class: "edit-answer" }, before, before ? " → " : null, make("strong", {}, card.answer || "")),
        card.note ? make("p", { class: "edit-note" }, card.note) : null,
        make("p", { class: "small muted" }, ...about),
      ),
      this.actions(card, state),
      this.happened(card),
    );
  }

  actions(card, state) {
    const actions = make(
      "div",
      { class: "edit-actions" },
      make("span", { class: `state ${state.replace(" ", "-")}` }, state),
    );
    if (state === "purged") return actions;
    actions.append(this.changer(card));
    return actions;
  }

  /** The button that undoes or redoes an edit. */
  changer(card, problem = byId("history-problem")) {
    const [change, text] = card.in_force ? ["undo", "Undo"] : ["redo", "Redo"];
    const press = button(text, () => whileBusy(press, "…", () => this.change(card.id, change, problem)), {
      class: "quiet small-button",
      "aria-label": `${text}: ${card.prompt} ${card.answer}`,
    });
    return press;
  }

  happened(card) {
    const lines = make("ol", { class: "events small" });
    const details = make(
      "details",
      { class: "edit-history" },
      make("summary", { class: "small" }, "What happened to it"),
      lines,
    );
    details.addEventListener("toggle", async () => {
      if (!details.open) return;
      try {
        const { data } = await getHistory(card.id);
        lines.replaceChildren(...data.map(eventLine));
      } catch (error) {
        lines.replaceChildren(make("li", {}, error.message));
      }
    });
    return details;
  }
}

/** Change the list, and leave the focus and what was opened where they were. */
function keepingPlace(list, change) {
  const active = document.activeElement;
  const held = list.contains(active) ? active.closest("li[data-id]")?.dataset.id : null;
  const inActions = active.closest?.(".edit-actions") !== null;
  const opened = [...list.querySelectorAll("details[open]")].map(
    (details) => details.closest("li[data-id]").dataset.id,
  );
  change();
  for (const id of opened) list.querySelector(`[data-id="${id}"] details`)?.setAttribute("open", "");
  if (!held) return;
  const item = list.querySelector(`[data-id="${held}"]`);
  const target =
    item?.querySelector(inActions ? ".edit-actions button" : "summary") ??
    document.querySelector("[name=state]:checked");
  target.focus({ preventScroll: true });
}

function eventLine(event) {
  const by = event.author ? ` by ${event.author}` : "";
  const note = event.note ? `: ${event.note}` : "";
  return make(
    "li",
    {},
    make("strong", {}, HAPPENED[event.kind] ?? event.kind),
    by,
    note,
    ", ",
    moment(event.at),
    make("span", { class: "muted" }, ` (revision ${event.revision})`),
  );
}
