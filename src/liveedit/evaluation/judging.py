"""Answers judged by a model behind an OpenAI-compatible endpoint, beside exact match.

Exact match is strict: "He was born in Paris." is no exact match of "Paris". QAEdit and WILD (Yang et al., "The Mirage
of Model Editing", ACL 2025) therefore let another model judge whether an answer says what was wanted. A judge errs as
well, so that its raw replies are kept, and its agreement with exact match is reported: the share of equal verdicts, and
Cohen's kappa, which leaves out what two raters of these shares would agree on by chance,

    kappa = (p - e) / (1 - e),    e = a b + (1 - a)(1 - b)

with p the share of equal verdicts, and a and b the shares that the judge and exact match call right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypedDict

from ..errors import InvalidInputError, NotFoundError
from ..progress import Progress, no_progress
from ..samples import GENERALITY
from .protocol import RawAnswer, answers_file
from .scoring import PROBE_NAMES

JUDGED: Final = ("reliability", *GENERALITY, "portability")
"""Probes whose right answer the data gives. That of a locality probe is the unedited model's own."""

INSTRUCTION: Final = """Judge whether an answer to a question is right.

Question: {question}
Right answer: {expected}
Answer to judge: {answer}

The answer is right if it says the same as the right answer, in whatever words, and nothing that contradicts it. \
Reply with one word: CORRECT or INCORRECT."""

_REPLY_TOKENS: Final = 16
_RIGHT: Final = "CORRECT"
_WRONG: Final = "INCORRECT"


class JudgedMetric(TypedDict):
    """One metric: answers judged, and of those with a readable verdict the shares in percent, and Cohen's kappa.

    kappa is None where one of both calls all answers right or all wrong. unreadable: replies that are no verdict.
    """

    count: int
    unreadable: int
    judged_right: float | None
    exact_match: float | None
    agreement: float | None
    kappa: float | None


@dataclass(frozen=True)
class Judge:
    """A model that judges answers.

    endpoint: the address of an OpenAI-compatible service, up to and with /v1. model: its name there. key: the API key,
    if the service asks for one. seconds: how long one verdict may take.
    """

    endpoint: str
    model: str
    key: str | None = field(default=None, repr=False)
    seconds: float = 60.0

    @property
    def digest(self) -> str:
        """What verdicts depend on: the model's name and the instruction."""
        return hashlib.sha256(f"{self.model}\n{INSTRUCTION}".encode()).hexdigest()[:16]

    def ask(self, question: str, expected: str, answer: str) -> str:
        """The judge's reply, as it is. Raises `InvalidInputError` if the endpoint gives none."""
        text = INSTRUCTION.format(question=question, expected=expected, answer=answer)
        from openai import OpenAIError

        try:
            reply = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": text}],
                temperature=0,
                max_tokens=_REPLY_TOKENS,
            )
        except OpenAIError as error:
            raise InvalidInputError(
                f"The judge {self.model!r} at {self.endpoint} gave no verdict ({error}). Check the address, which ends "
                "with /v1, the model's name and the key; verdicts that are there are kept."
            ) from error
        return reply.choices[0].message.content or ""

    @cached_property
    def _client(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise NotFoundError(
                "A judge is asked with the package openai, which is not installed: pip install 'liveedit[judge]'"
            ) from error
        return OpenAI(base_url=self.endpoint, api_key=self.key or "none", timeout=self.seconds)


def verdict_of(reply: str) -> bool | None:
    """Whether a reply calls an answer right; None if it says neither, or both."""
    words = {word.strip(".,:;!*\"'`()").upper() for word in reply.split()}
    said = words & {_RIGHT, _WRONG}
    return said == {_RIGHT} if len(said) == 1 else None


def verdicts_file(answers: Path) -> Path:
    """Where the verdicts on raw answers are: beside them."""
    return answers.with_name(answers.name.replace(".answers.jsonl", ".verdicts.jsonl"))


def judge_folder(
    folder: Path, judge: Judge, workers: int = 4, progress: Progress = no_progress
) -> list[dict[str, Any]]:
    """Judge the raw answers of every row of a bench, and return what was found, one object for each row.

    Verdicts are appended to `results/*.verdicts.jsonl` as they come; those that are there, of the same judge, are not
    asked for again. workers: requests at once. Raises `NotFoundError` if the folder has no rows with raw answers.
    """
    rows = [file for file in sorted(folder.glob("results/*.json")) if answers_file(file).is_file()]
    if not rows:
        raise NotFoundError(f"{folder} has no rows with raw answers. Give the folder that `liveedit bench` wrote.")
    asked = {file: list(_judged_answers(answers_file(file))) for file in rows}
    total, done = sum(map(len, asked.values())), 0
    found = []
    for file, answers in asked.items():
        verdicts = _Verdicts(verdicts_file(answers_file(file)), judge)
        for judged in verdicts.of(answers, workers):
            done += judged
            progress(done, total)
        row = json.loads(file.read_text(encoding="utf-8"))
        setting = {name: row[name] for name in ("editor", "backbone", "data", "edits", "seed")}
        found.append({**setting, "metrics": judged_metrics(verdicts.rows(answers))})
    return found


def judged_metrics(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, JudgedMetric]:
    """The figures of each metric from its verdicts, in the order of `PROBE_NAMES`."""
    names = [name for name in PROBE_NAMES if any(one["probe"] == name for one in verdicts)]
    return {name: _metric([one for one in verdicts if one["probe"] == name]) for name in names}


def cohens_kappa(first: Sequence[bool], second: Sequence[bool]) -> float | None:
    """The agreement of two raters of the same answers beyond chance, -1 to 1; None if chance alone gives 1."""
    if not first or len(first) != len(second):
        raise InvalidInputError(
            f"{len(first)} and {len(second)} verdicts were given. Give two on each answer, of one at least."
        )
    count = len(first)
    a, b = sum(first) / count, sum(second) / count
    chance = a * b + (1 - a) * (1 - b)
    same = sum(x == y for x, y in zip(first, second, strict=True)) / count
    return None if chance == 1 else (same - chance) / (1 - chance)


def _metric(verdicts: Sequence[Mapping[str, Any]]) -> JudgedMetric:
    read = [one for one in verdicts if one["verdict"] is not None]
    judged, exact = [one["verdict"] for one in read], [one["exact_match"] for one in read]
    same = [a == b for a, b in zip(judged, exact, strict=True)]
    return {
        "count": len(verdicts),
        "unreadable": len(verdicts) - len(read),
        "judged_right": _percent(judged),
        "exact_match": _percent(exact),
        "agreement": _percent(same),
        "kappa": cohens_kappa(judged, exact) if read else None,
    }


def _percent(values: Sequence[bool]) -> float | None:
    return 100 * sum(values) / len(values) if values else None


def _judged_answers(file: Path) -> Iterator[RawAnswer]:
    for line in file.read_text(encoding="utf-8").split("\n"):
        answer = json.loads(line) if line else None
        if answer is not None and answer["probe"] in JUDGED and answer["expected"]:
            yield answer


_Asked = tuple[str, str, str]
"""A question, its right answer, and the answer to judge."""


class _Verdicts:
    """A judge's verdicts in a file. Equal answers to the same question are judged once."""

    def __init__(self, file: Path, judge: Judge):
        self._file, self._judge = file, judge
        self._replies: dict[_Asked, str] = {}
        self._line_end = ""
        """Ends a line that was cut off when a run was killed."""
        if file.is_file():
            lines = file.read_text(encoding="utf-8").split("\n")
            self._line_end = "\n" * bool(lines[-1])
            for line in lines:
                self._read(line)

    def of(self, answers: Iterable[RawAnswer], workers: int) -> Iterator[int]:
        """Ask for the verdicts that are missing; yields how many answers each reply decides."""
        asked: dict[_Asked, int] = {}
        for answer in answers:
            asked[_asked(answer)] = asked.get(_asked(answer), 0) + 1
        yield sum(count for one, count in asked.items() if one in self._replies)
        missing = [one for one in asked if one not in self._replies]
        with ThreadPoolExecutor(workers) as pool, self._file.open("a", encoding="utf-8") as stream:
            stream.write(self._line_end)
            replies = pool.map(lambda one: self._judge.ask(*one), missing)
            for one, reply in zip(missing, replies, strict=True):
                self._replies[one] = reply
                row = dict(zip(("question", "expected", "answer"), one, strict=True))
                kept = {**row, "reply": reply, "verdict": verdict_of(reply)}
                judge = {"judge": self._judge.model, "judge_digest": self._judge.digest}
                stream.write(json.dumps({**kept, **judge}, ensure_ascii=False) + "\n")
                stream.flush()
                yield asked[one]

    def rows(self, answers: Iterable[RawAnswer]) -> list[dict[str, Any]]:
        """The verdict on each answer, with its probe and exact match."""
        return [
            {
                "probe": answer["probe"],
                "exact_match": answer["exact_match"],
                "verdict": verdict_of(self._replies[_asked(answer)]),
            }
            for answer in answers
        ]

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line)
        except ValueError:  # A line cut off when a run was killed: its answer is judged again.
            return
        if row["judge_digest"] == self._judge.digest:
            self._replies[row["question"], row["expected"], row["answer"]] = row["reply"]


def _asked(answer: RawAnswer) -> _Asked:
    return answer["prompt"], answer["expected"], answer["answer"]
