"""What a language model compares of questions: their own tokens, with a threshold that neutral questions show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
import torch

from liveedit.backbones import Backbone, load_backbone
from liveedit.editors.ike import InContext, InContextConfig, own_tokens
from liveedit.editors.ike import editor as editor_module
from liveedit.editors.shared import separation
from liveedit.editors.shared.everyday_questions import EVERYDAY_QUESTIONS
from liveedit.editors.shared.neutral_questions import HARD_QUESTIONS
from liveedit.editors.shared.reading import Template
from liveedit.editors.shared.separation import Separation, separation_questions
from liveedit.samples import Edit, Question
from liveedit.testing.family_models import FAMILIES
from liveedit.testing.model_traces import left_unchanged

LAYER = 1


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("mistral")
    FAMILIES["mistral"](folder)  # It has a chat template.
    return load_backbone(folder, device="cpu")


@pytest.fixture
def backbone(language_model: Backbone) -> Iterator[Backbone]:
    yield from left_unchanged(language_model)


@pytest.fixture(scope="module")
def built_in() -> Backbone:
    return load_backbone("tiny-llama-lm", device="cpu")


def settings(**given: object) -> InContextConfig:
    return InContextConfig.model_validate(given)


def normed_one_by_one(backbone: Backbone, text: str) -> np.ndarray:
    """(tokens, width) float64: the question's own tokens at the layer, without the template around them."""
    inputs, template = backbone.encode([Question(text)]), Template.of(backbone)
    with torch.no_grad():
        states = backbone.hidden_states(inputs, LAYER)[0].double().numpy()
    own = states[template.before : len(states) - template.after]
    centred = own - own.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)


def feature_one_by_one(backbone: Backbone, text: str, mean: np.ndarray) -> np.ndarray:
    total = np.zeros(backbone.width)
    for row in normed_one_by_one(backbone, text) - mean:
        total += row * (row @ row) ** 1.5
    return total / np.linalg.norm(total)


def test_a_feature_is_what_a_slow_reading_of_the_own_tokens_finds(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separation, "_LEAST_RECALL", 0.0)
    mean = np.concatenate([normed_one_by_one(backbone, text) for text in EVERYDAY_QUESTIONS]).mean(0)
    texts = ["Where does the river end?", "Name it"]
    with InContext(backbone, settings(layer=LAYER)) as editor:
        for text in texts:
            expert, _ = editor.make_expert(Edit(Question(text), "there"))
            image, prompt = expert.feature.split(backbone.width)
            assert not image.any()
            assert prompt.numpy() == pytest.approx(feature_one_by_one(backbone, text, mean), abs=1e-4)


def test_the_threshold_is_the_one_that_the_neutral_questions_show(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separation, "_LEAST_RECALL", 0.0)
    mean = np.concatenate([normed_one_by_one(backbone, text) for text in EVERYDAY_QUESTIONS]).mean(0)
    features = [feature_one_by_one(backbone, one.prompt, mean) for one in separation_questions()]
    relations = [features[start : start + 8] for start in range(0, len(features), 8)]  # 4 subjects, 2 wordings each.
    others = [
        relation[2 * one + a] @ relation[2 * two + b]
        for relation in relations
        for one, two in combinations(range(4), 2)
        for a in range(2)
        for b in range(2)
    ]
    with InContext(backbone, settings(layer=LAYER, false_firing=0.1)) as editor:
        assert editor.config.prompt_threshold == pytest.approx(np.quantile(others, 0.9), abs=0.006)


def test_unrelated_questions_are_kept_out_where_whole_prompts_let_some_in(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separation, "_LEAST_RECALL", 0.0)
    asked = [Question(relation[place % 6][0]) for place, relation in enumerate(HARD_QUESTIONS)]
    edits = [(str(place), Edit(question, "new")) for place, question in enumerate(asked[:3])]

    def fired(editor: InContext) -> list[str | None]:
        with editor:
            editor.edit(edits)
            backbone.encode(asked)
            return [row[0].edit_id if row else None for row in editor.fired() or []]

    assert fired(InContext(backbone)) == ["0", "1", "2", *[None] * (len(asked) - 3)]
    whole = fired(InContext(backbone, settings(calibrated=False)))
    assert any(whole[3:])


def test_of_two_edits_far_above_the_threshold_the_nearer_is_found(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separation, "_LEAST_RECALL", 0.0)
    near, far = Question("What is the capital of France?"), Question("What is the capital of Spain?")
    with InContext(backbone, settings(prompt_threshold=-1.0)) as editor:
        editor.edit([("near", Edit(near, "Lyon")), ("far", Edit(far, "Vigo"))])
        backbone.encode([near])
        ((fired,),) = editor.fired() or []
    assert fired.edit_id == "near"
    assert fired.margin == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "layer", "threshold"),
    [
        ({}, 0, 0.61),
        ({"prompt_threshold": 0.8}, 0, 0.8),
        ({"layer": 1}, 1, 0.62),
        ({"layer": 1, "prompt_threshold": 0.5}, 1, 0.5),
        ({"calibrated": False}, None, 0.95),
        ({"calibrated": False, "layer": 1, "prompt_threshold": 0.5}, 1, 0.5),
    ],
)
def test_what_is_given_stays(
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, object],
    layer: int | None,
    threshold: float,
) -> None:
    monkeypatch.setattr(
        editor_module,
        "separations",
        lambda backbone, layers, rate: [Separation(layer, 0.61 + layer / 100, 0.9) for layer in layers],
    )
    with InContext(backbone, settings(**given)) as editor:
        assert (editor.config.layer, editor.config.prompt_threshold) == (layer, threshold)
        assert editor.layer == (backbone.default_edit_layer() if layer is None else layer)
        assert editor.configuration()["prompt_threshold"] == threshold


def test_the_digest_covers_what_decides_and_not_how_it_was_chosen(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separation, "_LEAST_RECALL", 0.0)

    def digest(**given: object) -> str:
        with InContext(backbone, settings(**given)) as editor:
            return editor.digest()

    with InContext(backbone) as measured:
        found = {"layer": measured.config.layer, "prompt_threshold": measured.config.prompt_threshold}
    assert digest() == digest(**found) == digest(**found, false_firing=0.3)
    other = {"prompt_threshold": 0.123}
    changed = [digest(**{**found, **other}), digest(**found, calibrated=False), digest(demonstrations="Look: ")]
    assert len({digest(), *changed}) == 4
    monkeypatch.setattr(editor_module, "WEIGHT_POWER", 2)
    assert digest() not in changed and digest(calibrated=False, **found) == changed[1]


def former_digest() -> str:
    """That of the built-in models' editor before it could be calibrated: stored edits are bound to it."""
    configuration = {
        "template": "New fact: {prompt} {answer}\nPrompt: {question}",
        "demonstrations": "",
        "layer": None,
        "image_threshold": 0.7,
        "prompt_threshold": 0.95,
    }
    return hashlib.sha256(json.dumps(["ike", configuration], sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def test_a_model_that_does_not_know_the_language_compares_whole_prompts_as_before(built_in: Backbone) -> None:
    question = Question("What is the capital of Coraland?")
    inputs = built_in.encode([question])
    states = built_in.hidden_states(inputs, built_in.default_edit_layer())[0]
    rows = torch.nn.functional.layer_norm(states, states.shape[-1:])[inputs.prompt_mask[0]]
    with InContext(built_in) as editor:
        assert (editor.config.layer, editor.config.prompt_threshold) == (None, 0.95)
        feature = editor.make_expert(Edit(question, "Bree"))[0].feature[built_in.width :]
        assert torch.allclose(feature, torch.nn.functional.normalize(rows.sum(0), dim=0), atol=1e-6)
        assert editor.digest() == former_digest()
    with InContext(built_in, settings(calibrated=False)) as former:
        assert torch.equal(former.make_expert(Edit(question, "Bree"))[0].feature[built_in.width :], feature)


def test_models_that_read_images_are_not_calibrated(random_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor_module, "separations", lambda *arguments: pytest.fail("it was calibrated"))
    with InContext(random_backbone) as editor:
        assert (editor.config.layer, editor.config.prompt_threshold) == (None, 0.95)
        assert editor.digest() == former_digest()


def test_states_are_read_once_for_a_model(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    first = own_tokens.separations(backbone, [LAYER], 0.01)
    monkeypatch.setattr(own_tokens, "_read", lambda *arguments: pytest.fail("they were read again"))
    assert own_tokens.separations(backbone, [LAYER], 0.01) == first


def test_another_editors_edits_do_not_change_what_is_read(backbone: Backbone) -> None:
    first = own_tokens.own_tokens(backbone, [LAYER])[LAYER]
    edit = Edit(Question("What is the capital of France?"), "Lyon")
    with InContext(backbone, settings(calibrated=False, prompt_threshold=-1.0)) as editor:
        editor.edit([("all", edit)])  # Every question gets it.
        again = own_tokens._read(backbone, [LAYER])[LAYER]
    assert torch.equal(first.mean, again.mean) and torch.equal(first.neutral, again.neutral)
