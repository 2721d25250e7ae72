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

from .backbones import Backbone, load_backbone
from .editors import Fired, editor_class
from .editors.liveedit import LiveEdit
from .errors import InvalidInputError, NotFoundError, StoreError
from .experts.records import NewEdit, StoredEdit, thumbnail_png
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

    Edits live in memory, or in an edits file (SQLite) that keeps them from one process to the next. Close the model,
    or use it as a context manager, to leave the backbone as it was.
    """

    def __init__(self, backbone: Backbone, editor: LiveEdit, store: EditStore | None = None):
        self.backbone, self.editor, self._store = backbone, editor, store
        self._memory: dict[str, StoredEdit] = {}
        if store is not None:
            try:
                store.bind(backbone_digest(backbone), editor.digest(), backbone=backbone.name, editor=editor.name)
                for edit_id, expert in store.active_experts():
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
        editor: str = "liveedit-refine",
        editor_path: str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        **loading: Any,
    ) -> Self:
        """Load a model for editing.

        backbone: a built-in name, a local folder, or a hub name. edits: the edits file, made where there is none.
        editor: "liveedit" (generation alone) or "liveedit-refine" (with gradient steps where an edit does not take at
        once). editor_path: the folder of a trained editor; built-in backbones bring theirs. loading: further
        arguments of `load_backbone` (device_map, quantization, offload_folder).
        """
        kind = editor_class(editor)
        if not issubclass(kind, LiveEdit):
            raise InvalidInputError(
                f"The editor {editor!r} cannot keep edits apart. Give liveedit or liveedit-refine; "
                "others run in the bench."
            )
        store = EditStore(edits) if edits is not None else None
        try:
            frozen = backbone if isinstance(backbone, Backbone) else load_backbone(backbone, dtype, device, **loading)
            return cls(frozen, kind.load(frozen, str(editor_path) if editor_path else None), store)
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

    def edit(self, image: ImageSource | None, prompt: str, answer: str) -> Receipt:
        """From now on, answer this prompt about this picture (and what it shows) with `answer`.

        Without a picture the edit is found by its prompt alone; editors of scope "text+image" reach such questions.
        Raises `InvalidInputError` for an empty prompt or answer, or a picture that is missing, `ImageError` for a bad
        one; nothing changes then.
        """
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
        )
        trial = "trial"
        self.editor.add(trial, expert)
        try:
            after = self.ask(picture, prompt).text
        finally:
            self.editor.undo(trial)
        stored = self._keep(
            replace(described, answer_after=after), expert, thumbnail_png(picture) if picture is not None else None
        )
        self.editor.add(stored.id, expert)
        return Receipt(stored.id, prompt, answer, before, after, milliseconds, steps, expert.store_bytes)

    def undo(self, edit_id: str) -> StoredEdit:
        """Take an edit out: logits are bit for bit as before it. Raises `NotFoundError` where it is not in force."""
        if self._store is not None:
            undone = self._store.undo(edit_id)
        elif edit_id in self._memory:
            undone = self._memory.pop(edit_id)
        else:
            raise NotFoundError(f"There is no edit {edit_id!r} in force. In force: {self._known_ids()}.")
        self.editor.undo(undone.id)
        return undone

    def edits(self) -> tuple[StoredEdit, ...]:
        """The edits in force, oldest first."""
        return self._store.list() if self._store is not None else tuple(self._memory.values())

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

    def _keep(self, edit: NewEdit, expert: Any, thumbnail: bytes | None) -> StoredEdit:
        if self._store is not None:
            return self._store.add(edit, expert, thumbnail)
        number = 1 + max((stored.number for stored in self._memory.values()), default=0)
        edit_id = hashlib.sha256(f"{number}:{expert.digest}".encode()).hexdigest()[:8]
        if edit_id in self._memory:
            raise StoreError(f"The edit id {edit_id!r} came up twice. Use an edits file.")
        stored = StoredEdit(**asdict(edit), id=edit_id, number=number, created_at="")
        self._memory[edit_id] = stored
        return stored

    def _known_ids(self) -> str:
        return ", ".join(self._memory) or "none"


def backbone_digest(backbone: Backbone) -> str:
    """SHA-256 of a backbone's configuration and of a sample of each weight: what tells two models apart quickly."""
    return backbone.digest()
