"""The cost of a LiveEdit edit, relative to a prefix pass (embedding, vision tower, prefix) over its inputs.

Edit: `LiveEdit.make_experts` of one edit and `LiveEdit.add` of its expert, with 0 or 10,000 experts in the
repository. Baseline: `Backbone.encode` of the same question and answer and `Backbone.states` at the edit
layer (embedding, vision tower, layers up to the edit layer) of the same model with the editor paused: its
hooks return at once. The image is in memory; its preprocessing and the tokenizer are inside both. The
expert is removed between repetitions; this is not timed.

Figures: `edit_over_prefix_0` and `edit_over_prefix_10000`, medians of edit over median of baseline.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from liveedit.editors.liveedit import LiveEdit
from liveedit.experts import ExpertRepository
from shapes import Shape, build_backbone, editor_config, make_cases, random_repository
from timing import Settings, interleaved_seconds, median_ratio, milliseconds, read_settings, report

STORED = 10_000
TARGETS = {"edit_over_prefix_0": 1.12, f"edit_over_prefix_{STORED}": 1.12}


def measure(shape: Shape, settings: Settings) -> dict[str, Any]:
    """All figures of one shape."""
    backbone = build_backbone(shape, settings.device)
    edit = make_cases(shape, 1)[0].edit
    editor = LiveEdit.untrained(backbone, editor_config(shape))
    feature = torch.randn(editor.config.feature_parts * editor.config.module_width, device=settings.device)
    stored = random_repository(editor.config, STORED, feature)
    empty = ExpertRepository(settings.device)

    @torch.no_grad()
    def prefix() -> None:
        with editor.paused():
            backbone.hidden_states(backbone.encode([edit.question], [edit.answer]), shape.edit_layer)

    def edit_once(repository: ExpertRepository) -> None:
        editor.repository = repository
        editor.add("new", editor.make_experts([edit])[0])

    def remove() -> None:
        for repository in (stored, empty):
            if "new" in repository:
                repository.remove("new")

    calls = {
        "prefix": prefix,
        "edit_0": partial(edit_once, empty),
        f"edit_{STORED}": partial(edit_once, stored),
    }
    seconds = interleaved_seconds(calls, settings.repeats, settings.device, remove)
    tokens = int(backbone.encode([edit.question], [edit.answer]).attention_mask.sum())
    return {
        "edit_over_prefix_0": median_ratio(seconds, "edit_0", "prefix"),
        f"edit_over_prefix_{STORED}": median_ratio(seconds, f"edit_{STORED}", "prefix"),
        **milliseconds(seconds),
        "sequence_tokens": tokens,
        "bytes_per_edit": stored.get("edit0").store_bytes,
    }


def main() -> None:
    """Measure and report."""
    settings = read_settings(__doc__ or "", repeats=15, short=(7, ("small", "large")))
    report("edit_latency", settings, {shape.name: measure(shape, settings) for shape in settings.shapes}, TARGETS)


if __name__ == "__main__":
    main()
