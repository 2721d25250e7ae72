"""What the conversion of MiniGPT-4 refuses, and what it leaves behind where it cannot go on."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from minigpt4_sources import Sources

from liveedit.errors import BackboneError, InvalidInputError, LiveEditError, NotFoundError


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


Change = Callable[[Sources, Path], dict[str, Any]]


def _projection_of(weights: object) -> Change:
    def change(sources: Sources, folder: Path) -> dict[str, Any]:
        torch.save(weights, folder / "other.pth")
        return {"projection": folder / "other.pth"}

    return change


def _projection_shaped(out: int, width: int) -> Change:
    return _projection_of({"model": {"llama_proj.weight": torch.ones(out, width), "llama_proj.bias": torch.ones(out)}})


def _changed_file(part: str, pattern: str, change: Callable[[Path], object]) -> Change:
    """One source copied, with one of its files changed."""

    def apply(sources: Sources, folder: Path) -> dict[str, Any]:
        copy = folder / "copy"
        shutil.copytree(sources.blip2 if part == "blip2" else sources.vicuna, copy)
        change(sorted(copy.glob(pattern))[0])
        return {part: copy}

    return apply


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _set(**values: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _only_language(path: Path) -> None:
    index = json.loads(path.read_text())
    kept = {name: file for name, file in index["weight_map"].items() if name.startswith("language_model.")}
    path.write_text(json.dumps({"weight_map": kept}))


def _without(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        index = json.loads(path.read_text())
        del index["weight_map"][name]
        path.write_text(json.dumps(index))

    return change


INDEX = "model.safetensors.index.json"
REFUSED: dict[str, tuple[Change, type[LiveEditError], str]] = {
    "no projection file": (lambda s, f: {"projection": f / "no.pth"}, NotFoundError, r"no\.pth is not there"),
    "no BLIP-2": (lambda s, f: {"blip2": f / "no"}, NotFoundError, "is not there. Give a BLIP-2 folder"),
    "no Vicuna": (lambda s, f: {"language_model": f / "no"}, NotFoundError, "The folder .* is not there"),
    "other weights": (
        _projection_of({"model": {"a.weight": torch.ones(2), "b": torch.ones(2)}}),
        BackboneError,
        r"lacks llama_proj\.weight and llama_proj\.bias \(found: a\.weight, b\)",
    ),
    "no dictionary": (_projection_of([1, 2]), BackboneError, r"found: none"),
    "pickled code": (_projection_of({"model": Path("x")}), BackboneError, "holds more than weights"),
    "bias of another size": (
        _projection_of({"llama_proj.weight": torch.ones(4, 2), "llama_proj.bias": torch.ones(3)}),
        BackboneError,
        r"shapes \(4, 2\) and \(3,\)",
    ),
    "projection without Q-Former": (_projection_shaped(48, 704), BackboneError, "four patches without a Q-Former"),
    "projection of another Q-Former": (_projection_shaped(48, 99), BackboneError, "width 99, but .* gives 128"),
    "projection of Vicuna-13B": (_projection_shaped(60, 128), BackboneError, "width 60, but .* takes 48"),
    "truncated projection": (
        lambda s, f: (shutil.copy(s.projection, f / "p.pth"), _truncate(f / "p.pth"), {"projection": f / "p.pth"})[2],
        BackboneError,
        r"bytes\) is damaged",
    ),
    "BLIP-2 without vision": (_changed_file("blip2", INDEX, _only_language), BackboneError, "has no vision_model"),
    "BLIP-2 that lacks one": (
        _changed_file("blip2", INDEX, _without("qformer.layernorm.bias")),
        BackboneError,
        r"lacks weights that its configuration asks for: qformer\.layernorm\.bias",
    ),
    "another kind of BLIP": (
        _changed_file("blip2", "config.json", _set(model_type="instructblip")),
        BackboneError,
        "type 'instructblip', where one of type 'blip-2'",
    ),
    "BLIP-2 of another size": (
        _changed_file("blip2", "config.json", _set(num_query_tokens=7)),
        BackboneError,
        r"query_tokens in .* is \(1, 6, 128\), where its configuration asks for \(1, 7, 128\)",
    ),
    "no image settings": (
        _changed_file("blip2", "preprocessor_config.json", Path.unlink),
        BackboneError,
        r"needs config\.json and preprocessor_config\.json",
    ),
    "truncated shard of BLIP-2": (
        _changed_file("blip2", "model-00001-*", _truncate),
        BackboneError,
        r"model-00001-of-.* is damaged or not downloaded to its end",
    ),
    "missing shard of BLIP-2": (_changed_file("blip2", "model-00001-*", Path.unlink), NotFoundError, "model-00001-of"),
    "T5 as language model": (
        _changed_file("language_model", "config.json", _set(model_type="t5", is_encoder_decoder=True)),
        BackboneError,
        "type 't5', where one of type 'llama' is needed. It is an encoder-decoder",
    ),
    "LLaVA as language model": (
        _changed_file("language_model", "config.json", _set(model_type="llava")),
        BackboneError,
        "type 'llava', where one of type 'llama'",
    ),
    "Vicuna without tokenizer": (
        _changed_file("language_model", "tokenizer.json", Path.unlink),
        NotFoundError,
        "has no tokenizer",
    ),
    "Vicuna without weights": (
        _changed_file("language_model", INDEX, Path.unlink),
        NotFoundError,
        r"has no weights. Give a folder with model\.safetensors or",
    ),
    "an index that is none": (
        _changed_file("language_model", INDEX, lambda path: path.write_text("[]")),
        BackboneError,
        "is damaged",
    ),
    "a tower beside a folder": (lambda s, f: {"vision_tower": f / "eva.pth"}, InvalidInputError, "has its own"),
    "unknown dtype": (lambda s, f: {"dtype": "int4"}, InvalidInputError, "Choose one of float16, bfloat16, float32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, sources: Sources, tmp_path: Path) -> None:
    change, error, message = REFUSED[case]
    given = change(sources, tmp_path)
    with pytest.raises(error, match=message):
        sources.convert(tmp_path / "folder/out", **given)
    assert not (tmp_path / "folder").exists(), "nothing is written before everything is checked"


def test_a_tokenizer_that_cannot_be_read(sources: Sources, tmp_path: Path) -> None:
    folder = tmp_path / "vicuna"
    shutil.copytree(sources.vicuna, folder, ignore=shutil.ignore_patterns("tokenizer.json"))
    (folder / "tokenizer.model").write_bytes(b"\x0a\x03abc")
    with pytest.raises(BackboneError, match="pip install sentencepiece protobuf"):
        sources.convert(tmp_path / "out", language_model=folder)


def test_an_output_in_use_is_left_alone(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    sources.convert(tmp_path / "out")  # An empty folder is as good as none.
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(InvalidInputError, match="not empty"):
        sources.convert(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_broken_off_leaves_nothing(sources: Sources, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert [path.name for path in tmp_path.iterdir()] != ["out"]
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sources.convert(tmp_path / "out", shard_bytes=100_000, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "error"), [(1e6, InvalidInputError), (math.nan, BackboneError)])
def test_numbers_that_do_not_fit(value: float, error: type[Exception], sources: Sources, tmp_path: Path) -> None:
    weights = {"llama_proj.weight": sources.weight.clone(), "llama_proj.bias": sources.bias}
    weights["llama_proj.weight"][3, 4] = value
    torch.save({"model": weights}, tmp_path / "other.pth")
    with pytest.raises(error, match=r"language_projection\.weight"):
        sources.convert(tmp_path / "out", projection=tmp_path / "other.pth", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["other.pth"]


def test_a_full_disk_is_noticed_before(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InvalidInputError, match="GB free"):
        sources.convert(tmp_path / "out")
