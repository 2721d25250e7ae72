"""MiniGPT-4 out of its three sources, which are tiny and random: what comes out, and which forms they may have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from minigpt4_sources import IMAGE_SIZE, MEAN, QUERIES, Shapes, Sources, load_model, stored_weights, vicuna_tokenizer
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional
from transformers import Blip2ForConditionalGeneration, LlamaConfig

from liveedit.backbones import load_backbone
from liveedit.backbones.conversion.language import prepare_language_model
from liveedit.backbones.families.blip2 import MINIGPT4_CHAT_TEMPLATE
from liveedit.cli import main
from liveedit.errors import BackboneError
from liveedit.samples import Question


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def converted(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "minigpt4"
    sources.convert(out, shard_bytes=300_000)
    return out


# -- what comes out ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_those_of_the_parts_put_together_by_hand(sources: Sources, converted: Path) -> None:
    model, processor = load_model(converted)
    pixels = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(3))
    before, after = [1, 259, 260], [261, 262, 280, 281]
    ids = torch.tensor([before + [model.config.image_token_id] * QUERIES + after] * 2)

    found = model(pixel_values=pixels, input_ids=ids).logits

    seen = sources.blip2_model.vision_model(pixels).last_hidden_state
    queries = sources.blip2_model.query_tokens.expand(2, -1, -1)
    features = sources.blip2_model.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
    picture = functional.linear(features, sources.weight, sources.bias)
    words = sources.llama.get_input_embeddings()
    left, right = (words(torch.tensor(part)).expand(2, -1, -1) for part in (before, after))
    expected = sources.llama(inputs_embeds=torch.cat([left, picture, right], dim=1)).logits

    known = sources.llama.config.vocab_size
    assert picture.std() > 0.1
    assert expected[0].sub(expected[1]).abs().max() > 0.01, "the image must matter"
    torch.testing.assert_close(found[..., :known], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[..., known], expected.mean(-1), rtol=1e-4, atol=1e-4)
    assert processor.tokenizer.convert_ids_to_tokens(known) == "<image>"


def test_every_weight_is_the_stored_one(sources: Sources, converted: Path) -> None:
    stored = stored_weights(converted)
    model, _ = load_model(converted)
    assert set(stored) == set(model.state_dict())
    for name, tensor in sources.blip2_model.state_dict().items():
        if not name.startswith(("language_model.", "language_projection.")):
            torch.testing.assert_close(stored.pop(name), tensor, rtol=0, atol=0)
    for name, tensor in sources.llama.state_dict().items():
        torch.testing.assert_close(stored.pop(f"language_model.{name}")[: len(tensor)], tensor, rtol=0, atol=0)
    assert set(stored) == {"language_projection.weight", "language_projection.bias"}


def test_processor_and_configuration(sources: Sources, converted: Path) -> None:
    model, processor = load_model(converted)
    tokenizer = processor.tokenizer
    known = sources.llama.config.vocab_size
    assert type(model) is Blip2ForConditionalGeneration
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>") == known
    assert model.config.text_config.vocab_size == len(tokenizer) == known + 1
    assert model.config.num_query_tokens == processor.num_query_tokens == QUERIES
    assert tokenizer.pad_token == "<unk>"
    assert model.config.text_config.pad_token_id == tokenizer.pad_token_id == 0
    assert processor.image_processor.size == {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    assert list(processor.image_processor.image_mean) == MEAN
    assert tokenizer.chat_template == MINIGPT4_CHAT_TEMPLATE
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it a cat?"}]}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False)
    assert prompt == "###Human: <Img><image></Img> Is it a cat?###Assistant:"
    assert tokenizer(prompt)["input_ids"].count(known) == 1
    texts = [path.read_text(encoding="utf-8") for path in converted.glob("*.json")]
    assert not any(str(sources.folder) in text or str(converted.parent) in text for text in texts)


def test_it_answers(converted: Path) -> None:
    model, processor = load_model(converted)
    inputs = processor(images=Image.new("RGB", (40, 30), "red"), text="a cat", return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == QUERIES
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert 0 < answer[0, inputs["input_ids"].shape[1] :].numel() <= 4
    assert model.config.image_token_id not in answer[0, QUERIES:]


def test_it_is_a_backbone(converted: Path) -> None:
    backbone = load_backbone(converted, device="cpu")
    questions = [Question("is it a cat?", Image.new("RGB", (40, 30), "red")), Question("is it a cat?")]
    inputs = backbone.encode(questions, ["no", "no"])
    assert inputs.image_mask.sum(-1).tolist() == [QUERIES, 0]


def test_shards_and_their_index(sources: Sources, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = sources.convert(tmp_path / "out", shard_bytes=400_000, progress=lambda *at: seen.append(at))
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    stored = stored_weights(tmp_path / "out")
    assert len(result.files) > 2
    assert set(index["weight_map"]) == set(stored)
    assert set(index["weight_map"].values()) == set(result.files)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())
    assert result.parameters == sum(tensor.numel() for tensor in stored.values())
    assert seen == [(done, len(stored)) for done in range(1, len(stored) + 1)]
    for file in result.files:
        with safe_open(tmp_path / "out" / file, framework="pt") as shard:
            sizes = [shard.get_tensor(name).nbytes for name in shard.keys()]  # noqa: SIM118
        assert sum(sizes) <= 400_000 or len(sizes) == 1


def test_half_precision_leaves_the_qformer_as_transformers_wants_it(sources: Sources, tmp_path: Path) -> None:
    result = sources.convert(tmp_path / "out", dtype="float16")
    assert result.files == ("model.safetensors",)
    for name, tensor in stored_weights(tmp_path / "out").items():
        assert tensor.dtype == (torch.float32 if name.startswith(("qformer.", "query_tokens")) else torch.float16), name
    model, _ = load_model(tmp_path / "out", dtype="auto")
    assert model.language_projection.weight.dtype == torch.float16
    torch.testing.assert_close(model.language_projection.weight.data, sources.weight.half(), rtol=0, atol=0)


def test_command(sources: Sources, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--projection", sources.projection, "--blip2", sources.blip2, "--language-model", sources.vicuna]
    command = ["convert-minigpt4", *map(str, options), "--out", str(tmp_path / "out")]
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["folder"] == str(tmp_path / "out")
    assert (result["dtype"], result["image_tokens"]) == ("float16", QUERIES)
    assert "writing weights: 1 of" in err
    assert main(command) == 1
    assert capsys.readouterr().err.startswith(f"Error: {tmp_path / 'out'} is there already and not empty.")


# -- other forms of the sources ------------------------------------------------------------------------------


def test_pytorch_files_and_a_tied_head(sources: Sources, tmp_path: Path) -> None:
    """Vicuna is spread as pytorch_model-*.bin; a tied head is written out."""
    folder = tmp_path / "vicuna"
    shutil.copytree(sources.vicuna, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    weights = {name: tensor for name, tensor in sources.llama.state_dict().items() if name != "lm_head.weight"}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)  # Old checkpoints have these.
    first, second = dict(list(weights.items())[:7]), dict(list(weights.items())[7:])
    files = {"pytorch_model-00001-of-00002.bin": first, "pytorch_model-00002-of-00002.bin": second}
    torch.save(first, folder / "pytorch_model-00001-of-00002.bin")
    torch.save(second, folder / "pytorch_model-00002-of-00002.bin", _use_new_zipfile_serialization=False)
    homes = {name: file for file, part in files.items() for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    sources.convert(tmp_path / "out", language_model=folder)
    stored = stored_weights(tmp_path / "out")
    embeddings = sources.llama.get_input_embeddings().weight
    torch.testing.assert_close(stored["language_model.lm_head.weight"][:-1], embeddings.data, rtol=0, atol=0)
    model, _ = load_model(tmp_path / "out")
    torch.testing.assert_close(model.get_output_embeddings().weight.data, stored["language_model.lm_head.weight"])


def test_shards_without_vision_need_not_be_there(sources: Sources, tmp_path: Path) -> None:
    folder = tmp_path / "blip2"
    shutil.copytree(sources.blip2, folder)
    homes = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in homes.items() if not name.startswith("language_model.")}
    unneeded = set(homes.values()) - needed
    assert unneeded
    for file in unneeded:
        (folder / file).unlink()
    sources.convert(tmp_path / "out", blip2=folder)


def _as_lavis(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights as LAVIS has them: (its .pth, the file of the vision tower)."""
    main: dict[str, Tensor] = {"t5_proj.weight": torch.ones(2, 2)}
    tower: dict[str, Tensor] = {"head.weight": torch.ones(2, 2)}
    inside = {"layer_norm": "norm", "self_attn.qkv": "attn.qkv", "self_attn.projection": "attn.proj"}
    start = {"class_embedding": "cls_token", "position_embedding": "pos_embed", "patch_embedding": "patch_embed.proj"}
    for name, tensor in model.state_dict().items():
        if name.startswith("vision_model.post_layernorm"):
            main[name.replace("vision_model.post_layernorm", "ln_vision")] = tensor
        elif name.startswith("vision_model.embeddings."):
            short = name.removeprefix("vision_model.embeddings.")
            head = short.split(".")[0]
            tower[short.replace(head, start[head])] = tensor
        elif name.endswith("qkv.bias"):
            block = name.replace("vision_model.encoder.layers", "blocks").removesuffix("self_attn.qkv.bias")
            tower[f"{block}attn.q_bias"], _, tower[f"{block}attn.v_bias"] = (part.clone() for part in tensor.chunk(3))
        elif name.startswith("vision_model."):
            short = name.replace("vision_model.encoder.layers", "blocks")
            for ours, theirs in inside.items():
                short = short.replace(ours, theirs)
            tower[short] = tensor
        elif name.startswith("qformer.layernorm"):
            main[name.replace("qformer.layernorm", "Qformer.bert.embeddings.LayerNorm")] = tensor
        elif name.startswith("qformer."):
            main[name.replace("qformer", "Qformer.bert").replace("attention.attention", "attention.self")] = tensor
    main["query_tokens"] = model.query_tokens.data
    return main, tower


def test_files_of_lavis_give_the_same_weights(sources: Sources, converted: Path, tmp_path: Path) -> None:
    main_weights, tower = _as_lavis(sources.blip2_model)
    torch.save({"model": main_weights}, tmp_path / "blip2_pretrained.pth")
    torch.save(tower, tmp_path / "eva_vit_g.pth")
    given = {"blip2": tmp_path / "blip2_pretrained.pth", "vision_tower": tmp_path / "eva_vit_g.pth"}
    sources.convert(tmp_path / "out", **given)
    expected, found = stored_weights(converted), stored_weights(tmp_path / "out")
    assert set(found) == set(expected)
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    model, processor = load_model(tmp_path / "out")
    reference, reference_processor = load_model(converted)
    for part in ("vision_config", "qformer_config"):
        theirs, ours = (getattr(other.config, part).to_dict() for other in (reference, model))
        assert ours == theirs
    shown = (processor.image_processor.to_dict(), reference_processor.image_processor.to_dict())
    assert shown[0] == shown[1]


def test_lavis_keeps_the_tower_apart(sources: Sources, tmp_path: Path) -> None:
    main_weights, tower = _as_lavis(sources.blip2_model)
    torch.save({"model": main_weights}, tmp_path / "blip2_pretrained.pth")
    with pytest.raises(BackboneError, match=r"no visual_encoder.*give eva_vit_g\.pth as the vision tower"):
        sources.convert(tmp_path / "out", blip2=tmp_path / "blip2_pretrained.pth")
    torch.save({"model": tower}, tmp_path / "other.pth")
    with pytest.raises(BackboneError, match="no query_tokens"):
        sources.convert(tmp_path / "out", blip2=tmp_path / "other.pth")


def test_new_rows_are_the_mean_of_the_known_ones() -> None:
    """Also where the checkpoint has spare rows, and where there is neither a padding nor an unknown token."""
    tokenizer = vicuna_tokenizer()
    tokenizer.unk_token = None
    known = len(tokenizer)
    rows = known + 64
    weights = Shapes({}, {"model.embed_tokens.weight": torch.randn(rows, 5), "lm_head.weight": torch.randn(rows, 5)})
    parts = prepare_language_model("vicuna", weights, LlamaConfig(vocab_size=rows), tokenizer)
    assert parts.config.vocab_size == rows
    assert parts.image_token_id == known
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", known + 1)
    for name, stored in weights.tensors.items():
        grown = parts.weights.read(name)
        torch.testing.assert_close(grown[:known], stored[:known], rtol=0, atol=0)
        torch.testing.assert_close(grown[known:], stored[:known].mean(0).expand(64, 5))
