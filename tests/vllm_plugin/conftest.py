"""vLLM with the plugin, in this process. It needs an environment of its own: `make vllm-env`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from vllm_engines import EngineMaker

from liveedit.backbones import built_in_folder

os.environ.setdefault("VLLM_PLUGINS", "liveedit")
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

NEEDS_VLLM = "vLLM is not installed here: make vllm-env, then .vllm-env/bin/python -m pytest tests/vllm_plugin"


@pytest.fixture(scope="session")
def vllm_is_here() -> None:
    if find_spec("vllm") is None:
        pytest.skip(NEEDS_VLLM)


@pytest.fixture(scope="session")
def new_engine(vllm_is_here: None) -> EngineMaker:
    """Makes vLLM's engine for a built-in model, in float32. settings: of the plugin; None for vLLM alone."""

    def make(name: str, settings: dict[str, Any] | None = None, **options: Any) -> Any:
        from vllm import LLM

        sizes = {"max_model_len": 256, "max_num_seqs": 16, "max_num_batched_tokens": 1024}
        further = {} if settings is None else {"additional_config": {"liveedit": {"backbone": name, **settings}}}
        given = {"enforce_eager": True, "enable_chunked_prefill": False, **sizes, **options, **further}
        return LLM(model=str(built_in_folder(name)), dtype="float32", seed=0, **given)

    return make


@pytest.fixture(scope="session")
def many_cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Thirty cases of the drawn world, with all of their probes."""
    from liveedit.datasets import read
    from liveedit.datasets.world import write_world

    folder: Path = tmp_path_factory.mktemp("vllm-world")
    write_world(folder, seed=11, train=0, eval=30)
    return read("mmedit", folder / "eval.json", folder)
