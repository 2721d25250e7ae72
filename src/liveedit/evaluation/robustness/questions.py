"""The edits and questions of the robustness measurement: near wordings, contradicting edits, long answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from ...answers import normalize_answer
from ...errors import ConfigError
from ...samples import Edit, EditCase, Question, edited_scopes
from .wordings import contradicting_prompts, near_wordings

OWN_PROMPT: Final = "own_prompt"
"""The kind of the edit's own prompt, which the other kinds are compared with."""

CONTRADICTIONS: Final = "contradictions"
QUESTION_TYPE: Final = "question_type"

_TEMPLATE: Final = "Tell me: {}"
_SENTENCE: Final = 4
"""Answers of this many words are sentences when they are joined; shorter ones are listed."""


@dataclass(frozen=True)
class Asked:
    """A question after an edit.

    kind: the group that it is reported in; rule: how its prompt was made. case: the id of the edit's case. answer: the
    edit's answer. others: answers of edits that contradict it. labels: further answers that are not broken. stays:
    whether another question is asked, to which the unedited answer is right.
    """

    kind: str
    rule: str
    case: str
    question: Question
    answer: str
    others: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    stays: bool = False


@dataclass(frozen=True)
class Group:
    """Edits that are active together, the questions after them, and the length limit of the answers, in tokens."""

    name: str
    edits: tuple[tuple[str, Edit], ...]
    asked: tuple[Asked, ...]
    max_new_tokens: int


# -- near wordings -----------------------------------------------------------------------------------------------


def near_wording_questions(
    edited: Sequence[EditCase], probed: int, cases: Sequence[EditCase], seed: int
) -> Iterator[Asked]:
    """The own prompt and near wordings of the first `probed` edited cases, about their images.

    cases: those of the whole data set, in which another question about the same subject is looked for. A question in
    the scope of an edit is left out.
    """
    scopes = edited_scopes(edited)
    same_subject = _by_subject(cases)
    for case in edited[:probed]:
        question, labels = case.edit.question, case.labels
        yield Asked(OWN_PROMPT, OWN_PROMPT, case.id, question, case.edit.answer, labels=labels)
        for one in near_wordings(question.prompt, f"{seed} {case.id}"):
            asked = replace(question, prompt=one.prompt)
            stays = one.kind == QUESTION_TYPE
            yield Asked(one.kind, one.rule, case.id, asked, case.edit.answer, labels=labels, stays=stays)
        found = _other_question(case, same_subject, scopes)
        if found is not None:
            other, own = found
            yield Asked(
                QUESTION_TYPE, "other_question", case.id, other, case.edit.answer, labels=(*own, *labels), stays=True
            )


def _other_question(
    case: EditCase, same_subject: Mapping[str, Sequence[EditCase]], scopes: frozenset[tuple[str, str]]
) -> tuple[Question, tuple[str, ...]] | None:
    """Another question about the image of a case, with the labels that the data has for it."""
    found = [(probe.question, (probe.answer,)) for probe in case.named("same_image_locality")]
    subject = case.edit.scope[0]
    found += [
        (other.edit.question, (other.edit.answer, other.answer_before))
        for other in (same_subject[subject] if subject else ())
        if other.edit.scope != case.edit.scope
    ]
    for question, labels in found:
        if question.scope not in scopes:
            return replace(question, image=case.edit.question.image), _texts(labels)
    return None


def _by_subject(cases: Sequence[EditCase]) -> dict[str, list[EditCase]]:
    found: dict[str, list[EditCase]] = {}
    for case in cases:
        found.setdefault(case.edit.scope[0], []).append(case)
    return found


def _texts(labels: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(label for label in labels if label is not None)


# -- contradicting edits -----------------------------------------------------------------------------------------


def contradictions(cases: Sequence[EditCase], most: int, seed: int) -> tuple[list[tuple[str, Edit]], list[Asked]]:
    """Up to `most` triples of edits about one image, and their questions.

    The prompts of a triple differ slightly, its answers are different: that of its case and two of other cases, of the
    same answer type if there are some, none of them another label of the case. Cases whose prompt has no two near
    wordings are passed over.
    """
    edits: list[tuple[str, Edit]] = []
    asked: list[Asked] = []
    by_type: dict[str, list[str]] = {}
    for case in cases:
        by_type.setdefault(case.answer_type, []).append(case.edit.answer)
    every_answer = [case.edit.answer for case in cases]
    for case in cases:
        if len(edits) >= 3 * most:
            break
        prompts = contradicting_prompts(case.edit.question.prompt, f"{seed} {case.id}")
        rng = random.Random(f"{seed} {case.id} answers")
        taken = _texts((*case.labels, case.answer_before))
        others = _distinct((*_shuffled(by_type[case.answer_type], rng), *every_answer), 2, taken)
        if prompts is None or len(others) < 2:
            continue
        answers = (case.edit.answer, *others)
        for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            question = replace(case.edit.question, prompt=prompt)
            contradicting = tuple(other for other in answers if other != answer)
            edits.append((f"{case.id}/{place}", Edit(question, answer)))
            rule = "near_wording" if place else OWN_PROMPT
            asked.append(Asked(CONTRADICTIONS, rule, case.id, question, answer, contradicting, case.labels))
    return edits, asked


def _shuffled(texts: Sequence[str], rng: random.Random) -> list[str]:
    return rng.sample(texts, len(texts))


def _distinct(texts: Sequence[str], most: int, without: Sequence[str]) -> list[str]:
    """The first `most` texts that differ as answers, also from those of `without`."""
    found: dict[str, str] = {}
    left_out = {normalize_answer(text) for text in without}
    for text in texts:
        if len(found) == most:
            break
        if text.strip() and normalize_answer(text) not in left_out:
            found.setdefault(normalize_answer(text), text)
    return list(found.values())


# -- long answers ------------------------------------------------------------------------------------------------


def long_answer(donors: Sequence[str], tokens: int, count: Callable[[str], int]) -> str:
    """Answers joined into one of about this many tokens: as near as whole answers come.

    Sentences follow each other, shorter answers are listed. count: the number of tokens of a text.
    """
    text = ""
    for donor in donors:
        longer = _joined(text, donor.strip().rstrip("."))
        if text and abs(count(longer) - tokens) > abs(count(text) - tokens):
            break
        text = longer
        if count(text) >= tokens:
            break
    return text


def _joined(text: str, donor: str) -> str:
    if len(donor.split()) < _SENTENCE:
        return f"{text}, {donor}" if text else donor
    sentence = f"{donor[:1].upper()}{donor[1:]}."
    return f"{text} {sentence}" if text else sentence


def long_answers(
    cases: Sequence[EditCase], tokens: int, edits: int, seed: int, count: Callable[[str], int]
) -> tuple[list[tuple[str, Edit]], list[Asked]]:
    """Edits of the first cases to answers of about `tokens` tokens, and their questions: the own prompt and two
    paraphrases.

    An answer is joined from those of other cases, repeated if they are too few; none of them is a label of its own
    case, so that a part of it is broken. Raises `ConfigError` if the other cases have no such answer.
    """
    made: list[tuple[str, Edit]] = []
    asked: list[Asked] = []
    kind = f"long_answer_{tokens}"
    answers = [case.edit.answer for case in cases]
    for case in cases[:edits]:
        labels = case.labels
        donors = _distinct(_shuffled(answers, random.Random(f"{seed} {case.id} {tokens}")), 4 * tokens, labels)
        if not donors:
            raise ConfigError("Long answers are joined from those of other cases, and there are none. Give more data.")
        answer = long_answer(donors * tokens, tokens, count)
        made.append((case.id, Edit(case.edit.question, answer)))
        asked += [Asked(kind, rule, case.id, question, answer, (), labels) for rule, question in _paraphrased(case)]
    return made, asked


def _paraphrased(case: EditCase) -> Iterator[tuple[str, Question]]:
    question = case.edit.question
    yield OWN_PROMPT, question
    for probe in case.named("text_generality")[:1]:
        yield "paraphrase", probe.question
    yield "template", replace(question, prompt=_TEMPLATE.format(question.prompt))
