"""Speed and memory at the paper's scale: LLaVA-1.5-7B's shape with random weights, on a GPU.

    python benchmarks/paper_scale.py --out benchmarks/results/paper_scale.json

Measures milliseconds per edit and their ratio to the prefix pass (the layers up to the edit layer over the edit's own
tokens), tokens per second edited against unedited with 0, 1,000 and 10,000 edits in force, bytes per edit, peak memory,
and one training step of the joint stage. Weights are random: speed does not depend on them, answers mean nothing. The
paper gives 0.32 s per edit and 160 KB per edit on an A800 (section 7.4 and table 5 of LiveEdit).

Without a GPU only `--shape tiny` runs, which tries the script and says nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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

from liveedit.backbones import Backbone
from liveedit.backbones.built_in.tokenizer import build_tokenizer
from liveedit.backbones.states import StateStore
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.editors.liveedit.task import LiveEditLosses, LiveEditTask
from liveedit.experts import Expert
from liveedit.samples import Edit, EditCase, Probe, Question

PROMPT = "What color is the hat that the creature wears on the left side of the picture?"


@dataclass(frozen=True)
class Scale:
    """The shape of a LLaVA-1.5 and of the editor on it; the paper's are those of "7b"."""

    width: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    image_side: int
    patch: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    edit_layer: int
    module_width: int


SCALES = {
    "7b": Scale(4096, 32, 32, 11008, 32064, 336, 14, 1024, 24, 16, 20, 1024),
    "tiny": Scale(64, 4, 4, 128, 2048, 56, 14, 32, 2, 2, 2, 32),
}


def build(scale: Scale, dtype: torch.dtype, device: str) -> Backbone:
    """A LLaVA of this shape, its weights drawn on the device itself."""
    tokenizer = build_tokenizer()
    text = LlamaConfig(
        vocab_size=scale.vocabulary,
        hidden_size=scale.width,
        intermediate_size=scale.intermediate,
        num_hidden_layers=scale.layers,
        num_attention_heads=scale.heads,
        num_key_value_heads=scale.heads,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=scale.vision_width,
        intermediate_size=4 * scale.vision_width,
        num_hidden_layers=scale.vision_layers,
        num_attention_heads=scale.vision_heads,
        image_size=scale.image_side,
        patch_size=scale.patch,
        projection_dim=scale.vision_width,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(scale.image_side // scale.patch) ** 2,
    )
    with torch.device(device):
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = LlavaForConditionalGeneration(config)
        finally:
            torch.set_default_dtype(default)
    size = {"height": scale.image_side, "width": scale.image_side}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": scale.image_side}, crop_size=size),
        tokenizer,
        patch_size=scale.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "USER: {% for part in messages[0].content %}{% if part.type == 'image' %}<image>{% else %}"
            "{{ part.text }}{% endif %}{% endfor %} ASSISTANT:"
        ),
    )
    return Backbone(f"llava-{scale.layers}x{scale.width}", model, processor)


def milliseconds(device: str, run: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median and spread of `repeats` runs, after two to warm up."""
    found = []
    for index in range(repeats + 2):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        if index >= 2:
            found.append(1000 * (time.perf_counter() - started))
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (336, 336, 3), dtype=np.uint8))


def measure_edit(editor: LiveEdit, device: str, repeats: int) -> dict[str, Any]:
    """One edit, its prefix pass alone, and the ratio of the two in the same run."""
    backbone, edit = editor.backbone, Edit(Question(PROMPT, _picture(0)), "a pointed blue hat")
    inputs = backbone.encode([edit.question], [edit.answer])

    @torch.no_grad()
    def prefix() -> None:
        backbone.states(inputs, editor.config.layer)

    whole = milliseconds(device, lambda: editor.make_experts([edit]), repeats)
    alone = milliseconds(device, prefix, repeats)
    encoding = milliseconds(device, lambda: backbone.encode([edit.question], [edit.answer]), repeats)
    (expert,) = editor.make_experts([edit])
    return {
        "edit_ms": whole,
        "prefix_ms": alone,
        "encode_ms": encoding,
        "edit_over_prefix_and_encode": whole["median"] / (alone["median"] + encoding["median"]),
        "edit_over_prefix": whole["median"] / alone["median"],
        "bytes_per_edit_float32": expert.store_bytes,
        "bytes_per_edit_float16": expert.store_bytes // 2,
    }


def measure_generation(
    editor: LiveEdit, device: str, repeats: int, tokens: int, counts: Sequence[int]
) -> list[dict[str, Any]]:
    """Tokens per second with so many edits in force, beside those of the paused editor in the same run."""
    backbone, rows = editor.backbone, []
    inputs = backbone.encode([Question(PROMPT, _picture(1))], padding="left")
    generator = torch.Generator().manual_seed(0)
    (pattern,) = editor.make_experts([Edit(Question(PROMPT, _picture(2)), "blue")])
    config = backbone.model.generation_config
    config.eos_token_id = None
    for count in counts:
        while len(editor.repository) < count:
            parts = {name: torch.randn(part.shape, generator=generator) for name, part in pattern.tensors.items()}
            editor.add(f"edit-{len(editor.repository)}", Expert(**parts))
        edited = milliseconds(device, lambda: backbone.generate(inputs, tokens), repeats)
        fired = sum(len(row) for row in editor.fired() or [])
        with editor._hook.paused():
            plain = milliseconds(device, lambda: backbone.generate(inputs, tokens), repeats)
        rows.append(
            {
                "edits": count,
                "fired": fired,
                "tokens_per_second_edited": 1000 * tokens / edited["median"],
                "tokens_per_second_unedited": 1000 * tokens / plain["median"],
                "edited_over_unedited": edited["median"] / plain["median"],
            }
        )
    return rows


def measure_training(
    backbone: Backbone, config: LiveEditConfig, device: str, repeats: int, batch: int
) -> dict[str, Any]:
    """One joint step on kept states: forward, backward, AdamW."""
    editor = LiveEdit.untrained(backbone, config)
    editor.detach()
    cases = [_case(seed) for seed in range(batch)]
    task = LiveEditTask(backbone, config.layer, cases, LiveEditLosses(), StateStore(backbone, config.layer))
    started = time.perf_counter()
    task.prepare()
    _wait(device)
    filling = time.perf_counter() - started
    optimizer = torch.optim.AdamW(editor.modules.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss, _ = task.loss(editor.modules, "joint", range(batch), np.random.default_rng(0))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    editor.modules.train()
    return {"batch": batch, "inputs": 8 * batch, "filling_s": filling, "step_ms": milliseconds(device, step, repeats)}


def _case(seed: int) -> EditCase:
    edit = Edit(Question(PROMPT, _picture(seed), f"subject-{seed}", "hat"), "a pointed blue hat")
    in_scope = [
        Probe(
            "text_generality",
            Question("Which color has the hat?", _picture(seed), f"subject-{seed}", "hat"),
            edit.answer,
        ),
        Probe("modal_generality", Question(PROMPT, _picture(seed + 500), f"subject-{seed}", "hat"), edit.answer),
    ]
    outside = [
        Probe("modal_locality", Question("How many legs?", _picture(seed + 900), f"other-{seed}", "legs"), "four"),
        Probe("text_locality", Question("What is the capital of Coraland?", None, f"land-{seed}", "capital"), "Faburg"),
    ]
    return EditCase(f"case-{seed}", edit, (*in_scope, *outside))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SCALES, default="7b")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--edits", type=int, nargs="+", default=[0, 1_000, 10_000])
    parser.add_argument("--batch", type=int, default=8, help="edits in a training step")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and options.shape != "tiny":
        print(
            "There is no GPU: absolute times are measured on one alone. --shape tiny tries the script.", file=sys.stderr
        )
        return 0
    scale, dtype = SCALES[options.shape], torch.bfloat16 if device == "cuda" else torch.float32
    backbone = build(scale, dtype, device)
    forms: dict[str, dict[str, object]] = {"improved": {}, "paper": {}}
    result: dict[str, Any] = {
        "shape": options.shape,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "dtype": str(dtype),
        "scale": asdict(scale),
        "forms": forms,
    }
    for form in forms:
        sizes = {"module_width": scale.module_width}
        make = LiveEditConfig.paper if form == "paper" else LiveEditConfig.create
        config = make(width=scale.width, layer=scale.edit_layer, image_tokens=backbone.image_tokens, **sizes)
        with LiveEdit.untrained(backbone, config) as editor:
            forms[form] |= measure_edit(editor, device, options.repeats)
            forms[form]["generation"] = measure_generation(
                editor, device, options.repeats, options.tokens, options.edits
            )
        forms[form]["training"] = measure_training(
            backbone, config, device, max(2, options.repeats // 4), options.batch
        )
        if device == "cuda":
            forms[form]["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    text = json.dumps(result, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
