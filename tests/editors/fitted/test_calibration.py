"""Calibrations: what they are made from, how they are kept, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from liveedit.backbones import Backbone
from liveedit.editors.fitted import Calibration, FittedConfig, FittedExperts, calibrate
from liveedit.editors.fitted import calibration as calibration_module
from liveedit.editors.fitted.calibration import FILE, calibrated_settings, default_calibration
from liveedit.editors.fitted.drawn_images import drawn_images
from liveedit.editors.fitted.similarities import StateSimilarities
from liveedit.errors import BackboneError, CheckpointError, ConfigError, ImageError, InvalidInputError, NotFoundError
from liveedit.samples import Question
from liveedit.testing import tiny_backbone
from liveedit.training import checkpoints
from liveedit.training.checkpoints import load_tensors, save_tensors

Picture = Callable[[int], Image.Image]


def config_of(**settings: Any) -> FittedConfig:
    return FittedConfig.model_validate(settings)


def features(backbone: Backbone, calibration: Calibration, config: FittedConfig, image: Image.Image | None) -> Any:
    questions = [Question("What is this?", image), Question("Where is Lisbon?")]
    inputs = backbone.encode(questions)
    layers = config.layer_of_content(backbone), config.layer_of_reading(backbone)
    states = (backbone.hidden_states(inputs, layer) for layer in layers)
    return StateSimilarities(calibration, config, backbone.tokenizer.decode).query(inputs, *states)


@pytest.fixture(scope="session")
def shared_text_backbone() -> Backbone:
    """A random one, which is quicker."""
    return tiny_backbone("llama")


@pytest.fixture
def saved(tmp_path: Path, text_backbone: Backbone, text_calibration: Calibration, config: FittedConfig) -> Path:
    """A folder with the calibration of the text-only model."""
    text_calibration.save(tmp_path / "calibration", text_backbone, config)
    return tmp_path / "calibration"


# -- kept ------------------------------------------------------------------------------------------------


def test_a_saved_calibration_gives_the_same_features_bit_for_bit(
    tmp_path: Path, tiny_llava: Backbone, calibration: Calibration, config: FittedConfig, picture: Picture
) -> None:
    calibration.save(tmp_path, tiny_llava, config)
    read = Calibration.load(tmp_path, tiny_llava, config)
    assert (read.name, read.template) == (calibration.name, calibration.template)
    first, again = (features(tiny_llava, one, config, picture(1)) for one in (calibration, read))
    assert first.own.abs().sum() > 0
    for name in ("visual", "sentinel", "prompt", "own"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert read.image is not None and calibration.image is not None
    assert torch.equal(read.image.neutral, calibration.image.neutral)
    assert torch.equal(read.text.neutral, calibration.text.neutral)


def test_a_text_only_model_has_no_statistics_of_images(
    saved: Path, text_backbone: Backbone, config: FittedConfig
) -> None:
    assert Calibration.load(saved, text_backbone, config).image is None


def test_it_moves_to_another_device_whole(calibration: Calibration) -> None:
    moved = calibration.to(torch.device("meta"))
    assert moved.image is not None and moved.image.content.mean.device.type == "meta"
    assert moved.text.neutral.device.type == "meta" and moved.text.reading.basis.device.type == "meta"


def test_the_default_one_is_made_once_and_again_if_it_is_damaged(
    text_backbone: Backbone, config: FittedConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIVEEDIT_CACHE", str(tmp_path))
    made: list[int] = []

    def counted(*given: Any, **named: Any) -> Calibration:
        made.append(1)
        return calibrate(*given, **named)

    monkeypatch.setattr(calibration_module, "calibrate", counted)
    first = default_calibration(text_backbone, config)
    second = default_calibration(text_backbone, config)
    assert len(made) == 1 and torch.equal(first.text.neutral, second.text.neutral)
    default_calibration(text_backbone, config_of(false_firing=0.2))
    assert len(made) == 2, "another setting, another calibration"
    default_calibration(text_backbone, config_of(least_reading=0.9))
    assert len(made) == 2, "no calibration depends on this setting"
    for file in tmp_path.rglob(FILE):
        file.write_bytes(b"damaged")
    third = default_calibration(text_backbone, config)
    assert len(made) == 3 and torch.equal(first.text.neutral, third.text.neutral)


def test_a_cache_that_cannot_be_written_to_costs_time_alone(
    text_backbone: Backbone, config: FittedConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LIVEEDIT_CACHE", str(tmp_path / "file"))
    assert default_calibration(text_backbone, config).name == "built-in 5"


@pytest.mark.parametrize("was_there", [False, True])
def test_interrupted_writing_leaves_nothing_behind(
    tmp_path: Path,
    text_backbone: Backbone,
    text_calibration: Calibration,
    config: FittedConfig,
    monkeypatch: pytest.MonkeyPatch,
    was_there: bool,
) -> None:
    if was_there:
        text_calibration.save(tmp_path, text_backbone, config)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(before) == was_there

    def interrupted(tensors: Any, file: Path, **_: Any) -> None:
        file.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        text_calibration.save(tmp_path, text_backbone, config)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


# -- refused ---------------------------------------------------------------------------------------------


def test_a_missing_or_truncated_file_is_refused(saved: Path, text_backbone: Backbone, config: FittedConfig) -> None:
    with pytest.raises(NotFoundError, match="no trained editor and no calibration"):
        FittedExperts.load(text_backbone, str(saved / "elsewhere"))
    file = saved / FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="could not be read"):
        Calibration.load(saved, text_backbone, config)
    with pytest.raises(CheckpointError, match="could not be read"):
        FittedExperts.load(text_backbone, str(saved))


@pytest.mark.parametrize("missing", ["text.neutral", "text.content.basis"])
def test_a_file_without_one_of_its_parts_is_refused(
    saved: Path, text_backbone: Backbone, config: FittedConfig, missing: str
) -> None:
    tensors, note = load_tensors(saved / FILE)
    del tensors[missing]
    save_tensors(saved / FILE, tensors, note)
    with pytest.raises(CheckpointError, match=rf"no whole calibration .*{missing}.*Make it again"):
        Calibration.load(saved, text_backbone, config)


def test_a_file_of_something_else_is_refused(tmp_path: Path, text_backbone: Backbone, config: FittedConfig) -> None:
    save_tensors(tmp_path / FILE, {"weights": torch.ones(2)}, {})
    for load in (
        lambda: Calibration.load(tmp_path, text_backbone, config),
        lambda: calibrated_settings(tmp_path),
        lambda: FittedExperts.load(text_backbone, str(tmp_path)),
    ):
        with pytest.raises(CheckpointError, match="holds no calibration"):
            load()


def test_that_of_another_model_is_refused(
    tmp_path: Path, saved: Path, tiny_llava: Backbone, text_backbone: Backbone, calibration: Calibration
) -> None:
    with pytest.raises(BackboneError, match=r"made for another model.*liveedit calibrate"):
        FittedExperts.load(tiny_llava, str(saved))
    calibration.save(tmp_path, tiny_llava, config_of())
    # Its edit layer, 4, is none of the four layers of the other model: the message is about the model all the same.
    with pytest.raises(BackboneError, match="made for another model"):
        FittedExperts.load(text_backbone, str(tmp_path))


@pytest.mark.parametrize(
    "setting",
    [
        *({"layer": 1}, {"content_layer": 0}, {"reading_layer": 0}),
        *({"false_firing": 0.3}, {"image_matches": 0.3}, {"reading_matches": 0.3}),
    ],
)
def test_that_of_other_settings_is_refused(saved: Path, text_backbone: Backbone, setting: dict[str, Any]) -> None:
    with pytest.raises(BackboneError, match="other settings"):
        FittedExperts.configured(text_backbone, setting, str(saved))
    with pytest.raises(BackboneError, match="other settings"):
        Calibration.load(saved, text_backbone, config_of(**setting))


def test_settings_that_it_was_made_with_are_taken_from_it(tmp_path: Path, text_backbone: Backbone) -> None:
    config = config_of(layer=1, content_layer=0, reading_layer=0, false_firing=0.2)
    calibrate(text_backbone, config).save(tmp_path, text_backbone, config)
    with FittedExperts.configured(text_backbone, {"steps": 7}, str(tmp_path)) as editor:
        assert (editor.layer, editor.config.content_layer, editor.config.reading_layer) == (1, 0, 0)
        assert (editor.config.false_firing, editor.config.steps) == (0.2, 7)


def test_unknown_settings_are_refused_beside_a_calibration(saved: Path, text_backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"wordigns.*fitted-experts has .*wordings"):
        FittedExperts.configured(text_backbone, {"wordigns": 3}, str(saved))


def test_too_few_images_are_refused(tiny_llava: Backbone, config: FittedConfig) -> None:
    for count in (0, 15):
        with pytest.raises(InvalidInputError, match=f"{count} images were given. A calibration needs at least 16"):
            calibrate(tiny_llava, config, drawn_images(count))


def test_images_are_refused_by_a_model_that_reads_text_alone(text_backbone: Backbone, config: FittedConfig) -> None:
    with pytest.raises(InvalidInputError, match=r"reads text alone.*Calibrate without them"):
        calibrate(text_backbone, config, drawn_images(16))


def test_an_image_that_cannot_be_read_stops_it_and_no_hook_stays(
    tiny_llava: Backbone, config: FittedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_module, "NEUTRAL_QUESTIONS", calibration_module.NEUTRAL_QUESTIONS[:2])
    (tmp_path / "broken.png").write_bytes(b"no image")
    hooks = len(tiny_llava.layers[1]._forward_hooks)
    with pytest.raises(ImageError, match=r"broken\.png"):
        calibrate(tiny_llava, config, [*drawn_images(15), tmp_path / "broken.png"])
    assert len(tiny_llava.layers[1]._forward_hooks) == hooks


# -- made ------------------------------------------------------------------------------------------------


def test_own_images_have_a_name_of_their_own_and_the_built_in_ones_do_not(
    tiny_llava: Backbone, calibration: Calibration, config: FittedConfig, picture: Picture
) -> None:
    named: list[str] = []
    for start in (0, 100):
        own = calibrate(tiny_llava, config, [picture(start + number) for number in range(16)])
        named.append(own.name)
        assert own.image is not None and calibration.image is not None
        assert own.image.least_similarity != calibration.image.least_similarity
        assert torch.equal(own.text.content.mean, calibration.text.content.mean), "texts are the same"
    assert calibration.name == "built-in 5" and len({*named, calibration.name}) == 3


def test_it_reports_each_question_once(text_backbone: Backbone, config: FittedConfig) -> None:
    reports: list[tuple[int, int]] = []
    calibrate(text_backbone, config, progress=lambda done, total: reports.append((done, total)))
    assert reports == sorted(set(reports)) and reports[-1] == (486, 486)


def test_drawn_images_are_the_same_every_time_and_differ_from_each_other() -> None:
    first, again = ([image.tobytes() for image in drawn_images(20)] for _ in range(2))
    assert first == again and len(set(first)) == 20


def test_more_false_firing_lowers_the_threshold_of_texts(text_backbone: Backbone) -> None:
    found = [
        calibrate(text_backbone, config_of(false_firing=share)).text.least_similarity for share in (0.01, 0.2, 0.5)
    ]
    assert 1 > found[0] > found[1] > found[2]
