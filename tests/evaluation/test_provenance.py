"""What a row says of where it comes from, and what decides whether it is measured again."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from liveedit.backbones import Backbone
from liveedit.cli.arguments import command_line, typed
from liveedit.evaluation.provenance import (
    Provenance,
    Stopwatch,
    described_load,
    device_name,
    make_provenance,
    sealed,
)

KEPT = Provenance("abc", False, "b" * 64, "d" * 64, {"torch": "1"}, "cpu", 2, "liveedit bench")


def test_the_state_of_code_machine_backbone_and_data(random_backbone: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text("[]")
    found = make_provenance(random_backbone, [file], command="liveedit bench")
    assert found.backbone_digest == random_backbone.digest()
    packages = ("liveedit", "torch", "transformers", "numpy", "tokenizers", "safetensors")
    assert found.versions == {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }
    assert (found.device, found.threads, found.command) == ("cpu", torch.get_num_threads(), "liveedit bench")


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Some GPU {device.index}")
    assert device_name(torch.device("cuda", 1)) == "cuda (Some GPU 1)"
    assert device_name(torch.device("cpu")) == "cpu"


def test_a_row_says_when_it_started_in_utc() -> None:
    watch = Stopwatch()
    started = datetime.fromisoformat(KEPT.of_row({}, watch.started)["started"])
    assert started.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - started) < timedelta(seconds=60) and 0 <= watch.seconds < 60


@pytest.mark.parametrize(
    ("change", "same_inputs", "same_edits"),
    [
        ({"command": "liveedit paper"}, True, True),
        ({"threads": 1}, True, True),
        ({"versions": {"torch": "2"}}, True, False),
        ({"device": "cuda (Some GPU)"}, True, False),
        ({"git_sha": "def"}, True, False),
        ({"data_digest": "e" * 64}, False, False),
        ({"backbone_digest": "e" * 64}, False, False),
        ({"load": {"quantization": "8bit"}}, False, False),
    ],
)
def test_what_a_row_and_saved_edits_depend_on(change: dict[str, Any], same_inputs: bool, same_edits: bool) -> None:
    now = replace(KEPT, **change)
    assert now.same_inputs(KEPT.of_row({}, "2020-01-01T00:00:00+00:00")) == same_inputs
    assert (now.of_edits({"a": 1}) == KEPT.of_edits({"a": 1})) == same_edits
    assert KEPT.of_edits({"a": 1}) != KEPT.of_edits({"a": 2})


def test_a_row_without_an_entry_was_loaded_by_default() -> None:
    row = KEPT.of_row({}, "2020-01-01T00:00:00+00:00")
    del row["load"]
    assert KEPT.same_inputs(row)
    assert not replace(KEPT, load={"dtype": "float16"}).same_inputs(row)


def test_where_weights_are_is_no_part_of_how_they_were_loaded() -> None:
    given = {"dtype": torch.float16, "quantization": None, "device": "cpu", "device_map": "auto", "offload_folder": "x"}
    assert described_load(given) == {"dtype": "float16"}
    assert described_load({"quantization": "4bit"}) == {"quantization": "4bit"}
    assert described_load({}) == {}


def test_the_digest_of_a_row_is_that_of_everything_else_in_it() -> None:
    row = sealed({"b": 2.5, "a": {"y": [1, None], "x": float("inf")}})
    again = json.loads(json.dumps(row))
    assert sealed(again) == again == sealed(row)
    assert sealed({**again, "b": 2.25})["row_digest"] != row["row_digest"]


def test_the_command_line_can_be_typed_again(
    run: Callable[..., tuple[int, str, str]], world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "with space"
    few = ("--edits", 1, 2, "--few-edits-cases", 1, "--max-new-tokens", 1, "--data", world)
    code, _, err = run("bench", *few, "--editor", "a b=none", "--out", out)
    assert code == 0, err
    rows = json.loads((out / "rows.json").read_text(encoding="utf-8"))["rows"]
    (command,) = {row["provenance"]["command"] for row in rows}
    assert shlex.split(command) == ["liveedit", "bench", *map(str, few), "--editor", "a b=none", "--out", str(out)]
    assert all(row["provenance"]["config"]["editor_digest"] == "" for row in rows)
    assert f"- `{command}`: 2 rows" in (out / "report.md").read_text(encoding="utf-8")

    code, _, err = run("bench", *few, "--editor", "a b=none", "--out", out, "--published")
    assert code == 0, err
    again = json.loads((out / "rows.json").read_text(encoding="utf-8"))["rows"]
    assert again == rows, "rows that are found again keep their provenance"
    assert typed.get() is command_line() is None
