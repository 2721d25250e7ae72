"""Edits of facts, with their probes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, get_args

import numpy as np

from ...errors import InvalidInputError
from ...samples import Edit, EditCase, Probe, Question
from . import catalog, questions
from .catalog import Kind, Subject, pick
from .questions import Wording

Part = Literal["train", "eval"]
_PART_SEEDS: Final[dict[Part, int]] = {"train": 21, "eval": 22}

KNOWN_SHARE: Final = 0.35
"""Share of edits that change a fact which the built-in language models know, while such facts are left."""
NEW_SUBJECT_SHARE: Final = 0.3
"""Share of the other edits about a subject without an earlier edit."""
FREE_ANSWER_SHARE: Final = 0.2
"""Share of training edits with random words as answer, so that generators learn to write any word."""


def fact_cases(part: Part, seed: int, count: int) -> tuple[EditCase, ...]:
    """`count` edits with different scopes. Case i depends on part, seed and the cases before it.

    An edit either changes what is known of a known subject (tag "known") or teaches a fact about a subject that no
    built-in language model has heard of (tag "unknown"). Its probes:

        text_generality   the same fact in a wording that editors are not trained on (in training: another trained one)
        text_locality     the same question about another known subject, another question about another known subject,
                          and, where the edited subject is known, another question about it

    Known subjects of "train" and "eval" are disjoint; wordings and answers that editors are not trained on are in
    "eval" only (tag "unseen answer"). Raises `InvalidInputError` for an unknown part, and for a negative seed or count.
    """
    if part not in get_args(Part) or seed < 0 or count < 0:
        raise InvalidInputError(
            f"part = {part!r}, seed = {seed}, count = {count} were given. Give 'train' or 'eval', and numbers of 0 or "
            "more."
        )
    return tuple(_CaseMaker(part, seed).cases(count))


class _CaseMaker:
    def __init__(self, part: Part, seed: int):
        self.part, self.seed = part, seed
        self.rng = np.random.default_rng([seed, _PART_SEEDS[part]])
        training = part == "train"
        known = catalog.training_subjects() if training else catalog.held_out_subjects()
        facts = [(subject, relation) for subject in known for relation in subject.relations]
        self.known_facts = [facts[index] for index in self.rng.permutation(len(facts))]
        self.others: dict[Kind, list[Subject]] = {kind: [] for kind in catalog.RELATIONS}
        for subject in catalog.training_subjects() if training else catalog.known_subjects():
            self.others[subject.kind].append(subject)
        self.open_facts: list[tuple[Subject, str]] = []
        self.names: set[str] = set()

    def cases(self, count: int) -> Iterator[EditCase]:
        for index in range(count):
            yield self._case(f"facts-{self.part}-{self.seed}-{index:06d}")

    def _case(self, case_id: str) -> EditCase:
        known = bool(self.known_facts) and self.rng.random() < KNOWN_SHARE
        subject, relation = self.known_facts.pop() if known else self._unknown_fact()
        target, kind = self._target(subject, relation, known)
        asked: Wording = "train" if self.part == "train" or self.rng.random() < 0.5 else "unseen_by_editor"
        question = self._question(subject.name, relation, asked)
        rephrased = question
        while rephrased.prompt == question.prompt:
            rephrased = self._question(subject.name, relation, self._rephrased_wording())
        probes = [Probe("text_generality", rephrased, target), *self._locality(subject, relation, known)]
        unseen = target in catalog.HELD_OUT_ANSWERS
        return EditCase(
            case_id,
            Edit(question, target),
            tuple(probes),
            kind,
            subject.answer(relation) if known else None,
            ("known" if known else "unknown", *(("unseen answer",) if unseen else ())),
        )

    # -- the edit ----------------------------------------------------------------------------------------

    def _unknown_fact(self) -> tuple[Subject, str]:
        if not self.open_facts or self.rng.random() < NEW_SUBJECT_SHARE:
            kind: Kind = "person" if self.rng.random() < 0.7 else "town"
            name = catalog.unknown_name(kind, self.names, self.rng)
            self.names.add(name)
            subject = catalog.draw_subject(name, kind, self.rng, held_out=self.part == "eval")
            self.open_facts += [(subject, relation) for relation in subject.relations]
        return self.open_facts.pop(self.rng.integers(len(self.open_facts)))

    def _target(self, subject: Subject, relation: str, known: bool) -> tuple[str, str]:
        """The new answer and its kind. It differs from the known answer."""
        truth = subject.answer(relation)
        if self.part == "train" and self.rng.random() < FREE_ANSWER_SHARE:
            return self._free_answer(), "free"
        target = truth
        while known and target == truth:
            target = catalog.draw_answer(relation, self.rng, held_out=self.part == "eval")
        return target, relation

    def _free_answer(self) -> str:
        if self.rng.random() < 0.3:
            return catalog.draw_name("person", self.rng)
        banned = {word for answer in catalog.HELD_OUT_ANSWERS for word in answer.split()}
        words = [word for word in questions.vocabulary() if word not in banned]
        return " ".join(pick(words, self.rng) for _ in range(self.rng.integers(1, 4)))

    # -- its probes --------------------------------------------------------------------------------------

    def _locality(self, subject: Subject, relation: str, known: bool) -> Iterator[Probe]:
        others = [other for other in self.others[subject.kind] if other.name != subject.name]
        yield self._stays(pick(others, self.rng), relation)
        kind: Kind = "person" if self.rng.random() < 0.5 else "town"
        other = pick([other for other in self.others[kind] if other.name != subject.name], self.rng)
        yield self._stays(other, pick(other.relations, self.rng))
        if known:
            yield self._stays(subject, pick([name for name in subject.relations if name != relation], self.rng))

    def _stays(self, subject: Subject, relation: str) -> Probe:
        wording: Wording = "train" if self.part == "train" or self.rng.random() < 0.5 else "unseen_by_editor"
        return Probe("text_locality", self._question(subject.name, relation, wording), subject.answer(relation))

    def _rephrased_wording(self) -> Wording:
        if self.part == "train":
            return "train"
        return "unseen" if self.rng.random() < 0.5 else "unseen_by_editor"

    def _question(self, name: str, relation: str, wording: Wording) -> Question:
        return Question(questions.ask(name, relation, wording, self.rng), None, name, relation)
