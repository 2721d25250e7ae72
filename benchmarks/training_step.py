"""The cost of a training step of 8 edits, relative to the least that an ordinary implementation would do.

Runs on the shape `small` with 5 repetitions; `--long` runs all CPU shapes.

The step's inputs are 40: of each edit the edit itself, a text and a modal generality, a text and a modal
locality. Both sides run on the same machine in the same process, in the mixed precision of the trainer
(bfloat16 products).

`step_over_minimum`: a step from scratch: `LiveEditTask.prepare` (encode the questions, states at the edit
layer and final states of all 40 inputs), then generator, features, mixing and losses (`LiveEditTask.loss`,
stage "joint"), the layers after the edit layer forward and backward, and the optimiser; over one batched
forward of the whole model (vision tower and all layers) on the same 40 inputs, already encoded, plus one
batched forward and backward of the layers after the edit layer on the same 40 inputs.

`step_over_suffix_cached`: the same step with states kept from before, as in all steps of a real training
after the first pass over the data; over one batched forward and backward of the layers after the edit
layer.

The baseline's backward is that of `Backbone.logits_from` and a mean NLL on the answers, with gradients into
the states of every token of every row; weights are frozen on both sides. The step has no gradients of the
tokens before the first that an expert changes, and leaves out of its suffix the rows in which no expert is
mixed; `rows_mixed` says how many an untrained router let through. The figures `*_all_rows` have the experts of
the whole batch mixed into every row (as in the paper's form), so that no row is left out.

`step_over_minimum_8_inputs`: the step from scratch over the same baseline on the 8 edits alone, for
comparison with figures that were taken so.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from liveedit.backbones import Backbone, TokenBatch
from liveedit.backbones.hidden_states import HiddenStateCache
from liveedit.backbones.precision import mixed_precision
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.liveedit.task import LiveEditLosses, LiveEditTask
from liveedit.samples import EditCase
from shapes import Shape, build_backbone, editor_config, make_cases
from timing import Settings, interleaved_seconds, median_ratio, milliseconds, read_settings, report

EDITS = 8
TARGETS = {"step_over_minimum": 2.0, "step_over_suffix_cached": 1.3}


class Baseline:
    """A forward of the whole model, and a forward and backward of its last layers, on some cases' inputs."""

    def __init__(self, backbone: Backbone, layer: int, cases: list[EditCase], with_probes: bool):
        self.backbone, self.layer = backbone, layer
        pairs = [(case.edit.question, case.edit.answer) for case in cases]
        if with_probes:
            pairs += [(probe.question, probe.answer or case.edit.answer) for case in cases for probe in case.probes]
        self.inputs: TokenBatch = backbone.encode([question for question, _ in pairs], [answer for _, answer in pairs])
        self.targets = self.inputs.input_ids[self.inputs.answer_mask]
        answer = self.inputs.answer_mask
        self.predicting = torch.cat([answer[:, 1:], torch.zeros_like(answer[:, :1])], 1)
        with torch.no_grad():
            self.states = backbone.hidden_states(self.inputs, layer)

    @torch.no_grad()
    def forward(self) -> None:
        with mixed_precision(self.backbone.device.type):
            self.backbone.logits(self.inputs)

    def suffix(self) -> None:
        states = self.states.detach().clone().requires_grad_()
        with mixed_precision(self.backbone.device.type):
            logits = self.backbone.logits_from(states, self.inputs, self.layer, self.predicting)
            loss = F.cross_entropy(logits.float(), self.targets)
        loss.backward()


class Step:
    """A training step of the editor, from scratch or on kept states."""

    def __init__(self, backbone: Backbone, shape: Shape, cases: list[EditCase], losses: LiveEditLosses):
        self.backbone, self.shape, self.cases, self.losses = backbone, shape, cases, losses
        torch.manual_seed(0)
        self.modules = LiveEditModules(editor_config(shape)).to(backbone.device)
        trained = [parameter for parameter in self.modules.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.kept = self.prepared()

    def prepared(self) -> LiveEditTask:
        layer = self.shape.edit_layer
        task = LiveEditTask(self.backbone, layer, self.cases, self.losses, HiddenStateCache(self.backbone, layer))
        task.prepare()
        return task

    def from_scratch(self) -> None:
        self.on(self.prepared())

    def cached(self) -> None:
        self.on(self.kept)

    def on(self, task: LiveEditTask) -> None:
        with mixed_precision(self.backbone.device.type):
            loss, _ = task.loss(self.modules, "joint", range(len(self.cases)), np.random.default_rng(0))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def _rows_run(step: Step) -> int:
    """How many rows a step on kept states sends through the last layers."""
    rows: list[int] = []
    task: Any = step.kept
    original = task._edited_logits

    def counting(modules: LiveEditModules, batch: TokenBatch, *arguments: Any) -> torch.Tensor:
        rows.append(len(batch))
        return original(modules, batch, *arguments)

    task._edited_logits = counting
    try:
        step.cached()
    finally:
        del task._edited_logits
    return sum(rows)


def measure(shape: Shape, settings: Settings) -> dict[str, Any]:
    """All figures of one shape."""
    backbone = build_backbone(shape, settings.device)
    cases = make_cases(shape, EDITS)
    whole, edits = (Baseline(backbone, shape.edit_layer, cases, probes) for probes in (True, False))
    routed = Step(backbone, shape, cases, LiveEditLosses())
    every_row = Step(backbone, shape, cases, LiveEditLosses(mixing="batch"))
    calls = {
        "forward": whole.forward,
        "suffix": whole.suffix,
        "step": routed.from_scratch,
        "step_cached": routed.cached,
        "step_all_rows": every_row.from_scratch,
        "step_cached_all_rows": every_row.cached,
        "forward_8": edits.forward,
        "suffix_8": edits.suffix,
    }
    seconds = interleaved_seconds(calls, settings.repeats, settings.device)
    ratio = partial(median_ratio, seconds)
    return {
        "step_over_minimum": ratio("step", "forward", "suffix"),
        "step_over_suffix_cached": ratio("step_cached", "suffix"),
        "step_over_minimum_all_rows": ratio("step_all_rows", "forward", "suffix"),
        "step_over_suffix_cached_all_rows": ratio("step_cached_all_rows", "suffix"),
        "step_over_minimum_8_inputs": ratio("step", "forward_8", "suffix_8"),
        "rows": len(whole.inputs),
        "rows_mixed": _rows_run(routed),
        **milliseconds(seconds),
        "sequence_tokens": whole.inputs.input_ids.shape[1],
    }


def main() -> None:
    """Measure and report."""
    settings = read_settings(__doc__ or "", repeats=5, short=(5, ("small",)))
    report(
        "training_step",
        settings,
        {shape.name: measure(shape, settings) for shape in settings.shapes},
        TARGETS,
    )


if __name__ == "__main__":
    main()
