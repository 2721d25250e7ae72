// The panel of corrections: all of them, newest first, with undo, redo and history.

import { changeEdit, getEdit, getHistory, listEdits } from "./api.js";
import { forgetCards, remember, thumbnailOf } from "./cards.js";
import { Check } from "./checking.js";
import { button, byId, clearProblem, inWords, make, moment, say, showProblem, whileBusy } from "./dom.js";
import { cost, findings } from "./evidence.js";
import { nearCorrections } from "./near.js";
import { arrange, keepingPlace, Watch } from "./watch.js";

const PAGE = 20;
const MOST = 100; // The most that the server lists at once.
const TYPING = 250; // Milliseconds without a key after which a search begins.
const HAPPENED = {
  edit: "made",
  undo: "undone",
  redo: "redone",
  supersede: "made, replacing an earlier one",
  purge: "purged",
};

// Changes of other corrections that also changed this one.
const HAPPENED_BY = {
  edit: "changed by",
  undo: "active again after the undo of",
  redo: "superseded again by",
  supersede: "superseded by",
  purge: "active again after the purge of",
};

/**
 * The list. `onChange` is called with an edit after it was undone or redone here, `onOthers` with the ids of those
 * that another client made, undid or redid.
 */
export class History {
  constructor({ onChange, onOthers }) {
    this.onChange = onChange;
    this.onOthers = onOthers;
    this.shown = []; // The edits in the list, and what was listed.
    this.shownState = null;
    this.items = new Map(); // The item of each id, and the JSON that it was made from.
    this.revision = null;
    this.mayEdit = true;
    this.refreshed = 0;
    this.busy = 0;
    this.settled = null;
    this.opened = false;
    this.failed = false;
    this.check = new Check(this);
    this.watch = new Watch(() => this.look());
    byId("older").addEventListener("click", () => whileBusy(byId("older"), "Loading …", () => this.load(false)));
    for (const choice of document.querySelectorAll("[name=state]"))
      choice.addEventListener("change", () => this.refresh());
    let typing;
    byId("search").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.refresh(), TYPING);
    });
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.opened) this.refresh();
    });
  }

  get state() {
    return document.querySelector("[name=state]:checked").value;
  }

  get search() {
    return byId("search").value.trim();
  }

  /** What is listed: the state, and the text that is searched for. */
  query(limit) {
    const query = { state: this.state, order: "desc", limit };
    return this.search ? { ...query, search: this.search } : query;
  }

  /** The number of active corrections, or null if the list does not show all of them. */
  activeCount() {
    if (this.state === "undone" || this.search || !byId("older").hidden) return null;
    return this.shown.filter((card) => card.active).length;
  }

  // -- loading

  /** Load the list again from the newest on, as many as are shown. */
  refresh() {
    const pages = Math.ceil(this.shown.length / PAGE);
    return this.load(true, Math.min(MOST, PAGE * Math.max(1, pages)));
  }

  /** Resolves to the ids of changed edits, or undefined if the server could not be asked. */
  load(anew, limit = PAGE) {
    return (this.settled = this.during(() => this.fetch(anew, limit)));
  }

  async fetch(anew, limit) {
    this.opened = true;
    const turn = ++this.refreshed;
    const query = this.query(limit);
    const listed = listedBy(query);
    if (!anew && this.shown.length) query.after = this.shown.at(-1).id;
    try {
      const page = await listEdits(query);
      if (turn !== this.refreshed) return undefined;
      this.reached();
      return this.show(anew ? page.data : this.shown.concat(page.data), page.has_more, listed);
    } catch (error) {
      if (turn !== this.refreshed) return undefined;
      this.failed = true;
      this.mayEdit = error.status !== 403 && error.status !== 401;
      if (!this.mayEdit) this.show([], false, listed);
      if (error.status === 403)
        error.message = "This key may only ask. To correct, and to see the corrections, give a key with the role “edit”.";
      showProblem(byId("history-problem"), error, () => this.load(anew));
      return undefined;
    }
  }

  reached() {
    if (this.failed) clearProblem(byId("history-problem")); // The reason why a change was refused stays visible.
    this.failed = false;
    this.mayEdit = true;
    this.watch.soon();
  }

  /** Look for changes by others among the newest. Returns whether the server was asked. */
  async look() {
    const { refreshed: turn } = this;
    const query = this.query(PAGE);
    if (!this.opened || !this.mayEdit || this.busy) return false;
    let page;
    try {
      page = await listEdits(query, { unasked: true });
    } catch (error) {
      if (error.status !== 401 && error.status !== 403) throw error;
      this.opened = false; // Do not ask for a key in the background.
      return false;
    }
    if (turn !== this.refreshed || this.busy || this.watch.isPointedAt()) return true;
    this.reached();
    const cards = withNewest(this.shown, page);
    const hasMore = page.has_more && !byId("older").hidden;
    const changed = cards === null ? await this.refresh() : this.show(cards, hasMore, listedBy(query));
    if (changed?.length) this.onOthers(changed);
    return true;
  }

  /** An answer was generated with this revision of the corrections. */
  noteRevision(revision) {
    if (revision === this.revision || !this.opened || !this.mayEdit) return;
    this.revision = revision;
    forgetCards();
    this.refresh();
  }

  /** While the page changes or loads something, it does not look for changes by others. */
  async during(work) {
    this.busy += 1;
    try {
      return await work();
    } finally {
      this.busy -= 1;
    }
  }

  /** Undo or redo, from any place on the page. Returns whether it succeeded. */
  async change(id, change, problem = byId("history-problem")) {
    clearProblem(problem);
    let card;
    try {
      card = await this.during(() => changeEdit(id, change));
    } catch (error) {
      showProblem(problem, error, () => this.change(id, change, problem));
      if (error.status === 409 || error.status === 404) this.refresh();
      return false;
    }
    forgetCards();
    remember(card);
    this.refresh();
    say(
      change === "undo"
        ? `Undone: ${card.prompt} is answered as before.`
        : `Active again: ${card.prompt} is answered ${card.answer}.`,
    );
    this.onChange(card);
    return true;
  }

  // -- rendering

  /** Show these edits and leave unchanged items as they are. Returns the ids of those that have changed. */
  show(cards, hasMore, listed) {
    remember(...cards);
    const changed = listed === this.shownState ? changes(this.shown, cards, hasMore) : [];
    this.shownState = listed;
    if (changed.length) this.check.outdate();
    const before = this.items;
    this.items = new Map(cards.map((card) => [card.id, this.itemOf(card, before.get(card.id))]));
    const items = cards.map((card) => this.items.get(card.id).item);
    const list = byId("history-list");
    const isChanged = items.length !== list.childElementCount || items.some((item) => !list.contains(item));
    if (isChanged) keepingPlace(list, () => arrange(list, items));
    for (const time of list.querySelectorAll("time")) time.textContent = inWords(time.dateTime);
    this.shown = cards;
    byId("older").hidden = !hasMore;
    byId("check").hidden = !this.mayEdit || (!cards.length && this.state !== "undone");
    const empty = byId("history-empty");
    empty.hidden = cards.length > 0;
    empty.textContent = this.mayEdit ? this.whyEmpty : "";
    if (isChanged) this.check.mark();
    return changed;
  }

  get whyEmpty() {
    if (this.search) return "No correction has this text.";
    return this.state === "undone" ? "No correction is undone." : "None yet. Ask something, and correct the answer.";
  }

  itemOf(card, known) {
    const text = JSON.stringify(card);
    return known?.text === text ? known : { text, item: this.item(card) };
  }

  item(card) {
    const state = card.purged_at ? "purged" : card.active ? "active" : "undone";
    const about = [moment(card.created_at)];
    if (card.author) about.push(` by ${card.author}`);
    const before = card.answer_before ? make("del", {}, card.answer_before) : null;
    return make(
      "li",
      { class: `edit ${card.active ? "" : "is-out"}`, "data-id": card.id, id: `edit-${card.id}` },
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
      make("div", { class: "verdict small" }),
      happened(card),
    );
  }

  actions(card, state) {
    const actions = make(
      "div",
      { class: "edit-actions" },
      make("span", { class: `state ${state}` }, state),
    );
    if (state === "purged") return actions;
    actions.append(this.changer(card));
    return actions;
  }

  /** The button that undoes or redoes an edit. */
  changer(card, problem = byId("history-problem")) {
    const [change, text] = card.active ? ["undo", "Undo"] : ["redo", "Redo"];
    const press = button(text, () => whileBusy(press, "…", () => this.change(card.id, change, problem)), {
      class: "quiet small-button",
      "aria-label": `${text}: ${card.prompt} ${card.answer}`,
    });
    return press;
  }
}

/** What a list shows, to tell whether two show the same. */
const listedBy = ({ state, search = "" }) => `${state} ${search}`;

/** The shown edits with the newest ones updated; null if the new page does not overlap them. */
function withNewest(shown, { data, has_more: hasMore }) {
  if (!hasMore) return data;
  const place = shown.findIndex((card) => card.id === data.at(-1).id);
  return place < 0 ? null : data.concat(shown.slice(place + 1));
}

/** Ids of new, removed and changed edits, as far down as both lists reach. */
function changes(before, after, hasMore) {
  const texts = new Map(before.map((card) => [card.id, JSON.stringify(card)]));
  const ids = new Set(after.map((card) => card.id));
  const lastKnown = after.findLastIndex((card) => texts.has(card.id));
  const lastKept = before.findLastIndex((card) => ids.has(card.id));
  const isNew = (card, place) => !texts.has(card.id) && (lastKnown < 0 || place < lastKnown);
  const isOther = (card) => texts.has(card.id) && texts.get(card.id) !== JSON.stringify(card);
  const isGone = (card, place) => !ids.has(card.id) && (!hasMore || place < lastKept);
  return [...after.filter((card, place) => isNew(card, place) || isOther(card)), ...before.filter(isGone)].map(
    (card) => card.id,
  );
}

function happened(card) {
  const lines = make("ol", { class: "events small" });
  const evidence = make("div", { class: "stored-evidence small" });
  const details = make(
    "details",
    { class: "edit-history" },
    make("summary", { class: "small" }, "History"),
    lines,
    evidence,
    card.purged_at ? null : nearCorrections(card.id),
  );
  details.addEventListener("toggle", async () => {
    if (!details.open) return;
    try {
      const [events, detail] = await Promise.all([getHistory(card.id), getEdit(card.id)]);
      lines.replaceChildren(...events.data.map((event) => eventLine(event, card.id)));
      evidence.replaceChildren(...storedEvidence(detail));
    } catch (error) {
      lines.replaceChildren(make("li", {}, error.message));
    }
  });
  return details;
}

function eventLine(event, id) {
  const by = event.author ? ` by ${event.author}` : "";
  const note = event.note ? `: ${event.note}` : "";
  return make(
    "li",
    {},
    make("strong", {}, event.edit_id === id ? (HAPPENED[event.kind] ?? event.kind) : HAPPENED_BY[event.kind]),
    event.edit_id === id ? "" : ` ${event.edit_id}`,
    by,
    note,
    ", ",
    moment(event.at),
    make("span", { class: "muted" }, ` (revision ${event.revision})`),
  );
}

/** The evidence that is stored with a correction. */
function storedEvidence({ evidence, purged_at: purged }) {
  if (purged) return [];
  if (evidence === null) return [make("p", { class: "muted" }, "Its evidence was not kept.")];
  const took = evidence.took ? "When it was made, it took." : "When it was made, it did not take: the answer was ";
  return [
    make("p", {}, took, evidence.took ? null : make("q", {}, evidence.answer_after)),
    ...findings(evidence, { narrow: true }),
    make("p", { class: "muted" }, cost(evidence)),
  ];
}
