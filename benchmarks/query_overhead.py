"""The cost of 10,000 stored edits for a question: none passes hard routing, or all do.

Baseline: the forward pass over one question with its image (`Backbone.logits`, the prefill of an answer)
of the same model with the editor paused: its hooks return at once. `query_none_10000`: the same with the
editor active and 10,000 experts of which none passes; `query_all_10000`: all of them pass, the 32 with
the largest soft weights are mixed (the default bound); `query_all_10000_exact`: all are mixed
(`top_experts=None`), for information.

`dropped_weight` is the summed soft weight of the experts left out by the bound, at its worst: all 10,000
pass and their prompt features do not distinguish them. `dropped_weight_one_in_scope`: the same, but one
of them has the query's own prompt feature, as the expert of the edit in question would.

`generate_*`: 8 tokens with the KV cache, prefill included, over the same unedited; `tokens_per_second_*`:
edited over unedited (1 means no cost). Peak memory is over what is held before the call (0: it fits into
memory that the allocator already holds).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from liveedit.backbones import Backbone, TokenBatch
from liveedit.editors.liveedit import LiveEdit
from liveedit.editors.shared.routing import QueryFeatures
from liveedit.experts import ExpertRepository
from shapes import Shape, build_backbone, editor_config, make_cases, random_repository
from timing import (
    Settings,
    interleaved_seconds,
    median_ratio,
    milliseconds,
    peak_extra_bytes,
    read_settings,
    report,
)

STORED = 10_000
NEW_TOKENS = 8
TARGETS = {f"query_none_{STORED}": 1.15, f"query_all_{STORED}": 1.15}


@dataclass
class Bench:
    """A model with an editor, and the repositories to choose from."""

    backbone: Backbone
    editor: LiveEdit
    repositories: dict[str, ExpertRepository]
    inputs: TokenBatch

    def use(self, repository: str, exact: bool = False) -> None:
        self.editor.repository = self.repositories[repository]
        top = None if exact else self.editor.config.top_experts
        self.editor.modules.config = self.editor.config.model_copy(update={"top_experts": top})

    @torch.inference_mode()
    def unedited(self) -> None:
        with self.editor.paused():
            self.backbone.logits(self.inputs)

    @torch.inference_mode()
    def edited(self, repository: str, exact: bool = False) -> None:
        self.use(repository, exact)
        self.backbone.logits(self.inputs)

    def generate_unedited(self) -> None:
        with self.editor.paused():
            self.backbone.generate(self.inputs, NEW_TOKENS)

    def generate_edited(self, repository: str) -> None:
        self.use(repository)
        self.backbone.generate(self.inputs, NEW_TOKENS)

    def routed(self, repository: str, exact: bool = False) -> tuple[int, float]:
        """Experts mixed, and the weight that the bound dropped."""
        self.edited(repository, exact)
        routing = self.editor._hook.routing
        return (0, 0.0) if routing is None else (routing.weights.shape[1], routing.dropped_weight[0])


def prepare(shape: Shape, device: torch.device) -> Bench:
    """The model and three repositories of 10,000: none passes, all pass, all pass and one is in scope."""
    backbone = build_backbone(shape, device)
    backbone.model.generation_config.min_new_tokens = NEW_TOKENS
    editor = LiveEdit.untrained(backbone, editor_config(shape))
    inputs = backbone.encode([make_cases(shape, 1)[0].edit.question], padding="left")
    with torch.no_grad():
        query: QueryFeatures = editor.modules.query(editor.read(inputs))
    store = partial(random_repository, editor.config, STORED)
    repositories = {
        "none": store(-query.visual[0]),
        "all": store(query.visual[0]),
        "one": store(query.visual[0], query.prompt[0]),
    }
    return Bench(backbone, editor, repositories, inputs)


def measure(shape: Shape, settings: Settings) -> dict[str, Any]:
    """All figures of one shape."""
    bench = prepare(shape, settings.device)
    none, _ = bench.routed("none")
    mixed, dropped = bench.routed("all")
    everything, _ = bench.routed("all", exact=True)
    assert (none, everything) == (0, STORED), "the repositories do not pass hard routing as intended"
    forwards: dict[str, Callable[[], object]] = {
        "unedited": bench.unedited,
        "none": partial(bench.edited, "none"),
        "all": partial(bench.edited, "all"),
    }
    exactly = {"unedited": bench.unedited, "exact": partial(bench.edited, "all", exact=True)}
    generating: dict[str, Callable[[], object]] = {
        "unedited": bench.generate_unedited,
        "none": partial(bench.generate_edited, "none"),
        "all": partial(bench.generate_edited, "all"),
    }
    forward = interleaved_seconds(forwards, settings.repeats, settings.device)
    exact = interleaved_seconds(exactly, max(1, settings.repeats // 4), settings.device)
    generate = interleaved_seconds(generating, max(1, settings.repeats // 2), settings.device)
    return {
        f"query_none_{STORED}": median_ratio(forward, "none", "unedited"),
        f"query_all_{STORED}": median_ratio(forward, "all", "unedited"),
        f"query_all_{STORED}_exact": median_ratio(exact, "exact", "unedited"),
        "generate_none": median_ratio(generate, "none", "unedited"),
        "generate_all": median_ratio(generate, "all", "unedited"),
        "tokens_per_second_none": 1 / median_ratio(generate, "none", "unedited"),
        "tokens_per_second_all": 1 / median_ratio(generate, "all", "unedited"),
        "dropped_weight": dropped,
        "dropped_weight_one_in_scope": bench.routed("one")[1],
        "experts_mixed": mixed,
        "bytes_per_edit": bench.repositories["all"].get("edit0").store_bytes,
        **{
            f"peak_extra_{name}_bytes": peak_extra_bytes(call, settings.device)
            for name, call in {**forwards, **exactly}.items()
        },
        **milliseconds(forward),
        **{f"generate_{name}": value for name, value in milliseconds(generate).items()},
        "sequence_tokens": int(bench.inputs.attention_mask.sum()),
    }


def main() -> None:
    """Measure and report."""
    settings = read_settings(__doc__ or "", repeats=21, short=(9, ("small", "large")))
    report(
        "query_overhead",
        settings,
        {shape.name: measure(shape, settings) for shape in settings.shapes},
        TARGETS,
    )


if __name__ == "__main__":
    main()
