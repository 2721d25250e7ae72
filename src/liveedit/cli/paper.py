"""`liveedit paper`: the tables and figures of the papers, measured here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.text import Text

from ..experiments.papers import OWN, TABLE_1, TABLES
from .arguments import command_line, loading, named_values, settings_of
from .console import ProgressDisplay, console, load_quietly, print_json
from .options import DistinctSubjects, Json, LoadOptions, OneSeed, Out, with_options
from .paper_options import (
    DataSource,
    Edits,
    LifelongOptions,
    RunOptions,
    Seeds,
    TrainingOptions,
    check_backbones,
    run_paper,
)

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..editors.trained import Form
    from ..experiments.experiment import Experiment
    from ..experiments.liveedit.instances import Entries
    from ..experiments.liveedit.sweeps import Sweep
    from ..experiments.runs import BenchOptions
    from ..progress import TaskProgress
    from ..samples import EditCase, Question

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The papers' tables and figures, measured here; resumable. Several in one command: "
    "`liveedit paper table1 figure6 --out DIR` writes DIR/table1 and DIR/figure6.",
)


def register(root: typer.Typer) -> None:
    """Add these commands."""
    root.add_typer(app, name="paper")


# -- tables 1, 5 and 6 -----------------------------------------------------------------------------------

_Editors = Annotated[
    list[str] | None, typer.Option("--editor", help="Editors, several in a row, or LABEL=NAME (all installed).")
]
_Backbones = Annotated[
    list[str] | None, typer.Option("--backbone", help="Backbones, several in a row (those of the table).")
]
_DataSources = Annotated[
    list[str] | None,
    typer.Option(
        "--data", help="world, world:SEED, a folder with eval.json, or FORMAT:FILE[:IMAGES]; several in a row."
    ),
]
_EditorPaths = Annotated[
    list[str] | None,
    typer.Option(
        "--editor-path", help="[BACKBONE/]EDITOR=DIR: the trained parts of an editor, for one backbone or for all."
    ),
]


def _comparison_command(name: str, text: str) -> None:
    @app.command(name, help=text)
    @with_options(LifelongOptions)
    def command(
        out: Out,
        editor: _Editors = None,
        backbone: _Backbones = None,
        edits: Edits = None,
        seeds: Seeds = None,
        data: _DataSources = None,
        editor_path: _EditorPaths = None,
        *,
        options: LifelongOptions,
    ) -> int | None:
        load_quietly()
        from ..experiments.comparison import comparison

        table = TABLES[name]
        numbers, sources = edits or list(table.edits), data or ["world"]
        bench = options.bench_of(numbers)
        experiment = comparison(
            table,
            out,
            editors=editor or (),
            backbones=backbone or (),
            data=sources,
            edits=numbers,
            seeds=seeds or (),
            sources=named_values(editor_path, "--editor-path"),
            options=bench,
        )
        return run_paper(experiment, out, options, sources, bench.cases)


_comparison_command("table1", "All editors over a lifetime of edits, with a verdict (LiveEdit, table 1).")
_comparison_command("table5", "The same in full on BLIP-2 and LLaVA, on all --data (LiveEdit, table 5).")
_comparison_command("table6", "The same in full on MiniGPT-4, on all --data (LiveEdit, table 6).")


# -- table 2 and figures 3 to 5: editors trained to be compared ------------------------------------------

_Backbone = Annotated[str, typer.Option("--backbone", help="Built-in name, folder, GGUF file, or hub name.")]
_PAPER_EDITS: Final = 1000


@dataclass(frozen=True)
class _FormsOptions(TrainingOptions, LifelongOptions):
    """How editors are trained to be compared, and what they are compared on."""

    edits: Annotated[
        list[int] | None, typer.Option("--edits", min=1, help="Numbers of edits (1000, as in the paper).")
    ] = None
    seeds: Seeds = None
    data: DataSource = "world"

    def measured(self, form: Form) -> dict[str, Any]:
        """What all of these experiments take. form: of the editors."""
        numbers = self.edits or [_PAPER_EDITS]
        return {
            "data": self.data,
            "edits": numbers,
            "seeds": self.seeds or (0, 1, 2),
            "training": self.training_of(form),
            "options": self.bench_of(numbers),
        }


@dataclass(frozen=True)
class _TrainedOptions(_FormsOptions):
    """The same for experiments in which all editors have one form."""

    form: Annotated[
        Literal["improved", "paper"], typer.Option(help="The improved form of LiveEdit, or the paper's own.")
    ] = "improved"


@app.command()
@with_options(_TrainedOptions)
def table2(
    out: Out,
    setting: Annotated[
        list[str] | None, typer.Option("--setting", help="Settings to compare, several in a row (all of the table).")
    ] = None,
    backbone: _Backbone = "tiny-blip2",
    *,
    options: _TrainedOptions,
) -> int | None:
    """LiveEdit without one part at a time, each trained separately (LiveEdit, table 2)."""
    load_quietly()
    from ..experiments.liveedit.ablation import ablation

    return _run_trained(ablation(out, setting or (), backbone, **options.measured(options.form)), out, options)


@app.command()
@with_options(_FormsOptions)
def forms(out: Out, backbone: _Backbone = "tiny-llava", *, options: _FormsOptions) -> int | None:
    """From the paper's form of LiveEdit to the improved one, a switch at a time, each trained separately."""
    load_quietly()
    from ..experiments.liveedit.forms import forms as forms_of

    return _run_trained(forms_of(out, _loaded(backbone, options), backbone, **options.measured("paper")), out, options)


def _sweep_command(name: str, text: str) -> None:
    @app.command(name, help=text)
    @with_options(_TrainedOptions)
    def command(
        out: Out,
        grid: Annotated[
            list[str] | None,
            typer.Option(
                "--grid", help="NAME=VALUE,VALUE,... for what the figure varies; VALUE,VALUE,... if it is one setting."
            ),
        ] = None,
        backbone: _Backbone = "tiny-blip2",
        *,
        options: _TrainedOptions,
    ) -> int | None:
        load_quietly()
        from ..experiments.liveedit.sweeps import SWEEPS, sweep

        figure = SWEEPS[name]
        values, frozen = _grid(figure, grid or []), _loaded(backbone, options)
        return _run_trained(
            sweep(figure, out, frozen, backbone, values, **options.measured(options.form)), out, options
        )


_sweep_command("figure3", "Module width and rank: every combination is trained and measured (LiveEdit, figure 3).")
_sweep_command("figure4", "The feature size k (LiveEdit, figure 4).")
_sweep_command("figure5", "The edit layer (LiveEdit, figure 5).")


def _loaded(backbone: str, options: RunOptions) -> Backbone:
    """The backbone whose layers an experiment varies, as its runs load it."""
    from ..experiments.runs import loaded_backbone

    return loaded_backbone(backbone, options.loaded)


def _grid(figure: Sweep, given: list[str]) -> dict[str, list[int]]:
    """`NAME=1,2` or, for a figure that varies one setting, `1 2`."""
    only = next(iter(figure.letters)) if len(figure.letters) == 1 else ""
    texts = [item if "=" in item or not only else f"{only}={item}" for item in given]
    found: dict[str, list[int]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        try:
            found.setdefault(name, []).extend(int(value) for value in values.split(","))
        except ValueError as error:
            raise typer.BadParameter(
                f"--grid {text!r} is not of the form NAME=VALUE,VALUE with whole numbers."
            ) from error
    return found


def _run_trained(experiment: Experiment, out: Path, options: _FormsOptions) -> int | None:
    from ..experiments.liveedit.trained_runs import training_cases

    check_backbones(experiment)
    # Drawn here, once, and not by several processes at the same time. They are the same for both forms.
    with ProgressDisplay() as progress:
        training_cases(options.training_of("improved"), progress.of("drawing the training cases"))
    return run_paper(experiment, out, options, [options.data], max(options.edits or [_PAPER_EDITS]))


# -- figures 6 and 7: attribution of single questions ----------------------------------------------------


@dataclass(frozen=True)
class _InstanceOptions:
    """What figures 6 and 7 share."""

    data: DataSource = "world"
    editor: Annotated[str, typer.Option(help="liveedit or liveedit-refine.")] = OWN
    editor_path: Annotated[
        list[str] | None, typer.Option("--editor-path", help="BACKBONE=DIR: a trained editor for a backbone.")
    ] = None
    load: LoadOptions = None
    json: Json = False


_Out = Annotated[Path, typer.Option(help="Folder for the figure, its images, numbers and report.")]
_ActiveEdits = Annotated[int, typer.Option("--edits", min=1, help="Active edits.")]
_AddEntries = Callable[[Any, "Sequence[EditCase]", "Entries", "TaskProgress"], str | None]
"""Makes edits and adds questions to the figure for one backbone; returns a remark."""


@app.command()
@with_options(_InstanceOptions)
def figure6(
    out: _Out,
    backbone: Annotated[list[str] | None, typer.Option(help="Backbones, several in a row (tiny-llava).")] = None,
    edits: _ActiveEdits = 10,
    image: Annotated[Path | None, typer.Option(help="Ask about this image instead.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    *,
    options: _InstanceOptions,
) -> None:
    """Attribution of a question, which edits passed hard routing, and their soft weights (LiveEdit, figure 6)."""
    load_quietly()
    from ..experiments.liveedit.instances import figure_6

    own = _own_question(image, prompt)

    def add(attached: Any, cases: Sequence[EditCase], entries: Entries, report: TaskProgress) -> None:
        figure_6(attached, cases, entries, own, report)

    title = f"Attribution of questions, {edits:,} active edits (LiveEdit paper, figure 6)"
    _instances(out, title, backbone or ["tiny-llava"], edits, options, add)


@app.command()
@with_options(_InstanceOptions)
def figure7(
    out: _Out,
    backbone: Annotated[list[str] | None, typer.Option(help="Backbones, several in a row (those of table 1).")] = None,
    edits: _ActiveEdits = 100,
    questions: Annotated[int, typer.Option(min=1, help="Questions to show for each backbone.")] = 2,
    *,
    options: _InstanceOptions,
) -> None:
    """The hardest questions for the router among edits on nearly the same images (LiveEdit, figure 7)."""
    load_quietly()
    from ..experiments.liveedit.instances import figure_7

    def add(attached: Any, cases: Sequence[EditCase], entries: Entries, report: TaskProgress) -> str:
        return figure_7(attached, cases, entries, most=questions, report=report)

    title = f"Difficult questions, {edits:,} active edits and related ones (LiveEdit paper, figure 7)"
    _instances(out, title, backbone or list(TABLE_1.backbones), edits, options, add)


def _own_question(image: Path | None, prompt: str | None) -> Question | None:
    from ..samples import Question

    if (image is None) != (prompt is None):
        raise typer.BadParameter("--image and --prompt belong together: give both, or neither.")
    return None if image is None or prompt is None else Question(prompt, image)


def _instances(
    out: Path, title: str, backbones: Sequence[str], edits: int, options: _InstanceOptions, add: _AddEntries
) -> None:
    from ..backbones import load_backbone
    from ..datasets.sources import open_data
    from ..errors import InvalidInputError
    from ..evaluation.provenance import Stopwatch, make_provenance
    from ..experiments.liveedit.instance_report import write_attribution
    from ..experiments.liveedit.instances import Entries, attributable_editor

    kind, folders = attributable_editor(options.editor), named_values(options.editor_path, "--editor-path")
    if stray := sorted(folders.keys() - set(backbones)):
        raise InvalidInputError(f"--editor-path names {', '.join(stray)}; the backbones are {', '.join(backbones)}.")
    entries, remarks, provenance, watch = Entries(), [], {}, Stopwatch()
    with ProgressDisplay() as progress:
        found = open_data(options.data, edits, progress.of("drawing"))
        for name in backbones:
            frozen = load_backbone(name, **loading(options.load))
            with kind.load(frozen, folders.get(name)) as attached:
                remarks.append(add(attached, found.cases[:edits], entries, progress.report))
                ways = (found.files, found.selection, command_line(), loading(options.load))
                config = {"editor": options.editor, "editor_digest": attached.digest(), "edits": edits}
                provenance[name] = make_provenance(frozen, *ways).of_row(config, watch.started)
    shown = [remark for remark in remarks if remark]
    report = write_attribution(entries.entries, entries.images, out, title, shown, provenance)
    if options.json:
        print_json({"title": title, "remarks": shown, "questions": entries.entries, "report": str(report)})
        return
    screen = console()
    for remark in shown:
        screen.print(Text(remark))
    screen.print(Text(f"Report: {report}"))


# -- LEMoE's tables and figures --------------------------------------------------------------------------

_LanguageModels = Annotated[
    list[str] | None,
    typer.Option("--backbone", help="Backbones, several in a row (tiny-llama-lm tiny-mistral-lm)."),
]
_LemoeSettings = Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE for any other setting of LEMoE.")]


@dataclass(frozen=True)
class _LemoeOptions(RunOptions):
    """What LEMoE's figures share."""

    backbone: _LanguageModels = None
    data: Annotated[
        str, typer.Option("--data", help="facts, facts:SEED, world (with images), a folder, or FORMAT:FILE[:IMAGES].")
    ] = "facts"
    edits: Annotated[int, typer.Option("--edits", min=1, help="Edits.")] = 200
    distinct_subjects: DistinctSubjects = False
    batch_edits: Annotated[int, typer.Option(min=1, help="Edits per expert.")] = 10
    changes: _LemoeSettings = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the editor."""
        return {"batch_edits": self.batch_edits, **settings_of(self.changes)}

    @property
    def measuring(self) -> BenchOptions:
        """The options of the bench."""
        return replace(self.bench(self.edits), distinct_subjects=self.distinct_subjects)


@dataclass(frozen=True)
class _LemoeTableOptions(LifelongOptions):
    """What LEMoE's tables are measured on."""

    zsre: Annotated[Path | None, typer.Option(help="ZsRE's file; without any file: facts.")] = None
    counterfact: Annotated[Path | None, typer.Option(help="CounterFact's file.")] = None
    selfcheckgpt: Annotated[Path | None, typer.Option(help="SelfCheckGPT's file: perplexity of passages.")] = None
    passage_edits: Annotated[int, typer.Option(min=1, help="Edits that are passages.")] = 600
    distinct_subjects: DistinctSubjects = False
    cell_minutes: Annotated[
        float, typer.Option(min=0, help="Measure further seeds only where one takes less than this.")
    ] = 10.0
    batch_edits: Annotated[int, typer.Option(min=1, help="Edits per expert of LEMoE.")] = 10
    changes: _LemoeSettings = None

    @property
    def data(self) -> list[str]:
        """Sources of short answers."""
        given = {"zsre": self.zsre, "counterfact": self.counterfact}
        found = [f"{name}:{file}" for name, file in given.items() if file is not None]
        return found or ([] if self.selfcheckgpt else ["facts"])

    @property
    def passages(self) -> list[str]:
        """Sources of passages."""
        return [] if self.selfcheckgpt is None else [f"selfcheckgpt:{self.selfcheckgpt}"]


@app.command("lemoe-tables")
@with_options(_LemoeTableOptions)
def lemoe_tables(
    out: Out,
    editor: Annotated[
        list[str] | None,
        typer.Option("--editor", help="Editors, several in a row (lemoe and those that need no training)."),
    ] = None,
    backbone: _LanguageModels = None,
    edits: Edits = None,
    seeds: Seeds = None,
    *,
    options: _LemoeTableOptions,
) -> int | None:
    """LEMoE beside the editors that need no training, in batch and in sequence (LEMoE, tables)."""
    load_quietly()
    from ..experiments.lemoe.figures import BACKBONES
    from ..experiments.lemoe.tables import EDITS, Measured, tables

    numbers, data = tuple(edits or EDITS), options.data
    measured = Measured(
        *(data, options.passages, numbers, options.passage_edits, tuple(seeds or (0, 1, 2))),
        most_seconds=60 * options.cell_minutes,
    )
    settings = {"batch_edits": options.batch_edits, **settings_of(options.changes)}
    bench = replace(options.bench_of(numbers), distinct_subjects=options.distinct_subjects)
    experiment = tables(out, backbone or BACKBONES, measured, editor or (), settings, bench)
    return run_paper(experiment, out, options, data, bench.cases)


@app.command("lemoe-figure2")
@with_options(_LemoeOptions)
def lemoe_figure2(
    out: Out,
    seeds: OneSeed = None,
    *,
    options: _LemoeOptions,
) -> int | None:
    """Immediate and final evaluation, and routing consistency, by key and by gate (LEMoE, figure 2)."""
    load_quietly()
    from ..experiments.lemoe.figures import BACKBONES, figure_2

    names, edits = options.backbone or BACKBONES, options.edits
    experiment = figure_2(out, names, options.data, edits, seeds or (0,), options.settings, options.measuring)
    return run_paper(experiment, out, options, [options.data], edits)


@app.command("lemoe-figure3")
@with_options(_LemoeOptions)
def lemoe_figure3(
    out: Out,
    orders: Annotated[int, typer.Option(min=1, help="Random orders.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed: which edits.")] = 0,
    *,
    options: _LemoeOptions,
) -> int | None:
    """The spread over orders of edits, and similarity within and between batches (LEMoE, figure 3)."""
    load_quietly()
    from ..experiments.lemoe.figures import BACKBONES, figure_3

    names, edits, bench = options.backbone or BACKBONES, options.edits, options.measuring
    experiment = figure_3(out, names, options.data, edits, orders, seed, options.settings, bench)
    return run_paper(experiment, out, options, [options.data], edits)
