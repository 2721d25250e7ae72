"""`EditedModel`: a model that can be asked and edited, and whose edits can be undone."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self, SupportsIndex

import torch
from PIL import Image

from ..answering import NEW_TOKENS, Answering
from ..answers import Answer
from ..backbones import Backbone, load_backbone
from ..editors import default_editor, expert_editor_class
from ..editors.base import ExpertEditor
from ..errors import InvalidInputError, NotFoundError, OvertakenError
from ..experts import Expert
from ..experts.blocks import ExpertsOn
from ..experts.expert import expert_to_bytes
from ..images import image_digest, open_image
from ..progress import Progress, no_progress, steps_reported
from ..samples import Edit, ImageSource, Question
from ..store.idempotency import ChangeRequest
from ..store.records import Changes, NewEdit, StoredEdit
from ..store.store import EditStore
from ..store.thumbnails import image_png, thumbnail_png
from .following import FollowedEdits
from .lock import ReadersWriterLock
from .near import NearEdit, check_finds_near, near_edits
from .receipt import Receipt
from .recheck import CheckedEdit, check_edits
from .trial import Trial, TrialRun

_ATTEMPTS: Final = 5
"""Number of trials of an edit if other processes keep changing the edits of its question."""


class EditedModel:
    """A frozen vision-language model with active edits.

    The edits are in memory, or in an edits file (SQLite) or a PostgreSQL database that keeps them from one process to
    the next. Close the model, or use it as a context manager, to leave the backbone as it was. Until then the backbone
    takes no other edited model: `InvalidInputError`.

    Several threads may use it. Edit, undo, redo, refresh and close wait for the questions in progress, and later
    questions wait for them. If the editor is `thread_safe`, questions are answered side by side, also while an expert
    is made, which is the slow part of an edit.

    store: where the edits are kept; any thread may read it (pages of edits, thumbnails, history). None: in memory.
    at: a revision of the store; the edits active after it are active here, and the model cannot be edited.
    keep_images: keep the whole image of each edit in the store, not only a thumbnail and its digest.
    experts_on: "host" keeps the parts of experts that are needed only when they fire in unnamed memory-mapped files in
    `experts_folder` (by default the system's temporary folder). Answers are the same, bit for bit.
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
        self._lock, self._is_closed = ReadersWriterLock(), False
        try:
            backbone.claim.take(editor)
        except InvalidInputError:
            if not backbone.claim.is_held_by(editor):
                editor.detach()
            raise
        self._leave = weakref.finalize(self, _leave_backbone, backbone, editor)
        """Called once: by `close`, or when a model that was not closed is no longer referenced."""
        self._leave.atexit = False
        try:
            editor.keep_experts_on(experts_on, experts_folder)
            if store is None and at is not None:
                raise InvalidInputError(f"Revision {at} was given without an edits file. Give `edits` as well.")
            self.store = EditStore(None) if store is None else store
            self.store.bind(backbone.digest(), editor.digest(), backbone=backbone.name, editor=editor.name)
            self._followed = FollowedEdits(editor, self.store)
            self._followed.load(at)
        except BaseException:
            self._leave()
            raise

    @classmethod
    def load(
        cls,
        backbone: str | Path | Backbone,
        *,
        edits: str | Path | None = None,
        at: int | None = None,
        keep_images: bool = False,
        editor: str | None = None,
        editor_path: str | Path | None = None,
        experts_on: ExpertsOn = "device",
        experts_folder: str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        **loading: Any,
    ) -> Self:
        """Load a model for editing.

        backbone: a built-in name, a folder, a GGUF file, or a hub name. edits: the edits file, created by the first
        edit if it does not exist, or the URL of a PostgreSQL database. at, keep_images, experts_on, experts_folder: as
        for the class. editor: an editor that makes one expert per edit; by default the one of the edits, or
        `default_editor`. editor_path: a trained editor or a calibration, by its folder or its name at a hub,
        OWNER/NAME[@REVISION]. loading: more arguments of `load_backbone` (device_map, quantization, offload_folder).

        Raises `InvalidInputError` for an unknown argument, an editor that makes no expert per edit, or a backbone that
        already has an edited model.
        """
        _check_arguments(loading)
        if isinstance(backbone, Backbone):
            _check_not_loaded({"dtype": dtype, "device": device, **loading})
        kind = None if editor is None else expert_editor_class(editor)
        store = EditStore(edits, create=at is None) if edits is not None else None
        try:
            frozen = backbone if isinstance(backbone, Backbone) else load_backbone(backbone, dtype, device, **loading)
            frozen.claim.check_free()
            if store is not None:
                store.check_backbone(frozen.digest(), frozen.name)  # Before its editor is looked for.
            kind = kind or expert_editor_class(_editor_of(store) or default_editor(frozen.name, editor_path))
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
        """The model's answer, and the edits that fired for it."""
        return self.ask_batch([(image, prompt)], max_new_tokens)[0]

    def ask_batch(
        self, questions: Sequence[tuple[ImageSource | None, str]], max_new_tokens: int = NEW_TOKENS
    ) -> list[Answer]:
        """Answers to several questions in one batch; the same as asked one by one."""
        with self.asking():
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
        must_take: bool = True,
        author: str | None = None,
        note: str | None = None,
        request: ChangeRequest | None = None,
        progress: Progress = no_progress,
    ) -> Receipt:
        """Make the model answer this prompt about this image (and what it shows) with `answer` from now on.

        Without an image the edit is found by its prompt alone; editors of scope "text+image" reach such questions.

        Before the edit is stored, a trial asks with and without it: its own question, other wordings of it
        (`rephrasings`), questions whose answers should stay (`locality`: image or None, prompt), and the questions of
        up to `probe_edits` of the nearest active edits. The receipt and the stored edit have the result.

        supersede: True deactivates, in the same change, the active edits of the same question (the same image to the
        pixel, or none, and the same prompt up to white space); False keeps them; ids name other edits to deactivate.
        must_take: refuse an edit with which the model does not give the requested answer to the edit's own question.
        False stores it all the same, and `Receipt.took` is False. Rephrasings do not count.
        author, note: who makes the edit, and why, for the history. request: if it has made an edit before, in whatever
        process, that edit's receipt is returned and nothing happens. progress: is called with the gradient steps done
        and the most there may be, by editors that report them.

        Raises `InvalidInputError` for a prompt or answer that is empty or contains a control token of the tokenizer, or
        a missing image, `ImageError` for a bad one, `NotFoundError` if `supersede` names an edit that is not active,
        `EditDidNotTakeError` if the edit must take and does not. Nothing changes then, and `request` may be sent again.
        """
        self._check_editable()
        if request is not None and (made := self._made_by(request)) is not None:
            return Receipt.of(made)
        self._check_answerable(image, prompt, answer)
        opened = _opened(image)
        probes = tuple(Question(asked, _opened(other)) for other, asked in locality)
        trial = Trial(opened, prompt, answer, tuple(rephrasings), probes, probe_edits)
        image_name = Path(image).name if isinstance(image, str | Path) else None
        with steps_reported(progress):
            edit, expert = self._made(trial, image_name, author, note)
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                with self._changing():
                    return Receipt.of(self._stored(edit, expert, trial, supersede, must_take, request))
            except (OvertakenError, NotFoundError):
                # Another process changed the edits of this question in the meantime, so the trial result is stale.
                if supersede is not True or not attempts_left:
                    raise
        raise AssertionError("every attempt returns or raises")

    def undo(
        self, edit_id: str, *, author: str | None = None, note: str | None = None, request: ChangeRequest | None = None
    ) -> StoredEdit:
        """Deactivate an edit: logits are bit for bit as before it, and edits that it superseded are active again.

        request: as for `edit`. Raises `NotFoundError` if the edit is not active.
        """
        self._check_editable()
        with self._changing():
            undone = self.store.undo(edit_id, author=author, note=note, request=request)
            self._refresh()
        return undone

    def redo(
        self, edit_id: str, *, author: str | None = None, note: str | None = None, request: ChangeRequest | None = None
    ) -> StoredEdit:
        """Activate an undone edit again, as it was; edits that it superseded are deactivated again.

        request: as for `edit`. Raises `NotFoundError` if no edit of this id was undone.
        """
        self._check_editable()
        with self._changing():
            redone = self.store.redo(edit_id, alone=True, author=author, note=note, request=request)
            self._refresh()
        return redone

    def check(self, edits: Sequence[StoredEdit] | None = None, *, batch: int = 16) -> Iterator[CheckedEdit]:
        """Ask the questions of edits again, by default of all active ones, oldest first, and compare the answers.

        They are asked about the image that was kept, or else about the thumbnail, which for a small image is the image
        itself; `CheckedEdit.asked_about` says which. batch: number of questions asked at once. Yields each result as
        soon as it is known.
        """
        self._check_open()
        return self._checked(self.edits() if edits is None else edits, batch)

    def _checked(self, edits: Sequence[StoredEdit], batch: int) -> Iterator[CheckedEdit]:
        for start in range(0, len(edits), batch):
            with self.asking():
                found = list(check_edits(self.answering, self.store, edits[start : start + batch], batch))
            yield from found

    def near(self, edit_id: str, most: int = 10) -> list[NearEdit]:
        """Up to `most` active edits that are nearest to an edit, most similar first, and whether they collide with it.

        Their questions and its own are asked for that. An undone edit is tried beside the active ones meanwhile.
        Raises `NotFoundError` for an unknown id, and as `check_finds_near`.
        """
        edit = self.store.get(edit_id)
        check_finds_near(self.editor, edit)
        with self.asking():
            if edit.id in self.editor:
                return near_edits(self.answering, self.editor, self.store, edit, most)
        with self._changing():
            expert = self._followed.expert(edit.id, edit.expert)
            return near_edits(self.answering, self.editor, self.store, edit, most, expert)

    def refresh(self) -> Changes:
        """Apply the changes that others have made in the store since, and return them. Cheap if nothing changed."""
        with self._changing():
            return self._refresh()

    def _refresh(self) -> Changes:
        if self._at is not None:
            return Changes(self._at, (), ())
        return self._followed.refresh()

    @property
    def revision(self) -> int:
        """Store revision the active edits were loaded from; this process's later edits are active too."""
        return self._followed.revision

    def edits(self) -> tuple[StoredEdit, ...]:
        """The active edits, oldest first."""
        self._check_open()
        return self.store.list(at=self._at)

    def __len__(self) -> int:
        return len(self.editor)

    # -- ending ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for the questions and changes in progress, detach the editor from the backbone, and close the store.

        A closed model raises `InvalidInputError`. Safe to call twice.
        """
        with self._lock.writing():
            if self._is_closed:
                return
            self._is_closed = True
            try:
                self._leave()
            finally:
                self.store.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            "An EditedModel cannot be copied or pickled: keep its edits in an edits file, and give that file to "
            "EditedModel.load(edits=...) where they are needed."
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise InvalidInputError("This EditedModel was closed. Load the model again to ask or edit it.")

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Inside, the edits stay as they are. Other threads may ask as well if the editor is thread-safe."""
        with self._lock.reading() if self.editor.thread_safe else self._lock.writing():
            self._check_open()
            yield

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Inside, no other thread uses the model."""
        with self._lock.writing():
            self._check_open()
            yield

    def _check_editable(self) -> None:
        self._check_open()
        if self._at is not None:
            raise InvalidInputError(
                f"The model was loaded as it was after revision {self._at}, and the past cannot be changed. "
                "Load it without `at` to edit, undo or redo."
            )

    def _check_answerable(self, image: ImageSource | None, prompt: str, answer: str) -> None:
        self.backbone.check_edit(prompt, answer)
        if image is None and self.editor.needs_image:
            raise InvalidInputError(
                "An edit without an image was asked for, but this editor's scope is 'image': no question without an "
                "image would find it. Give the image, or use fitted-experts (--editor) with an edits file of its own."
            )

    def _made_by(self, request: ChangeRequest) -> StoredEdit | None:
        """The edit that this request has made before, active here too if it is active in the store."""
        with self._changing():
            made = self.store.made_by(request)
            if made is not None:
                self._refresh()
            return made

    def _made(
        self, trial: Trial, image_name: str | None, author: str | None, note: str | None
    ) -> tuple[NewEdit, Expert]:
        """The edit before its trial, and its expert."""
        started = time.perf_counter()
        with nullcontext() if self.editor.thread_safe else self._changing():
            expert, steps = self.editor.make_expert(Edit(Question(trial.prompt, trial.image), trial.answer))
        edit = NewEdit(
            prompt=trial.prompt,
            answer=trial.answer,
            editor=self.editor.name,
            milliseconds=1000 * (time.perf_counter() - started),
            refine_steps=steps,
            image_sha256=image_digest(trial.image) if trial.image is not None else None,
            image_name=image_name,
            author=author,
            note=note,
        )
        return edit, expert

    def _stored(
        self,
        edit: NewEdit,
        expert: Expert,
        trial: Trial,
        supersede: bool | Sequence[str],
        must_take: bool,
        request: ChangeRequest | None,
    ) -> StoredEdit:
        """Try the edit with the edits that are active now, store it, and activate it."""
        self._refresh()
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
            expert_to_bytes(expert),
            thumbnail_png(trial.image) if trial.image is not None else None,
            image=image_png(trial.image) if trial.image is not None and self._keep_images else None,
            supersedes=[other.id for other in superseded],
            alone=supersede is True,
            request=request,
        )
        if stored.is_replay:  # Another process has made the same change: only the store knows what is active.
            self._refresh()
            return stored
        if stored.revision_added == self.revision + 1:
            self._followed.revision = stored.revision_added
        self.editor.add(stored.id, expert)
        self.editor.number({stored.id: stored.number})
        for other in superseded:
            if other.id in self.editor:
                self.editor.undo(other.id)
        return stored

    def _superseded(self, edit: NewEdit, supersede: bool | Sequence[str]) -> tuple[StoredEdit, ...]:
        if supersede is True:
            return self.store.same_question(edit.image_sha256, edit.prompt)
        named = [supersede] if isinstance(supersede, str) else supersede or ()
        return tuple(self.store.get(edit_id) for edit_id in dict.fromkeys(named))


def _check_arguments(loading: Mapping[str, Any]) -> None:
    """Raise `InvalidInputError` for arguments that neither `EditedModel.load` nor `load_backbone` has."""
    own, further = (signature(function).parameters for function in (EditedModel.load, load_backbone))
    allowed = [name for name in {**own, **further} if name not in ("backbone", "loading", "name")]
    for name in loading:
        if name not in allowed:
            similar = get_close_matches(name, allowed, 1)
            advice = f"Did you mean {similar[0]!r}? It takes" if similar else "Give one of"
            raise InvalidInputError(f"EditedModel.load has no argument {name!r}. {advice} {', '.join(allowed)}.")


def _check_not_loaded(loading: Mapping[str, Any]) -> None:
    """Raise `InvalidInputError` for arguments of loading if the backbone is loaded already."""
    given = [name for name, value in loading.items() if value is not None]
    if given:
        raise InvalidInputError(
            f"{', '.join(given)} was given with a backbone that is loaded already, and would have no effect. Give "
            "the name or folder of the model instead, or load it with load_backbone(NAME, dtype=...)."
        )


def _opened(image: ImageSource | None) -> Image.Image | None:
    return None if image is None else open_image(image)


def _editor_of(store: EditStore | None) -> str | None:
    """The editor with which the edits of a store were made, if there are any."""
    return store.binding.editor if store is not None and store.binding is not None else None


def _leave_backbone(backbone: Backbone, editor: ExpertEditor[Any]) -> None:
    try:
        editor.detach()
    finally:
        backbone.claim.release(editor)
