"""`liveedit bench`, `robustness`, `demo` and `editors`: measuring editors, and listing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from .arguments import command_line, loading, named_values, settings_of
from .console import ProgressDisplay, console, load_quietly, print_json, resumable
from .options import (
    BackboneName,
    Batch,
    DistinctSubjects,
    FewEditsCases,
    Json,
    LoadOptions,
    MaxNewTokens,
    MixedPrecision,
    OneSeed,
    Out,
    with_options,
)

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..datasets.sources import NamedData
    from ..editors import Editor
    from ..evaluation.provenance import Provenance


Editors = Annotated[
    list[str],
    typer.Option("--editor", help="Editors, several in a row; LABEL=NAME shows one under another label."),
]
Data = Annotated[
    str,
    typer.Option(
        "--data",
        help="world, facts (for language models), either with :SEED, a folder, or FORMAT:FILE[:IMAGES]; a world also "
        "with harder cases, as in world:conflicts=0.2.",
    ),
]
EditorPaths = Annotated[
    list[str] | None,
    typer.Option("--editor-path", help="NAME=DIR: the trained parts of an editor, by its name or label."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME.SETTING=VALUE: a setting of an editor, by its name or label; several in a row."),
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(bench)
    app.command()(robustness)
    app.command()(demo)
    app.command()(editors)


@dataclass(frozen=True)
class BenchArguments:
    """Options of the bench besides what it measures."""

    few_edits_cases: FewEditsCases = 100
    batch: Batch = 128
    max_new_tokens: MaxNewTokens = None
    mixed_precision: MixedPrecision = False
    passages: Annotated[
        bool, typer.Option("--passages", help="Also perplexity and agreement, for answers that are passages of text.")
    ] = False
    cross_modal: Annotated[bool, typer.Option("--cross-modal", help="Also ask for edited facts without the image.")] = (
        False
    )
    distinct_subjects: DistinctSubjects = False
    protocol: Annotated[
        Literal["lifelong", "wild"],
        typer.Option(
            help="lifelong, or wild: free answers end by themselves, not at the length of the data's; judge them with "
            "`liveedit results judge`."
        ),
    ] = "lifelong"


@with_options(BenchArguments)
def bench(
    out: Out,
    editor: Editors,
    edits: Annotated[list[int], typer.Option(min=1, help="Numbers of edits, several in a row.")],
    data: Data = "world",
    seeds: OneSeed = None,
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    editor_path: EditorPaths = None,
    changes: Changes = None,
    published: Annotated[
        bool, typer.Option("--published", help="Add the paper's values, in a table of their own.")
    ] = False,
    json: Json = False,
    *,
    options: BenchArguments,
) -> None:
    """Measure editors over a lifetime of edits: --editor liveedit ft-l --edits 1 10 100 --seeds 0 1 2."""
    load_quietly()
    from ..evaluation.report import render, write_report

    makers = editor_makers(editor, named_values(editor_path, "--editor-path"), _settings(changes))
    measured = {"edits": tuple(sorted(set(edits))), "seeds": tuple(dict.fromkeys(seeds or [0])), **vars(options)}
    distinct = measured.pop("distinct_subjects")
    with resumable("the bench"), ProgressDisplay() as progress:
        rows = _measure(out, makers, data, distinct, backbone, loading(load), measured, progress)
    report = write_report(rows, out, published=published)
    if json:
        print_json({"rows": rows, "report": str(report)})
        return
    console().print(render(rows))
    console().print(Text(f"Report: {report}"))


def _measure(
    out: Path,
    makers: list[tuple[str, Callable[[Backbone], Editor]]],
    data: str,
    distinct: bool,
    backbone: str,
    load: dict[str, Any],
    measured: dict[str, Any],
    progress: ProgressDisplay,
) -> list[dict[str, Any]]:
    """The rows of the bench."""
    from ..evaluation.bench import Bench, BenchConfig, backbone_name

    frozen, found, provenance = opened_for(makers, data, backbone, load, max(measured["edits"]), progress, distinct)
    config = BenchConfig(backbone=backbone_name(backbone), data=found.name, **measured)
    return Bench(frozen, found.cases, config, out, provenance, progress.report).run(makers)


@dataclass(frozen=True)
class RobustnessArguments:
    """What the robustness measurement asks."""

    probed: Annotated[int, typer.Option(min=1, help="Edits whose near wordings are asked, at most.")] = 100
    triples: Annotated[int, typer.Option(min=0, help="Triples of contradicting edits, at most; 0 for none.")] = 200
    lengths: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Lengths of long answers, in tokens, several in a row (8 30 60 120)."),
    ] = None
    long_edits: Annotated[int, typer.Option(min=0, help="Edits of each of these lengths; 0 for none.")] = 10
    factors: Annotated[
        list[float] | None,
        typer.Option(
            min=0, max=1, help="Factors that experts' weights are scaled by, several in a row (0.1 0.3 0.5 0.7 0.9)."
        ),
    ] = None
    batch: Batch = 128


@with_options(RobustnessArguments)
def robustness(
    out: Out,
    editor: Editors,
    edits: Annotated[int, typer.Option(min=1, help="Edits in sequence.")] = 100,
    data: Data = "world",
    seeds: OneSeed = None,
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    editor_path: EditorPaths = None,
    changes: Changes = None,
    json: Json = False,
    *,
    options: RobustnessArguments,
) -> None:
    """Count broken answers: near wordings, contradicting edits, long answers, scaled weights.

    Raw answers are written as they come. An interrupted run keeps them, and the rows of editors and seeds that were
    measured to the end; the next run starts from the beginning.
    """
    load_quietly()
    from ..evaluation.robustness.report import robustness_tables, write_robustness_report

    makers = editor_makers(editor, named_values(editor_path, "--editor-path"), _settings(changes))
    given = {name: value for name, value in vars(options).items() if value is not None}
    asked = {"edits": edits, "seeds": tuple(dict.fromkeys(seeds or [0])), **given}
    with ProgressDisplay() as progress:
        rows = _measure_robustness(out, makers, data, backbone, loading(load), asked, progress)
    report = write_robustness_report(rows, out)
    if json:
        print_json({"rows": rows, "report": str(report)})
        return
    for table in robustness_tables(rows):
        console().print(table)
    console().print(Text(f"Report: {report}"))


def _measure_robustness(
    out: Path,
    makers: list[tuple[str, Callable[[Backbone], Editor]]],
    data: str,
    backbone: str,
    load: dict[str, Any],
    asked: dict[str, Any],
    progress: ProgressDisplay,
) -> list[dict[str, Any]]:
    """The rows of the robustness measurement."""
    from ..evaluation.bench import backbone_name
    from ..evaluation.robustness.measuring import Robustness, RobustnessConfig

    frozen, found, provenance = opened_for(
        makers, data, backbone, load, max(asked["edits"], asked["triples"]), progress
    )
    config = RobustnessConfig(backbone=backbone_name(backbone), data=found.name, **asked)
    return Robustness(frozen, found.cases, config, out, provenance, progress.report).run(makers)


def opened_for(
    makers: list[tuple[str, Callable[[Backbone], Editor]]],
    data: str,
    backbone: str,
    load: dict[str, Any],
    cases: int,
    progress: ProgressDisplay,
    distinct: bool = False,
) -> tuple[Backbone, NamedData, Provenance]:
    """The backbone, the data with at least this many cases if it is drawn, and where both come from."""
    from ..backbones import load_backbone
    from ..datasets.sources import open_data
    from ..evaluation.provenance import make_provenance

    found = open_data(data, cases, progress.of("drawing"), distinct_subjects=distinct)
    if found.left_out:
        progress.note(f"{found.left_out} rows of {found.name} have a blank answer to edit to: they are left out.")
    frozen = load_backbone(backbone, **load)
    for _, make in makers:  # Editors that cannot be loaded are reported before anything long begins.
        make(frozen).detach()
    return frozen, found, make_provenance(frozen, found.files, found.selection, command_line(), load)


def _settings(changes: list[str] | None) -> dict[str, dict[str, object]]:
    """NAME.SETTING=VALUE by editor."""
    found: dict[str, dict[str, object]] = {}
    for given, value in settings_of(changes).items():
        label, _, setting = given.rpartition(".")
        if not label or not setting:
            raise typer.BadParameter(f"--set {given!r} names no editor. Give NAME.SETTING=VALUE, as in ft-l.steps=50.")
        found.setdefault(label, {})[setting] = value
    return found


def editor_makers(
    given: list[str], paths: Mapping[str, str], settings: Mapping[str, Mapping[str, object]] | None = None
) -> list[tuple[str, Callable[[Backbone], Editor]]]:
    """(label, maker) of each editor; refuses unknown names, and paths and settings for editors that are not given."""
    from ..editors import editor_class
    from ..errors import InvalidInputError

    changed = settings or {}
    makers: dict[str, Callable[[Backbone], Editor]] = {}
    for item in given:
        label, _, name = item.partition("=")
        makers[label] = partial(_make_editor, editor_class(name or label), paths.get(label), changed.get(label))
    for option, named in (("--editor-path", paths), ("--set", changed)):
        if stray := sorted(named.keys() - makers.keys()):
            raise InvalidInputError(
                f"{option} names {', '.join(stray)}; measured are {', '.join(makers)}. Give one of these."
            )
    return list(makers.items())


def _make_editor(
    kind: type[Editor], source: str | None, settings: Mapping[str, object] | None, backbone: Backbone
) -> Editor:
    return kind.configured(backbone, settings, source) if settings else kind.load(backbone, source)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("demo-report"),
    edits: Annotated[int, typer.Option(min=1, help="Edits to make and measure at the end.")] = 1000,
    editor_path: Annotated[
        Path | None, typer.Option(help="Folder of a trained editor, in place of the built-in.")
    ] = None,
    json: Json = False,
) -> None:
    """Edit three images and ask again, undo one edit, then measure 1,000 edits."""
    load_quietly()
    from ..demo import run_demo

    screen = console()
    screen.quiet = json
    with resumable("the demo"), ProgressDisplay() as progress:
        result = run_demo(out, edits, editor_path, screen, progress.report, command_line())
    if json:
        print_json(result)


def editors(json: Json = False) -> None:
    """List the installed editors."""
    from ..editors import editor_class, editor_names

    found = {name: editor_class(name).summary for name in editor_names()}
    if json:
        print_json({"editors": [{"name": name, "summary": summary} for name, summary in found.items()]})
        return
    table = Table("Editor", "What it is")
    for name, summary in found.items():
        table.add_row(name, Text(summary))
    console().print(table)
