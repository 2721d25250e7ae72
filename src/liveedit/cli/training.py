"""`liveedit train`: train an editor for a backbone."""

from __future__ import annotations

import json as json_format
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..registry import DEFAULT_TRAINED_EDITOR
from .arguments import loading, settings_of, stages_of
from .console import ProgressDisplay, byte_size, load_quietly, print_fields, print_json, resumable
from .options import BackboneName, Json, LoadOptions, Stages
from .training_data import TrainingData

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..editors.trained import Form, TrainedEditor, TrainingResult, TrainingSetup
    from ..progress import TaskProgress
    from ..samples import EditCase
    from ..training.distributed import Processes
    from ..training.trainer import TrainingConfig

Out = Annotated[Path, typer.Option(help="Folder for checkpoints; the trained editor lies in OUT/editor.")]
Data = Annotated[
    str,
    typer.Option(
        help="world, facts (for language models), either with :SEED, a folder with train.json, or a format for "
        "--annotations."
    ),
]
Annotations = Annotated[Path | None, typer.Option(help="The annotation file, if --data is a format.")]
Images = Annotated[Path | None, typer.Option(help="The image folder of the annotation file.")]
Cases = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Cases to train on (of world and facts 16,000 for liveedit and serac, 3,000 for others; of files all).",
    ),
]
TrainedEditorName = Annotated[str, typer.Option("--editor", help="The editor to train; `liveedit editors` lists them.")]
FormName = Annotated[Literal["improved", "paper"], typer.Option("--form", help="The improved form, or the paper's.")]
Layer = Annotated[int | None, typer.Option(min=0, help="Edit layer, from 0 (two thirds of the depth).")]
ModuleWidth = Annotated[int | None, typer.Option(min=1, help="Module width d_m.")]
Rank = Annotated[int | None, typer.Option(min=1, help="Rank of an expert.")]
Heads = Annotated[int | None, typer.Option(min=1, help="Attention heads.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE for any other setting of editor, losses or training; several in a row."),
]
Validation = Annotated[int | None, typer.Option(min=1, help="Cases kept for validation (256, or a quarter).")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of weights and batches.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only try a few cases, and estimate what the training takes.")]


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(train)


def train(
    out: Out,
    data: Data = "world",
    annotations: Annotations = None,
    images: Images = None,
    cases: Cases = None,
    editor: TrainedEditorName = DEFAULT_TRAINED_EDITOR,
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    form: FormName = "improved",
    layer: Layer = None,
    module_width: ModuleWidth = None,
    rank: Rank = None,
    heads: Heads = None,
    changes: Settings = None,
    stage: Stages = None,
    validation: Validation = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train an editor for a backbone. Run the same command again to resume an interrupted training.

    On several devices: torchrun --nproc_per_node N -m liveedit train ..., which takes the same steps as one.
    """
    load_quietly()
    from ..editors import trained_editor_class
    from ..training.distributed import joined_processes

    kind = trained_editor_class(editor)
    named = {"layer": layer, "module_width": module_width, "rank": rank, "heads": heads}
    settings = {
        **{name: value for name, value in named.items() if value is not None},
        **settings_of(changes),
    }
    source = TrainingData(data, annotations, images, cases, kind.training_cases)
    usual = kind.schedule(form)
    schedule = usual.model_copy(update={"stages": stages_of(stage, usual.stages), "seed": seed})
    with resumable("the training"), joined_processes() as processes, _reporting(processes) as report:
        command = _Training(
            kind, form, schedule, settings, validation, source, backbone, loading(load), out, processes, report
        )
        result = command.estimate() if dry_run else command.run()
    if not processes.is_first:
        return
    if json:
        print_json(result)
    elif dry_run:
        print_estimate(result)
    else:
        figures = {name: f"{value:.1f} %" for name, value in result["validation"].items()}
        print_fields({**{k: v for k, v in result.items() if k != "validation"}, **figures})


@dataclass(frozen=True)
class _Training:
    """One call of the command, in one process."""

    kind: type[TrainedEditor]
    form: Form
    schedule: TrainingConfig
    settings: Mapping[str, Any]
    validation: int | None
    source: TrainingData
    backbone: str
    load_options: Mapping[str, Any]
    out: Path
    processes: Processes
    report: TaskProgress

    def estimate(self) -> dict[str, Any]:
        """The estimate for JSON, with the free space of the disk that the output folder is on."""
        from ..editors.training_estimate import estimate_training

        with self.source.sampled(self.report) as (found, planned):
            frozen = self._loaded()
            _require_readable(frozen, found)
            setup = self._setup(frozen, planned)
            estimate = estimate_training(setup, frozen, found, self.processes, planned, self.report)
        out = self.out.absolute()
        existing = next(folder for folder in (out, *out.parents) if folder.exists())
        return {**estimate.to_dict(), "disk_free_bytes": shutil.disk_usage(existing).free}

    def run(self) -> dict[str, Any]:
        """Train; return the result for JSON."""
        from ..editors.trained import train_editor

        started = time.monotonic()
        with self.processes.first_goes_ahead():
            found: Sequence[EditCase] = self.source.read(self.out / "world", self.report)
        frozen = self._loaded()
        _require_readable(frozen, found)
        plot: Path | None = None
        try:
            setup = self._setup(frozen, len(found))
            trained = train_editor(setup, frozen, found, self.out, self.report, self.processes, self.source.name)
        finally:
            if self.processes.is_first:
                plot = _plot_curves(self.out)
        return _summary(trained, self.out, plot, time.monotonic() - started)

    def _setup(self, frozen: Backbone, cases: int) -> TrainingSetup:
        from ..editors.trained import training_setup
        from ..training.trainer import usual_validation

        training = self.schedule.model_copy(update={"validation": self.validation or usual_validation(cases)})
        return training_setup(self.kind, frozen, self.settings, self.form, training)

    def _loaded(self) -> Backbone:
        """The backbone; each process has a copy on its own device."""
        from ..backbones import load_backbone
        from ..errors import ConfigError

        placed = {"device", "device_map"} & self.load_options.keys()
        if placed and self.processes.count > 1:
            raise ConfigError(
                f"--load {placed.pop()} was given to {self.processes.count} processes, each of which has a device of "
                "its own. Leave it out, or start one process."
            )
        device = {} if placed else {"device": self.processes.device}
        return load_backbone(self.backbone, **device, **self.load_options)


def _require_readable(frozen: Backbone, cases: Sequence[EditCase]) -> None:
    """Raise `ConfigError` for questions about images if the model reads text only."""
    from ..errors import ConfigError

    if not frozen.reads_images and any(case.edit.question.image is not None for case in cases):
        raise ConfigError(
            f"{frozen.name} reads text alone, and these cases ask about images. Give --data facts, or an annotation "
            "file of questions without images, such as ZsRE's."
        )


def _summary(trained: TrainingResult, out: Path, plot: Path | None, seconds: float) -> dict[str, Any]:
    return {
        "editor": str(trained.folder),
        "parameters": trained.parameters,
        "validation": trained.validation,
        "curves": str(out / "curves.json"),
        "image": plot and str(plot),
        "seconds": round(seconds, 1),
    }


@contextmanager
def _reporting(processes: Processes) -> Iterator[TaskProgress]:
    """Progress on the screen, for the first process only."""
    from ..progress import no_task_progress

    if not processes.is_first:
        yield no_task_progress
        return
    with ProgressDisplay() as progress:

        def report(task: str, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
            if task.endswith(" validation"):
                found = (figures or {}).items()
                shown = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in found)
                progress.note(f"{task}, step {done}: {shown}")
            else:
                progress.report(task, done, total, figures)

        yield report


def _plot_curves(out: Path) -> Path | None:
    """Plot the learning curves so far; None if there are none, or if matplotlib is not installed."""
    from ..evaluation.learning_curves import draw_curves
    from ..evaluation.plotting import PlotsUnavailableError

    curves = out / "curves.json"
    if not curves.is_file():
        return None
    try:
        draw_curves(json_format.loads(curves.read_text(encoding="utf-8")), out / "curves.png")
    except PlotsUnavailableError:
        return None
    return out / "curves.png"


# -- the estimate, for reading ---------------------------------------------------------------------------


def print_estimate(found: Mapping[str, Any]) -> None:
    """Print an estimate in units that people read."""
    states = f"{byte_size(found['states_bytes'])}, kept {'on disk' if found['states_on_disk'] else 'in memory'}"
    if found["processes"] > 1:
        states += " by each process"
    fields: dict[str, object] = {
        "device": found["device"],
        "processes": found["processes"],
        "cases": f"{found['cases']:,}, of which {found['validation_cases']:,} for validation",
        "inputs": f"{found['inputs']:,}",
        "tokens of an input with image": _tokens(found["tokens_per_image_input"]),
        "tokens of an input without": _tokens(found["tokens_per_text_input"]),
        "hidden states": states,
        "disk free": byte_size(found["disk_free_bytes"]),
        "backbone": byte_size(found["backbone_bytes"]),
        "trained parameters": f"{found['parameters']:,}, {byte_size(found['parameters_bytes'])}",
        "gradients": byte_size(found["gradients_bytes"]),
        "moments of AdamW": byte_size(found["moments_bytes"]),
        "peak memory": byte_size(found["peak_memory_bytes"]),
        "GPU memory": _gpu(found["gpu_peak_bytes"], found["gpu_total_bytes"]),
        "computing hidden states": _duration(found["fill_seconds"]),
    }
    for stage in found["stages"]:
        fields[f"stage {stage['name']}"] = (
            f"{_duration(stage['seconds'])}: {stage['steps']:,} steps of {stage['batch']} edits at "
            f"{stage['seconds_per_step']:.3g} s, validated {stage['validations']} times"
        )
    print_fields({**fields, "in all": _duration(found["seconds"])}, "What the training takes")


def _tokens(mean: float | None) -> str | None:
    return None if mean is None else f"{mean:.1f}"


def _gpu(peak: int | None, total: int | None) -> str | None:
    return None if peak is None or total is None else f"{byte_size(peak)} of {byte_size(total)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
