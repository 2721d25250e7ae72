"""`liveedit edit`, `ask` and `check`: correct a model, ask it, and check that its edits still hold."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..answers import above_threshold
from ..errors import InvalidInputError
from .console import (
    InterruptedRunError,
    ProgressDisplay,
    console,
    load_quietly,
    note,
    print_fields,
    print_json,
    spinner,
    wait_without_spinning,
)
from .loading import ModelOptions
from .options import (
    AtRevision,
    Author,
    EditsLocation,
    Json,
    KeepImage,
    MustTake,
    Note,
    ProbeEdits,
    with_options,
)

if TYPE_CHECKING:
    from ..edited.receipt import Receipt
    from ..edited.recheck import CheckedEdit
    from ..store.evidence import Evidence

Prompt = Annotated[str, typer.Option("--prompt", help="The question.")]
Image = Annotated[Path | None, typer.Option(help="The image; leave it out for a text-only question.")]
NewAnswer = Annotated[str, typer.Option(help="The answer that the model should give from now on.")]
Rephrasings = Annotated[
    list[str] | None, typer.Option("--rephrasing", help="Another wording to try the edit on; may be repeated.")
]
LocalityPrompts = Annotated[
    list[str] | None,
    typer.Option("--locality", help="A question about the same image whose answer should stay; may be repeated."),
]
ProbesFile = Annotated[
    Path | None,
    typer.Option(
        "--probes",
        help='A JSON file with more: {"rephrasings": ["..."], "locality": [{"prompt": "...", "image": "a.png"}]}.',
    ),
]
Supersede = Annotated[
    bool,
    typer.Option("--supersede/--no-supersede", help="Undo active edits of the same image and question."),
]
OptionalEdits = Annotated[
    str | None, typer.Option("--edits", help="The edits file, or the URL of a database; without one, no edits.")
]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Only these edits.")]
Batch = Annotated[int, typer.Option(min=1, help="How many questions are asked at once.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(edit)
    app.command()(ask)
    app.command()(check)


@with_options(ModelOptions)
def edit(
    edits: EditsLocation,
    prompt: Prompt,
    answer: NewAnswer,
    image: Image = None,
    author: Author = None,
    why: Note = None,
    keep_image: KeepImage = False,
    rephrasing: Rephrasings = None,
    locality: LocalityPrompts = None,
    probes: ProbesFile = None,
    probe_edits: ProbeEdits = 8,
    supersede: Supersede = True,
    must_take: MustTake = True,
    json: Json = False,
    *,
    options: ModelOptions,
) -> None:
    """Correct the model: from now on it gives this answer to this question about this image."""
    wait_without_spinning()
    load_quietly()
    from ..images import open_image
    from .probes import probes_of

    if image is not None:
        open_image(image)  # An image that cannot be read is refused before a model is loaded.
    rephrasings, questions = probes_of(probes, image, rephrasing or [], locality or [])
    loaded = options.edited_model(edits, json=json, keep_images=keep_image)
    with loaded as model, spinner("editing", not json) as steps:
        receipt = model.edit(
            image,
            prompt,
            answer,
            rephrasings=rephrasings,
            locality=questions,
            probe_edits=probe_edits,
            supersede=supersede,
            must_take=must_take,
            author=author,
            note=why,
            progress=steps,
        )
    if json:
        print_json(receipt.to_dict())
    else:
        _print_receipt(receipt, edits)


@with_options(ModelOptions)
def ask(
    prompt: Prompt,
    edits: OptionalEdits = None,
    at: AtRevision = None,
    image: Image = None,
    json: Json = False,
    *,
    options: ModelOptions,
) -> None:
    """Ask the model, with the active edits of a file."""
    wait_without_spinning()
    load_quietly()
    from ..answering import Answering
    from ..editors import editor_class
    from ..images import open_image
    from ..samples import Question
    from ..store.locations import is_absent

    if at is not None and edits is None:
        raise InvalidInputError(f"--at {at} was given without --edits. Give the edits file as well.")
    if image is not None:
        open_image(image)  # An image that cannot be read is refused before a model is loaded.
    kept = edits if edits is not None and not is_absent(edits) else None  # Asking must not create the file.
    if options.editor is not None:
        editor_class(options.editor)
    backbone = options.load_backbone()
    if kept is None and options.editor_path is None and at is None:  # Without edits no trained editor is needed.
        (answer,) = Answering(backbone).ask([Question(prompt, image)])
    else:
        with options.edited_model(kept, backbone=backbone, json=json, at=at) as model:
            answer = model.ask(image, prompt)
    if edits is not None and kept is None:
        note(f"There is no edits file {edits!r} yet: no edits are active.")
    if json:
        print_json(answer.to_dict())
        return
    out = console()
    out.print(Text(answer.text or "(the model says nothing)"))
    for fired in above_threshold(answer.fired):
        out.print(Text(f"edit {fired.edit_id}, weight {fired.weight:.2f}", style="dim"))
    for withheld in answer.withheld:
        out.print(Text(f"edit {withheld.edit_id} fired, in doubt: this is the unedited answer", style="dim"))


@with_options(ModelOptions)
def check(
    edits: EditsLocation,
    ids: Ids = None,
    batch: Batch = 16,
    json: Json = False,
    *,
    options: ModelOptions,
) -> None:
    """Ask all active edits again and list those that no longer hold; the exit code is then 1."""
    wait_without_spinning()
    load_quietly()
    from ..store.locations import is_absent
    from ..store.store import EditStore

    if is_absent(edits):
        EditStore(edits, create=False).close()  # Raises the error before a model is loaded.
    found: list[CheckedEdit] = []
    with options.edited_model(edits, json=json) as model:
        chosen = [model.store.get(edit_id) for edit_id in ids] if ids else list(model.edits())
        try:
            with ProgressDisplay() as progress:
                for checked in model.check(chosen, batch=batch):
                    found.append(checked)
                    progress.report("edits", len(found), len(chosen))
        except KeyboardInterrupt as interruption:
            _print_checked(found, len(chosen), json)
            raise InterruptedRunError(f"Interrupted after {len(found)} of {len(chosen)} edits.") from interruption
    _print_checked(found, len(chosen), json)
    if any(checked.holds is False for checked in found):
        raise typer.Exit(1)


# -- what is printed -------------------------------------------------------------------------------------


def _print_receipt(receipt: Receipt, edits: str) -> None:
    took = "yes" if receipt.took else f"no: {receipt.answer!r} was asked for; the edit is active all the same"
    print_fields(
        {
            "edit": receipt.id,
            "before": receipt.answer_before,
            "after": receipt.answer_after,
            "took": took,
            "time": f"{receipt.milliseconds:.0f} ms, {receipt.refine_steps} refine steps",
            "size": f"{receipt.store_bytes:,} bytes" + (f", rank {rank}" if (rank := receipt.evidence.rank) else ""),
            **described_evidence(receipt.evidence, receipt.answer),
            "undo": f"liveedit edits undo --edits {shlex.quote(edits)} {receipt.id}",
        }
    )


def described_evidence(evidence: Evidence, answer: str) -> dict[str, str | None]:
    """The evidence as fields to print; None for fields to leave out. answer: the edit's."""
    counts = (
        ("rephrasings", "took", evidence.rephrasings_taken, evidence.rephrasings),
        ("locality", "kept their answer", evidence.locality_kept, evidence.locality),
        ("earlier edits", "asked again kept their answer", evidence.earlier_kept, evidence.earlier_edits),
    )
    described: dict[str, str | None] = {"supersedes": ", ".join(evidence.supersedes) or None}
    for name, what, good, asked in counts:
        broken = sum(one.is_broken(answer) is True for one in asked)
        counted = f"{good} of {len(asked)} {what}" + (f", {broken} broken" if broken else "")
        described[name] = counted if asked else None
    spoiled = ", ".join(earlier.edit_id for earlier in evidence.earlier_edits if not earlier.kept)
    collisions = (
        f"{one.edit_id} (weight {one.weight_here:.2f} here, {'about ' if one.is_estimate else ''}"
        f"{one.weight_there:.2f} there, {'another' if one.answers_differ else 'the same'} answer)"
        for one in evidence.collisions
    )
    return {**described, "changed": spoiled or None, "collides with": ", ".join(collisions) or None}


def _print_checked(found: list[CheckedEdit], expected: int, json: bool) -> None:
    counts = {
        "edits": expected,
        "checked": len(found),
        "holding": sum(checked.holds is True for checked in found),
        "failing": sum(checked.holds is False for checked in found),
        "broken": sum(checked.broken is True for checked in found),
        "unknown": sum(checked.holds is None for checked in found),
    }
    if json:
        print_json({**counts, "results": [checked.to_dict() for checked in found]})
        return
    listed = [checked for checked in found if not checked.holds]
    if listed:
        table = Table()
        for name in ("Edit", "Question", "Expected", "Now", "Broken", "Asked about", "Other edits that fired"):
            table.add_column(name, overflow="fold")
        for checked in listed:
            others = ", ".join(f"{other.edit_id} ({other.weight:.2f})" for other in above_threshold(checked.others))
            now = "not asked: its image was not kept" if checked.answer_now is None else checked.answer_now
            about = {"image": "its image", "thumbnail": "its thumbnail", "text": "text"}.get(checked.asked_about)
            broken = {True: "yes", False: "no", None: ""}[checked.broken]
            cells = (checked.edit_id, checked.prompt, checked.answer, now, broken, about or "", others)
            table.add_row(*(Text(cell) for cell in cells))
        console().print(table)
    console().print(
        Text(
            f"{counts['holding']:,} of {len(found):,} edits hold, {counts['failing']:,} do not "
            f"({counts['broken']:,} broken), {counts['unknown']:,} could not be asked."
        )
    )
