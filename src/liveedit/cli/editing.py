"""`liveedit edit` and `ask`: correcting a model, and asking it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from .arguments import (
    Author,
    BackboneName,
    EditorName,
    EditorPath,
    EditsLocation,
    ExpertsOn,
    Json,
    LoadOptions,
    Note,
    loading,
)
from .console import console, load_quietly, note, print_fields, print_json

if TYPE_CHECKING:
    from ..store.evidence import Evidence

Prompt = Annotated[str, typer.Option("--prompt", help="The question.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(edit)
    app.command()(ask)


def edit(
    edits: EditsLocation,
    prompt: Prompt,
    answer: Annotated[str, typer.Option(help="What the model is to answer from now on.")],
    image: Annotated[Path | None, typer.Option(help="The image; none for a text-only question.")] = None,
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    editor: EditorName = "liveedit-refine",
    editor_path: EditorPath = None,
    experts_on: ExpertsOn = "device",
    author: Author = None,
    why: Note = None,
    keep_image: Annotated[
        bool, typer.Option("--keep-image", help="Keep the whole image with the edit, not only a thumbnail.")
    ] = False,
    rephrasing: Annotated[
        list[str] | None, typer.Option("--rephrasing", help="Another wording to check the edit on; once for each.")
    ] = None,
    locality: Annotated[
        list[str] | None,
        typer.Option("--locality", help="A question about the same image whose answer should stay; once for each."),
    ] = None,
    probes: Annotated[
        Path | None,
        typer.Option(
            "--probes",
            help='A JSON file of more: {"rephrasings": ["..."], "locality": [{"prompt": "...", "image": "a.png"}]}.',
        ),
    ] = None,
    probe_edits: Annotated[
        int, typer.Option("--probe-edits", min=0, help="How many of the edits in force are asked again, the nearest.")
    ] = 8,
    supersede: Annotated[
        bool,
        typer.Option("--supersede/--no-supersede", help="Whether edits in force of the same image and question leave."),
    ] = True,
    must_take: Annotated[
        bool,
        typer.Option("--must-take", help="Store nothing, and fail, where the model does not answer as asked for then."),
    ] = False,
    json: Json = False,
) -> None:
    """Correct the model: from now on it gives this answer to this question about this image."""
    load_quietly()
    from ..edited.model import EditedModel
    from .probes import probes_of

    options = loading(load)
    rephrasings, questions = probes_of(probes, image, rephrasing or [], locality or [])
    with EditedModel.load(
        backbone,
        edits=edits,
        keep_images=keep_image,
        editor=editor,
        editor_path=editor_path,
        experts_on=experts_on,
        **options,
    ) as model:
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
        )
    if json:
        print_json(receipt.to_dict())
        return
    print_fields(
        {
            "edit": receipt.id,
            "before": receipt.answer_before,
            "after": receipt.answer_after,
            "took": "yes"
            if receipt.took
            else f"no: {receipt.answer!r} was asked for; the edit is in force all the same",
            "time": f"{receipt.milliseconds:.0f} ms, {receipt.refine_steps} refine steps",
            "size": f"{receipt.store_bytes:,} bytes",
            **described_evidence(receipt.evidence),
            "undo": f"liveedit edits undo --edits {shlex.quote(edits)} {receipt.id}",
        }
    )


def described_evidence(evidence: Evidence) -> dict[str, str | None]:
    """The evidence for people; None where there is nothing to say."""
    counts = (
        ("rephrasings", "took", evidence.rephrasings_taken, len(evidence.rephrasings)),
        ("locality", "kept their answer", evidence.locality_kept, len(evidence.locality)),
        ("earlier edits", "asked again kept their answer", evidence.earlier_kept, len(evidence.earlier_edits)),
    )
    told: dict[str, str | None] = {"supersedes": ", ".join(evidence.supersedes) or None}
    told |= {name: f"{good} of {asked} {what}" if asked else None for name, what, good, asked in counts}
    spoiled = ", ".join(earlier.edit_id for earlier in evidence.earlier_edits if not earlier.kept)
    met = (
        f"{met.edit_id} (weight {met.weight_here:.2f} here, {'about ' if met.is_estimate else ''}"
        f"{met.weight_there:.2f} there, {'another' if met.answers_differ else 'the same'} answer)"
        for met in evidence.collisions
    )
    return {**told, "changed": spoiled or None, "collides with": ", ".join(met) or None}


def ask(
    prompt: Prompt,
    edits: Annotated[
        str | None, typer.Option("--edits", help="The edits file, or the URL of a database; without one, no edits.")
    ] = None,
    at: Annotated[int | None, typer.Option("--at", help="A revision: ask as the edits stood after it.")] = None,
    image: Annotated[Path | None, typer.Option(help="The image; without one, a text-only question.")] = None,
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    editor: EditorName = "liveedit-refine",
    editor_path: EditorPath = None,
    experts_on: ExpertsOn = "device",
    json: Json = False,
) -> None:
    """Ask the model, with the edits of a file in force."""
    load_quietly()
    from ..answers import above_threshold
    from ..backbones import load_backbone
    from ..edited.model import Answer, EditedModel
    from ..editors import editor_class
    from ..samples import Question
    from ..store.locations import is_absent

    kept = edits if edits is not None and not is_absent(edits) else None  # Asking makes no file.
    editor_class(editor)
    frozen = load_backbone(backbone, **loading(load))
    if kept is None and editor_path is None and at is None:  # Without edits no editor is needed.
        answer = Answer(frozen.generate(frozen.encode([Question(prompt, image)], padding="left"))[0], ())
    else:
        with EditedModel.load(
            frozen, edits=kept, at=at, editor=editor, editor_path=editor_path, experts_on=experts_on
        ) as model:
            answer = model.ask(image, prompt)
    if edits is not None and kept is None:
        note(f"There is no edits file {edits!r} yet: no edits are in force.")
    if json:
        print_json(answer.to_dict())
        return
    out = console()
    out.print(Text(answer.text or "(the model says nothing)"))
    for fired in above_threshold(answer.fired):
        out.print(Text(f"edit {fired.edit_id}, weight {fired.weight:.2f}", style="dim"))
