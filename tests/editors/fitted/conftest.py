"""One cache folder and one calibration of the built-in backbone for all tests of fitted experts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from liveedit.backbones import Backbone, load_backbone
from liveedit.editors.fitted import Calibration, FittedConfig, FittedExperts
from liveedit.editors.fitted.calibration import default_calibration
from liveedit.testing.model_traces import left_unchanged


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache_of_the_tests(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Calibrations are kept for the session, and not in the user's folder."""
    monkeypatch.setenv("LIVEEDIT_CACHE", str(cache))


@pytest.fixture(scope="session")
def shared_text_backbone() -> Backbone:
    return load_backbone("tiny-llama-lm", device="cpu")


@pytest.fixture
def text_backbone(shared_text_backbone: Backbone) -> Iterator[Backbone]:
    """The built-in language model, which reads no images, checked to be left as it was."""
    yield from left_unchanged(shared_text_backbone)


@pytest.fixture
def config() -> FittedConfig:
    return FittedConfig.model_validate({})


@pytest.fixture
def calibration(tiny_llava: Backbone, config: FittedConfig) -> Calibration:
    """The built-in calibration of tiny-llava."""
    return default_calibration(tiny_llava, config)


@pytest.fixture
def text_calibration(text_backbone: Backbone, config: FittedConfig) -> Calibration:
    return default_calibration(text_backbone, config)


@pytest.fixture
def editor(tiny_llava: Backbone, config: FittedConfig, calibration: Calibration) -> Iterator[FittedExperts]:
    with FittedExperts(tiny_llava, config, calibration) as opened:
        yield opened


@pytest.fixture
def text_editor(
    text_backbone: Backbone, config: FittedConfig, text_calibration: Calibration
) -> Iterator[FittedExperts]:
    with FittedExperts(text_backbone, config, text_calibration) as opened:
        yield opened
