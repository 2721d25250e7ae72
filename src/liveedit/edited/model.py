"""The public face: a model that can be asked, edited, and brought back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch
from PIL import Image

from ..answering import NEW_TOKENS, Answering
from ..answers import Answer, same_answer
from ..backbones import Backbone, load_backbone
from ..editors import editor_class, expert_editor_names
from ..editors.base import ExpertEditor, ExpertsOn
from ..errors import InvalidInputError, NotFoundError, OvertakenError
from ..experts import Expert
from ..images import image_digest, open_image
from ..samples import Edit, ImageSource, Question
from ..store.evidence import Evidence
from ..store.idempotency import ChangeRequest
from ..store.records import Changes, NewEdit, StoredEdit, image_png, thumbnail_png
from ..store.store import EditStore
from .recheck import CheckedEdit, check_edits
from .trial import Trial, TrialRun

_ATTEMPTS: Final = 5
"""How often an edit is tried out where other processes keep changing the edits of its question."""


@dataclass(frozen=True)
class Receipt:
    """What an edit did: its id, the answer before and after, what it cost, and what it did to other answers."""

    id: str
    prompt: str
    answer: str
    answer_before: str
    answer_after: str
    milliseconds: float
    """Time to make the edit, without the two answers around it."""
    refine_steps: int
    store_bytes: int
    evidence: Evidence = field(default_factory=Evidence)
    author: str | None = None
    note: str | None = None
    replayed: bool = field(default=False, compare=False)
    """Whether the same request had made the edit before, and nothing happened now."""

    @classmethod
    def of(cls, edit: StoredEdit) -> Self:
        """The receipt of an edit that is stored."""
        evidence = edit.evidence or Evidence()
        return cls(
            edit.id,
            edit.prompt,
            edit.answer,
            edit.answer_before or "",
            edit.answer_after or "",
            edit.milliseconds,
            edit.refine_steps,
            evidence.store_bytes,
            evidence,
            edit.author,
            edit.note,
            edit.is_replay,
        )

    @property
    def took(self) -> bool:
        """Whether the model now says what was asked for."""
        return same_answer(self.answer_after, self.answer)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "took": self.took}


class EditedModel:
    """A frozen vision-language model with edits in force.

    Edits live in memory, or in an edits file (SQLite) or a PostgreSQL database that keeps them from one process to the
    next. Close the model, or use it as a context manager, to leave the backbone as it was.

    store: what keeps them: pages of edits, thumbnails, history. Any thread may read it. None for one in memory.
    at: a revision of the store; the edits that were in force after it are, and the model cannot be edited.
    keep_images: keep the whole image of each edit in the store, not only a thumbnail and its digest.
    experts_on: on the "host", what is needed of experts only when they fire lies in memory-mapped files without names,
    in `experts_folder` (the system's temporary one by default): answers are the same, bit for bit.
    """

    def __init__(
        self,
        backbone: Backbone,
        editor: ExpertEditor[Any],
        store: EditStore | None = None,
        *,
        at: int | None = None,
        keep_images: bool = False,
        experts_on: ExpertsOn = "device",
        experts_folder: str | Path | None = None,
    ):
        self.backbone, self.editor, self._at = backbone, editor, at
        self.answering = Answering(backbone, editor)
        self._keep_images = keep_images
        self._revision = 0
        try:
            editor.keep_experts_on(experts_on, experts_folder)
            if store is None and at is not None:
                raise InvalidInputError(f"Revision {at} was asked for, but of no edits file. Give `edits` as well.")
            self.store = EditStore(None) if store is None else store
            self.store.bind(backbone.digest(), editor.digest(), backbone=backbone.name, editor=editor.name)
            self._revision = self.store.latest_revision() if at is None else at
            for edit_id, expert in self.store.active_experts(self._revision):
                editor.add(edit_id, expert)
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
        keep_images: bool = False,
        editor: str = "liveedit-refine",
        editor_path: str | Path | None = None,
        experts_on: ExpertsOn = "device",
        experts_folder: str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        **loading: Any,
    ) -> Self:
        """Load a model for editing.

        backbone: a built-in name, a local folder, or a hub name. edits: the edits file, made by the first edit where
        there is none, or the URL of a PostgreSQL database. at: a revision, to have the edits that were in force after
        it; the model cannot be edited then. keep_images, experts_on, experts_folder: as for the class. editor:
        "liveedit" (generation alone) or "liveedit-refine" (with gradient steps where an edit does not take at once).
        editor_path: the folder of a trained editor; built-in backbones bring theirs. loading: further arguments of
        `load_backbone` (device_map, quantization, offload_folder).
        """
        kind = editor_class(editor)
        if not issubclass(kind, ExpertEditor):
            raise InvalidInputError(
                f"The editor {editor!r} makes no expert per edit, so single edits cannot be stored and undone. "
                f"Give one of {', '.join(expert_editor_names())}; the others run in the bench."
            )
        store = EditStore(edits, create=at is None) if edits is not None else None
        try:
            frozen = backbone if isinstance(backbone, Backbone) else load_backbone(backbone, dtype, device, **loading)
            return cls(
                frozen,
                kind.load(frozen, str(editor_path) if editor_path else None),
                store,
                at=at,
                keep_images=keep_images,
                experts_on=experts_on,
                experts_folder=experts_folder,
            )
        except BaseException:
            if store is not None:
                store.close()
            raise

    # -- asking ------------------------------------------------------------------------------------------

    def ask(self, image: ImageSource | None, prompt: str, max_new_tokens: int = NEW_TOKENS) -> Answer:
        """The model's answer, with the edits that took part."""
        return self.ask_batch([(image, prompt)], max_new_tokens)[0]

    def ask_batch(
        self, questions: Sequence[tuple[ImageSource | None, str]], max_new_tokens: int = NEW_TOKENS
    ) -> list[Answer]:
        """Answers to several questions in one batch: the same as one by one."""
        return self.answering.ask([Question(prompt, image) for image, prompt in questions], max_new_tokens)

    # -- editing -----------------------------------------------------------------------------------------

    def edit(
        self,
        image: ImageSource | None,
        prompt: str,
        answer: str,
        *,
        rephrasings: Sequence[str] = (),
        locality: Sequence[tuple[ImageSource | None, str]] = (),
        probe_edits: int = 8,
        supersede: bool | Sequence[str] = True,
        must_take: bool = False,
        author: str | None = None,
        note: str | None = None,
        request: ChangeRequest | None = None,
    ) -> Receipt:
        """From now on, answer this prompt about this image (and what it shows) with `answer`.

        Without an image the edit is found by its prompt alone; editors of scope "text+image" reach such questions.

        The edit is tried out before it is kept, on other wordings of its question (`rephrasings`), on questions whose
        answers should stay (`locality`: image or None, prompt), and on those of up to `probe_edits` of the edits in
        force, the nearest ones. What comes out is in the receipt and stays with the edit.

        supersede: edits in force of the same question (the same image to the pixel, or none, and the same prompt up
        to spaces) leave in the same change; False keeps them; ids name others that leave instead.
        must_take: refuse an edit with which the model does not answer its own question as asked for; by default it is
        stored all the same, and `Receipt.took` says so. Rephrasings do not count.
        author, note: who made the edit, and why, for the history. request: where it has made an edit before, by
        whatever process, its receipt is returned and nothing happens.

        Raises `InvalidInputError` for an empty prompt or answer, or an image that is missing, `ImageError` for a bad
        one, `NotFoundError` where `supersede` names an edit that is not in force, `EditDidNotTakeError` where the edit
        must take and does not; nothing changes then, and `request` may be sent again.
        """
        self._check_editable()
        if request is not None and (made := self.store.made_by(request)) is not None:
            self.refresh()
            return Receipt.of(made)
        self._check_answerable(image, answer)
        opened = _opened(image)
        probes = tuple(Question(asked, _opened(other)) for other, asked in locality)
        trial = Trial(opened, prompt, answer, tuple(rephrasings), probes, probe_edits)
        started = time.perf_counter()
        expert, steps = self.editor.make_expert(Edit(Question(prompt, opened), answer))
        edit = NewEdit(
            prompt=prompt,
            answer=answer,
            editor=self.editor.name,
            milliseconds=1000 * (time.perf_counter() - started),
            refine_steps=steps,
            image_sha256=image_digest(opened) if opened is not None else None,
            image_name=Path(image).name if isinstance(image, str | Path) else None,
            author=author,
            note=note,
        )
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                return Receipt.of(self._kept(edit, expert, trial, supersede, must_take, request))
            except (OvertakenError, NotFoundError):
                # Another process changed the edits of this question in the meantime: what was tried is no more so.
                if supersede is not True or not attempts_left:
                    raise
        raise AssertionError("every attempt returns or raises")

    def undo(
        self, edit_id: str, *, author: str | None = None, note: str | None = None, request: ChangeRequest | None = None
    ) -> StoredEdit:
        """Take an edit out: logits are bit for bit as before it, and what it superseded is in force again.

        request: as for `edit`. Raises `NotFoundError` where it is not in force.
        """
        self._check_editable()
        undone = self.store.undo(edit_id, author=author, note=note, request=request)
        self.refresh()
        return undone

    def redo(
        self, edit_id: str, *, author: str | None = None, note: str | None = None, request: ChangeRequest | None = None
    ) -> StoredEdit:
        """Put an undone edit into force again, as it was; what it superseded leaves again.

        request: as for `edit`. Raises `NotFoundError` where none of this id was undone.
        """
        self._check_editable()
        redone = self.store.redo(edit_id, alone=True, author=author, note=note, request=request)
        self.refresh()
        return redone

    def check(self, edits: Sequence[StoredEdit] | None = None, *, batch: int = 16) -> Iterator[CheckedEdit]:
        """Ask edits again, all in force by default, oldest first: does the model still answer as they asked for?

        They are asked about the image that was kept, or its thumbnail, which is the image itself where that is
        small; `CheckedEdit.asked_about` says which. batch: how many are asked at once. Results come as they are had.
        """
        return check_edits(self.answering, self.store, self.edits() if edits is None else edits, batch)

    def refresh(self) -> Changes:
        """Take in what others have changed in the edits since; returns that. Cheap where nothing changed."""
        if self._at is not None:
            return Changes(self._revision, (), ())
        found = self.store.changes_since(self._revision)
        known = set(self.editor.ids)
        experts = list(self.store.experts([edit_id for edit_id in found.added if edit_id not in known]))
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
        return self.store.list(at=self._at)

    def __len__(self) -> int:
        return len(self.editor)

    # -- ending ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take the editor off the backbone and close the edits file."""
        self.editor.detach()
        self.store.close()

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

    def _check_answerable(self, image: ImageSource | None, answer: str) -> None:
        if not answer.strip():
            raise InvalidInputError("The answer is empty. Give the text that the model should answer.")
        if image is None and self.editor.needs_image:
            raise InvalidInputError(
                "An edit without an image was asked for, but this editor's scope is 'image': no question without a "
                "image would ever find it. Give the image, or an editor trained with --set scope=text+image."
            )

    def _kept(
        self,
        edit: NewEdit,
        expert: Expert,
        trial: Trial,
        supersede: bool | Sequence[str],
        must_take: bool,
        request: ChangeRequest | None,
    ) -> StoredEdit:
        """The edit, tried out with the edits that are in force now, stored, and in force."""
        self.refresh()
        superseded = self._superseded(edit, supersede)
        result = TrialRun(self.answering, self.editor, self.store, trial, expert, superseded).run()
        if must_take:
            result.check_took(trial)
        stored = self.store.add(
            replace(
                edit,
                answer_before=result.answer_before,
                answer_after=result.answer_after,
                evidence=result.evidence,
            ),
            expert,
            thumbnail_png(trial.image) if trial.image is not None else None,
            image=image_png(trial.image) if trial.image is not None and self._keep_images else None,
            supersedes=[other.id for other in superseded],
            alone=supersede is True,
            request=request,
        )
        if request is not None:  # It may have been faster elsewhere: only the store knows what is in force.
            self.refresh()
            return stored
        if stored.revision_added == self._revision + 1:
            self._revision = stored.revision_added
        self.editor.add(stored.id, expert)
        for other in superseded:
            if other.id in self.editor:
                self.editor.undo(other.id)
        return stored

    def _superseded(self, edit: NewEdit, supersede: bool | Sequence[str]) -> tuple[StoredEdit, ...]:
        if supersede is True:
            return self.store.same_question(edit.image_sha256, edit.prompt)
        named = [supersede] if isinstance(supersede, str) else supersede or ()
        return tuple(self.store.get(edit_id) for edit_id in dict.fromkeys(named))


def _opened(image: ImageSource | None) -> Image.Image | None:
    return None if image is None else open_image(image)
