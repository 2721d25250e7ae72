"""The lifelong protocol: edits 1..T in order on one model, then every probe of all T edits on the final model."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..answers import FIRING_THRESHOLD, Fired
from ..backbones import Backbone
from ..editors.base import Editor, EditRecord
from ..samples import GENERALITY, LOCALITY, EditCase, Probe, ProbeName, edited_scopes
from .probing import Reply, ask_freely, choose_along, token_accuracy
from .scoring import ProbeScore, summarize, summarize_by_answer_type

MEASURED: tuple[ProbeName, ...] = (*GENERALITY, *LOCALITY, "portability")


@dataclass(frozen=True)
class AskedProbe:
    """A probe with the case that it belongs to."""

    case: EditCase
    probe: Probe
    place: int
    """Its place among the case's probes; -1 is the edit itself. A case may have several probes of one name."""

    @property
    def key(self) -> tuple[str, int]:
        """What the unedited model's answers are remembered by."""
        return self.case.id, self.place


def probes_of(
    cases: Sequence[EditCase], names: Iterable[ProbeName] = MEASURED
) -> tuple[list[AskedProbe], Counter[ProbeName], Counter[tuple[str, ProbeName]]]:
    """The probes to ask of these edits, and those left out by name, and by answer type and name.

    A locality probe in the scope of any of the edits is left out: it has every right to change.
    """
    wanted, scopes = frozenset(names), edited_scopes(cases)
    asked: list[AskedProbe] = []
    left_out: Counter[ProbeName] = Counter()
    left_out_by_type: Counter[tuple[str, ProbeName]] = Counter()
    for case in cases:
        for place, probe in enumerate((case.reliability, *case.probes), -1):
            if probe.name not in wanted and probe.name != "reliability":
                continue
            if probe.name in LOCALITY and probe.question.scope in scopes:
                left_out[probe.name] += 1
                left_out_by_type.update((kind, probe.name) for kind in _kinds(case))
            else:
                asked.append(AskedProbe(case, probe, place))
    return asked, left_out, left_out_by_type


class UneditedAnswers:
    """What the unedited model says to locality probes; asked once, remembered for every editor.

    With `file`, across runs as well: one backbone's answers to one data set, as JSON lines. Several processes may
    share it; each adds what it asked, and reads what was there when it began.
    """

    def __init__(self, backbone: Backbone, max_new_tokens: int, batch: int, file: Path | None = None):
        self.backbone, self.max_new_tokens, self.batch, self._file = backbone, max_new_tokens, batch, file
        self._replies: dict[tuple[str, int], Reply] = {}
        if file is not None and file.is_file():
            self._read(file)

    def missing(self, asked: Sequence[AskedProbe]) -> list[AskedProbe]:
        """Those locality probes that are not answered yet."""
        return [item for item in asked if item.key not in self._replies and item.probe.name in LOCALITY]

    def ask(self, asked: Sequence[AskedProbe], progress: Any = lambda done: None) -> None:
        """Make sure that these probes are answered. No editor may be attached with edits in force.

        `progress` is told of each probe twice: it is asked freely, and along its answer.
        """
        missing = self.missing(asked)
        probes = [item.probe for item in missing]
        free = ask_freely(self.backbone, probes, self.max_new_tokens, self.batch, None, progress)
        texts = [answer.text for answer in free]
        forced = choose_along(self.backbone, probes, texts, free, self.batch, progress)
        found = {item.key: Reply(text, chosen) for item, text, (_, chosen) in zip(missing, texts, forced, strict=True)}
        self._replies |= found
        if self._file is not None and found:
            rows = [json.dumps([*key, reply.text, reply.forced]) + "\n" for key, reply in found.items()]
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write("".join(rows))

    def _read(self, file: Path) -> None:
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                case, place, text, forced = json.loads(line)
            except ValueError:  # A line that was cut off when a run was killed: its probe is asked again.
                continue
            self._replies[case, place] = Reply(text, tuple(forced))

    def __getitem__(self, asked: AskedProbe) -> Reply:
        return self._replies[asked.key]


@dataclass(frozen=True)
class Measurement:
    """Everything measured of one group of edits on one model."""

    scores: tuple[tuple[AskedProbe, ProbeScore], ...]
    left_out: Counter[ProbeName]
    left_out_by_type: Counter[tuple[str, ProbeName]]
    fired: tuple[tuple[AskedProbe, tuple[Fired, ...]], ...]


def measure(
    backbone: Backbone,
    editor: Editor,
    cases: Sequence[EditCase],
    unedited: UneditedAnswers,
    progress: Any = lambda done: None,
    raw: TextIO | None = None,
) -> Measurement:
    """Ask every probe of these edits, which are in force, in both ways; raw answers go to `raw` as JSON lines.

    `progress` is told of each probe twice, once for each way.
    """
    asked, left_out, left_out_by_type = probes_of(cases)
    expected = [unedited[item].text if item.probe.name in LOCALITY else str(item.probe.answer) for item in asked]
    probes = [item.probe for item in asked]
    free = ask_freely(backbone, probes, unedited.max_new_tokens, unedited.batch, editor, progress)
    forced = choose_along(backbone, probes, expected, free, unedited.batch, progress)
    scores, fired_found = [], []
    for item, wanted, answer, (tokens, chosen) in zip(asked, expected, free, forced, strict=True):
        text, fired = answer.text, answer.fired
        reference = unedited[item].forced if item.probe.name in LOCALITY else tokens
        accuracy = token_accuracy(chosen, reference)
        score = ProbeScore.of(item.probe.name, item.case.answer_type, wanted, text, accuracy)
        scores.append((item, score))
        if fired is not None:
            fired_found.append((item, fired))
        if raw is not None:
            raw.write(json.dumps(_raw_row(item, score, fired), ensure_ascii=False) + "\n")
    return Measurement(tuple(scores), left_out, left_out_by_type, tuple(fired_found))


def summarize_measurements(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Metrics over all groups, over all and by answer type, and routing figures."""
    scores = [pair for measurement in measurements for pair in measurement.scores]
    left_out: Counter[ProbeName] = sum((m.left_out for m in measurements), Counter())
    by_type = sum((m.left_out_by_type for m in measurements), Counter())
    typed = [
        ProbeScore(**{**_fields(score), "answer_type": kind}) for item, score in scores for kind in _kinds(item.case)
    ]
    left_by_type: dict[str, dict[str, int]] = {}
    for (kind, name), count in by_type.items():
        left_by_type.setdefault(kind, {})[name] = count
    return {
        "metrics": summarize([score for _, score in scores], left_out),
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
    """Recall: in-scope queries whose own edit fired. Precision: experts fired that were the query's own. Percent."""
    inside = own = total = 0
    for item, experts in fired:
        in_scope = item.probe.name in ("reliability", *GENERALITY)
        ids = [expert.edit_id for expert in experts if expert.weight >= FIRING_THRESHOLD]
        inside += in_scope
        own += in_scope and item.case.id in ids
        total += len(ids)
    if not inside:
        return None
    return {"recall": 100 * own / inside, "precision": 100 * own / total if total else 100.0}


def _kinds(case: EditCase) -> tuple[str, ...]:
    return (case.answer_type, *case.tags)


def _fields(score: ProbeScore) -> dict[str, Any]:
    return {name: getattr(score, name) for name in ProbeScore.__slots__}


def _raw_row(item: AskedProbe, score: ProbeScore, fired: tuple[Fired, ...] | None) -> dict[str, Any]:
    question = item.probe.question
    return {
        "case": item.case.id,
        "probe": item.probe.name,
        "prompt": question.prompt,
        "image": str(question.image) if question.image is not None else None,
        "expected": score.expected,
        "answer": score.answer,
        "teacher_forced": score.teacher_forced,
        "exact_match": score.exact,
        "fired": None if fired is None else [asdict(expert) for expert in fired],
    }
