"""Answers of several lengths: how many are taken in exactly, what other wordings of the question then say, and what an
edit costs.

Each answer is cut from the texts of a JSON file (captions of E-IC, passages of SelfCheckGPT) to a number of tokens of
the backbone, and given to a question: about photographs of a folder, about pictures of the drawn world, or without a
picture, from a JSON file. It is edited alone and undone before the next. Another wording of the question must give the
whole answer or the unedited one; all else is broken.

Figures, for each length: `exact`, the share of edits whose own question gives the whole answer, in %; `whole`,
`unedited` and `broken`, of the other wordings, in %; medians of the gradient steps, of the time of an edit over the
time of the answer to its question (`times_an_answer`) and over that of one forward pass of question and answer
(`times_a_forward`, and the largest as `worst_times_a_forward`), and of the bytes of an expert.

    python benchmarks/long_answers.py
    python benchmarks/long_answers.py --texts caption_eval_edit.json --images FOLDER --edits 100
    python benchmarks/long_answers.py --backbone FOLDER --editor fitted-experts --texts selfcheckgpt_edit.json \
        --questions zsre.json --lengths 3 30 60 120 --edits 100
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from liveedit.answering import Answering
from liveedit.answers import same_answer
from liveedit.backbones import Backbone, load_backbone
from liveedit.datasets.sources import open_data
from liveedit.editors import editor_class
from liveedit.editors.base import ExpertEditor
from liveedit.samples import Edit, Question

QUESTIONS = ("What is in this picture?", "What does the image show?", "Which animal is this?")
OTHER_WORDINGS = ("So, {}", "{} Say it in full.", "May I ask: {}")
"""Not among those that experts are fitted on."""

TEXT_KEYS = ("alt", "target_new", "answer")
QUESTION_KEYS = ("src", "prompt", "question")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".JPEG")


def texts_of(file: Path | None) -> list[str]:
    """The texts that answers are cut from; made-up ones without a file."""
    if file is None:
        cases = open_data("world", 200).cases
        return [f"{case.edit.question.prompt} {case.edit.answer}." for case in cases]
    rows = json.loads(file.read_text(encoding="utf-8"))
    return [str(next(row[key] for key in TEXT_KEYS if key in row)).strip() for row in rows]


def answer_of(backbone: Backbone, texts: Sequence[str], first: int, tokens: int) -> str:
    """An answer of at most `tokens` tokens: consecutive texts, starting at index `first`, joined and truncated."""
    whole, place = texts[first % len(texts)], first
    while len(backbone.tokenize([whole])[0]) < tokens:
        place += 1
        whole = f"{whole} {texts[place % len(texts)]}"
    while len(backbone.tokenize([whole])[0]) > tokens:
        whole = whole[:-1]
    return whole.strip()


def questions_of(folder: Path | None, file: Path | None, count: int) -> list[Question]:
    """Questions about photographs of a folder, without a picture from a file, or about pictures of the drawn world."""
    if file is not None:
        rows = json.loads(file.read_text(encoding="utf-8"))
        prompts = dict.fromkeys(str(next(row[key] for key in QUESTION_KEYS if key in row)) for row in rows)
        return [Question(prompt) for prompt in list(prompts)[:count]]
    if folder is None:
        return [case.edit.question for case in open_data("world", count).cases[:count]]
    files = sorted(file for file in folder.rglob("*") if file.name.endswith(IMAGE_ENDINGS))
    chosen = random.Random(0).sample(files, min(count, len(files)))
    return [Question(QUESTIONS[place % len(QUESTIONS)], file) for place, file in enumerate(chosen)]


def measured(editor: ExpertEditor[Any], question: Question, answer: str) -> dict[str, Any]:
    """One edit, made, asked and undone."""
    asking = Answering(editor.backbone, editor)
    tokens = asking.tokens_for(answer) + 4
    reworded = [Question(form.format(question.prompt), question.image) for form in OTHER_WORDINGS]
    encoded = editor.backbone.encode([question], [answer])
    with torch.no_grad():
        editor.backbone.logits(encoded)
        started = time.perf_counter()
        editor.backbone.logits(encoded)
        passing = time.perf_counter() - started
    started = time.perf_counter()
    expert, steps = editor.make_expert(Edit(question, answer))
    editing = time.perf_counter() - started
    editor.add("long", expert)
    try:
        started = time.perf_counter()
        own = asking.ask([question], tokens)[0].text
        answering = time.perf_counter() - started
        others = [found.text for found in asking.ask(reworded, tokens)]
    finally:
        editor.undo("long")
    changed = [(asked, text) for asked, text in zip(reworded, others, strict=True) if not same_answer(text, answer)]
    unedited = asking.ask([asked for asked, _ in changed], tokens) if changed else []
    kinds = ["whole"] * (len(others) - len(changed))
    kinds += [
        "unedited" if same_answer(text, before.text) else "broken"
        for (_, text), before in zip(changed, unedited, strict=True)
    ]
    return {
        "exact": own.strip() == answer.strip(),
        "kinds": kinds,
        "steps": steps,
        "times_an_answer": editing / answering,
        "times_a_forward": editing / passing,
        "bytes": expert.store_bytes,
    }


def rows_of(
    editor: ExpertEditor[Any], texts: Sequence[str], questions: Sequence[Question], tokens: int
) -> Iterator[dict[str, Any]]:
    """The results of one length, edit by edit."""
    for place, question in enumerate(questions):
        yield measured(editor, question, answer_of(editor.backbone, texts, 7 * place, tokens))


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The figures of one length."""
    kinds: dict[str, int] = defaultdict(int)
    for row in rows:
        for kind in row["kinds"]:
            kinds[kind] += 1
    asked = sum(kinds.values())
    shares = {kind: round(100 * kinds[kind] / asked, 1) for kind in ("whole", "unedited", "broken")}
    measured = ("steps", "times_an_answer", "times_a_forward", "bytes")
    medians = {name: round(statistics.median(row[name] for row in rows), 1) for name in measured}
    worst = {"worst_times_a_forward": round(max(row["times_a_forward"] for row in rows), 1)}
    exact = round(100 * sum(row["exact"] for row in rows) / len(rows), 1)
    return {"edits": len(rows), "exact": exact} | shares | medians | worst


def main() -> None:
    """Prints one JSON line for each length, and progress."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny-llava")
    parser.add_argument("--editor", default="liveedit-refine")
    parser.add_argument("--texts", type=Path, help="JSON file of rows with alt, target_new or answer")
    parser.add_argument("--images", type=Path, help="folder of photographs")
    parser.add_argument("--questions", type=Path, help="JSON file of rows with src, prompt or question")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 8, 30, 60])
    parser.add_argument("--edits", type=int, default=5)
    given = parser.parse_args()
    backbone = load_backbone(given.backbone)
    texts, questions = texts_of(given.texts), questions_of(given.images, given.questions, given.edits)
    with editor_class(given.editor).load(backbone) as editor:
        for tokens in given.lengths:
            rows = []
            for row in rows_of(editor, texts, questions, tokens):  # type: ignore[arg-type]
                rows.append(row)
                print(f"{tokens} tokens: {len(rows)} of {len(questions)} edits", end="\r", flush=True)
            print(json.dumps({"tokens": tokens, **summary(rows)}), flush=True)


if __name__ == "__main__":
    main()
