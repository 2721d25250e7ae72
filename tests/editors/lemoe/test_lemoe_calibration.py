"""The layer and the threshold that neutral questions show, against slow readings, and when they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import pytest
import torch

from liveedit.backbones import Backbone, load_backbone
from liveedit.editors.lemoe import Lemoe, LemoeConfig, calibration
from liveedit.editors.lemoe.calibration import best_separation, separations
from liveedit.editors.shared.everyday_questions import EVERYDAY_QUESTIONS
from liveedit.editors.shared.neutral_questions import NEUTRAL_QUESTIONS
from liveedit.editors.shared.separation import Separation
from liveedit.samples import Question
from liveedit.testing.family_models import FAMILIES
from liveedit.testing.model_traces import left_unchanged

ConfigMaker = Callable[..., LemoeConfig]
SUBJECTS, WORDINGS = 4, 2


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("llama")
    FAMILIES["llama"](folder)
    return load_backbone(folder, device="cpu")


@pytest.fixture
def backbone(language_model: Backbone) -> Iterator[Backbone]:
    yield from left_unchanged(language_model)


def read_one_by_one(backbone: Backbone, layer: int, text: str) -> np.ndarray:
    """What the FFN of a layer reads at the last token of one prompt."""
    read: list[torch.Tensor] = []
    entry = backbone.layers[layer].mlp
    handle = entry.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0]))  # type: ignore
    with torch.no_grad():
        backbone.hidden_states(backbone.encode([Question(text)]), layer)
    handle.remove()
    return read[0][0, -1].double().numpy()


@pytest.mark.parametrize("centered", [True, False])
def test_a_separation_is_what_a_slow_reading_finds(backbone: Backbone, centered: bool) -> None:
    layer, rate = 1, 0.1
    mean = np.mean([read_one_by_one(backbone, layer, text) for text in EVERYDAY_QUESTIONS], 0) if centered else 0.0

    def anchor(text: str) -> np.ndarray:
        vector = read_one_by_one(backbone, layer, text) - mean
        return vector / np.linalg.norm(vector)

    others, reworded = [], []
    for relation in NEUTRAL_QUESTIONS:
        anchors = [[anchor(text) for text in wordings[:WORDINGS]] for wordings in relation[:SUBJECTS]]
        reworded += [one @ two for one, two in anchors]
        others += [a @ b for one, two in combinations(anchors, 2) for a in one for b in two]
    (found,) = separations(backbone, [layer], rate, centered)
    threshold = np.quantile(others, 1 - rate)
    assert found.layer == layer
    assert found.threshold == pytest.approx(threshold, abs=0.006)  # Rounded to two decimals.
    assert found.recall == pytest.approx(np.mean(np.array(reworded) >= found.threshold), abs=0.03)


def test_fewer_may_fire_above_a_higher_threshold(backbone: Backbone) -> None:
    few, many = (separations(backbone, [1], rate, True)[0] for rate in (0.01, 0.3))
    assert few.threshold > many.threshold
    assert few.recall <= many.recall


def test_states_are_read_once_for_a_model(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    first = separations(backbone, [1], 0.01, True)
    monkeypatch.setattr(calibration, "_states", lambda *arguments: pytest.fail("they were read again"))
    assert separations(backbone, [1], 0.01, True) == first


def test_the_layer_that_distinguishes_most_is_taken_and_none_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Separation(3, 0.9, 0.2), Separation(4, 0.7, 0.8), Separation(5, 0.6, 0.8), Separation(6, 0.8, 0.7)]
    monkeypatch.setattr(calibration, "separations", lambda *arguments: found)
    assert best_separation(None, range(3, 7), 0.01, True) == found[1]  # type: ignore[arg-type]
    found[1:] = [Separation(4, 0.7, 0.49)]
    assert best_separation(None, range(3, 5), 0.01, True) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "layer", "threshold"),
    [
        ({}, 1, 0.61),
        ({"text_threshold": 0.8}, 1, 0.8),
        ({"calibrated": False}, None, 0.9),
        ({"anchor": "text"}, None, 0.75),
        ({"layer": 1, "text_threshold": 0.5}, 1, 0.5),
    ],
)
def test_what_is_given_stays(
    backbone: Backbone,
    lemoe_config: ConfigMaker,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    layer: int | None,
    threshold: float,
) -> None:
    monkeypatch.setattr(calibration, "separations", lambda *arguments: [Separation(1, 0.61, 0.9)])
    with Lemoe(backbone, lemoe_config(**changes)) as editor:
        assert editor.layer == (max(1, backbone.default_edit_layer()) if layer is None else layer)
        assert editor.config.least_similarity[1] == editor.configuration()["text_threshold"] == threshold


def test_only_a_given_layer_is_read(
    backbone: Backbone, lemoe_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def noted(backbone: Backbone, layers: range, *others: object) -> list[Separation]:
        asked.append(list(layers))
        return [Separation(layers[0], 0.61, 0.9)]

    monkeypatch.setattr(calibration, "separations", noted)
    with Lemoe(backbone, lemoe_config(layer=1)) as editor:
        assert (editor.layer, editor.config.text_threshold) == (1, 0.61)
    assert asked == [[1]]


@pytest.mark.parametrize("name", ["tiny-llama-lm", "tiny-mistral-lm"])
def test_models_that_know_no_such_questions_keep_layer_and_threshold(name: str) -> None:
    backbone = load_backbone(name, device="cpu")
    with Lemoe(backbone) as editor:
        assert (editor.layer, editor.config.least_similarity[1]) == (backbone.default_edit_layer(), 0.9)


def test_models_that_read_images_are_not_calibrated(
    random_backbone: Backbone, lemoe_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "separations", lambda *arguments: pytest.fail("it was calibrated"))
    with Lemoe(random_backbone, lemoe_config()) as editor:
        assert editor.config.least_similarity == (0.85, 0.9)
