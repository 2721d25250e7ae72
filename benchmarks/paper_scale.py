"""Speed and memory at the paper's scale: LLaVA-1.5-7B's shape with random weights in bfloat16, on a GPU.

    python benchmarks/paper_scale.py --out benchmarks/results/paper_scale.json

Milliseconds per edit and their ratio to the prefix pass (the layers up to the edit layer over the edit's own tokens);
tokens per second edited against unedited with 0, 1,000 and 10,000 active edits; bytes per edit; peak memory; one
joint training step. For the improved form and the paper's. Weights are random: speed does not depend on them. The paper
gives 0.32 s and 160 KB per edit on an A800.

Absolute times need a GPU. Without one the default is skipped; `--shape small` tries the script, and its times mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liveedit.backbones import Backbone
from liveedit.backbones.hidden_states import HiddenStateCache
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.editors.liveedit.task import LiveEditLosses, LiveEditTask
from shapes import SHAPES, Shape, build_backbone, editor_config, make_cases, random_repository

Times = dict[str, float]


def milliseconds(device: torch.device, run: Callable[[], object], repeats: int) -> Times:
    """Median, least and most of `repeats` runs, after two to warm up."""
    found = []
    for index in range(repeats + 2):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        if index >= 2:
            found.append(1000 * (time.perf_counter() - started))
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure_edit(editor: LiveEdit, shape: Shape, repeats: int) -> dict[str, Any]:
    """One edit, and in the same run its baseline: encoding it, and the prefix pass."""
    backbone, device = editor.backbone, editor.device
    edit = make_cases(shape, 1)[0].edit
    inputs = backbone.encode([edit.question], [edit.answer])
    with torch.no_grad():
        prefix = milliseconds(device, lambda: backbone.hidden_states(inputs, shape.edit_layer), repeats)
    encoding = milliseconds(device, lambda: backbone.encode([edit.question], [edit.answer]), repeats)
    whole = milliseconds(device, lambda: editor.make_experts([edit]), repeats)
    (expert,) = editor.make_experts([edit])
    return {
        "edit_ms": whole,
        "prefix_ms": prefix,
        "encode_ms": encoding,
        "edit_over_encode_and_prefix": whole["median"] / (encoding["median"] + prefix["median"]),
        "bytes_per_edit": expert.store_bytes,
    }


def measure_generation(
    editor: LiveEdit, shape: Shape, repeats: int, tokens: int, counts: Sequence[int]
) -> list[dict[str, Any]]:
    """Tokens per second with these numbers of active edits, which all pass hard routing, and with the editor paused."""
    backbone, device, rows = editor.backbone, editor.device, []
    question = make_cases(shape, 1, seed=1)[0].edit.question
    inputs = backbone.encode([question], padding="left")
    with torch.no_grad():
        query = editor.modules.query(editor.read(inputs))
    backbone.model.generation_config.eos_token_id = None  # Every answer has all its tokens.
    for count in counts:
        editor.reset()
        experts = random_repository(editor.config, count, query.visual[0], query.prompt[0])
        for edit_id in experts.ids:
            editor.add(edit_id, experts.get(edit_id))
        edited = milliseconds(device, lambda: backbone.generate(inputs, tokens), repeats)
        fired = sum(len(row) for row in editor.fired() or [])
        with editor.paused():
            plain = milliseconds(device, lambda: backbone.generate(inputs, tokens), repeats)
        speed = {name: 1000 * tokens / times["median"] for name, times in (("edited", edited), ("unedited", plain))}
        ratio = speed["edited"] / speed["unedited"]
        print(f"{count} edits: {speed}", flush=True)
        rows.append({"edits": count, "mixed": fired, "tokens_per_second": speed, "edited_over_unedited": ratio})
    editor.reset()
    return rows


def measure_training(
    backbone: Backbone, config: LiveEditConfig, shape: Shape, repeats: int, batch: int
) -> dict[str, Any]:
    """One joint step on cached states (forward, backward, AdamW), and the time to fill the cache."""
    editor = LiveEdit.untrained(backbone, config)
    editor.detach()
    store = HiddenStateCache(backbone, config.layer)
    task = LiveEditTask(backbone, config.layer, make_cases(shape, batch), LiveEditLosses(), store)
    started = time.perf_counter()
    task.prepare()
    _wait(editor.device)
    filling = time.perf_counter() - started
    optimizer = torch.optim.AdamW(editor.modules.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast(editor.device.type, torch.bfloat16):
            loss, _ = task.loss(editor.modules, "joint", range(batch), np.random.default_rng(0))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    times = milliseconds(editor.device, step, repeats)
    return {"edits": batch, "inputs": len(store), "keeping_states_s": filling, "step_ms": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llava-7b")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32, help="tokens generated for each answer")
    parser.add_argument("--edits", type=int, nargs="+", default=[0, 1_000, 10_000])
    parser.add_argument("--batch", type=int, default=8, help="edits in a training step")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device, shape = torch.device("cuda" if torch.cuda.is_available() else "cpu"), SHAPES[options.shape]
    if device.type == "cpu" and shape.name == "llava-7b":
        print("Skipped: there is no GPU. --shape small tries the script.", flush=True)
        return
    backbone = build_backbone(shape, device)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU: times mean nothing",
        "torch": torch.__version__,
        "dtype": str(backbone.dtype),
        "shape": asdict(shape),
    }
    sizes = {"width": shape.width, "layer": shape.edit_layer, "image_tokens": shape.image_tokens}
    paper = LiveEditConfig.paper(**sizes, module_width=shape.module_width)
    for form, config in (("improved", editor_config(shape)), ("paper", paper)):
        with LiveEdit.untrained(backbone, config) as editor:
            found = measure_edit(editor, shape, options.repeats)
            found["generation"] = measure_generation(editor, shape, options.repeats, options.tokens, options.edits)
        found["training"] = measure_training(backbone, config, shape, max(2, options.repeats // 4), options.batch)
        if device.type == "cuda":
            found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        result[form] = found
    text = json.dumps(result, indent=2)
    print(text, flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
