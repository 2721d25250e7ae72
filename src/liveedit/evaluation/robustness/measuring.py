"""Runs the robustness measurement: edits, then questions that provoke broken answers, each answer with its verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TextIO, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ...answering import Answering
from ...answers import is_broken
from ...backbones import Backbone
from ...editors.base import Editor, ExpertEditor
from ...errors import ConfigError
from ...files import write_json
from ...progress import TaskProgress, no_task_progress, progress_of
from ...samples import EditCase, Question
from ..protocol import cost
from ..provenance import Provenance, Row, Stopwatch, file_digest, sealed
from .questions import OWN_PROMPT, Asked, Group, contradictions, long_answers, near_wording_questions

Verdict = Literal["edit", "other_edit", "unedited", "other_label", "broken"]
"""Whose answer an answer is: that of the edit, of an edit that contradicts it, of the unedited model, of another label
of its case, or of none of these."""

VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)

ROBUSTNESS: Final = "robustness"
"""What rows.json says that it is the report of."""

NO_WEIGHTS: Final = "it has no weights to scale: nothing was measured with smaller weights"


class RobustnessConfig(BaseModel):
    """What the robustness measurement asks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = Field(description="Name of the backbone.")
    data: str = Field(description="Name of the data.")
    edits: int = Field(default=100, ge=1, description="Edits in sequence, for near wordings and scaled weights.")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="Seeds: which edits, in which order.")
    probed: int = Field(default=100, ge=1, description="Edits whose near wordings are asked, at most.")
    triples: int = Field(default=200, ge=0, description="Triples of contradicting edits, at most.")
    lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(8, 30, 60, 120), description="Lengths of long answers, in tokens of the backbone's tokenizer."
    )
    long_edits: int = Field(default=10, ge=0, description="Edits of each of these lengths.")
    factors: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.1, 0.3, 0.5, 0.7, 0.9), description="Factors that experts' weights are scaled by."
    )
    batch: int = Field(default=128, ge=1, description="Questions per forward pass.")


def verdict_of(answer: str, asked: Asked, unedited: str) -> Verdict:
    """Whose answer this is. If it is both the edit's and the unedited model's, the one that is right counts."""
    ladder: list[tuple[Verdict, tuple[str, ...]]] = [
        ("edit", (asked.answer,)),
        ("other_edit", asked.others),
        ("unedited", (unedited,)),
        ("other_label", asked.labels),
    ]
    if asked.stays:
        ladder.insert(0, ("unedited", (unedited,)))
    for name, texts in ladder:
        if not is_broken(answer, texts):
            return name
    return "broken"


def answers_file(folder: Path, editor: str, edits: int, seed: int) -> Path:
    """Where the raw answers of a row are."""
    return folder / "answers" / f"{editor}-{edits}-seed{seed}.jsonl"


@dataclass(frozen=True)
class _Plan:
    """The groups of one seed, and the unedited model's answers to the questions of each."""

    seed: int
    groups: tuple[Group, ...]
    unedited: tuple[tuple[str, ...], ...]


class Robustness:
    """Measures editors into a folder: rows.json, and every answer as JSON lines, written as they come.

    Near wordings and scaled weights are asked after `config.edits` edits. Contradicting edits, and long answers of
    each length, are made by the same editor after a reset. The unedited model is asked everything first, once per seed.
    """

    def __init__(
        self,
        backbone: Backbone,
        cases: Sequence[EditCase],
        config: RobustnessConfig,
        folder: Path,
        provenance: Provenance,
        report: TaskProgress = no_task_progress,
    ):
        """Raises `ConfigError` for more edits than cases, `InvalidInputError` if the backbone has an edited model."""
        backbone.claim.check_free()
        if config.edits > len(cases):
            raise ConfigError(
                f"{config.edits} edits were requested and the data holds {len(cases)}. Request fewer, or give more "
                "data."
            )
        self.backbone, self.cases, self.config, self.folder = backbone, tuple(cases), config, folder
        self.provenance, self.report = provenance, report
        (folder / "answers").mkdir(parents=True, exist_ok=True)

    def run(self, editors: Sequence[tuple[str, Callable[[Backbone], Editor]]]) -> list[Row]:
        """One row for each seed and editor."""
        rows: list[Row] = []
        for seed in self.config.seeds:
            plan = self._plan(seed)
            for name, make in editors:
                with make(self.backbone) as editor:
                    rows.append(self._measure(name, editor, plan))
                write_json(self.folder / "rows.json", {"rows": rows, "report": {"of": ROBUSTNESS}})
        return rows

    # -- before the edits ----------------------------------------------------------------------------------

    def _plan(self, seed: int) -> _Plan:
        groups = self.groups(seed)
        unedited = []
        for group in groups:
            progress = progress_of(self.report, f"asking the unedited model: {group.name}, seed {seed}")
            questions = [asked.question for asked in group.asked]
            answers = Answering(self.backbone).ask_all(
                questions, group.max_new_tokens, batch=self.config.batch, progress=progress
            )
            unedited.append(tuple(answer.text for answer in answers))
        return _Plan(seed, groups, tuple(unedited))

    def groups(self, seed: int) -> tuple[Group, ...]:
        """The edits and questions of one seed. The first group is the edits in sequence, those of the bench."""
        config = self.config
        order = np.random.default_rng([seed, 77]).permutation(len(self.cases))
        cases = [self.cases[index] for index in order]
        edited = cases[: config.edits]
        asked = list(near_wording_questions(edited, config.probed, cases, seed))
        groups = [self._group("edits", [(case.id, case.edit) for case in edited], asked)]
        if config.triples:
            groups.append(self._group("contradictions", *contradictions(cases, config.triples, seed)))
        for length in config.lengths if config.long_edits else ():
            made = long_answers(cases, length, config.long_edits, seed, self._tokens)
            groups.append(self._group(f"long_answer_{length}", *made))
        return tuple(groups)

    def _group(self, name: str, edits: Sequence[tuple[str, Any]], asked: Sequence[Asked]) -> Group:
        limit = max((Answering(self.backbone).tokens_for(edit.answer) for _, edit in edits), default=1)
        return Group(name, tuple(edits), tuple(asked), limit)

    def _tokens(self, text: str) -> int:
        return len(self.backbone.tokenize([text])[0])

    # -- one editor ----------------------------------------------------------------------------------------

    def _measure(self, name: str, editor: Editor, plan: _Plan) -> Row:
        config, tally, notes, watch = self.config, _Tally(), [], Stopwatch()
        costs: dict[str, dict[str, Any]] = {}
        label = f"{name}, seed {plan.seed}"
        file = answers_file(self.folder, name, config.edits, plan.seed)
        with file.open("w", encoding="utf-8") as raw:
            for group, unedited in zip(plan.groups, plan.unedited, strict=True):
                editor.reset()
                progress = progress_of(self.report, f"editing: {group.name}, {label}")
                records = editor.edit(group.edits, progress)
                if records:
                    costs[group.name] = self._costs(group, cost(records), costs)
                self._ask(editor, group, unedited, tally, raw, label)
                if group is plan.groups[0]:
                    notes += self._ask_scaled(editor, group, unedited, tally, raw, label)
            editor.reset()
        settings = {"editor": editor.configuration(), "editor_digest": editor.digest(), "seed": plan.seed}
        return sealed(
            {
                "editor": name,
                "backbone": config.backbone,
                "data": config.data,
                "edits": config.edits,
                "seed": plan.seed,
                **tally.to_dict(),
                "costs": costs,
                "notes": notes,
                "seconds": watch.seconds,
                "answers_digest": file_digest(file),
                "provenance": self.provenance.of_row({**config.model_dump(mode="json"), **settings}, watch.started),
            }
        )

    def _costs(self, group: Group, costs: dict[str, Any], earlier: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Costs of a group's edits, with the length of their answers and the time relative to an edit in sequence."""
        median = costs["milliseconds_per_edit"]["median"]
        plain = earlier["edits"]["milliseconds_per_edit"]["median"] if earlier else median
        lengths = [self._tokens(edit.answer) for _, edit in group.edits]
        return {
            **costs,
            "answer_tokens": sum(lengths) / len(lengths),
            "relative_time": median / plain if plain else 1.0,
        }

    def _ask_scaled(
        self, editor: Editor, group: Group, unedited: Sequence[str], tally: _Tally, raw: TextIO, label: str
    ) -> list[str]:
        """Ask the own prompts with each factor; a note if the editor has no weights to scale."""
        own = [place for place, asked in enumerate(group.asked) if asked.kind == OWN_PROMPT]
        before = [unedited[place] for place in own]
        for factor in self.config.factors:
            scaled = editor.scaled_weights(factor) if isinstance(editor, ExpertEditor) else None
            if scaled is None:
                return [NO_WEIGHTS]
            kind = f"weight_{factor:g}"
            asked = tuple(replace(group.asked[place], kind=kind) for place in own)
            with scaled:
                self._ask(editor, replace(group, name=kind, asked=asked), before, tally, raw, label)
        return []

    def _ask(
        self, editor: Editor, group: Group, unedited: Sequence[str], tally: _Tally, raw: TextIO, label: str
    ) -> None:
        """Ask the questions of a group; answers go to `raw` as JSON lines as they come."""
        answers = Answering(self.backbone, editor).ask_all(
            [asked.question for asked in group.asked],
            group.max_new_tokens,
            batch=self.config.batch,
            progress=progress_of(self.report, f"asking: {group.name}, {label}"),
        )
        for asked, before, answer in zip(group.asked, unedited, answers, strict=True):
            verdict = verdict_of(answer.text, asked, before)
            tally.add(asked.kind, asked.rule, verdict)
            row = {
                "kind": asked.kind,
                "rule": asked.rule,
                "case": asked.case,
                "prompt": asked.question.prompt,
                "image": None if asked.question.image is None else str(asked.question.image),
                "expected": before if asked.stays else asked.answer,
                "about": {"answer": asked.answer, "others": asked.others, "labels": asked.labels, "stays": asked.stays},
                "unedited": before,
                "answer": answer.text,
                "verdict": verdict,
                "broken": verdict == "broken",
                "fired": None if answer.fired is None else [asdict(one) for one in answer.fired],
            }
            raw.write(json.dumps(row, ensure_ascii=False) + "\n")
            raw.flush()


def scored_again(answers: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], list[Verdict]]:
    """The counts that the row of these raw answers must have, and the verdict on each."""
    tally, verdicts = _Tally(), []
    for one in answers:
        about = one["about"]
        given = (about["answer"], tuple(about["others"]), tuple(about["labels"]), about["stays"])
        asked = Asked(one["kind"], one["rule"], one["case"], Question(one["prompt"]), *given)
        verdicts.append(verdict_of(one["answer"], asked, one["unedited"]))
        tally.add(asked.kind, asked.rule, verdicts[-1])
    return tally.to_dict(), verdicts


class _Tally:
    """Counts verdicts by kind and rule."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, Counter[Verdict]]] = {}

    def add(self, kind: str, rule: str, verdict: Verdict) -> None:
        self._counts.setdefault(kind, {}).setdefault(rule, Counter())[verdict] += 1

    def to_dict(self) -> dict[str, Any]:
        """Counts by kind, and by kind and rule."""
        return {
            "kinds": {kind: _counted(sum(rules.values(), Counter())) for kind, rules in self._counts.items()},
            "rules": {
                kind: {rule: _counted(counts) for rule, counts in rules.items()} for kind, rules in self._counts.items()
            },
        }


def _counted(counts: Counter[Verdict]) -> dict[str, Any]:
    """Questions asked, and the counts and percent of each verdict."""
    asked = counts.total()
    return {
        "asked": asked,
        **{verdict: counts[verdict] for verdict in VERDICTS},
        "percent": {verdict: 100 * counts[verdict] / asked for verdict in VERDICTS},
    }
