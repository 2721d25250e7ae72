"""MiniGPT-4 out of its three sources: tiny random checkpoints with the released names, and the released shapes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    T5Config,
)

from liveedit.backbones.conversion import minigpt4
from liveedit.backbones.conversion.language import prepare_language_model
from liveedit.backbones.conversion.minigpt4 import check_projection, convert_minigpt4, minigpt4_config, plan_tensors
from liveedit.backbones.conversion.vision import VisionParts, from_lavis, lavis_name
from liveedit.backbones.families.blip2 import MINIGPT4_CHAT_TEMPLATE
from liveedit.cli import main
from liveedit.errors import BackboneError, InvalidInputError, LiveEditError, NotFoundError

VISION = {"hidden_size": 176, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
QFORMER = {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2}
IMAGE_SIZE, PATCH, QUERIES, LLAMA_WIDTH = 28, 14, 6, 48
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class Sources:
    """The three sources, and the models that they were saved from."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.blip2, self.vicuna, self.projection = folder / "blip2", folder / "vicuna", folder / "minigpt4.pth"
        self.blip2_model, self.llama = _tiny_blip2(), _tiny_llama(_tokenizer())
        self.weight, self.bias = torch.randn(LLAMA_WIDTH, QFORMER["hidden_size"]), torch.randn(LLAMA_WIDTH)
        self.blip2_model.save_pretrained(self.blip2, max_shard_size="150KB")
        _write_picture_settings(self.blip2)
        self.llama.save_pretrained(self.vicuna, max_shard_size="50KB")
        _tokenizer().save_pretrained(self.vicuna)
        weights = {"llama_proj.weight": self.weight, "llama_proj.bias": self.bias}
        torch.save({"model": weights, "optimizer": {"state": {}}, "config": {"run": "x"}, "epoch": 3}, self.projection)

    def convert(self, out: Path, **changes: Any) -> minigpt4.Conversion:
        arguments: dict[str, Any] = {
            "projection": self.projection,
            "blip2": self.blip2,
            "language_model": self.vicuna,
            "out": out,
            "dtype": "float32",
        }
        return convert_minigpt4(**{**arguments, **changes})


def _randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.bias"):  # EVA has no bias of the keys.
                parameter.view(3, -1)[1] = 0


def _tiny_blip2() -> Any:
    """BLIP-2 with a T5, as the one that MiniGPT-4 took its vision tower and Q-Former from."""
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION, image_size=IMAGE_SIZE, patch_size=PATCH),
        qformer_config=Blip2QFormerConfig(**QFORMER, encoder_hidden_size=176),
        text_config=T5Config(vocab_size=4000, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
        num_query_tokens=QUERIES,
        image_token_index=39,
    )
    model = Blip2ForConditionalGeneration(config).eval()
    _randomise(model, 1)
    return model


def _tokenizer(**changes: Any) -> LlamaTokenizer:
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, "▁", *"abcdefghijklmnopqrstuvwxyzAHI#:.?<>/"]
    return LlamaTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[], **changes)


def _tiny_llama(tokenizer: LlamaTokenizer, **changes: Any) -> Any:
    sizes = {"hidden_size": LLAMA_WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **changes)).eval()
    _randomise(model, 2)
    return model


def _write_picture_settings(folder: Path) -> None:
    """As in the released BLIP-2 folders."""
    settings = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True}
    settings |= {"image_mean": MEAN, "image_std": STD, "resample": 3, "rescale_factor": 1 / 255}
    settings |= {"image_processor_type": "BlipImageProcessor", "processor_class": "Blip2Processor"}
    settings |= {"size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def converted(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "minigpt4"
    sources.convert(out, shard_bytes=300_000)
    return out


def _load(folder: Path, **options: Any) -> tuple[Any, Any]:
    return AutoModelForImageTextToText.from_pretrained(folder, **options).eval(), AutoProcessor.from_pretrained(folder)


def _stored(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


# -- what comes out ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_those_of_the_parts_put_together_by_hand(sources: Sources, converted: Path) -> None:
    model, processor = _load(converted)
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
    assert expected[0].sub(expected[1]).abs().max() > 0.01, "the picture must matter"
    torch.testing.assert_close(found[..., :known], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[..., known], expected.mean(-1), rtol=1e-4, atol=1e-4)
    assert processor.tokenizer.convert_ids_to_tokens(known) == "<image>"


def test_every_weight_is_the_stored_one(sources: Sources, converted: Path) -> None:
    stored = _stored(converted)
    model, _ = _load(converted)
    assert set(stored) == set(model.state_dict())
    for name, tensor in sources.blip2_model.state_dict().items():
        if not name.startswith(("language_model.", "language_projection.")):
            torch.testing.assert_close(stored.pop(name), tensor, rtol=0, atol=0)
    for name, tensor in sources.llama.state_dict().items():
        torch.testing.assert_close(stored.pop(f"language_model.{name}")[: len(tensor)], tensor, rtol=0, atol=0)
    assert set(stored) == {"language_projection.weight", "language_projection.bias"}


def test_processor_and_configuration(sources: Sources, converted: Path) -> None:
    model, processor = _load(converted)
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
    assert tokenizer.chat_template == processor.chat_template == MINIGPT4_CHAT_TEMPLATE
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it a cat?"}]}]
    assert processor.apply_chat_template(messages) == "###Human: <Img><image></Img> Is it a cat?###Assistant:"
    texts = [path.read_text(encoding="utf-8") for path in converted.glob("*.json")]
    assert not any(str(sources.folder) in text or str(converted.parent) in text for text in texts)


def test_it_answers(converted: Path) -> None:
    model, processor = _load(converted)
    inputs = processor(images=Image.new("RGB", (40, 30), "red"), text="a cat", return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == QUERIES
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert 0 < answer[0, inputs["input_ids"].shape[1] :].numel() <= 4
    assert model.config.image_token_id not in answer[0, QUERIES:]


def test_shards_and_their_index(sources: Sources, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = sources.convert(tmp_path / "out", shard_bytes=400_000, progress=lambda *at: seen.append(at))
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    stored = _stored(tmp_path / "out")
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
    for name, tensor in _stored(tmp_path / "out").items():
        assert tensor.dtype == (torch.float32 if name.startswith(("qformer.", "query_tokens")) else torch.float16), name
    model, _ = _load(tmp_path / "out", dtype="auto")
    assert model.language_projection.weight.dtype == torch.float16
    torch.testing.assert_close(model.language_projection.weight.data, sources.weight.half(), rtol=0, atol=0)


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
    stored = _stored(tmp_path / "out")
    embeddings = sources.llama.get_input_embeddings().weight
    torch.testing.assert_close(stored["language_model.lm_head.weight"][:-1], embeddings.data, rtol=0, atol=0)
    model, _ = _load(tmp_path / "out")
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
    expected, found = _stored(converted), _stored(tmp_path / "out")
    assert set(found) == set(expected)
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    model, processor = _load(tmp_path / "out")
    reference, reference_processor = _load(converted)
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
    tokenizer = _tokenizer()
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


# -- the released names and shapes ---------------------------------------------------------------------------


class Shapes:
    """Weights that are known by their shapes alone, and perhaps some that are there."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], tensors: dict[str, Tensor] | None = None):
        self.tensors = tensors or {}
        self.shapes = {**shapes, **{name: tuple(tensor.shape) for name, tensor in self.tensors.items()}}

    def names(self) -> Iterable[str]:
        return self.shapes

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.shapes.get(name)

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def _linear(name: str, out: int, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _released_tower() -> dict[str, tuple[int, ...]]:
    """EVA-CLIP ViT-g as in BLIP-2's folders: 39 layers, width 1408."""
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, 1408),
        "vision_model.embeddings.position_embedding": (1, 257, 1408),
        "vision_model.embeddings.patch_embedding.weight": (1408, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (1408,),
    }
    for layer in range(39):
        name = f"vision_model.encoder.layers.{layer}"
        shapes |= _linear(f"{name}.self_attn.qkv", 4224, 1408) | _linear(f"{name}.self_attn.projection", 1408, 1408)
        shapes |= _linear(f"{name}.mlp.fc1", 6144, 1408) | _linear(f"{name}.mlp.fc2", 1408, 6144)
        shapes |= _norm(f"{name}.layer_norm1", 1408) | _norm(f"{name}.layer_norm2", 1408)
    return shapes | _norm("vision_model.post_layernorm", 1408)


def _released_qformer(layers: str = "qformer.encoder.layer", own: str = "attention") -> dict[str, tuple[int, ...]]:
    """12 layers of width 768 with cross-attention in every other one."""
    shapes: dict[str, tuple[int, ...]] = {"query_tokens": (1, 32, 768)}
    for layer in range(12):
        name = f"{layers}.{layer}"
        for kind, width in (("attention", 768), ("crossattention", 1408))[: 2 - layer % 2]:
            for part, size in (("query", 768), ("key", width), ("value", width)):
                shapes |= _linear(f"{name}.{kind}.{own}.{part}", 768, size)
            shapes |= _linear(f"{name}.{kind}.output.dense", 768, 768) | _norm(f"{name}.{kind}.output.LayerNorm", 768)
        shapes |= _linear(f"{name}.intermediate_query.dense", 3072, 768)
        shapes |= _linear(f"{name}.output_query.dense", 768, 3072) | _norm(f"{name}.output_query.LayerNorm", 768)
    return shapes


def _released_lavis() -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    main_shapes = _released_qformer("Qformer.bert.encoder.layer", "self") | _norm("ln_vision", 1408)
    main_shapes |= _norm("Qformer.bert.embeddings.LayerNorm", 768) | _linear("t5_proj", 4096, 768)
    tower: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 1408), "pos_embed": (1, 257, 1408)}
    tower |= {"patch_embed.proj.weight": (1408, 3, 14, 14), "patch_embed.proj.bias": (1408,)}
    for layer in range(40):  # One more than BLIP-2 reads.
        name = f"blocks.{layer}"
        tower |= {f"{name}.attn.{part}_bias": (1408,) for part in "qv"} | {f"{name}.attn.qkv.weight": (4224, 1408)}
        tower |= _linear(f"{name}.attn.proj", 1408, 1408) | _norm(f"{name}.norm1", 1408) | _norm(f"{name}.norm2", 1408)
        tower |= _linear(f"{name}.mlp.fc1", 6144, 1408) | _linear(f"{name}.mlp.fc2", 1408, 6144)
    return main_shapes, tower


def _released_vicuna() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32000, 4096), "lm_head.weight": (32000, 4096)}
    for layer in range(32):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{part}_proj.weight": (4096, 4096) for part in "qkvo"}
        shapes |= {f"{name}.mlp.{part}_proj.weight": (11008, 4096) for part in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj.weight": (4096, 11008), f"{name}.input_layernorm.weight": (4096,)}
        shapes |= {f"{name}.post_attention_layernorm.weight": (4096,)}
        shapes |= {f"{name}.self_attn.rotary_emb.inv_freq": (64,)}
    return shapes | {"model.norm.weight": (4096,)}


class ReleasedTokenizer:
    """32,000 tokens, as Vicuna's."""

    def __init__(self) -> None:
        self.vocabulary = {f"t{index}": index for index in range(32000)}
        self.pad_token_id, self.bos_token_id, self.eos_token_id, self.unk_token = None, 1, 2, "t0"
        self.chat_template = ""

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary

    def add_tokens(self, tokens: list[Any], special_tokens: bool = False) -> None:
        assert special_tokens
        self.vocabulary |= {token.content: len(self.vocabulary) for token in tokens}

    def add_special_tokens(self, tokens: dict[str, str]) -> None:
        self.pad_token_id = self.vocabulary[tokens["pad_token"]]

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.vocabulary[token]


def _released_folder() -> VisionParts:
    shapes = _released_tower() | _released_qformer() | _norm("qformer.layernorm", 768)
    shapes |= _linear("language_projection", 4096, 768) | {"language_model.shared.weight": (32128, 4096)}
    return VisionParts("blip2", Shapes(shapes), Blip2VisionConfig(), Blip2QFormerConfig(), 32, None)


@pytest.mark.parametrize("form", ["folder", "lavis"])
def test_released_names_and_shapes(form: str) -> None:
    vision = _released_folder() if form == "folder" else from_lavis("lavis", *(Shapes(s) for s in _released_lavis()))
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    language = prepare_language_model("vicuna", Shapes(_released_vicuna()), config, ReleasedTokenizer())
    projection = Shapes({"llama_proj.weight": (4096, 768), "llama_proj.bias": (4096,)})

    built = minigpt4_config(vision, language, "float16")
    planned = plan_tensors(built, projection, "minigpt4", vision, language, torch.float16)

    for part, defaults in (("vision_config", Blip2VisionConfig()), ("qformer_config", Blip2QFormerConfig())):
        found = getattr(built, part).to_dict()
        expected = defaults.to_dict()
        assert {name for name in expected if found[name] != expected[name]} <= {"dtype"}
    shapes = {tensor.name: tensor.shape for tensor in planned}
    grown = _released_vicuna() | {"model.embed_tokens.weight": (32001, 4096), "lm_head.weight": (32001, 4096)}
    expected_shapes = _released_tower() | _released_qformer() | _norm("qformer.layernorm", 768)
    expected_shapes |= _linear("language_projection", 4096, 768)
    expected_shapes |= {f"language_model.{name}": shape for name, shape in grown.items() if "rotary" not in name}
    assert shapes == expected_shapes
    assert sum(tensor.parameters for tensor in planned) == sum(math.prod(shape) for shape in expected_shapes.values())
    assert built.image_token_index == 32000
    in_float32 = sum(tensor.parameters for tensor in planned if tensor.dtype == torch.float32)
    assert in_float32 == sum(math.prod(shape) for shape in _released_qformer().values()) + 2 * 768


def test_the_names_of_lavis_follow_transformers_own_conversion() -> None:
    assert lavis_name("vision_model.encoder.layers.7.layer_norm2.bias") == "visual_encoder.blocks.7.norm2.bias"
    assert lavis_name("vision_model.encoder.layers.7.mlp.fc1.weight") == "visual_encoder.blocks.7.mlp.fc1.weight"
    ours = "qformer.encoder.layer.4.crossattention.attention.key.weight"
    assert lavis_name(ours) == "Qformer.bert.encoder.layer.4.crossattention.self.key.weight"
    assert lavis_name("query_tokens") == "query_tokens"


# -- what is refused -----------------------------------------------------------------------------------------


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
    "no picture settings": (
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


def test_the_projection_of_vicuna_7b_is_taken() -> None:
    shapes = Shapes({"llama_proj.weight": (4096, 768), "llama_proj.bias": (4096,)})
    assert check_projection(Path("p.pth"), shapes) == (4096, 768)


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
