"""Loading models: every family by folder, precisions, device maps, and what is no model."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from forced_experts import fired_ids, forced_expert
from PIL import Image
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from liveedit.backbones import load_backbone
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.errors import BackboneError, NotFoundError
from liveedit.samples import Edit, Question
from liveedit.testing.family_models import EDIT_LAYER, FAMILIES


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    FAMILIES["llava"](folder)
    return folder


QUESTION = Question("What color is the hat?", Image.new("RGB", (64, 64), "red"))


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"has no config\.json"):
        load_backbone(tmp_path)


def test_what_is_plainly_no_model_is_told_before_a_hub_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("no model")
    for name, words in (
        (tmp_path / "file.txt", "is a file"),
        (tmp_path / "absent", "There is no folder"),
        ("tiny-lava", "Did you mean tiny-llava"),
        ("tiny-mingpt4", "Did you mean tiny-minigpt4"),
    ):
        with pytest.raises(BackboneError, match=words):
            load_backbone(name)


def test_an_encoder_decoder_is_told(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 32}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match=r"encoder-decoder \(t5\).*decoder-only"):
        load_backbone(tmp_path)


def test_a_model_that_generates_nothing_is_told(tmp_path: Path) -> None:
    BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"bert"', '"vit"'))
    with pytest.raises(BackboneError, match="neither as a vision-language model nor"):
        load_backbone(tmp_path)


def test_an_unknown_type_is_told(llava: Path, tmp_path: Path) -> None:
    shutil.copytree(llava, tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llava"', '"model_type": "from-the-future"'))
    with pytest.raises(BackboneError, match="from-the-future"):
        load_backbone(tmp_path / "m")


def test_cut_off_weights_are_told(llava: Path, tmp_path: Path) -> None:
    shutil.copytree(llava, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(BackboneError, match="damaged or cut off"):
        load_backbone(tmp_path / "m")


def test_impossible_values_in_a_configuration_are_told(llava: Path, tmp_path: Path) -> None:
    shutil.copytree(llava, tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(re.sub(r'"num_attention_heads": \d+', '"num_attention_heads": "two"', config.read_text()))
    with pytest.raises(BackboneError, match=r"config\.json has impossible values.*num_attention_heads"):
        load_backbone(tmp_path / "m")


def test_blip2_without_an_image_token_is_told(tmp_path: Path) -> None:
    """As its first revisions were."""
    FAMILIES["blip2-opt"](tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    kept = {name: value for name, value in values.items() if not name.startswith("image_token")}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    with pytest.raises(BackboneError, match="no image_token_index"):
        load_backbone(tmp_path, device="cpu")


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl", "gemma3", "idefics3"])
def test_a_chat_template_may_lie_with_the_processor_or_the_tokenizer(family: str, tmp_path: Path) -> None:
    """In chat_template.jinja, in chat_template.json, or in tokenizer_config.json, as in released folders."""
    FAMILIES[family](tmp_path)
    expected = load_backbone(tmp_path, device="cpu").prompt_text(QUESTION)
    template = (tmp_path / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_backbone(tmp_path, device="cpu").prompt_text(QUESTION) == expected
    (tmp_path / "chat_template.json").unlink()
    tokenizer = tmp_path / "tokenizer_config.json"
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "chat_template": template}))
    assert load_backbone(tmp_path, device="cpu").prompt_text(QUESTION) == expected


def test_a_model_without_a_chat_template_is_told(llava: Path, tmp_path: Path) -> None:
    shutil.copytree(llava, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    with pytest.raises(BackboneError, match="no chat template"):
        load_backbone(tmp_path / "m", device="cpu").encode([QUESTION])


def test_an_answer_ends_a_turn_and_does_not_wait_for_a_tool(tmp_path: Path) -> None:
    """Llama 3.1's template names two of its three stop tokens; only one of them ends an answer."""
    FAMILIES["mistral"](tmp_path)
    backbone = load_backbone(tmp_path, device="cpu")
    tokenizer, turn = backbone.tokenizer, backbone.tokenizer.eos_token
    for template in (turn, "{% if tools %}<unk>{% else %}" + turn + "{% endif %}"):
        backbone.__dict__.pop("end_token_id", None)
        tokenizer.chat_template = template
        stops = [10**6, tokenizer.unk_token_id, tokenizer.eos_token_id]
        backbone.model.generation_config.eos_token_id = stops  # type: ignore[union-attr]
        assert backbone.end_token_id == tokenizer.eos_token_id


def test_both_a_device_and_a_map_are_refused(llava: Path) -> None:
    with pytest.raises(BackboneError, match="Both device and device_map"):
        load_backbone(llava, device="cpu", device_map="auto")


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantization_without_its_library_is_told(llava: Path) -> None:
    with pytest.raises(BackboneError, match="bitsandbytes, which is not installed"):
        load_backbone(llava, quantization="8bit")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llava", "blip2-opt", "qwen3-vl"])
def test_half_precision_models_are_edited_in_the_editors_own(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """An expert changes their logits as it does those of the same model in float32, up to rounding."""
    FAMILIES[family](tmp_path)
    found = []
    for precision in (torch.float32, dtype):
        backbone = load_backbone(tmp_path, precision, "cpu")
        assert backbone.dtype == precision
        inputs = backbone.encode([QUESTION], ["red"])
        with LiveEdit.untrained(backbone, _config(backbone.width, backbone.image_tokens)) as editor, torch.no_grad():
            before = backbone.logits(inputs)
            editor.add("edit", forced_expert(editor, QUESTION))
            assert editor.repository.u.dtype == torch.float32
            found.append((before, backbone.logits(inputs)))
            assert fired_ids(editor) == [["edit"]]
    (before, edited), (_, half) = found
    assert half.dtype == dtype
    assert (half - edited).abs().max() < 0.1 * (edited - before).abs().max()


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_models_answer_and_are_edited_alike(llava: Path, tmp_path: Path, place: str) -> None:
    """The last layers and the head wait elsewhere, and come for the time of their call."""
    whole = load_backbone(llava, device="cpu")
    names = [name for name, _ in whole.model.named_children()]
    parts = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    parts |= {"model.language_model.embed_tokens": "cpu", "model.language_model.norm": "cpu"}
    parts |= {"model.language_model.rotary_emb": "cpu"}
    parts |= {f"model.language_model.layers.{layer}": "cpu" if layer < 3 else place for layer in range(4)}
    assert names == ["model", "lm_head"]
    spread = load_backbone(llava, device_map=parts, offload_folder=tmp_path / "offloaded")
    found, config = [], _config(whole.width, whole.image_tokens)
    for backbone in (whole, spread):
        inputs = backbone.encode([QUESTION], ["red"])
        with LiveEdit.untrained(backbone, config) as editor, torch.no_grad():
            editor.edit([("edit", Edit(QUESTION, "red"))])
            states = backbone.hidden_states(inputs, EDIT_LAYER)
            suffix = backbone.logits_from(states, inputs, EDIT_LAYER, inputs.answer_mask)
            found.append((backbone.logits(inputs), suffix, editor.repository.u[:1].clone()))
    assert any(value.is_meta for value in spread.model.parameters()) == (place == "disk")
    assert spread.digest() == whole.digest(), "edits made with one are the other's too"
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_an_editor_of_another_model_is_refused(llava: Path, tmp_path: Path) -> None:
    """Width and layers are alike; the families are not."""
    FAMILIES["qwen3-vl"](tmp_path / "qwen")
    own, other = load_backbone(llava, device="cpu"), load_backbone(tmp_path / "qwen", device="cpu")
    assert own.width == other.width
    with LiveEdit.untrained(own, _config(own.width, 16)) as editor:
        editor.save_pretrained(tmp_path / "out" / "editor")
    LiveEdit.load(own, str(tmp_path / "out" / "editor")).detach()
    with pytest.raises(BackboneError, match=r"trained for another model .*model_type llava, here qwen3_vl"):
        LiveEdit.load(other, str(tmp_path / "out" / "editor"))
    with pytest.raises(NotFoundError, match=r"There is one in .*editor"):
        LiveEdit.load(own, str(tmp_path / "out"))


def _config(width: int, image_tokens: int) -> LiveEditConfig:
    sizes = {"module_width": 32, "heads": 4, "rank": 2, "feature_parts": 2}
    return LiveEditConfig.create(width=width, layer=EDIT_LAYER, image_tokens=image_tokens, **sizes)
