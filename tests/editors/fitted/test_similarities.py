"""By what fitted experts are found: which queries pass, where the thresholds lie, and on what features depend."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from liveedit.backbones import Backbone, TokenBatch
from liveedit.editors.fitted import Calibration, FittedConfig, FittedExperts
from liveedit.editors.fitted.calibration import Modality
from liveedit.editors.fitted.similarities import StateSimilarities
from liveedit.editors.fitted.whitening import Whitening
from liveedit.editors.shared.reading import Template
from liveedit.editors.shared.routing import QueryFeatures, route
from liveedit.experts import ExpertRepository, LowRankExpert
from liveedit.samples import Question
from liveedit.testing import random_image

WIDTH = 8
CONTENT, OTHER, READING = torch.eye(WIDTH)[0], torch.eye(WIDTH)[1], torch.eye(WIDTH)[2]


def unchanged() -> Whitening:
    return Whitening(torch.zeros(WIDTH), torch.eye(WIDTH), torch.ones(WIDTH), torch.tensor(1.0))


def similarities(text: float = 0.5, image: float = 0.5, **settings: Any) -> StateSimilarities:
    """Thresholds as given, and whitening that changes nothing."""
    modalities = (Modality(unchanged(), unchanged(), least, 0.7, torch.randn(4, WIDTH)) for least in (text, image))
    return StateSimilarities(
        Calibration(*modalities, Template(0, 0), "here"), FittedConfig.model_validate(settings), str
    )


def query(of: StateSimilarities, content: torch.Tensor, reading: torch.Tensor, image: bool) -> QueryFeatures:
    """A question with these hidden states: one image token or none, and one token of text."""
    roles = torch.tensor([[1, 0]] if image else [[-1, 0]])
    reading_states = torch.stack([torch.full((WIDTH,), 9.0), reading])[None]
    other = torch.full((WIDTH,), 5.0)
    content_states = torch.stack([content, other] if image else [other, content])[None]
    return of.query(TokenBatch(roles, roles), content_states, reading_states)


def at(angle_to: torch.Tensor, cosine: float, towards: torch.Tensor) -> torch.Tensor:
    """A vector of this cosine to another."""
    return cosine * angle_to + math.sqrt(1 - cosine**2) * towards


def fires(of: StateSimilarities, asked: QueryFeatures, edited: QueryFeatures) -> bool:
    repository = ExpertRepository(torch.device("cpu"))
    matrix = torch.ones(1, WIDTH)
    repository.add("edit", LowRankExpert(matrix, matrix, *(part[0] for part in of.edit_features(edited))))
    found = route(of, asked, torch.tensor([True]), repository, of.settings.combining)
    assert found is None or found.weights.tolist() == [[1.0]], "wholly or not at all"
    return found is not None


# -- which queries pass ----------------------------------------------------------------------------------


@pytest.mark.parametrize("image", [True, False])
def test_an_edit_fires_for_its_own_question(image: bool) -> None:
    of = similarities(0.999, 0.999)
    own = query(of, CONTENT, READING, image)
    assert fires(of, own, own)


@pytest.mark.parametrize("least", [-0.5, 0.1, 0.5, 0.99])
def test_images_and_texts_of_the_same_content_never_match(least: float) -> None:
    of = similarities(least, least)
    for one, other in itertools.permutations((True, False)):
        assert not fires(of, query(of, CONTENT, READING, one), query(of, CONTENT, READING, other))


@pytest.mark.parametrize("least", [0.2, 0.8])
def test_the_threshold_of_images_holds_at_its_edge(least: float) -> None:
    of = similarities(image=least)
    own = query(of, CONTENT, READING, True)
    for distance, expected in ((1e-3, True), (-1e-3, False)):
        asked = query(of, at(CONTENT, least + distance, OTHER), READING, True)
        assert fires(of, asked, own) == expected


@pytest.mark.parametrize("least", [0.5, 0.9])
def test_the_threshold_of_texts_holds_at_its_edge(least: float) -> None:
    """Two texts of one token are as similar as the square of the cosine of these tokens."""
    of = similarities(text=least)
    own = query(of, CONTENT, READING, False)
    for distance, expected in ((1e-3, True), (-1e-3, False)):
        asked = query(of, at(CONTENT, math.sqrt(least + distance), OTHER), READING, False)
        assert fires(of, asked, own) == expected


def test_texts_of_contents_that_differ_never_match_however_low_the_threshold() -> None:
    of = similarities(text=0.0)
    asked = query(of, at(CONTENT, 0.39, OTHER), READING, False)
    assert not fires(of, asked, query(of, CONTENT, READING, False))


@pytest.mark.parametrize("image", [True, False])
def test_an_opposite_content_never_matches_however_low_the_threshold(image: bool) -> None:
    of = similarities(-1.0, -1.0)
    asked = query(of, at(CONTENT, -0.01, OTHER), READING, image)
    assert not fires(of, asked, query(of, CONTENT, READING, image))


@pytest.mark.parametrize(("given", "least"), [(None, 0.7), (0.2, 0.2), (-0.3, -0.3)])
def test_the_least_reading_is_the_measured_one_unless_another_is_given(given: float | None, least: float) -> None:
    of = similarities(least_reading=given)
    own = query(of, CONTENT, READING, True)
    for distance, expected in ((1e-3, True), (-1e-3, False)):
        assert fires(of, query(of, CONTENT, at(READING, least + distance, OTHER), True), own) == expected


def test_readings_do_not_count_for_texts() -> None:
    of = similarities()
    own = query(of, CONTENT, READING, False)
    assert fires(of, query(of, CONTENT, -READING, False), own)
    assert not fires(of, query(of, OTHER, READING, False), own)


def test_the_image_counts_and_not_the_reading_alone() -> None:
    of = similarities()
    assert not fires(of, query(of, OTHER, READING, True), query(of, CONTENT, READING, True))


def test_the_nearest_by_content_and_reading_is_taken() -> None:
    of = similarities(image=0.2, least_reading=-1)
    repository = ExpertRepository(torch.device("cpu"))
    matrix = torch.ones(1, WIDTH)
    for name, content, reading in (("both", 0.9, 0.9), ("content", 0.95, 0.5), ("reading", 0.5, 0.95)):
        edited = query(of, at(CONTENT, content, OTHER), at(READING, reading, OTHER), True)
        repository.add(name, LowRankExpert(matrix, matrix, *(part[0] for part in of.edit_features(edited))))
    found = route(of, query(of, CONTENT, READING, True), torch.tensor([True]), repository, of.settings.combining)
    assert found is not None and [fired.edit_id for fired in found.fired[0]] == ["both"]


def test_whitening_is_part_of_every_feature() -> None:
    of = similarities()
    before = query(of, CONTENT + OTHER, READING + OTHER, True)
    shifted = Whitening(OTHER, torch.eye(WIDTH), torch.ones(WIDTH), torch.tensor(1.0))
    text = of.calibration.text
    changed = Calibration(text, Modality(shifted, shifted, 0.5, 0.5, text.neutral), Template(0, 0), "")
    after = query(StateSimilarities(changed, of.settings, str), CONTENT + OTHER, READING + OTHER, True)
    assert torch.allclose(after.visual[0, :WIDTH], CONTENT) and torch.allclose(after.prompt[0, :WIDTH], READING)
    assert not torch.allclose(before.visual, after.visual)


# -- on what features depend -----------------------------------------------------------------------------


QUESTIONS = (
    Question("What is this creature called?", random_image(1)),
    Question("Who wrote it?"),
    Question("What is the name of the creature that can be seen in this image, if it has one?", random_image(2)),
    Question("Where is the town in which the person who made the boat was born?"),
)


def read(editor: FittedExperts, questions: tuple[Question, ...], padding: str) -> QueryFeatures:
    return editor.query(editor.read(editor.backbone.encode(questions, padding=padding)))


@pytest.mark.parametrize("padding", ["left", "right"])
def test_features_do_not_depend_on_the_rest_of_the_batch(editor: FittedExperts, padding: str) -> None:
    """To rounding of the hidden states themselves: a matrix product of another size rounds otherwise."""
    together = read(editor, QUESTIONS, padding)
    for row, question in enumerate(QUESTIONS):
        alone = read(editor, (question,), "left")
        for name in ("visual", "sentinel", "prompt", "own"):
            assert torch.allclose(getattr(together, name)[row], getattr(alone, name)[0], atol=1e-5), name


def test_from_the_same_hidden_states_features_are_the_same_bit_for_bit(editor: FittedExperts) -> None:
    inputs = editor.backbone.encode(QUESTIONS)
    tokens = editor.read(inputs)
    states = editor._content_layer.states, editor._reading_layer.states
    together = editor.similarities.query(tokens, *states)
    for row in range(len(QUESTIONS)):
        part = TokenBatch(tokens.roles[[row]], tokens.input_ids[[row]])
        alone = editor.similarities.query(part, *(part_of[[row]] for part_of in states))
        for name in ("visual", "sentinel", "prompt", "own"):
            assert torch.equal(getattr(together, name)[row], getattr(alone, name)[0]), name


def test_shapes_are_those_that_are_announced(tiny_llava: Backbone, editor: FittedExperts) -> None:
    found = read(editor, QUESTIONS, "left")
    parts = editor.similarities.edit_features(found)
    names = ("visual_feature", "prompt_feature", "query_feature")
    assert {name: tuple(part.shape[1:]) for name, part in zip(names, parts, strict=True)} == editor.feature_shapes
    own = parts[2].norm(dim=-1)
    assert torch.allclose(own, torch.full_like(own, math.sqrt(1.5)), atol=1e-5), "content 1, reading a half"
