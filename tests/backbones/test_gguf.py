"""GGUF files: a tiny one written here is loaded, saved and edited; what cannot be read is refused in one sentence."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from shift_editor import ShiftEditor
from tiny_gguf import TEMPLATE, tensors_of, tiny_llama, tiny_qwen2, write_tiny_gguf

from liveedit import EditedModel
from liveedit.backbones import load_backbone
from liveedit.doctor import examine
from liveedit.errors import BackboneError
from liveedit.samples import Question
from liveedit.store.store import EditStore

pytestmark = pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")

QUESTION = Question("What is there?")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(file, tiny_llama())
    return file


def test_it_is_the_model_that_was_written(tiny: Path) -> None:
    backbone = load_backbone(tiny, device="cpu")
    inputs = backbone.encode([QUESTION], ["nothing"])
    with torch.no_grad():
        expected = tiny_llama()(input_ids=inputs.input_ids).logits
        torch.testing.assert_close(backbone.logits(inputs), expected, atol=1e-5, rtol=1e-5)
    assert backbone.prompt_text(QUESTION) == "<|im_start|>user\nWhat is there?<|im_end|>\n<|im_start|>assistant\n"
    assert backbone.tokenizer.chat_template == TEMPLATE
    assert backbone.tokenizer.decode([backbone.end_token_id]) == "<|im_end|>"
    assert backbone.fingerprint["model_type"] == "llama"
    assert examine(backbone).healthy


def test_another_family_is_the_model_that_was_written(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", tiny_qwen2(), "qwen2")
    backbone = load_backbone(tmp_path, device="cpu")
    assert backbone.fingerprint["model_type"] == "qwen2"
    inputs = backbone.encode([QUESTION], ["nothing"])
    with torch.no_grad():
        expected = tiny_qwen2()(input_ids=inputs.input_ids).logits
        torch.testing.assert_close(backbone.logits(inputs), expected, atol=1e-5, rtol=1e-5)
    assert backbone.tokenizer.decode([backbone.end_token_id]) == "<|im_end|>"
    assert examine(backbone).healthy


def test_weights_of_other_shapes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    narrow = {**tensors_of(model), "blk.1.ffn_up.weight": np.zeros((64, 64), np.float32)}
    monkeypatch.setattr("tiny_gguf.tensors_of", lambda model: narrow)
    write_tiny_gguf(tmp_path / "narrow.gguf", model)
    with pytest.raises(BackboneError, match="its weights have other shapes than its description says"):
        load_backbone(tmp_path / "narrow.gguf")


def test_commands_show_no_bars_of_libraries(tiny: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("ask", "--backbone", tiny, "--prompt", QUESTION.prompt, "--json")
    assert (code, err) == (0, "")
    assert out.startswith("{")


def test_quantized_blocks_are_unpacked_in_the_precision_asked_for(tmp_path: Path) -> None:
    """Against the rule of Q8_0: blocks of 32, each with its largest value at 127, and a scale in float16."""
    model = tiny_llama(1)
    write_tiny_gguf(tmp_path / "tiny.gguf", model, quantized=True)
    weight = tensors_of(model)["blk.2.ffn_up.weight"]
    blocks = weight.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True) / 127
    expected = (np.round(blocks / scale) * scale.astype(np.float16).astype(np.float32)).reshape(weight.shape)
    for dtype in (torch.float32, torch.bfloat16):
        backbone = load_backbone(tmp_path, dtype, "cpu")
        found = backbone.layers[2].mlp.up_proj.weight  # type: ignore[union-attr]
        assert found.dtype == backbone.dtype == dtype
        torch.testing.assert_close(found.float(), torch.from_numpy(expected).to(dtype).float(), atol=1e-6, rtol=1e-2)
        assert not backbone.model.is_quantized


def test_a_saved_model_is_an_ordinary_checkpoint(tiny: Path, tmp_path: Path) -> None:
    backbone = load_backbone(tiny, device="cpu")
    digest = backbone.digest()
    assert "quantization_config" not in backbone.model.config.to_dict()
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    again = load_backbone(tmp_path, device="cpu")
    inputs = backbone.encode([QUESTION], ["nothing"])
    assert torch.equal(again.encode([QUESTION], ["nothing"]).input_ids, inputs.input_ids)
    with torch.no_grad():
        assert torch.equal(again.logits(inputs), backbone.logits(inputs))
    assert again.digest() == digest, "edits made with one are the other's too"
    assert again.fingerprint == backbone.fingerprint
    assert again.end_token_id == backbone.end_token_id


def test_the_name_is_a_file_or_its_folder_and_no_other_file_of_that_name(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the same name lies in the working directory."""
    digest = load_backbone(tiny, device="cpu").digest()
    write_tiny_gguf(tmp_path / "tiny.gguf", tiny_llama(seed=5))
    monkeypatch.chdir(tmp_path)
    assert load_backbone(tiny, device="cpu").digest() == digest
    assert load_backbone(tiny.parent, device="cpu").digest() == digest
    assert load_backbone("tiny.gguf", device="cpu").digest() != digest


def test_an_edits_file_takes_it(tiny: Path, tmp_path: Path) -> None:
    before = None
    for expected in (0, 1):
        backbone = load_backbone(tiny, device="cpu")
        with EditedModel(backbone, ShiftEditor(backbone), EditStore(tmp_path / "edits.db")) as model:
            assert len(model) == expected
            if not expected:
                before = model.ask(None, QUESTION.prompt).text
                model.edit(None, QUESTION.prompt, "much", must_take=False)
            else:
                model.undo(model.edits()[0].id)
                assert model.ask(None, QUESTION.prompt).text == before


def test_a_folder_with_several_files_is_refused_with_their_names(tiny: Path, tmp_path: Path) -> None:
    for name in ("one.gguf", "two.GGUF"):
        shutil.copy(tiny, tmp_path / name)
    with pytest.raises(BackboneError, match=r"2 GGUF files: one\.gguf, two\.GGUF\. Give the path of one"):
        load_backbone(tmp_path)


def test_other_files_and_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words.gguf").write_text("These are words.")
    with pytest.raises(BackboneError, match="is not a GGUF file"):
        load_backbone(tmp_path / "words.gguf")
    with pytest.raises(BackboneError, match="There is no file"):
        load_backbone("absent.gguf")


def test_quantization_with_it_is_refused(tiny: Path) -> None:
    with pytest.raises(BackboneError, match=r"quantization='8bit' was given for a GGUF file.*Leave it out"):
        load_backbone(tiny, quantization="8bit")


def test_without_its_package_it_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liveedit.backbones.gguf.is_gguf_available", lambda: False)
    with pytest.raises(BackboneError, match=r"pip install 'liveedit\[gguf\]'"):
        load_backbone(tiny)


@pytest.mark.parametrize(
    ("architecture", "words"),
    [("rwkv7", r"architecture 'rwkv7', which transformers does not read.*llama"), ("clip", "vision projector")],
)
def test_an_architecture_that_cannot_be_read_is_refused(architecture: str, words: str, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "other.gguf", tiny_llama(), architecture)
    with pytest.raises(BackboneError, match=words):
        load_backbone(tmp_path / "other.gguf")


def test_a_part_of_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first of several files is: its weights are the first layers alone."""
    model = tiny_llama()
    kept = {name: value for name, value in tensors_of(model).items() if not name.startswith("blk.3.")}
    monkeypatch.setattr("tiny_gguf.tensors_of", lambda model: kept)
    write_tiny_gguf(tmp_path / "part.gguf", model)
    with pytest.raises(BackboneError, match=r"lacks 9 weights of the model, such as model\.layers\.3\..*--merge"):
        load_backbone(tmp_path / "part.gguf")


def test_a_file_that_is_cut_off_anywhere_is_refused(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    lengths = [0, 3, 4, 20, 24, 100, *(len(whole) * part // 20 for part in range(1, 20)), len(whole) - 40]
    for length in lengths:
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(BackboneError, match=r"cut\.gguf") as refused:
            load_backbone(tmp_path / "cut.gguf", device="cpu")
        assert "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_header_is_refused_or_harmless(tiny: Path, tmp_path: Path) -> None:
    """200 files, each with one byte of its description changed: a sentence, or a model; never another error."""
    whole, draw = tiny.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[draw.randrange(2_000)] ^= 1 << draw.randrange(8)
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        try:
            load_backbone(tmp_path / "damaged.gguf", device="cpu")
        except BackboneError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 20
