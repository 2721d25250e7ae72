"""`liveedit edits near`: the active edits nearest to an edit, and which of them collide with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from .console import console, counted, load_quietly, print_json, wait_without_spinning
from .loading import ModelOptions
from .options import (
    EditId,
    EditsLocation,
    Json,
    with_options,
)

if TYPE_CHECKING:
    from ..edited.near import NearEdit


@with_options(ModelOptions)
def near_edits(
    edit_id: EditId,
    edits: EditsLocation,
    most: Annotated[int, typer.Option(min=1, help="How many of the nearest edits are listed.")] = 10,
    json: Json = False,
    *,
    options: ModelOptions,
) -> None:
    """List the active edits nearest to an edit, and ask whether one fires for the other's question."""
    wait_without_spinning()
    load_quietly()
    from ..store.store import EditStore

    with EditStore(edits, create=False) as store:  # An unknown id is refused before a model is loaded.
        edit = store.get(edit_id)
    with options.edited_model(edits, json=json) as model:
        found = model.near(edit.id, most)
    if json:
        print_json({"id": edit.id, "near": [near.to_dict() for near in found]})
        return
    table = Table(caption=f"Near {edit.id} ({edit.prompt!r}: {edit.answer!r}): {counted(len(found), 'active edit')}")
    for name in ("Edit", "Image", "Question", "Answer", "Similarity", "Weight here", "Weight there", "Collides"):
        table.add_column(name, overflow="fold")
    for near in found:
        weights = (_weight(near.weight_here), _weight(near.weight_there, is_estimate=near.is_estimate))
        texts = (near.edit_id, near.image_name or "", near.prompt, near.answer, f"{near.similarity:.2f}")
        table.add_row(*map(Text, (*texts, *weights, _collides(near))))
    console().print(table)


def _weight(weight: float | None, *, is_estimate: bool = False) -> str:
    return "unknown" if weight is None else f"{'about ' if is_estimate else ''}{weight:.2f}"


def _collides(near: NearEdit) -> str:
    if not near.collides:
        return "unknown" if near.collides is None else ""
    return "yes, another answer" if near.answers_differ else "yes, the same answer"
