"""A training in two processes on CPUs (torchrun), compared with the same training in one process.

Both train an editor for `tiny-llava` on a small drawn world: same seed, same batches, same number of steps. Printed
are the largest difference of a weight (beside how far the weights moved in training), of a training loss and of a
validation figure. The biases of attention keys are reported separately: softmax does not depend on them, so their
gradients are rounding errors, which AdamW scales up to steps. With `--keep FOLDER` the learning curves of both go to
FOLDER/two-processes.json and a figure of the validation curves to FOLDER/two-processes.png (needs matplotlib).

`--mixed` trains with bfloat16 products, the default of `liveedit train`. Processes pad their shares to other lengths
than one process pads the whole batch, and bfloat16 then rounds differently.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from liveedit.editors.liveedit import LiveEditConfig
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.training.checkpoints import load_tensors

STAGES = ("routing:60:32:1e-3", "generator:40:12:1e-3", "joint:20:12:3e-4")
SHOWN = ("reliability", "reliability_routing", "text_generality", "modal_locality", "near_duplicate_locality")
LAST = "2-joint-best.safetensors"

Curves = list[dict[str, Any]]


def train(out: Path, processes: int, options: Sequence[str]) -> float:
    """One training; its wall seconds."""
    start = ["-m", "liveedit"]
    if processes > 1:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *start]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = time.perf_counter()
    command = [sys.executable, *start, "train", "--out", str(out), *options]
    print(f"training in {processes} process{'es' * (processes > 1)}", file=sys.stderr, flush=True)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def compare(one: Path, two: Path) -> dict[str, Any]:
    """Largest differences of weights, training losses and validation figures."""
    first, second = (load_tensors(folder / LAST)[0] for folder in (one, two))
    start = initial_weights(one)
    curves = [json.loads((folder / "curves.json").read_text()) for folder in (one, two)]
    key_biases = {name for name in first if ".keys." in name and name.endswith(".bias")}
    others = first.keys() - key_biases
    return {
        "largest_weight_difference": _largest(first, second, others),
        "largest_key_bias_difference": _largest(first, second, key_biases),
        "largest_weight_change_in_training": _largest(first, start, others),
        "largest_training_loss_difference_nats": _furthest(curves, "train", "loss_nats"),
        "largest_validation_difference_points": _furthest(curves, "validation", ""),
        "validations": sum(entry["kind"] == "validation" for entry in curves[0]),
    }


def _largest(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], names: Iterable[str]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in names)


def initial_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a training begins with."""
    settings = json.loads((folder / "training.json").read_text())
    torch.manual_seed(settings["training"]["seed"])
    return LiveEditModules(LiveEditConfig.create(**settings["editor"])).state_dict()


def _furthest(curves: Sequence[Curves], kind: str, ending: str) -> float:
    return max(
        abs(first[name] - second[name])
        for first, second in zip(*curves, strict=True)
        for name in first
        if first["kind"] == kind and name not in ("stage", "step", "kind") and name.endswith(ending)
    )


def draw(curves: Mapping[str, Curves], file: Path) -> None:
    """Validation curves of both trainings over all steps, a panel for each figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.9 * len(SHOWN)), layout="constrained")
    for panel, name in zip(figure.subplots(len(SHOWN), 1, sharex=True), SHOWN, strict=True):
        for (label, entries), style in zip(curves.items(), ({"lw": 5, "alpha": 0.35}, {"lw": 1.4}), strict=True):
            found = [entry for entry in entries if entry["kind"] == "validation"]
            panel.plot(_steps(found), [entry[name] for entry in found], marker=".", label=label, **style)
        panel.set_ylabel("%")
        panel.set_title(name.replace("_", " "), loc="left", fontsize=10)
        panel.set_ylim(-5, 105)
    figure.axes[0].legend(loc="lower right")
    figure.axes[-1].set_xlabel("Step, over all stages")
    figure.savefig(file, dpi=90)


def _steps(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """Steps counted over all stages."""
    lengths = {text.split(":")[0]: int(text.split(":")[1]) for text in STAGES}
    stages = list(lengths)
    before = {stage: sum(lengths[other] for other in stages[:place]) for place, stage in enumerate(stages)}
    return [before[entry["stage"]] + entry["step"] for entry in entries]


def main() -> None:
    """Train twice, compare, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=160, help="drawn cases, 24 of them for validation")
    parser.add_argument("--mixed", action="store_true", help="bfloat16 products")
    parser.add_argument("--keep", type=Path, help="folder for curves and figure")
    given = parser.parse_args()
    options = [
        *("--cases", str(given.cases), "--validation", "24", "--module-width", "64", "--stage", *STAGES, "--set"),
        *("validate_every=10", "warmup=10", f"mixed_precision={str(given.mixed).lower()}"),
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folders = {count: Path(temporary) / f"processes-{count}" for count in (1, 2)}
        seconds = {count: round(train(folder, count, options), 1) for count, folder in folders.items()}
        curves = {
            f"{count} process{'es' * (count > 1)}": json.loads((folder / "curves.json").read_text())
            for count, folder in folders.items()
        }
        summary = {
            "benchmark": "two_processes",
            **compare(folders[1], folders[2]),
            "mixed_precision": given.mixed,
            "wall_seconds": seconds,
            "load_average": round(os.getloadavg()[0], 2),
            "options": options,
            "torch": torch.__version__,
        }
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
        kept = json.dumps({**summary, "curves": curves}, indent=1) + "\n"
        (given.keep / "two-processes.json").write_text(kept, encoding="utf-8")
        draw(curves, given.keep / "two-processes.png")
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
