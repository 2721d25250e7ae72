"""The public face: a model that can be asked, edited, and brought back."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from PIL import Image

from .backbones import Backbone, load_backbone
from .editors import Fired, editor_class
from .editors.liveedit import LiveEdit
from .errors import InvalidInputError, NotFoundError, StoreError
from .experts import Expert
from .experts.blocks import Place
from .experts.records import Changes, NewEdit, StoredEdit, picture_png, thumbnail_png
from .experts.store import EditStore
from .images import image_digest, open_image
from .samples import Edit, ImageSource, Question


@dataclass(frozen=True)
class Answer:
    """What the model says: its text, and which edits took part with which weights."""

    text: str
    fired: tuple[Fired, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Receipt:
    """What an edit did: its id, the answer before and after, and what it cost."""

    id: str
    prompt: str
    answer: str
    answer_before: str
    answer_after: str
    milliseconds: float
    """Time to make the edit, without the two answers around it."""
    refine_steps: int
    store_bytes: int

    @property
    def took(self) -> bool:
        """Whether the model now says what was asked for."""
        return self.answer_after.strip().lower() == self.answer.strip().lower()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "took": self.took}


class EditedModel:
    """A frozen vision-language model with edits in force.

    Edits live in memory, or in an edits file (SQLite) or a PostgreSQL database that keeps them from one process to the
    next. Close the model, or use it as a context manager, to leave the backbone as it was.

    at: a revision of the store; the edits that were in force after it are, and the model cannot be edited.
    keep_pictures: keep the whole picture of each edit in the store, not only a thumbnail and its digest.
    experts_on: on the "host", what is needed of experts only when they fire lies in memory-mapped files without names,
    in `experts_folder` (the system's temporary one by default): answers are the same, bit for bit.
    """

    def __init__(
        self,
        backbone: Backbone,
        editor: LiveEdit,
        store: EditStore | None = None,
        *,
        at: int | None = None,
        keep_pictures: bool = False,
        experts_on: Place = "device",
        experts_folder: str | Path | None = None,
    ):
        self.backbone, self.editor, self._store, self._at = backbone, editor, store, at
        self._keep_pictures = keep_pictures
        self._memory: dict[str, StoredEdit] = {}
        self._undone: dict[str, tuple[StoredEdit, Expert]] = {}
        """Edits in memory that were undone."""
        self._revision = 0
        try:
            editor.keep_experts_on(experts_on, experts_folder)
            if store is not None:
                store.bind(backbone_digest(backbone), editor.digest(), backbone=backbone.name, editor=editor.name)
                self._revision = store.latest_revision() if at is None else at
                for edit_id, expert in store.active_experts(self._revision):
                    editor.add(edit_id, expert)
            elif at is not None:
                raise InvalidInputError(f"Revision {at} was asked for, but of no edits file. Give `edits` as well.")
        except BaseException:
            editor.detach()
            raise

    @classmethod
    def load(
        cls,
        backbone: str | Path | Backbone,
        *,
        edits: str | Path | None = None,
        at: int | None = None,
        keep_pictures: bool = False,
        editor: str = "liveedit-refine",
        editor_path: str | Path | None = None,
        experts_on: Place = "device",
        experts_folder: str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        **loading: Any,
    ) -> Self:
        """Load a model for editing.

        backbone: a built-in name, a local folder, or a hub name. edits: the edits file, made by the first edit where
        there is none, or the URL of a PostgreSQL database. at: a revision, to have the edits that were in force after
        it; the model cannot be edited then. keep_pictures, experts_on, experts_folder: as for the class. editor:
        "liveedit" (generation alone) or "liveedit-refine" (with gradient steps where an edit does not take at once).
        editor_path: the folder of a trained editor; built-in backbones bring theirs. loading: further arguments of
        `load_backbone` (device_map, quantization, offload_folder).
        """
        kind = editor_class(editor)
        if not issubclass(kind, LiveEdit):
            raise InvalidInputError(
                f"The editor {editor!r} cannot keep edits apart. Give liveedit or liveedit-refine; "
                "others run in the bench."
            )
        store = EditStore(edits, create=at is None) if edits is not None else None
        try:
            frozen = backbone if isinstance(backbone, Backbone) else load_backbone(backbone, dtype, device, **loading)
            return cls(
                frozen,
                kind.load(frozen, str(editor_path) if editor_path else None),
                store,
                at=at,
                keep_pictures=keep_pictures,
                experts_on=experts_on,
                experts_folder=experts_folder,
            )
        except BaseException:
            if store is not None:
                store.close()
            raise

    # -- asking ------------------------------------------------------------------------------------------

    def ask(self, image: ImageSource | None, prompt: str, max_new_tokens: int = 32) -> Answer:
        """The model's answer, with the edits that took part."""
        return self.ask_batch([(image, prompt)], max_new_tokens)[0]

    def ask_batch(self, questions: Sequence[tuple[ImageSource | None, str]], max_new_tokens: int = 32) -> list[Answer]:
        """Answers to several questions in one batch: the same as one by one."""
        asked = [Question(prompt, image) for image, prompt in questions]
        texts = self.backbone.generate(self.backbone.encode(asked, padding="left"), max_new_tokens)
        fired = self.editor.fired() or [()] * len(texts)
        return [Answer(text, edits) for text, edits in zip(texts, fired, strict=True)]

    # -- editing -----------------------------------------------------------------------------------------

    def edit(
        self,
        image: ImageSource | None,
        prompt: str,
        answer: str,
        *,
        author: str | None = None,
        note: str | None = None,
    ) -> Receipt:
        """From now on, answer this prompt about this picture (and what it shows) with `answer`.

        Without a picture the edit is found by its prompt alone; editors of scope "text+image" reach such questions.
        author, note: who made the edit, and why, for the history.
        Raises `InvalidInputError` for an empty prompt or answer, or a picture that is missing, `ImageError` for a bad
        one; nothing changes then.
        """
        self._check_editable()
        if not answer.strip():
            raise InvalidInputError("The answer is empty. Give the text that the model should answer.")
        if image is None and self.editor.config.scope == "image":
            raise InvalidInputError(
                "An edit without a picture was asked for, but this editor's scope is 'image': no question without a "
                "picture would ever find it. Give the picture, or an editor trained with --set scope=text+image."
            )
        picture = open_image(image) if image is not None else None
        before = self.ask(picture, prompt).text
        started = time.perf_counter()
        expert, steps = self.editor.make_expert(Edit(Question(prompt, picture), answer))
        milliseconds = 1000 * (time.perf_counter() - started)
        name = Path(image).name if isinstance(image, str | Path) else None
        described = NewEdit(
            prompt=prompt,
            answer=answer,
            editor=self.editor.name,
            answer_before=before,
            milliseconds=milliseconds,
            refine_steps=steps,
            image_sha256=image_digest(picture) if picture is not None else None,
            image_name=name,
            author=author,
            note=note,
        )
        trial = "trial"
        self.editor.add(trial, expert)
        try:
            after = self.ask(picture, prompt).text
        finally:
            self.editor.undo(trial)
        stored = self._keep(replace(described, answer_after=after), expert, picture)
        self.editor.add(stored.id, expert)
        return Receipt(stored.id, prompt, answer, before, after, milliseconds, steps, expert.store_bytes)

    def undo(self, edit_id: str, *, author: str | None = None, note: str | None = None) -> StoredEdit:
        """Take an edit out: logits are bit for bit as before it. Raises `NotFoundError` where it is not in force."""
        self._check_editable()
        if self._store is not None:
            undone = self._store.undo(edit_id, author=author, note=note)
            self.refresh()
            return undone
        if edit_id not in self._memory:
            raise NotFoundError(f"There is no edit {edit_id!r} in force. In force: {self._known_ids()}.")
        undone = self._memory.pop(edit_id)
        self._undone[edit_id] = undone, self.editor.repository.get(edit_id)
        self.editor.undo(edit_id)
        return undone

    def redo(self, edit_id: str, *, author: str | None = None, note: str | None = None) -> StoredEdit:
        """Put an undone edit into force again, as it was. Raises `NotFoundError` where none of this id was undone."""
        self._check_editable()
        if self._store is not None:
            redone = self._store.redo(edit_id, author=author, note=note)
            self.refresh()
            return redone
        if edit_id not in self._undone:
            raise NotFoundError(f"No edit {edit_id!r} was undone. Undone: {', '.join(self._undone) or 'none'}.")
        redone, expert = self._undone.pop(edit_id)
        self._memory[edit_id] = redone
        self._memory = dict(sorted(self._memory.items(), key=lambda item: item[1].number))
        self.editor.add(edit_id, expert)
        return redone

    def refresh(self) -> Changes:
        """Take in what others have changed in the edits since; returns that. Cheap where nothing changed."""
        if self._store is None or self._at is not None:
            return Changes(self._revision, (), ())
        found = self._store.changes_since(self._revision)
        known = set(self.editor.repository.ids)
        experts = list(self._store.experts([edit_id for edit_id in found.added if edit_id not in known]))
        for edit_id in known.intersection(found.removed):
            self.editor.undo(edit_id)
        for edit_id, expert in experts:
            self.editor.add(edit_id, expert)
        self._revision = found.revision
        return found

    @property
    def revision(self) -> int:
        """The revision of the store that the edits in force were read at; own edits since are in force as well."""
        return self._revision

    def edits(self) -> tuple[StoredEdit, ...]:
        """The edits in force, oldest first."""
        return self._store.list(at=self._at) if self._store is not None else tuple(self._memory.values())

    def __len__(self) -> int:
        return len(self.editor.repository)

    # -- ending ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take the editor off the backbone and close the edits file."""
        self.editor.detach()
        if self._store is not None:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_editable(self) -> None:
        if self._at is not None:
            raise InvalidInputError(
                f"The model was loaded as it was after revision {self._at}, and the past cannot be changed. "
                "Load it without `at` to edit, undo or redo."
            )

    def _keep(self, edit: NewEdit, expert: Expert, picture: Image.Image | None) -> StoredEdit:
        if self._store is not None:
            thumbnail = thumbnail_png(picture) if picture is not None else None
            whole = picture_png(picture) if picture is not None and self._keep_pictures else None
            return self._store.add(edit, expert, thumbnail, picture=whole)
        numbers = [stored.number for stored in (*self._memory.values(), *(kept for kept, _ in self._undone.values()))]
        number = 1 + max(numbers, default=0)
        edit_id = hashlib.sha256(f"{number}:{expert.digest}".encode()).hexdigest()[:8]
        if edit_id in self._memory or edit_id in self._undone:
            raise StoreError(f"The edit id {edit_id!r} came up twice. Use an edits file.")
        stored = StoredEdit(**asdict(edit), id=edit_id, number=number, created_at="")
        self._memory[edit_id] = stored
        return stored

    def _known_ids(self) -> str:
        return ", ".join(self._memory) or "none"


def backbone_digest(backbone: Backbone) -> str:
    """SHA-256 of a backbone's configuration and of a sample of each weight: what tells two models apart quickly."""
    return backbone.digest()
