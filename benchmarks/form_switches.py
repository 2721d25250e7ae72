"""What single settings between the paper's form of LiveEdit and the built-in one contribute to its experts.

For each line a generator is trained on the drawn world, each edit with its own expert alone at weight 1, and measured
in the same way on edits that it was not trained on: no routing takes part. Printed are the percentages of answer tokens
that are right, teacher-forced and without the end token, for the edit itself and its text and modal generality. The
first line is the unedited model. All lines have the same cases, batches, steps and optimiser.

    python benchmarks/form_switches.py --cases 6000 --steps 300
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor

from liveedit.backbones import Backbone, load_backbone
from liveedit.backbones.hidden_states import HiddenStateCache
from liveedit.datasets import read
from liveedit.datasets.world import write_world
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig, LiveEditLosses
from liveedit.editors.liveedit.config import PAPER_CONFIG
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.liveedit.task import LiveEditTask
from liveedit.editors.shared.scope_task import IN_SCOPE
from liveedit.samples import EditCase
from liveedit.training.trainer import StageConfig, Trainer, TrainingConfig

PAPER: Final[Mapping[str, Any]] = {**PAPER_CONFIG, "module_width": 256}

LINES: Final[dict[str, Mapping[str, Any]]] = {
    "paper": PAPER,
    "answer_source=both": {**PAPER, "answer_source": "both"},
    "norm=true heads=8": {**PAPER, "norm": True, "heads": 8},
    "expert_input=normed": {**PAPER, "expert_input": "normed"},
    "expert_scale=fixed": {**PAPER, "expert_scale": "fixed"},
    "residual_tokens=text": {**PAPER, "residual_tokens": "text"},
    "built-in": {},
}
"""The settings of each line: those of the paper with one change, and the built-in ones."""

_AT_ONCE: Final = 64


class ExpertsAlone(LiveEditTask):
    """The generator's training, validated by each edit's own expert alone."""

    @torch.no_grad()
    def validate(
        self, modules: LiveEditModules | None, chosen: Sequence[int], group: int = _AT_ONCE
    ) -> dict[str, float]:
        """Percent of answer tokens right by probe; of the unedited model without modules."""
        figures = {}
        for name in IN_SCOPE:
            parts = [chosen[start : start + group] for start in range(0, len(chosen), group)]
            right = torch.cat([self._right_tokens(modules, part, name) for part in parts])
            figures[name] = 100 * right.float().mean().item()
        return figures

    def _right_tokens(self, modules: LiveEditModules | None, cases: Sequence[int], name: str) -> Tensor:
        rows = self._rows(cases, [[name]] * len(cases))
        targets = rows.batch.targets
        if modules is None:
            logits = self._base_logits(rows.batch.final)
        else:
            edits = self._rows(cases, [["reliability"]] * len(cases))
            u, v = modules.generator(self._tokens(edits.batch))
            logits = self._edited_logits(modules, rows.batch, u[:, None], v[:, None], torch.ones(len(cases), 1))
        return (logits.argmax(-1) == targets)[targets != self.backbone.end_token_id]


def main() -> None:
    """Print a line for the unedited model and one for each of `LINES` that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny-llava")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--layer", type=int, help="edit layer, from 0 (two thirds of the depth)")
    parser.add_argument("--line", nargs="+", choices=LINES, default=list(LINES))
    given = parser.parse_args()
    backbone = load_backbone(given.backbone, device="cpu")
    layer = backbone.default_edit_layer() if given.layer is None else given.layer
    with TemporaryDirectory() as folder:
        task = _task(backbone, layer, given.cases, Path(folder))
        held_out = range(given.cases - given.held_out, given.cases)
        print(
            f"layer {layer}, {given.steps} steps: " + ", ".join(name.replace("_", " ") for name in IN_SCOPE), flush=True
        )
        _show("unedited", task.validate(None, held_out))
        schedule = TrainingConfig(
            stages=(StageConfig(name="generator", steps=given.steps, batch=32, learning_rate=1e-3),),
            validation=given.held_out,
            validate_every=given.steps,
        )
        for number, name in enumerate(given.line):
            torch.manual_seed(0)
            config = LiveEditConfig.create(**{**LiveEdit.backbone_settings(backbone), **LINES[name], "layer": layer})
            _show(name, Trainer(Path(folder) / str(number), schedule, task).run(LiveEditModules(config)))


def _task(backbone: Backbone, layer: int, count: int, folder: Path) -> ExpertsAlone:
    """Cases of the drawn world without their locality inputs, with all hidden states computed."""
    write_world(folder / "world", seed=0, train=count, eval=0)
    drawn = read("mmedit", folder / "world" / "train.json", folder / "world")
    cases = [EditCase(case.id, case.edit, case.named(*IN_SCOPE)) for case in drawn]
    task = ExpertsAlone(backbone, layer, cases, LiveEditLosses.model_validate({}), HiddenStateCache(backbone, layer))
    task.prepare(lambda done, total: print(f"hidden states: {done} of {total}", end="\r", file=sys.stderr))
    return task


def _show(name: str, figures: Mapping[str, float]) -> None:
    print(f"{name}: " + ", ".join(f"{value:.1f}" for value in figures.values()), flush=True)


if __name__ == "__main__":
    main()
