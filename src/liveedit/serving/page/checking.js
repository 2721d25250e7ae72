// Whether corrections still hold: the active ones are asked again, slice by slice.

import { checkEdits } from "./api.js";
import { byId, clearProblem, make, percent, say, showProblem } from "./dom.js";
import { named } from "./evidence.js";
import { keepingPlace } from "./watch.js";

const SLICE = 8; // As many as the server asks at a time, so that Stop takes effect soon.
const NAMED = 3;
const LISTED = 50;

/** The result for each correction, and the progress. `history`: the list whose items are marked. */
export class Check {
  constructor(history) {
    this.history = history;
    this.found = new Map();
    this.running = null;
    byId("check-button").addEventListener("click", () => (this.running ? this.running.abort() : this.run()));
  }

  /** Ask them again, oldest first, starting after `after` if it is given. */
  async run(after = null) {
    const problem = byId("check-problem");
    clearProblem(problem);
    if (after === null) this.found.clear();
    byId("check-outdated").hidden = true;
    const running = (this.running = new AbortController());
    this.setBusy(true);
    let ended = "";
    try {
      for (let more = true; more;) {
        const slice = await checkEdits(after === null ? { limit: SLICE } : { limit: SLICE, after }, running.signal);
        for (const checked of slice.data) this.found.set(checked.id, checked);
        after = slice.last_id ?? after;
        more = slice.has_more;
        this.showProgress();
        this.mark();
      }
    } catch (error) {
      ended = "Stopped. ";
      if (error.name !== "AbortError") showProblem(problem, error, () => this.run(after));
    } finally {
      this.running = null;
      this.setBusy(false);
    }
    byId("check-summary").textContent = ended + this.summary();
    this.mark();
    say(byId("check-summary").textContent);
  }

  setBusy(busy) {
    byId("check-button").textContent = busy ? "Stop" : "Check all";
    byId("check-progress").hidden = !busy;
    if (busy) this.showProgress();
  }

  showProgress() {
    const bar = byId("check-progress");
    const all = this.history.activeCount();
    if (all === null) bar.removeAttribute("value");
    else [bar.max, bar.value] = [Math.max(1, all), this.found.size];
    byId("check-summary").textContent = `Asked again: ${this.found.size}${all === null ? "" : ` of ${all}`} …`;
  }

  summary() {
    const found = [...this.found.values()];
    if (!found.length) return "No correction was asked again.";
    const [holding, failing, unknown] = [true, false, null].map(
      (holds) => found.filter((checked) => checked.holds === holds).length,
    );
    const parts = [`${holding} ${holding === 1 ? "holds" : "hold"}`];
    const broken = found.filter((checked) => checked.broken).length;
    const ofThem = broken ? ` (${broken} broken)` : "";
    if (failing) parts.push(`${failing} ${failing === 1 ? "fails" : "fail"}${ofThem}`);
    if (unknown) parts.push(`${unknown} unknown`);
    return `${parts.join(", ")}.`;
  }

  /** Corrections have changed, so the results may be outdated. */
  outdate() {
    byId("check-outdated").hidden = !this.found.size;
  }

  /** Mark the items of the list. Failing corrections that are not in the list are shown below it. */
  mark() {
    const items = [...byId("history-list").children];
    const listed = new Set(items.map((item) => item.dataset.id));
    const others = [...this.found.values()].filter((checked) => checked.holds !== true && !listed.has(checked.id));
    keepingPlace(byId("history-list"), () => {
      for (const item of items) {
        const isActive = !item.classList.contains("is-out");
        fill(item.querySelector(".verdict"), isActive ? this.found.get(item.dataset.id) : undefined);
      }
      this.showElsewhere(others);
    });
  }

  showElsewhere(others) {
    const list = byId("check-elsewhere");
    const shown = others.slice(0, LISTED);
    const ids = shown.map((checked) => checked.id).join();
    list.hidden = !others.length;
    if (list.dataset.shown === ids) return;
    list.dataset.shown = ids;
    list.replaceChildren(...shown.map(elsewhere));
    if (others.length > LISTED) list.append(make("li", { class: "muted" }, `and ${others.length - LISTED} more`));
  }
}

/** Show in an item whether it holds; `undefined`: it was not asked again. */
function fill(place, checked) {
  if (place.checked === checked) return;
  place.checked = checked;
  place.replaceChildren(...(checked ? verdict(checked) : []));
}

function verdict(checked) {
  if (checked.holds === true) return [make("p", { class: "yes" }, "✓ Holds")];
  if (checked.holds === null) return [make("p", { class: "unsure" }, "? Unknown: its image was not kept")];
  const said = checked.answer_now ? make("q", {}, checked.answer_now) : "nothing";
  const lines = [make("p", {}, make("span", { class: "no" }, "✗ Fails:"), " it now says ", said)];
  if (checked.broken)
    lines.push(make("p", {}, "This answer is broken: it is neither the correction’s nor the one before it."));
  if (checked.others.length) lines.push(others(checked.others));
  if (checked.asked_about === "thumbnail")
    lines.push(make("p", { class: "muted" }, "It was asked about a smaller copy of its image, which may change the answer."));
  return lines;
}

function others(fired) {
  const sorted = [...fired].sort((one, other) => other.weight - one.weight);
  const names = sorted
    .slice(0, NAMED)
    .flatMap((one, place) => [place ? ", " : "", named(one.id), ` (weight ${percent(one.weight)})`]);
  const more = sorted.length > NAMED ? ` and ${sorted.length - NAMED} more` : "";
  return make("p", {}, "Also fired: ", ...names, more);
}

function elsewhere(checked) {
  return make(
    "li",
    {},
    make("p", {}, make("span", { class: "muted" }, `${checked.prompt} `), make("strong", {}, checked.answer)),
    make("div", { class: "verdict small" }, ...verdict(checked)),
  );
}
