"""What every editor is: something that makes a model answer edits, and can take them back."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self, TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor

from ..backbones import Backbone
from ..errors import CheckpointError, ConfigError, InvalidInputError, NotFoundError, issues_of
from ..samples import Edit
from ..training.checkpoints import load_tensors, save_tensors

SMALLEST_SHARE: Final = 0.01
"""Edits with less weight than this in an answer are neither shown nor counted as taking part in it, and do not collide:
every expert that passes the first router has some weight, down to a billionth and less."""

_Config = TypeVar("_Config", bound=BaseModel)

Progress = Callable[[int, int], None]
"""Called with how many are done, and how many there are."""


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Fired:
    """One edit that fired for an answer, with whatever weight."""

    edit_id: str
    weight: float
    """Its share, 0 to 1."""
    margin: float
    """By how much it exceeded what would have kept it out."""


def taking_part(fired: Sequence[Fired]) -> tuple[Fired, ...]:
    """Of the edits that fired for an answer those whose share in it is worth telling: from `SMALLEST_SHARE` up."""
    return tuple(one for one in fired if one.weight >= SMALLEST_SHARE)


@dataclass(frozen=True)
class EditRecord:
    """What making one edit cost."""

    edit_id: str
    milliseconds: float
    refine_steps: int = 0
    store_bytes: int = 0
    details: dict[str, Any] = field(default_factory=dict)


class Editor(ABC):
    """An editing method on one backbone.

    An editor is attached from its making until `detach`; used as a context manager it detaches by itself, also after
    an exception. `edit` makes edits one after the other, `undo` takes any of them back, `reset` all of them; where
    all are taken back, the model is bit for bit what it was.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for lists."""
    settings_class: ClassVar[type[BaseModel] | None] = None
    """Its configuration, where that is chosen when the editor is made and not when it is trained."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self._unedited_digest = backbone.digest()

    @classmethod
    def load(cls, backbone: Backbone, source: str | None = None) -> Self:
        """Make this editor for a backbone; `source` is a folder with its trained parts, where it has any.

        Raises `NotFoundError` where the editor needs training and nothing trained is found.
        """
        if source is not None:
            raise InvalidInputError(f"The editor {cls.name!r} has no trained parts, but {source!r} was given.")
        return cls(backbone)

    @classmethod
    def configured(cls, backbone: Backbone, settings: Mapping[str, Any]) -> Self:
        """This editor with some of its settings changed. Raises `ConfigError` for those that it does not know or take.

        Its `settings_class` is the second argument of its constructor.
        """
        if cls.settings_class is None:
            raise ConfigError(
                f"The editor {cls.name!r} is made as it was trained, or has no settings; given were "
                f"{', '.join(settings)}. What training decides is given to `liveedit train --set`."
            )
        return cls(backbone, checked_config(cls.settings_class, settings, cls.name))  # type: ignore[call-arg]

    def edit(self, edits: Sequence[tuple[str, Edit]], progress: Progress = no_progress) -> list[EditRecord]:
        """Make edits, given with their ids, in their order."""
        check_answers(edits)
        records = []
        for done, (edit_id, edit) in enumerate(edits, 1):
            started = time.perf_counter()
            details = self._edit_one(edit_id, edit)
            milliseconds = 1000 * (time.perf_counter() - started)
            records.append(EditRecord(edit_id, milliseconds, **details))
            progress(done, len(edits))
        return records

    @abstractmethod
    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        """Make one edit; returns further fields of its `EditRecord`."""

    @abstractmethod
    def reset(self) -> None:
        """Take every edit back."""

    def undo(self, edit_id: str) -> None:
        """Take one edit back. Editors that cannot tell edits apart raise `NotFoundError`."""
        raise NotFoundError(f"The editor {self.name!r} cannot take back single edits ({edit_id!r}); reset it.")

    def fired(self) -> list[tuple[Fired, ...]] | None:
        """The edits that took part in the last batch of answers, query by query.

        Empty where none took part in any, None where this editor cannot tell.
        """
        return None

    def configuration(self) -> dict[str, Any]:
        """Everything that decides what this editor does, for results."""
        return {}

    def digest(self) -> str:
        """What tells this editor from another of the same name, "" where nothing does."""
        return ""

    # -- keeping what edits left behind ------------------------------------------------------------------

    def edited_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the edits made so far have left, as tensors by name and a JSON object."""
        raise NotImplementedError

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Put what `edited_state` gave in place of the edits made so far: answers are the same again."""
        raise NotImplementedError

    def save_edits(self, file: Path) -> None:
        """Write the edits in force to one safetensors file."""
        tensors, note = self.edited_state()
        save_tensors(file, tensors, {"made_by": self._maker(), "note": note})

    def load_edits(self, file: Path) -> None:
        """Put saved edits in place of those in force.

        Raises `CheckpointError` for a damaged file and for edits of another editor, settings or backbone, and
        changes nothing then.
        """
        tensors, metadata = load_tensors(file)
        made_by, mine = metadata.get("made_by"), self._maker()
        if made_by != mine:
            raise CheckpointError(f"The edits in {file} were made by {made_by}, and this is {mine}. Use the same.")
        self.restore(tensors, metadata["note"])

    def _maker(self) -> dict[str, Any]:
        return {"editor": self.name, "editor_digest": self.digest(), "backbone_digest": self._unedited_digest}

    def detach(self) -> None:
        """Leave the backbone as it was before this editor."""
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def checked_config(kind: type[_Config], settings: Mapping[str, Any], owner: str) -> _Config:
    """A configuration of these settings. Raises `ConfigError` where one is unknown or cannot be."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        known = ", ".join(kind.model_fields)
        raise ConfigError(f"The settings cannot be used: {issues_of(error)}. {owner} has {known}.") from error


def check_answers(edits: Sequence[tuple[str, Edit]]) -> None:
    """Raise `InvalidInputError` for an edit without an answer, before any is made."""
    for edit_id, edit in edits:
        if not edit.answer.strip():
            raise InvalidInputError(f"The answer of edit {edit_id!r} is empty. Give what the model should answer.")
