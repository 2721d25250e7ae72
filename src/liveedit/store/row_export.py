"""The export of edits as rows of a data format, with their images as files: what a person or another program reads.

A row has the question, the answer, the rephrasings and the locality questions of an edit, its author and its note, and
its id. It has no expert: `liveedit edits add` makes the edits anew. A bundle moves experts and history.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..datasets.base import Reader
from ..datasets.edit_rows import locality_probe
from ..datasets.row_files import write_rows
from ..errors import InvalidInputError, StoreError
from ..files import written_atomically
from ..samples import LOCALITY, Edit, EditCase, Probe, Question
from .evidence import Evidence
from .reader import EditReader
from .records import StoredEdit


@dataclass(frozen=True, slots=True)
class ExportedRows:
    """The result of an export.

    images: how many files were written, into `images_folder`. without_image: ids of edits whose whole image was not
    kept; their rows name the file that they were made with. left_out: number of locality questions that are about an
    image of no exported edit, of which the store has the digest alone.
    """

    edits: int
    images: int
    images_folder: Path
    without_image: tuple[str, ...]
    left_out: int


def export_rows(store: EditReader, file: Path, format: Reader, *, at: int | None = None) -> ExportedRows:
    """Write the active edits, now or after a revision, as rows, and their images into a folder beside the file.

    An image is written once, named by its digest. Raises `InvalidInputError` for a format that is only read,
    `StoreError` if the file exists or an image is damaged.
    """
    row_of = format.row_of
    if row_of is None:
        raise InvalidInputError(f"Rows of the format {format.name!r} are only read. Export to edits or easyedit.")
    if file.exists():
        raise StoreError(f"The file {str(file)!r} is there already. Give another name, or move it away.")
    edits = store.list(at=at)
    folder = file.with_name(f"{file.stem}-images")
    images = _write_images(store, edits, folder)
    cases = [_case_of(edit, images) for edit in edits]
    both = zip(edits, cases, strict=True)
    write_rows(file, [{"id": edit.id, **row_of(case), **_signature(edit)} for edit, case in both])
    asked = sum(len(edit.evidence.locality) for edit in edits if edit.evidence is not None)
    written = sum(len(case.named(*LOCALITY)) for case in cases)
    missing = (edit.id for edit in edits if edit.image_sha256 is not None and edit.image_sha256 not in images)
    return ExportedRows(len(edits), len(images), folder, tuple(missing), asked - written)


def _signature(edit: StoredEdit) -> dict[str, str]:
    """Author and note, if there are any. Every format reads them."""
    return {key: text for key, text in (("author", edit.author), ("note", edit.note)) if text is not None}


def _write_images(store: EditReader, edits: tuple[StoredEdit, ...], folder: Path) -> dict[str, str]:
    """Write each image that the store has whole; its path in rows by its digest."""
    written: dict[str, str] = {}
    for edit in edits:
        if edit.image_sha256 is None or edit.image_sha256 in written:
            continue
        if (data := store.whole_image(edit)) is None:
            continue
        with Image.open(io.BytesIO(data)) as image:
            kind = (image.format or "image").lower()
        file = folder / f"{edit.image_sha256}.{kind}"
        with written_atomically(file) as temporary:
            temporary.write_bytes(data)
        written[edit.image_sha256] = f"{folder.name}/{file.name}"
    return written


def _case_of(edit: StoredEdit, images: Mapping[str, str]) -> EditCase:
    """An edit with its rephrasings, and with those of its locality questions whose images are there."""
    image = edit.image_sha256 and images.get(edit.image_sha256, edit.image_name or edit.image_sha256)
    edited = Question(edit.prompt, image, edit.subject, edit.relation)
    evidence = edit.evidence or Evidence()
    probes = [Probe("text_generality", Question(asked.prompt, image), edit.answer) for asked in evidence.rephrasings]
    for asked in evidence.locality:
        about = image if asked.image_sha256 == edit.image_sha256 else images.get(asked.image_sha256 or "")
        if asked.image_sha256 is None or about is not None:
            probes.append(locality_probe(edited, asked.prompt, about, asked.answer_before))
    return EditCase(edit.id, Edit(edited, edit.answer), tuple(probes), answer_before=edit.answer_before)
