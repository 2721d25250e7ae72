// The page: the question form, the image, and how the parts work together.

import { ask, forgetKey, getModels, getSettings, keepKey, storedKey, whenKeyRefused } from "./api.js";
import { AnswerView } from "./answer.js";
import { cardOf } from "./cards.js";
import { Correction } from "./correction.js";
import { byId, button, clearProblem, make, say, showProblem } from "./dom.js";
import { History } from "./history.js";
import { imageAmong, readExample, readImage } from "./images.js";

const LOGGED = 8;

class Page {
  constructor(settings) {
    this.settings = settings;
    this.model = null;
    this.image = null;
    this.running = null;
    this.history = new History({
      onChange: (card) => {
        this.view.edited(card);
        this.correction.edited(card);
      },
      onOthers: (ids) => this.editedElsewhere(ids),
    });
    this.view = new AnswerView(this.history);
    this.correction = new Correction(this, settings);
    this.listenToForm();
    this.listenToImages();
    this.showExamples();
    this.listenToKey();
  }

  /** Load what may need a key: the model's name and the corrections. */
  async open() {
    const problem = byId("ask-problem");
    clearProblem(problem);
    if (this.settings.asks_for_keys && !storedKey()) {
      this.askForKey();
      return;
    }
    try {
      const { data } = await getModels();
      this.model = data[0].id;
      byId("model-name").textContent = this.model;
    } catch (error) {
      if (error.status !== 401) showProblem(problem, error, () => this.open());
      return;
    }
    await this.history.refresh();
    this.correction.reset();
  }

  // -- asking

  listenToForm() {
    const prompt = byId("prompt");
    byId("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.running ? this.running.abort() : this.ask();
    });
    prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.running) this.ask();
    });
    byId("ask-again").addEventListener("click", () => this.askAbout(this.view.asked));
  }

  /** Ask this, and show it in the form. */
  askAbout({ prompt, image }) {
    byId("prompt").value = prompt;
    this.setImage(image);
    return this.ask();
  }

  async ask() {
    const problem = byId("ask-problem");
    clearProblem(problem);
    const prompt = byId("prompt").value.trim();
    if (!prompt) {
      showProblem(problem, { message: "Type a question first." });
      byId("prompt").focus();
      return;
    }
    if (!this.model) {
      await this.open();
      if (!this.model) return;
    }
    this.running?.abort();
    const running = (this.running = new AbortController());
    const asked = { prompt, image: this.image, text: null, edits: [], withheld: [], maps: {} };
    this.setBusy(true);
    try {
      await this.stream(asked, running.signal);
    } catch (error) {
      if (error.name !== "AbortError") showProblem(problem, error, () => this.askAbout(asked));
      else if (this.view.asked === asked) this.view.text(`${byId("answer-text").textContent} … (stopped)`);
    } finally {
      if (this.running === running) {
        this.running = null;
        this.setBusy(false);
      }
    }
  }

  async stream(asked, signal) {
    let begun = false;
    const begin = () => {
      if (begun) return;
      begun = true;
      this.correction.reset();
      this.view.begin(asked);
    };
    const onText = (text) => {
      begin();
      this.view.text(text);
    };
    const found = await ask({ model: this.model, prompt: asked.prompt, image: asked.image?.uri, signal, onText });
    begin();
    Object.assign(asked, { text: found.text, edits: found.edits, withheld: found.withheld });
    this.log(asked);
    this.history.noteRevision(found.revision);
    await this.view.finish(asked);
  }

  setBusy(busy) {
    byId("ask").textContent = busy ? "Stop" : "Ask";
    byId("answer").setAttribute("aria-busy", String(busy));
  }

  log(asked) {
    const line = button("", () => this.askAbout(asked), { class: "log-line", title: "Ask this again" });
    line.append(
      make("span", { class: "thumb" }, asked.image ? make("img", { src: asked.image.uri, alt: "" }) : ""),
      make("span", { class: "log-prompt" }, asked.prompt),
      make("span", { class: `log-answer${asked.edits.length ? " is-edited" : ""}` }, asked.text || "(nothing)"),
    );
    const list = byId("log");
    list.prepend(make("li", {}, line));
    while (list.childElementCount > LOGGED) list.lastElementChild.remove();
    byId("log-section").hidden = list.childElementCount < 2;
  }

  // -- correcting

  /** Another client made, undid or redid these. */
  async editedElsewhere(ids) {
    this.view.outdate();
    for (const id of ids.filter((one) => one === this.correction.made || this.view.hasFired(one))) {
      const card = await cardOf(id).catch(() => null);
      if (!card) continue;
      this.view.showChange(card);
      this.correction.editedElsewhere(card);
    }
  }

  /** Start to ask the same in other words. */
  reword() {
    const prompt = byId("prompt");
    prompt.value = this.view.asked.prompt;
    prompt.focus();
    prompt.select();
  }

  /** Start to ask the same about another image. */
  reimage() {
    byId("prompt").value = this.view.asked.prompt;
    byId("stage").scrollIntoView({ block: "center" });
    byId("file").focus();
    say("Choose another image, or one of the examples below the question.");
  }

  // -- images

  listenToImages() {
    const file = byId("file");
    file.addEventListener("change", () => {
      if (file.files.length) this.take(file.files[0]);
      file.value = "";
    });
    byId("remove-image").addEventListener("click", () => {
      this.setImage(null);
      file.focus();
    });
    document.addEventListener("paste", (event) => {
      const found = imageAmong(event.clipboardData?.files ?? []);
      if (!found) return;
      event.preventDefault();
      this.take(found);
    });
    const stage = byId("stage");
    document.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return; // Text may be dragged into the question.
      event.preventDefault();
      stage.classList.add("is-over");
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget || stage.classList.remove("is-over"));
    document.addEventListener("drop", (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      stage.classList.remove("is-over");
      this.take(event.dataTransfer.files[0]);
    });
  }

  /** Use a file that was chosen, dropped or pasted. */
  async take(blob) {
    clearProblem(byId("ask-problem"));
    try {
      this.setImage(await readImage(blob, blob.name || "The pasted image", this.settings));
      byId("prompt").focus();
    } catch (error) {
      showProblem(byId("ask-problem"), error);
    }
  }

  setImage(image) {
    if (image === this.image) return;
    this.image = image;
    const shown = byId("stage-image");
    shown.hidden = !image;
    byId("stage-empty").hidden = Boolean(image);
    byId("change-image").hidden = !image;
    byId("remove-image").hidden = !image;
    byId("image-name").textContent = image?.name ?? "No image";
    byId("image-name").title = image ? `${image.width} × ${image.height} pixels` : "";
    if (image) {
      shown.src = image.uri;
      shown.alt = image.shows ?? image.name;
    } else {
      shown.removeAttribute("src");
    }
  }

  showExamples() {
    const { examples, questions } = this.settings;
    const images = examples.map((example) =>
      make(
        "button",
        {
          type: "button",
          class: "example",
          onclick: () => this.askExample(example, null),
          "aria-label": `${example.title}: ${example.shows}`,
        },
        make("img", { src: example.url, alt: "", width: 64, height: 64 }),
        make("span", {}, example.title),
      ),
    );
    byId("example-images").append(...images);
    const texts = questions.map((group) => group[0]).concat(questions[0].slice(1, 2));
    byId("example-questions").append(
      ...texts.map((text) => button(text, () => this.askExample(null, text), { class: "chip" })),
    );
  }

  /** Ask about an example. If the image or the question is null, the one in the form is used. */
  async askExample(example, question) {
    try {
      const chosen = example ?? (this.image ? null : this.settings.examples[0]);
      if (chosen) this.setImage(await readExample(chosen, this.settings));
    } catch (error) {
      showProblem(byId("ask-problem"), error);
      return;
    }
    const prompt = byId("prompt");
    if (question) prompt.value = question;
    if (!prompt.value.trim()) prompt.value = this.settings.questions[0][0];
    await this.ask();
  }

  // -- the key

  listenToKey() {
    const dialog = byId("key-dialog");
    byId("key-button").hidden = !this.settings.asks_for_keys;
    byId("key-button").addEventListener("click", () => this.askForKey());
    byId("close-key").addEventListener("click", () => dialog.close());
    byId("forget-key").addEventListener("click", () => {
      forgetKey();
      dialog.close();
      location.reload();
    });
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.useKey(byId("key").value.trim());
    });
    whenKeyRefused((error) => {
      forgetKey();
      this.askForKey(error);
    });
  }

  askForKey(error = null) {
    const dialog = byId("key-dialog");
    const problem = byId("key-problem");
    error ? showProblem(problem, error) : clearProblem(problem);
    byId("forget-key").hidden = !storedKey();
    if (!dialog.open) dialog.showModal();
    byId("key").value = "";
    byId("key").focus();
  }

  async useKey(key) {
    const problem = byId("key-problem");
    if (!key) {
      showProblem(problem, { message: "Type or paste the key." });
      return;
    }
    if (!/^[\x21-\x7e]+$/.test(key)) {
      showProblem(problem, { message: "This is not a key: keys have no spaces and no letters with accents." });
      return;
    }
    clearProblem(problem);
    keepKey(key);
    this.model = null;
    await this.open();
    if (this.model) {
      byId("key-dialog").close();
      byId("prompt").focus();
    }
  }
}

async function start() {
  let settings;
  try {
    settings = await getSettings();
  } catch (error) {
    showProblem(byId("ask-problem"), error, start);
    return;
  }
  byId("version").textContent = `LiveEdit ${settings.version}`;
  await new Page(settings).open();
}

start();
