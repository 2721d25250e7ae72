"""smol-llava on small random parts and drawn photographs: what is taken over, what is learnt, and resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_photos import draw_classes
from safetensors.torch import load_file

from liveedit.backbones import Backbone, load_backbone
from liveedit.backbones.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel
from liveedit.cli import main
from liveedit.datasets.photos.catalog import photo_classes
from liveedit.datasets.photos.folder import PhotoFolder, read_folder
from liveedit.errors import BackboneError, CheckpointError, ConfigError, NotFoundError
from liveedit.images import open_image
from liveedit.pretraining.photos import card, turns
from liveedit.pretraining.photos import parts as parts_module
from liveedit.pretraining.photos.parts import PhotoModelParts, language_model
from liveedit.pretraining.photos.tower_features import compute_tower_features, view_of
from liveedit.pretraining.photos.training import PhotoTrainingConfig, train_photo_model
from liveedit.pretraining.rows import RowPacker
from liveedit.samples import Question
from liveedit.testing import tiny_backbone
from liveedit.testing.model_traces import weight_bits

SMALL = EfficientNetLiteConfig(
    image_size=32, grid=2, hidden_size=32, stem=8, stages=[(3, 1, 1, 8, 1), (3, 2, 2, 16, 2), (5, 2, 2, 16, 2)]
)
FEW = PhotoTrainingConfig(
    views=2, photos=4, questions=3, texts=1, rank=2, word_steps=3, connector_steps=3, adapter_steps=3, save_every=1
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> PhotoFolder:
    return read_folder(draw_classes(tmp_path_factory.mktemp("photos")))


@pytest.fixture(scope="module")
def language_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    tokenizer = tiny_backbone("llama", folder).tokenizer
    tokenizer.chat_template = "{% for message in messages %}Q: {{ message['content'] }}{% endfor %} A:"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "NEUTRAL_QUESTIONS", turns.NEUTRAL_QUESTIONS[:1])
    monkeypatch.setattr(card, "HARD_QUESTIONS", card.HARD_QUESTIONS[:1])


def tower() -> EfficientNetLiteModel:
    torch.manual_seed(0)
    model = EfficientNetLiteModel(SMALL)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=(2 / weight[0].numel()) ** 0.5)
    return model.eval()


@pytest.fixture
def parts(language_folder: Path) -> PhotoModelParts:
    return PhotoModelParts(tower(), language_model(language_folder))


Train = Callable[..., Path]


@pytest.fixture
def train(photos: PhotoFolder, language_folder: Path) -> Train:
    def run(out: Path, config: PhotoTrainingConfig = FEW, **options: object) -> Path:
        made = PhotoModelParts(tower(), language_model(language_folder))
        train_photo_model(out, photos, made, config, **options)  # type: ignore[arg-type]
        return out / "model"

    return run


# -- the untrained whole ---------------------------------------------------------------------------------


def test_the_parts_keep_their_weights_and_texts_their_logits(parts: PhotoModelParts, tmp_path: Path) -> None:
    asked = Question("What is the capital of France?")
    text = parts.language.prompt_text(asked)
    with torch.no_grad():
        before = parts.language.logits(parts.language.encode([asked]))
    parts.build().save_pretrained(tmp_path)
    parts.processor().save_pretrained(tmp_path)
    whole = load_backbone(tmp_path, device="cpu")
    assert whole.prompt_text(asked) == text
    with torch.no_grad():
        after = whole.logits(whole.encode([asked]))
    assert torch.equal(before, after[..., : before.shape[-1]])
    for name, weight in parts.tower.state_dict().items():
        assert torch.equal(weight, whole.model.model.vision_tower.state_dict()[name])  # type: ignore[union-attr]


def test_packed_rows_have_the_tokens_of_one_question_at_a_time(
    parts: PhotoModelParts, photos: PhotoFolder, tmp_path: Path
) -> None:
    parts.build().save_pretrained(tmp_path)
    parts.processor().save_pretrained(tmp_path)
    whole, image = load_backbone(tmp_path, device="cpu"), photos.path / photos.classes[0].evaluation[0]
    asked = [("What is it?", "an ant"), ("Is it a tick?", "no")]
    rows = RowPacker(parts.layout).pack([(True, asked), (False, asked)])
    for row, shown in enumerate((image, None)):
        for segment, (prompt, answer) in enumerate(asked, 1):
            inputs = whole.encode([Question(prompt, shown)], [answer])
            mine = (rows.segments[row] == 0) | (rows.segments[row] == segment)
            assert torch.equal(rows.ids[row][mine], inputs.input_ids[0])
            labels = rows.labels[row][rows.segments[row] == segment]
            assert torch.equal(labels[labels >= 0], inputs.input_ids[inputs.answer_mask])


def test_a_language_model_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    tiny_backbone("llava", tmp_path / "llava")
    with pytest.raises(BackboneError, match="reads images already"):
        language_model(tmp_path / "llava")


def test_missing_packages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "find_spec", lambda name: None)
    monkeypatch.setattr(parts_module, "pretrained_tower", lambda grid: tower())
    with pytest.raises(NotFoundError, match="--language-model FOLDER"):
        PhotoModelParts.pretrained()


# -- training --------------------------------------------------------------------------------------------


def test_a_training_that_was_cut_off_ends_with_the_same_bits(train: Train, tmp_path: Path) -> None:
    """In every stage, and while photographs are looked at."""
    whole = load_file(train(tmp_path / "whole") / "model.safetensors")
    for number, (task, at) in enumerate((("view 1", 32), ("words", 2), ("connector", 1), ("adapters", 2))):

        def stop(name: str, done: int, total: int, *figures: object, task: str = task, at: int = at) -> None:
            if (name, done) == (task, at):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / f"cut-{number}", report=stop)
        again = load_file(train(tmp_path / f"cut-{number}") / "model.safetensors")
        assert all(torch.equal(value, again[name]) for name, value in whole.items()), task


def test_only_connector_and_language_model_change(train: Train, parts: PhotoModelParts, tmp_path: Path) -> None:
    found = load_backbone(train(tmp_path), device="cpu").model
    untrained = parts.build(FEW.seed)
    changed = {
        name.split(".")[1]
        for name, value in found.state_dict().items()
        if not torch.equal(value, untrained.state_dict()[name].half().float())
    }
    assert changed == {"multi_modal_projector", "language_model"}


def test_it_learns_to_name_what_it_is_shown(train: Train, photos: PhotoFolder, tmp_path: Path) -> None:
    """A random language model learns little in a few steps, but the image comes near to words, and losses fall."""
    figures: dict[str, list[dict[str, float]]] = {}

    def keep(task: str, done: int, total: int, found: dict[str, float] | None = None) -> None:
        figures.setdefault(task, []).append(found or {})

    rates = {"connector_rate": 2e-2, "adapter_rate": 2e-2, "rank": 8}
    more = replace(FEW, word_steps=40, connector_steps=12, adapter_steps=24, save_every=200, **rates)
    train(tmp_path, more, report=keep)
    assert figures["words"][-1]["cosine"] > figures["words"][0]["cosine"] + 0.2
    losses = [step["loss_nats"] for step in (*figures["connector"], *figures["adapters"])]
    assert sum(losses[-6:]) < 0.95 * sum(losses[:6])


def test_views_are_parts_of_the_photograph(photos: PhotoFolder, parts: PhotoModelParts, tmp_path: Path) -> None:
    image = open_image(photos.path / photos.classes[0].evaluation[0])
    assert view_of(image, 0, np.random.default_rng(0)) is image
    sizes = {view_of(image, view, np.random.default_rng(seed)).size for view in (1, 2) for seed in range(20)}
    assert all(0.7 * 24 - 1 <= side <= 24 for size in sizes for side in size) and len(sizes) > 3
    found = compute_tower_features(photos, parts.tower, tmp_path, lambda *ignored: None, views=2)
    assert not torch.equal(found.features[0], found.features[1])


def test_pictures_of_other_photographs_are_refused(photos: PhotoFolder, parts: PhotoModelParts, tmp_path: Path) -> None:
    compute_tower_features(photos, parts.tower, tmp_path, lambda *ignored: None)
    fewer = replace(photos, classes=photos.classes[1:])
    with pytest.raises(CheckpointError, match="other photographs"):
        compute_tower_features(fewer, parts.tower, tmp_path, lambda *ignored: None)


# -- the card --------------------------------------------------------------------------------------------


def test_the_bound_of_the_tower_is_that_of_the_nearest_class(
    photos: PhotoFolder, parts: PhotoModelParts, tmp_path: Path
) -> None:
    seen, held_out = (
        compute_tower_features(photos, parts.tower, tmp_path, lambda *ignored: None, part)
        for part in ("pretraining", "evaluation")
    )
    assert card.tower_bound(seen, seen) >= card.tower_bound(seen, held_out) > 100 / len(photos.classes)
    mixed = replace(held_out, places=tuple((number + 1, photo) for number, photo in held_out.places))
    assert card.tower_bound(seen, mixed) < 40


def test_texts_agree_wholly_before_training(
    parts: PhotoModelParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whatever_it_says(language: Backbone, prompts: list[str], report: object) -> list[tuple[str, str]]:
        asked = [Question(prompt) for prompt in prompts]
        answers = language.generate(language.encode(asked, padding="left"), turns.LONGEST_TEXT)
        return list(zip(prompts, answers, strict=True))

    own = language_model(parts.language.name)
    parts.build().save_pretrained(tmp_path)
    parts.processor().save_pretrained(tmp_path)
    whole = load_backbone(tmp_path, device="cpu")
    assert card.text_agreement(whole, own) == {"texts": 0}, "a random model does not end its answers"
    monkeypatch.setattr(card, "answers_to", whatever_it_says)
    assert card.text_agreement(whole, own) == {"texts": 18, "same_answers": 100.0, "same_tokens": 100.0}
    for weight in whole.model.model.language_model.layers[3].parameters():  # type: ignore[union-attr]
        weight.data.neg_()
    assert card.text_agreement(whole, own)["same_tokens"] < 90


def test_the_card_asks_held_out_photographs_in_all_wordings(
    photos: PhotoFolder, parts: PhotoModelParts, tmp_path: Path
) -> None:
    parts.build().save_pretrained(tmp_path)
    parts.processor().save_pretrained(tmp_path)
    known = photo_classes(found.key for found in photos.classes)
    accuracy = card.measure_photo_model(load_backbone(tmp_path, device="cpu"), photos, known, 1)
    assert {"name", "choice", "yes_no", "group", "background"} <= accuracy.keys()
    assert set(accuracy["name"]) == {"train", "unseen_by_editor", "unseen"}


# -- the command -----------------------------------------------------------------------------------------


def test_the_command_trains_resumes_and_writes_the_card(
    photos: PhotoFolder,
    language_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LIVEEDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(parts_module, "pretrained_tower", lambda grid: tower())
    settings = [f"--set={name}={getattr(FEW, name)}" for name in ("views", "photos", "word_steps", "connector_steps")]
    given = ["train-smol-llava", "--photos", str(photos.path), "--language-model", str(language_folder), *settings]
    with pytest.raises(NotFoundError, match="train-smol-llava --photos FOLDER"):
        load_backbone("smol-llava")
    assert main([*given, "--set=adapter_steps=2", "--card", "--card-photos=1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["accuracy"]["name"].keys() == {"train", "unseen_by_editor", "unseen"}
    folder = Path(printed["model"])
    assert "nearest class by the tower alone" in (folder / "README.md").read_text(encoding="utf-8")
    model = load_backbone("smol-llava", device="cpu")
    bits = weight_bits(model.model)
    assert main([*given, "--set=adapter_steps=2"]) == 0
    assert weight_bits(load_backbone("smol-llava", device="cpu").model) == bits, "nothing is left to train"


@pytest.mark.parametrize("setting", ["rank=high", "depth=3", "views=1.5"])
def test_unknown_settings_are_refused(photos: PhotoFolder, setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-smol-llava", "--photos", str(photos.path), "--set", setting]) == 1
    assert "is no setting of this training. Settings are" in capsys.readouterr().err


def test_other_settings_do_not_continue_a_training(train: Train, tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises((CheckpointError, ConfigError), match="rank"):
        train(tmp_path, replace(FEW, rank=3, adapter_steps=4))
