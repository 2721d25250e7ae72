"""The lifelong protocol: edits 1..T in order on one model, then every probe of all T edits on the final model."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np

from ..answering import Answering
from ..answers import Answer, Fired, above_threshold, is_broken
from ..backbones import Backbone
from ..editors.base import Editor, EditRecord
from ..errors import InvalidInputError
from ..progress import Counter as Increments
from ..progress import Progress, no_progress
from ..samples import GENERALITY, LOCALITY, Edit, EditCase, Probe, ProbeName, Question, edited_scopes
from .following import overruled
from .probing import Tokens, ask_freely, choose_along, token_accuracy, was_cut
from .scoring import ProbeScore, summarize, summarize_by_answer_type

_FEWEST_NEW_TOKENS: Final = 16
"""Length limit of free answers where all answers of the data are short."""

MEASURED: tuple[ProbeName, ...] = (*GENERALITY, *LOCALITY, "portability")

OVERRULED: Final = "overruled edit"
"""The group of cases whose fact a later one edits once more, in results by answer type."""


@dataclass(frozen=True)
class AskedProbe:
    """A probe with the case that it belongs to."""

    case: EditCase
    probe: Probe
    place: int
    """Its place among the case's probes; -1 is the edit itself. A case may have several probes of one name."""
    overruled_by: str | None = None
    """The id of the last later case that edits the same fact once more; its answer is right, not that of this case."""
    same_fact: tuple[str, ...] = ()
    """The answers of the cases that overrule this one or that it overrules: wrong ones of them are not broken."""

    @property
    def key(self) -> tuple[str, int]:
        """The key under which the unedited model's answer is stored."""
        return self.case.id, self.place

    @property
    def right_edit(self) -> str:
        """The id of the edit that is to answer questions in the scope of the case."""
        return self.overruled_by or self.case.id

    @property
    def kinds(self) -> tuple[str, ...]:
        """The groups that its score is reported in: those of the case, and that of edits that are overruled."""
        return (*_kinds(self.case), *(() if self.overruled_by is None else (OVERRULED,)))

    @property
    def labels(self) -> tuple[str, ...]:
        """The answers that are not broken, whatever the unedited model answers."""
        return (*self.case.labels, *self.same_fact)


def probes_of(
    cases: Sequence[EditCase], names: Iterable[ProbeName] = MEASURED
) -> tuple[list[AskedProbe], list[AskedProbe]]:
    """The probes to ask of these edits, case by case, each edit itself first; and the probes that are left out.

    A locality probe in the scope of any of the edits is left out: its answer may change. The answer of a later edit of
    the same fact is expected, where the data has one (`following.overruled`).
    """
    later = overruled(cases)
    answers = _answers_to_one_fact(cases, later)
    wanted, scopes = frozenset(names), edited_scopes(cases)
    asked: list[AskedProbe] = []
    left_out: list[AskedProbe] = []
    for case in cases:
        for place, probe in enumerate((case.reliability, *case.probes), -1):
            if probe.name not in wanted and probe.name != "reliability":
                continue
            latest = later.get(case.id)
            uncertain = probe.name in LOCALITY and probe.question.scope in scopes
            uncertain |= probe.name == "portability" and latest is not None
            if latest is not None and probe.name in _OF_THE_EDIT:
                probe = replace(probe, answer=latest.edit.answer)
            by = None if latest is None else latest.id
            item = AskedProbe(case, probe, place, by, answers.get(case.id, ()))
            (left_out if uncertain else asked).append(item)
    return asked, left_out


_OF_THE_EDIT: Final[tuple[ProbeName, ...]] = ("reliability", *GENERALITY, "cross_modal")
"""Probes whose label is the edit's answer."""


def _answers_to_one_fact(cases: Sequence[EditCase], later: Mapping[str, EditCase]) -> dict[str, tuple[str, ...]]:
    """By the ids of cases that overrule others or are overruled: the answers of all edits of their fact."""
    last = {case.id: later.get(case.id, case).id for case in cases}
    facts: dict[str, list[str]] = {}
    for case in cases:
        facts.setdefault(last[case.id], []).append(case.edit.answer)
    return {case.id: tuple(facts[last[case.id]]) for case in cases if len(facts[last[case.id]]) > 1}


@dataclass(frozen=True)
class UneditedAnswer:
    """The unedited model's free answer to a probe, and the tokens that it chooses, one by one, along that answer.

    forced: None if only the free answer was asked for, as of probes other than locality.
    """

    text: str
    forced: Tokens | None = None


def answer_limit(backbone: Backbone, cases: Sequence[EditCase]) -> int:
    """How long free answers may be, in tokens, so that the longest edit of these cases can be said."""
    answers = list(dict.fromkeys(case.edit.answer for case in cases))
    return max([_FEWEST_NEW_TOKENS, *(2 + len(tokens) for tokens in backbone.tokenize(answers))])


class UneditedAnswers:
    """The unedited model's answers to probes; each probe is asked once, for all editors.

    Locality probes are asked before the edits, by `ask`. Of other probes the free answer alone is asked, by
    `ask_texts`, where it is needed to tell whether an answer is broken.

    With `file`, answers are kept across runs: one backbone's answers to one data set, as JSON lines, each of a case, a
    place, a text and, if they were asked for, the tokens. Several processes may share the file; each appends what it
    asked, and reads what was there when it started.
    """

    def __init__(self, backbone: Backbone, max_new_tokens: int, batch: int, file: Path | None = None):
        self.backbone, self.max_new_tokens, self.batch, self._file = backbone, max_new_tokens, batch, file
        self._answers: dict[tuple[str, int], UneditedAnswer] = {}
        if file is not None and file.is_file():
            self._read(file)

    def missing(self, asked: Sequence[AskedProbe]) -> list[AskedProbe]:
        """The locality probes among these that are not answered yet, or without the tokens along the answer."""
        return [item for item in asked if item.probe.name in LOCALITY and not self._has_tokens(item)]

    def ask(self, asked: Sequence[AskedProbe], count: Callable[[int], None] = lambda more: None) -> None:
        """Make sure that these probes are answered. No edit may be active.

        `count` is called with increments; each probe counts twice, once for each way of asking.
        """
        missing = self.missing(asked)
        probes = [item.probe for item in missing]
        free = ask_freely(Answering(self.backbone), probes, self.max_new_tokens, self.batch, count)
        texts = [answer.text for answer in free]
        forced = choose_along(self.backbone, probes, texts, free, self.batch, count)
        found = {
            item.key: UneditedAnswer(text, chosen)
            for item, text, (_, chosen) in zip(missing, texts, forced, strict=True)
        }
        self._keep(found)

    def ask_texts(self, asked: Sequence[AskedProbe], progress: Progress = no_progress) -> None:
        """Make sure that the free answers to these probes are known. No edit may be active."""
        missing = [item for item in asked if item.key not in self._answers]
        probes = [item.probe for item in missing]
        count = Increments(progress, len(missing))
        free = ask_freely(Answering(self.backbone), probes, self.max_new_tokens, self.batch, count)
        self._keep({item.key: UneditedAnswer(answer.text) for item, answer in zip(missing, free, strict=True)})

    def _has_tokens(self, asked: AskedProbe) -> bool:
        found = self._answers.get(asked.key)
        return found is not None and found.forced is not None

    def _keep(self, found: dict[tuple[str, int], UneditedAnswer]) -> None:
        self._answers |= found
        if self._file is not None and found:
            rows = [
                [*key, answer.text] if answer.forced is None else [*key, answer.text, answer.forced]
                for key, answer in found.items()
            ]
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write("".join(json.dumps(row) + "\n" for row in rows))

    def _read(self, file: Path) -> None:
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                case, place, text, *forced = json.loads(line)
            except ValueError:  # A line cut off when a run was killed: its probe is asked again.
                continue
            if forced:
                self._answers[case, place] = UneditedAnswer(text, tuple(forced[0]))
            else:
                self._answers.setdefault((case, place), UneditedAnswer(text))

    def __getitem__(self, asked: AskedProbe) -> UneditedAnswer:
        return self._answers[asked.key]


@dataclass(frozen=True)
class Measurement:
    """Everything measured of one group of edits on one model."""

    scores: tuple[tuple[AskedProbe, ProbeScore], ...]
    left_out: tuple[AskedProbe, ...]
    fired: tuple[tuple[AskedProbe, tuple[Fired, ...]], ...]


def measure(
    backbone: Backbone,
    editor: Editor,
    cases: Sequence[EditCase],
    unedited: UneditedAnswers,
    count: Callable[[int], None] = lambda more: None,
    raw: TextIO | None = None,
    compared: Progress = no_progress,
    names: Iterable[ProbeName] = MEASURED,
) -> Measurement:
    """Ask every probe of these edits, which are active, freely and teacher-forced; raw answers go to `raw` as JSON
    lines.

    Where an answer is none of its case's labels, the unedited model is asked the same while the editor is paused: if it
    answers so too, the answer is not broken.

    `count` is called with increments; each probe counts twice, once for each way of asking. compared: progress of
    asking the unedited model. names: the probes that are asked besides the edits themselves.
    """
    asked, left_out = probes_of(cases, names)
    expected = [unedited[item].text if item.probe.name in LOCALITY else str(item.probe.answer) for item in asked]
    probes = [item.probe for item in asked]
    free = ask_freely(Answering(backbone, editor), probes, unedited.max_new_tokens, unedited.batch, count)
    forced = choose_along(backbone, probes, expected, free, unedited.batch, count)
    before = _needed_before(editor, asked, free, unedited, compared)
    scores, fired_found = [], []
    for item, wanted, answer, (tokens, chosen) in zip(asked, expected, free, forced, strict=True):
        # Locality compares with the tokens that the unedited model chooses itself, which can differ from those of its
        # text encoded again.
        own = before.get(item.key)
        accuracy = token_accuracy(chosen, tokens if own is None or own.forced is None else own.forced)
        acceptable = item.labels if own is None else (*item.labels, own.text)
        # Of locality, the unedited model's own answer was cut at the same length.
        cut = item.probe.name not in LOCALITY and was_cut(backbone, answer)
        score = ProbeScore.of(item.probe.name, item.case.answer_type, wanted, answer.text, accuracy, acceptable, cut)
        scores.append((item, score))
        if answer.fired is not None:
            fired_found.append((item, answer.fired))
        if raw is not None:
            row = _raw_row(item, score, answer.fired, own, left_out)
            raw.write(json.dumps(row, ensure_ascii=False) + "\n")
    return Measurement(tuple(scores), tuple(left_out), tuple(fired_found))


def _needed_before(
    editor: Editor, asked: Sequence[AskedProbe], free: Sequence[Answer], unedited: UneditedAnswers, progress: Progress
) -> dict[tuple[str, int], UneditedAnswer]:
    """The unedited model's answers to locality probes, and to those whose answer is none of their case's labels."""
    locality = [item for item in asked if item.probe.name in LOCALITY]
    strange = [
        item
        for item, answer in zip(asked, free, strict=True)
        if item.probe.name not in LOCALITY and is_broken(answer.text, item.labels)
    ]
    if strange:
        with editor.paused():
            unedited.ask_texts(strange, progress)
    return {item.key: unedited[item] for item in (*locality, *strange)}


def summarize_measurements(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Metrics over all groups of edits, also by answer type, and the routing's precision and recall."""
    scores = [pair for measurement in measurements for pair in measurement.scores]
    left_out = [item for measurement in measurements for item in measurement.left_out]
    typed = [ProbeScore(**{**_fields(score), "answer_type": kind}) for item, score in scores for kind in item.kinds]
    left_by_type: dict[str, Counter[ProbeName]] = {}
    for item in left_out:
        for kind in item.kinds:
            left_by_type.setdefault(kind, Counter())[item.probe.name] += 1
    return {
        "metrics": summarize([score for _, score in scores], Counter(item.probe.name for item in left_out)),
        "by_answer_type": summarize_by_answer_type(typed, left_by_type),
        "routing": _routing([pair for m in measurements for pair in m.fired]),
    }


def cost(records: Sequence[EditRecord]) -> dict[str, Any]:
    """Milliseconds, steps and bytes per edit."""
    milliseconds = [record.milliseconds for record in records]
    steps = [record.refine_steps for record in records]
    return {
        "milliseconds_per_edit": {
            "median": statistics.median(milliseconds),
            "p90": float(np.percentile(milliseconds, 90)),
        },
        "refine_steps": {
            "median": statistics.median(steps),
            "mean": statistics.fmean(steps),
            "max": max(steps),
            "refined": 100 * sum(step > 0 for step in steps) / len(steps),
        },
        "store_bytes_per_edit": statistics.fmean(record.store_bytes for record in records),
    }


def _routing(fired: Sequence[tuple[AskedProbe, tuple[Fired, ...]]]) -> dict[str, float] | None:
    """Recall: in-scope questions for which their own edit fired. Precision: fired edits that were the question's own.
    Both in percent; None without in-scope questions."""
    inside = own = total = 0
    for item, edits in fired:
        in_scope = item.probe.name in ("reliability", *GENERALITY)
        ids = [edit.edit_id for edit in above_threshold(edits)]
        inside += in_scope
        own += in_scope and item.right_edit in ids
        total += len(ids)
    if not inside:
        return None
    return {"recall": 100 * own / inside, "precision": 100 * own / total if total else 100.0}


def _kinds(case: EditCase) -> tuple[str, ...]:
    return (case.answer_type, *case.tags)


def _fields(score: ProbeScore) -> dict[str, Any]:
    return {name: getattr(score, name) for name in ProbeScore.__slots__}


# -- raw answers -----------------------------------------------------------------------------------------

RawAnswer = Mapping[str, Any]
"""An answer as `measure` writes it. That to an edit itself comes before those to its probes, and says of its case
everything that scores depend on."""


def _raw_row(
    item: AskedProbe,
    score: ProbeScore,
    fired: tuple[Fired, ...] | None,
    before: UneditedAnswer | None,
    left_out: Sequence[AskedProbe],
) -> dict[str, Any]:
    question = item.probe.question
    row = {
        "case": item.case.id,
        "probe": item.probe.name,
        "prompt": question.prompt,
        "image": str(question.image) if question.image is not None else None,
        "expected": score.expected,
        "answer": score.answer,
        "cut": score.was_cut,
        "teacher_forced": score.teacher_forced,
        "exact_match": score.exact,
        "broken": score.broken,
        "unedited": None if before is None else before.text,
        "fired": None if fired is None else [asdict(edit) for edit in fired],
    }
    if item.place >= 0:
        return row
    about = {
        "subject": question.subject,
        "relation": question.relation,
        "labels": list(item.labels),
        "kinds": list(_kinds(item.case)),
        "left_out": [other.probe.name for other in left_out if other.case is item.case],
    }
    if item.overruled_by is not None:
        about |= {"overruled_by": item.overruled_by, "answer": item.case.edit.answer}
    return {**row, "about": about}


def answers_file(row_file: Path) -> Path:
    """Where the raw answers of the rows in a file are: beside it."""
    return row_file.with_suffix(".answers.jsonl")


def raw_cases(answers: Iterable[RawAnswer]) -> list[list[RawAnswer]]:
    """Raw answers case by case, in the order in which the edits were made.

    Raises `InvalidInputError` for answers without the labels of their cases, as earlier versions wrote them.
    """
    cases: list[list[RawAnswer]] = []
    for answer in answers:
        if "about" in answer:
            cases.append([])
        if not cases:
            raise InvalidInputError("The raw answers say nothing about their cases: an earlier version wrote them.")
        cases[-1].append(answer)
    return cases


def scored_again(cases: Iterable[Sequence[RawAnswer]]) -> Measurement:
    """The measurement of one group of edits, with its raw answers scored again.

    Teacher-forced accuracy is taken from each answer: the tokens that it was computed from are not written.
    """
    scores: list[tuple[AskedProbe, ProbeScore]] = []
    left_out: list[AskedProbe] = []
    fired: list[tuple[AskedProbe, tuple[Fired, ...]]] = []
    for answers in cases:
        first, about = answers[0], answers[0]["about"]
        question = Question(first["prompt"], first["image"], about["subject"], about["relation"])
        kind, *tags = about["kinds"]
        edit = Edit(question, about.get("answer", first["expected"]))
        case, by = EditCase(first["case"], edit, (), kind, None, tuple(tags)), about.get("overruled_by")
        left_out += [AskedProbe(case, Probe(name, question), 0, by) for name in about["left_out"]]
        for place, answer in enumerate(answers, -1):
            item = AskedProbe(case, Probe(answer["probe"], Question(answer["prompt"], answer["image"])), place, by)
            own = [] if answer["unedited"] is None else [answer["unedited"]]
            given = (answer["probe"], kind, answer["expected"], answer["answer"], answer["teacher_forced"])
            scores.append((item, ProbeScore.of(*given, (*about["labels"], *own), answer["cut"])))
            if answer["fired"] is not None:
                fired.append((item, tuple(Fired(**one) for one in answer["fired"])))
    return Measurement(tuple(scores), tuple(left_out), tuple(fired))
