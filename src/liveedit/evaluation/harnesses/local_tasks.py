"""Tasks for lm-eval and lmms-eval made of questions that are here, so that a harness runs without a data hub.

Each task is a YAML file with its documents beside it, as a harness reads any task: `--include-path` takes the folder.
The questions are those that edits should leave alone, the locality probes of a data set, with the answers that its file
gives for them. For lm-eval, of N questions:

    NAME_choice    multiple choice: the answer, and the answers to three other questions     acc
    NAME_answer    free generation, up to the end of the line; the answer must be in it      contains
    NAME_text      how likely the answer is after the question                               perplexity, acc

For lmms-eval, of questions with an image:

    NAME_answer    the answer by free generation                                             exact_match
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ...answers import normalize_answer
from ...errors import InvalidInputError
from ...files import write_text
from ...samples import LOCALITY, EditCase, Question
from .running import Harness

CHOICES: Final = 4
"""Answers to choose from."""

_PROMPT: Final = "{{question}}"


def write_tasks(
    cases: Sequence[EditCase], harness: Harness, folder: Path, name: str, count: int, seed: int = 0
) -> tuple[str, ...]:
    """Write the tasks of up to `count` questions into a folder, and return their names.

    Which questions, and which wrong answers, depend on the seed alone. Raises `InvalidInputError` if the data has fewer
    than `CHOICES` different answers to such questions.
    """
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    documents = documents_of(cases, with_image=harness == "lmms-eval", count=count, seed=seed)
    file = folder / f"{slug}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in documents))
    tasks = _lm_tasks(slug, file) if harness == "lm-eval" else _lmms_tasks(slug, file)
    for task, text in tasks.items():
        write_text(folder / f"{task}.yaml", text)
    write_text(folder / f"{slug}_documents.py", _FUNCTIONS)
    return tuple(tasks)


def documents_of(cases: Sequence[EditCase], *, with_image: bool, count: int, seed: int) -> list[dict[str, Any]]:
    """Questions with `answer`, `choices` (without images), the place of the answer in them (`gold`), and `image`."""
    known: dict[tuple[Any, ...], tuple[Question, str]] = {}
    for case in cases:
        for probe in case.named(*LOCALITY):
            if probe.answer and probe.answer.strip() and (probe.question.image is not None) == with_image:
                known.setdefault((probe.question.prompt, str(probe.question.image)), (probe.question, probe.answer))
    rng = np.random.default_rng([seed, 20])
    answers = list({normalize_answer(answer): answer for _, answer in known.values()}.values())
    if len(answers) < CHOICES:
        kind = "with an image" if with_image else "without an image"
        raise InvalidInputError(
            f"The data has {len(answers)} different answers to questions {kind} that edits should leave alone; "
            f"{CHOICES} are needed. Give other data."
        )
    questions = list(known.values())
    chosen = [questions[place] for place in rng.permutation(len(questions))[:count]]
    return [_document(question, answer, answers, rng) for question, answer in chosen]


def _document(question: Question, answer: str, answers: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    document = {"question": question.prompt.strip(), "answer": answer.strip()}
    if question.image is not None:
        return {**document, "image": str(Path(str(question.image)).resolve())}
    wrong = [other for other in answers if normalize_answer(other) != normalize_answer(answer)]
    places = rng.choice(len(wrong), CHOICES - 1, replace=False)
    gold = int(rng.integers(CHOICES))
    choices = [wrong[place].strip() for place in places]
    choices.insert(gold, document["answer"])
    return {**document, "choices": choices, "gold": gold}


# -- the files of a harness ----------------------------------------------------------------------------------


def _yaml(task: str, file: Path, lines: Sequence[str]) -> str:
    data = ["dataset_path: json", "dataset_kwargs:", "  data_files:", f"    test: {json.dumps(str(file.resolve()))}"]
    return "\n".join([f"task: {task}", *data, "test_split: test", *lines, "metadata:", "  version: 1.0"]) + "\n"


def _metrics(*names: str) -> list[str]:
    """The lines of a metric list; perplexity is better if it is smaller."""
    lines = ["metric_list:"]
    for name in names:
        aggregation = "perplexity" if name == "perplexity" else "mean"
        better = str(name != "perplexity").lower()
        lines += [f"  - metric: {name}", f"    aggregation: {aggregation}", f"    higher_is_better: {better}"]
    return lines


def _lm_tasks(slug: str, file: Path) -> dict[str, str]:
    text = f'doc_to_text: "{_PROMPT}"'
    choice = ["output_type: multiple_choice", text, "doc_to_choice: choices", "doc_to_target: gold", *_metrics("acc")]
    answer = [
        "output_type: generate_until",
        text,
        "doc_to_target: answer",
        "generation_kwargs:",
        '  until: ["\\n"]',
        "  max_gen_toks: 16",
        "  do_sample: false",
        f"process_results: !function {slug}_documents.contained",
        *_metrics("contains"),
    ]
    likely = [
        "output_type: loglikelihood",
        text,
        'doc_to_target: " {{answer}}"',
        *_metrics("perplexity", "acc"),
    ]
    tasks = {"choice": choice, "answer": answer, "text": likely}
    return {f"{slug}_{kind}": _yaml(f"{slug}_{kind}", file, lines) for kind, lines in tasks.items()}


def _lmms_tasks(slug: str, file: Path) -> dict[str, str]:
    task = f"{slug}_answer"
    lines = [
        "output_type: generate_until",
        f"doc_to_visual: !function {slug}_documents.image_of",
        f"doc_to_text: !function {slug}_documents.question_of",
        "doc_to_target: answer",
        "generation_kwargs:",
        "  max_new_tokens: 16",
        "  temperature: 0",
        "  do_sample: false",
        f"process_results: !function {slug}_documents.same",
        *_metrics("exact_match"),
    ]
    return {task: _yaml(task, file, lines)}


_FUNCTIONS: Final = '''"""What a harness takes of a document: its image, its question, and the score of an answer."""

from PIL import Image

from liveedit.answers import same_answer
from liveedit.evaluation.scoring import contains


def image_of(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def question_of(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def same(doc, results):
    return {"exact_match": float(same_answer(results[0], doc["answer"]))}


def contained(doc, results):
    return {"contains": float(contains(results[0], doc["answer"]))}
'''
