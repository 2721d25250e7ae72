"""Settings of fitted experts: layers by rule, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from liveedit.backbones import Backbone
from liveedit.editors.base import checked_config
from liveedit.editors.fitted import FittedConfig, FittedExperts
from liveedit.errors import BackboneError, ConfigError


def of_depth(depth: int, first: int = 0) -> Backbone:
    """What the rule reads of a backbone."""
    return cast(Backbone, SimpleNamespace(name="deep", layers=[None] * depth, first_edit_layer=first))


def config(**settings: Any) -> FittedConfig:
    return FittedConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("depth", "layer", "reading"),
    [
        (4, 2, 2),
        (6, 4, 4),
        (12, 9, 8),
        (24, 19, 17),
        (28, 22, 20),
        (30, 24, 22),
        (32, 26, 23),
        (40, 32, 29),
        (80, 66, 59),
    ],
)
def test_layers_follow_from_the_depth(depth: int, layer: int, reading: int) -> None:
    deep = of_depth(depth)
    assert (config().edit_layer(deep), config().layer_of_reading(deep)) == (layer, reading)
    assert config().layer_of_content(deep) == 1


@pytest.mark.parametrize("depth", range(4, 81))
def test_at_every_depth_a_layer_is_left_to_fit_through(depth: int) -> None:
    deep = of_depth(depth)
    content, reading, layer = (
        config().layer_of_content(deep),
        config().layer_of_reading(deep),
        config().edit_layer(deep),
    )
    assert 0 <= content <= reading <= layer <= depth - 2
    assert abs((layer + 1) / depth - 5 / 6) <= 1 / depth


def test_the_rule_keeps_to_layers_that_can_be_edited() -> None:
    assert config().edit_layer(of_depth(8, first=6)) == 6
    assert config(layer=6).edit_layer(of_depth(8, first=6)) == 6
    with pytest.raises(BackboneError, match=r"layer=5 was given; deep can be edited at layers 6 to 6"):
        config(layer=5).edit_layer(of_depth(8, first=6))


@pytest.mark.parametrize("layer", [7, 80])
def test_the_last_layer_and_those_behind_it_are_refused(layer: int) -> None:
    with pytest.raises(BackboneError, match=rf"layer={layer} was given; deep can be edited at layers 0 to 6"):
        config(layer=layer).edit_layer(of_depth(8))


@pytest.mark.parametrize(
    ("name", "layer_of"),
    [("content_layer", FittedConfig.layer_of_content), ("reading_layer", FittedConfig.layer_of_reading)],
)
def test_questions_are_read_up_to_the_edit_layer(name: str, layer_of: Callable[[FittedConfig, Backbone], int]) -> None:
    assert layer_of(config(layer=3, **{name: 3}), of_depth(8)) == 3
    assert layer_of(config(layer=0), of_depth(8)) == 0, "the rule would give more"
    with pytest.raises(BackboneError, match=rf"{name}=4 was given, but the edit layer is 3"):
        layer_of(config(layer=3, **{name: 4}), of_depth(8))


@pytest.mark.parametrize(
    "setting",
    [
        *(
            {"layer": -1},
            {"content_layer": -1},
            {"reading_layer": -1},
            {"wordings": 1},
            {"rows": 1},
            {"steps": -1},
            {"gate_rate": -0.1},
        ),
        *({"false_firing": 0}, {"false_firing": 1}, {"image_matches": 0}, {"least_reading": 1.1}),
        *({"reading_matches": 0}, {"reading_matches": 1}, {"answer_confidence": 1}, {"confidence": 1}),
        *({"unknown": 1}, {"layer": "middle"}),
    ],
)
def test_values_that_mean_nothing_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        checked_config(FittedConfig, setting, "fitted-experts")


def test_the_editor_reports_the_layers_that_were_chosen(editor: FittedExperts) -> None:
    found = editor.configuration()
    assert (found["layer"], found["reading_layer"], found["content_layer"]) == (4, 4, 1)
    assert found["calibration"] == "built-in 5"
    assert editor.config.layer is None


def test_edits_are_bound_to_every_setting(editor: FittedExperts) -> None:
    before = editor.digest()
    editor.config = config(least_reading=0.71)
    assert editor.digest() != before
