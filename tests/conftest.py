"""Models, images and data that many tests share. All are small, seeded, and made once."""

# ruff: noqa: E402
from __future__ import annotations

import os

from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""One thread for each process, here and in those that tests start: the models are too small to share, and the tests run
beside each other."""

install_import_hook(
    [
        "liveedit.backbones.external_call",
        "liveedit.backbones.tokens",
        "liveedit.editors.liveedit.losses",
        "liveedit.editors.liveedit.modules",
        "liveedit.editors.shared",
        "liveedit.experts.repository",
    ],
    "shape_checks.checked",
)
"""Shapes in signatures are checked in the tests. The hook has to be installed before these modules are imported."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from postgres_server import PostgresServer, reason_to_skip, running_server

from liveedit.backbones import Backbone, load_backbone
from liveedit.cli import main
from liveedit.datasets import read
from liveedit.datasets.world import write_world
from liveedit.editors.liveedit import LiveEditConfig
from liveedit.experts import LowRankExpert
from liveedit.pretraining.models import TINY_LLAVA
from liveedit.samples import EditCase
from liveedit.testing import random_image
from liveedit.testing.model_traces import left_unchanged

ConfigMaker = Callable[..., LiveEditConfig]


@pytest.fixture(scope="session")
def shared_random_backbone() -> Backbone:
    """A tiny LLaVA with random weights; use `random_backbone`, which looks after it."""
    return Backbone("tiny-random", TINY_LLAVA.build(seed=1), TINY_LLAVA.processor())


@pytest.fixture(scope="session")
def shared_tiny_llava() -> Backbone:
    return load_backbone("tiny-llava", device="cpu")


@pytest.fixture
def random_backbone(shared_random_backbone: Backbone) -> Iterator[Backbone]:
    """A random backbone, checked to be left as it was."""
    yield from left_unchanged(shared_random_backbone)


@pytest.fixture
def tiny_llava(shared_tiny_llava: Backbone) -> Iterator[Backbone]:
    """The built-in backbone, checked to be left as it was."""
    yield from left_unchanged(shared_tiny_llava)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn world of 12 training and 12 evaluation cases."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, seed=7, train=12, eval=12)
    return folder


@pytest.fixture(scope="session")
def train_cases(world: Path) -> tuple[EditCase, ...]:
    return read("mmedit", world / "train.json", world)


@pytest.fixture(scope="session")
def eval_cases(world: Path) -> tuple[EditCase, ...]:
    return read("mmedit", world / "eval.json", world)


@pytest.fixture(scope="session")
def picture() -> Callable[[int], Image.Image]:
    """A 64 x 64 image of random blocks, one for each seed."""
    return random_image


@pytest.fixture(scope="session")
def small_config() -> ConfigMaker:
    """The shape of a small editor for the tiny backbones, in the improved form or the paper's."""

    def make(form: str = "improved", **changes: object) -> LiveEditConfig:
        maker = LiveEditConfig.paper if form == "paper" else LiveEditConfig.create
        sizes: dict[str, object] = {"module_width": 32, "rank": 2, "feature_parts": 2}
        if form != "paper":
            sizes["heads"] = 4
        return maker(**{"width": 192, "layer": 3, "image_tokens": 16, **sizes, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def random_expert() -> Callable[..., LowRankExpert]:
    """An expert of random numbers that fits `small_config`."""

    def make(seed: int, width: int = 192, rank: int = 2, features: int = 64) -> LowRankExpert:
        generator = torch.Generator().manual_seed(seed)
        shapes = ((rank, width), (rank, width), (features,), (features,), (features,))
        return LowRankExpert(*(torch.randn(shape, generator=generator) for shape in shapes))

    return make


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server; the test is skipped, with the reason, where none can be started."""
    if (reason := reason_to_skip()) is not None:
        pytest.skip(reason)
    with running_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of an empty database."""
    return postgres_server.empty_database()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command; gives its exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call
