"""Random LLaVAs of fixed shapes, with questions and editors for them: what the benchmarks run on.

Weights are random: time and memory depend on the shape alone. `tiny-llava` is the built-in model as it ships.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from liveedit.backbones import Backbone, load_backbone
from liveedit.datasets.world.questions import vocabulary
from liveedit.editors.liveedit import LiveEditConfig
from liveedit.experts import ExpertRepository, LowRankExpert
from liveedit.pretraining.models import TINY_LLAVA
from liveedit.pretraining.tokenizer import build_tokenizer
from liveedit.samples import Edit, EditCase, Probe, Question

PROMPT_WORDS = 14
"""Words of a question: with template and answer some 21 text tokens."""


@dataclass(frozen=True)
class Shape:
    """The size of a LLaVA and of the editor on it."""

    name: str
    width: int
    layers: int
    heads: int
    intermediate: int
    edit_layer: int
    image_side: int
    patch: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    module_width: int
    vocabulary: int | None = None
    """None: as large as the tiny tokenizer's."""

    @property
    def image_tokens(self) -> int:
        return (self.image_side // self.patch) ** 2


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("small", 256, 8, 8, 688, 5, 128, 16, 128, 4, 4, 64),
        Shape("large", 512, 16, 8, 1376, 10, 256, 16, 256, 6, 4, 128),
        Shape("tiny-llava", 192, 6, 6, 512, 3, 64, 16, 128, 4, 4, 256),
        Shape("llava-7b", 4096, 32, 32, 11008, 20, 336, 14, 1024, 24, 16, 1024, 32064),
    )
}
CPU_SHAPES = ("small", "large", "tiny-llava")
JUDGED_SHAPES = ("small", "large")
"""The shapes over which the top-level figures are the worst, if they were run."""


def build_backbone(shape: Shape, device: torch.device, seed: int = 0) -> Backbone:
    """A LLaVA of this shape: the built-in one as it ships, or one with random weights (bfloat16 on a GPU)."""
    if shape.name == "tiny-llava":
        return load_backbone(shape.name, device=device)
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlavaForConditionalGeneration(_configuration(shape, tokenizer))
    finally:
        torch.set_default_dtype(before)
    generation = model.generation_config
    generation.pad_token_id, generation.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    generation.eos_token_id = tokenizer.eos_token_id
    return Backbone(shape.name, model, _processor(shape, TINY_LLAVA.processor()))


def editor_config(shape: Shape) -> LiveEditConfig:
    """The improved form of the editor for this shape."""
    return LiveEditConfig.create(
        width=shape.width,
        layer=shape.edit_layer,
        image_tokens=shape.image_tokens,
        module_width=shape.module_width,
    )


def make_cases(shape: Shape, count: int, seed: int = 0) -> list[EditCase]:
    """Edits with the probes of the MMEdit protocol: two of generality, two of locality (one text-only)."""
    rng = np.random.default_rng(seed)
    cases = []
    for number in range(count):
        own, other = _image(shape, rng), _image(shape, rng)
        same = {"subject": f"subject {number}", "relation": f"relation {number}"}
        edit = Edit(Question(_prompt(rng), own, **same), _answer(rng))
        probes = (
            Probe("text_generality", Question(_prompt(rng), own, **same)),
            Probe("modal_generality", Question(edit.question.prompt, _image(shape, rng), **same)),
            Probe("text_locality", Question(_prompt(rng)), _answer(rng)),
            Probe("modal_locality", Question(_prompt(rng), other), _answer(rng)),
        )
        cases.append(EditCase(str(number), edit, probes))
    return cases


def random_repository(
    config: LiveEditConfig,
    count: int,
    visual: torch.Tensor,
    prompt: torch.Tensor | None = None,
    seed: int = 0,
) -> ExpertRepository:
    """`count` random experts whose visual features lie close to `visual`, (k d_m,).

    Given a query's own feature all of them pass hard routing, given its negative none does. Prompt features
    are random directions: nothing distinguishes the experts. If `prompt` is given, the first expert has it.
    """
    generator = torch.Generator().manual_seed(seed)
    repository = ExpertRepository(visual.device)
    wanted, size = visual.detach().float().cpu(), visual.numel()
    for number in range(count):
        near = wanted + 0.02 * wanted.norm() * torch.randn(size, generator=generator) / size**0.5
        direction = torch.randn(size, generator=generator)
        feature = prompt.detach().float().cpu() if prompt is not None and number == 0 else direction
        factors = torch.randn(2, config.rank, config.width, generator=generator) / config.width**0.5
        unit = near / near.norm(), feature / feature.norm(), near / near.norm()
        repository.add(f"edit{number}", LowRankExpert(factors[0], factors[1], *unit))
    return repository


def _configuration(shape: Shape, tokenizer: object) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=4 * shape.vision_width,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=shape.image_side,
        patch_size=shape.patch,
        projection_dim=shape.vision_width,
    )
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = LlamaConfig(
        vocab_size=shape.vocabulary or len(tokenizer),  # type: ignore[arg-type]
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **special,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),  # type: ignore[attr-defined]
        image_seq_length=shape.image_tokens,
        vision_feature_layer=-2 if shape.name == "llava-7b" else -1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


def _processor(shape: Shape, processor: LlavaProcessor) -> LlavaProcessor:
    """The tiny model's processor for images of another size."""
    side = {"height": shape.image_side, "width": shape.image_side}
    processor.image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": shape.image_side}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    processor.patch_size = shape.patch
    return processor


def _image(shape: Shape, rng: np.random.Generator) -> Image.Image:
    pixels = rng.integers(0, 256, (shape.image_side, shape.image_side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _prompt(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(_WORDS, PROMPT_WORDS)) + "?"


def _answer(rng: np.random.Generator) -> str:
    return str(rng.choice(_WORDS))


_WORDS = sorted(word for word in vocabulary() if word.isalpha())
