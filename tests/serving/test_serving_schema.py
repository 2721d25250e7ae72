"""schemathesis: what the OpenAPI schema says of a running server of the built-in model is so.

`LIVEEDIT_FUZZ` says how many requests are fuzzed; `make fuzz` asks for many.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx2
import pytest
from serving_fakes import listening

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.samples import EditCase
from liveedit.serving.api_keys import KeyFile
from liveedit.serving.app import create_app
from liveedit.serving.engine import Engine
from liveedit.serving.served_model import ServedModel
from liveedit.serving.settings import ServingSettings

EXAMPLES = max(4, int(os.environ.get("LIVEEDIT_FUZZ", "0")) // 50)
"""Of each route; edge cases of each field come on top."""


@dataclass(frozen=True)
class Running:
    """A server, a key that may do everything, and edits in every state."""

    url: str
    key: str
    ids: tuple[str, ...]


@pytest.fixture
def running(tiny_llava: Backbone, tmp_path: Path, eval_cases: tuple[EditCase, ...]) -> Iterator[Running]:
    key = (file := KeyFile(tmp_path / "keys.json")).add("admin", "schema")[1]
    settings = ServingSettings.model_validate({"new_tokens": 8, "prompt_tokens": 64})
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db") as model:
        questions = [case.edit.question for case in eval_cases[:3]]
        made = [model.edit(question.image, question.prompt, "Bruvak").id for question in questions]
        model.undo(made[1])
        model.store.purge(made[2])
        model.refresh()
        served = ServedModel(model, settings)
        engine = Engine(served, settings)
        with listening(engine, create_app(engine, "tiny-llava", served, file)) as (url, _):
            yield Running(url, key, tuple(made))


@pytest.mark.slow
def test_the_server_does_what_its_schema_says(running: Running, tmp_path: Path) -> None:
    if find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed (pip install 'liveedit[dev]')")
    options = ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--max-examples", str(EXAMPLES)]
    options += ["--seed", "1", "--generation-database", "none", "--no-color", "--workers", "1"]
    options += ["--header", f"Authorization: Bearer {running.key}"]
    hooks = Path(__file__).parents[1] / "helpers" / "schemathesis_hooks.py"
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": str(hooks), "LIVEEDIT_IDS": " ".join(running.ids)}
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{running.url}/openapi.json", *options]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Stateful" in done.stdout


def test_the_examples_of_the_schema_are_answered(running: Running) -> None:
    with httpx2.Client(base_url=running.url, headers={"Authorization": f"Bearer {running.key}"}, timeout=60) as client:
        answered = []
        for path, operations in client.get("/openapi.json").json()["paths"].items():
            body = operations.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in body:
                answered.append(path)
                headers = {"Content-Type": "application/json"}
                response = client.post(path, content=json.dumps(body["example"]), headers=headers)
                assert response.status_code in (200, 201), response.text
        assert {"/v1/chat/completions", "/v1/edits", "/v1/heat-maps", "/v1/check"} <= set(answered)
