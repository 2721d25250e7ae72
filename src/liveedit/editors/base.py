"""The interface of editors: they make a model answer edits, and can undo them."""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor

from ..answers import Fired
from ..backbones import Backbone
from ..errors import CheckpointError, ConfigError, InvalidInputError, NotFoundError, issues_of
from ..experts.blocks import ExpertsOn
from ..experts.expert import AnyExpert
from ..progress import Progress, no_progress
from ..samples import Edit, ImageSource, Question
from .heat_map import HeatMap

_Config = TypeVar("_Config", bound=BaseModel)


@dataclass(frozen=True)
class EditRecord:
    """The costs of one edit."""

    edit_id: str
    milliseconds: float
    refine_steps: int = 0
    store_bytes: int = 0
    details: dict[str, Any] = field(default_factory=dict)


class Editor(ABC):
    """An editing method on one backbone.

    An editor is attached when it is created, and detached by `detach` or at the end of a `with` block, also after an
    exception. `edit` makes edits in order, `undo` undoes one of them, `reset` all of them. Without edits the model is
    bit for bit the unedited one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line that describes the method in lists."""
    table_order: ClassVar[int] = 100
    """Place in comparison tables, ascending; equal places by name."""
    settings_class: ClassVar[type[BaseModel] | None] = None
    """Its configuration, if that is chosen when the editor is created and not when it is trained."""

    answer_confidence: float = 0.0
    """If edits fired for an answer and one of its tokens has less probability than this, the unedited model answers
    instead. 0: never."""

    def __init__(self, backbone: Backbone):
        self.backbone = backbone

    @classmethod
    def load(cls, backbone: Backbone, source: str | None = None) -> Self:
        """Create this editor for a backbone. source: the folder of its trained modules, if it has any.

        Raises `NotFoundError` if the editor needs training and nothing trained is found, `InvalidInputError` if a
        folder is given to an editor without trained modules.
        """
        if source is not None:
            raise InvalidInputError(f"The editor {cls.name!r} has no trained parts, but {source!r} was given.")
        return cls(backbone)

    @classmethod
    def configured(cls, backbone: Backbone, settings: Mapping[str, Any], source: str | None = None) -> Self:
        """Create this editor with some of its settings changed; its constructor takes `settings_class` second.

        source: as for `load`. Raises as `load` does, and `ConfigError` for unknown settings and invalid values.
        """
        if cls.settings_class is None:
            raise ConfigError(
                f"The editor {cls.name!r} has no settings besides those it was trained with; given were "
                f"{', '.join(settings)}. Give settings of a training to `liveedit train --set`."
            )
        checked = checked_config(cls.settings_class, settings, cls.name)
        if source is not None:
            cls.load(backbone, source)  # It has no trained parts: this says so.
        return cls(backbone, checked)  # type: ignore[call-arg]

    @classmethod
    def calibrate(
        cls,
        backbone: Backbone,
        folder: Path,
        settings: Mapping[str, Any],
        images: Sequence[ImageSource] | None = None,
        progress: Progress = no_progress,
    ) -> dict[str, Any]:
        """Measure what this editor needs to know of a backbone, and write it into a folder that `load` takes.

        images: unlabelled images like those that edits will be about; None for the editor's own. Returns figures to
        show. Raises `ConfigError` if the editor has nothing to calibrate.
        """
        raise ConfigError(f"The editor {cls.name!r} has nothing to calibrate.")

    def edit(self, edits: Sequence[tuple[str, Edit]], progress: Progress = no_progress) -> list[EditRecord]:
        """Make edits, given with their ids, in order."""
        check_answers(edits)
        records = []
        for done, (edit_id, edit) in enumerate(edits, 1):
            started = time.perf_counter()
            details = self._edit_one(edit_id, edit)
            milliseconds = 1000 * (time.perf_counter() - started)
            records.append(EditRecord(edit_id, milliseconds, **details))
            progress(done, len(edits))
        return records

    def groups(self, edits: Sequence[Edit]) -> list[list[int]]:
        """Which of these edits are made together if all are given at once: places in `edits`, in the order of making.

        `edit` with the edits of one group after another is the same as `edit` with all of them.
        """
        return [[place] for place in range(len(edits))]

    @abstractmethod
    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        """Make one edit; return further fields of its `EditRecord`."""

    @abstractmethod
    def reset(self) -> None:
        """Undo every edit."""

    def undo(self, edit_id: str) -> None:
        """Undo one edit. Raises `NotFoundError` if it is not active, or if the editor cannot undo single edits."""
        raise NotFoundError(f"The editor {self.name!r} cannot take back single edits ({edit_id!r}); reset it.")

    def fired(self) -> list[tuple[Fired, ...]] | None:
        """The edits that took part in the last batch of answers, for each query.

        An empty list if there were none in the whole batch, None if this editor cannot report them.
        """
        return None

    def answer_length(self, edit_id: str) -> int | None:
        """Number of tokens of an edit's answer, its end included, if the editor's answers are the edit's or none.

        With `answer_confidence`, the unedited model answers instead of giving an answer of another length. None if the
        editor does not know it, or if the edit is not active.
        """
        return None

    def configuration(self) -> dict[str, Any]:
        """The whole configuration of this editor, for results."""
        return {}

    def digest(self) -> str:
        """Identifies this editor among others of the same name; "" if all of them are the same."""
        return ""

    @property
    def routing_seconds(self) -> float | None:
        """Seconds spent on finding the edits of this thread's last batch; None if the editor does not measure it."""
        return None

    def paused(self) -> AbstractContextManager[None]:
        """The model runs unedited inside the block; afterwards the edits are active again, bit for bit."""
        return self._paused()

    @contextmanager
    def _paused(self) -> Iterator[None]:
        tensors, note = self.edited_state()
        self.reset()
        try:
            yield
        finally:
            self.restore(tensors, note)

    # -- saving and restoring the active edits -----------------------------------------------------------

    def edited_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state of the active edits: tensors by name, and a JSON object."""
        raise NotImplementedError

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Replace the active edits by the state that `edited_state` returned: answers are the same again."""
        raise NotImplementedError

    def detach(self) -> None:
        """Remove the editor from the backbone, which is then as before."""
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


@dataclass(frozen=True)
class Neighbour:
    """An active edit and its similarity to a new expert, in the units of the editor's router."""

    edit_id: str
    similarity: float


class ExpertEditor(Editor, Generic[AnyExpert]):
    """An editor that turns each edit into an expert of its own, which can be stored, added and undone alone.

    `EditedModel`, the service and the commands work with any such editor. A subclass gives `expert_class`,
    `make_expert`, `add`, `undo`, `get`, `ids` and `fired`; the other methods have defaults.
    """

    expert_class: ClassVar[type[Any]]
    """The kind of its experts; `EditedModel` stores and loads their tensors by field name."""
    thread_safe: ClassVar[bool] = False
    """Whether several threads may ask the model at once, also while another makes an expert.

    If not, `EditedModel` and the service let one thread at a time use the model. A thread-safe editor keeps `paused`,
    `fired` and `routing_seconds` per thread."""

    @abstractmethod
    def make_expert(self, edit: Edit) -> tuple[AnyExpert, int]:
        """The expert of one edit and the number of gradient steps it took. Nothing becomes active.

        An editor that takes many steps calls `liveedit.progress.report_step` after each, so that they can be shown.
        """

    @classmethod
    def sized_expert(cls, backbone: Backbone, edit: Edit) -> AnyExpert | None:
        """An expert as large as that of this edit, made in little time by the same code, for `liveedit doctor`.

        It is not meant to answer anything. None if the editor gives none.
        """
        return None

    @abstractmethod
    def add(self, edit_id: str, expert: AnyExpert) -> None:
        """Make an expert active. Raises `InvalidInputError` if the id is active already or the shape does not fit."""

    @abstractmethod
    def get(self, edit_id: str) -> AnyExpert:
        """The expert of an active edit. Raises `NotFoundError`."""

    @property
    @abstractmethod
    def ids(self) -> Sequence[str]:
        """Ids of the active edits."""

    def digest(self) -> str:
        """SHA-256 of name and configuration, to which stored edits are bound. Trained editors add their weights."""
        described = json.dumps([self.name, self.configuration()], sort_keys=True, default=str)
        return hashlib.sha256(described.encode()).hexdigest()

    @property
    def needs_image(self) -> bool:
        """Whether only questions with an image can be edited."""
        return False

    @property
    def finds_neighbours(self) -> bool:
        """Whether it compares edits with each other, that is, defines `neighbours`."""
        return type(self).neighbours is not ExpertEditor.neighbours

    @property
    def estimates_weights(self) -> bool:
        """Whether it defines `estimated_weights`."""
        return type(self).estimated_weights is not ExpertEditor.estimated_weights

    def neighbours(self, expert: AnyExpert, most: int) -> list[Neighbour]:
        """Up to `most` active edits that the expert is most likely to interfere with, most similar first."""
        return []

    def estimated_weights(self, expert: AnyExpert, margin: float) -> dict[str, float]:
        """Estimated weight of a new expert in the answers of active edits, by their ids; at least
        `FIRING_THRESHOLD` each. margin: its `Fired.margin` for its own question."""
        return {}

    def attention_map(self, question: Question) -> HeatMap | None:
        """Where in its image the editor reads what it finds edits by. None if the editor has no such map."""
        return None

    occlusion_feature: ClassVar[str] = "probabilities of the first answer token"
    """What `occlusion_features` returns, for notes and figures."""

    def occlusion_features(self, questions: Sequence[Question]) -> Tensor:
        """(questions, width): what `occlusion.change_map` compares. Probabilities of the first answer token here."""
        inputs = self.backbone.encode(questions, padding="left")
        return self.backbone.logits(inputs)[:, -1].float().softmax(-1)

    def keep_experts_on(self, place: ExpertsOn, folder: str | Path | None = None) -> None:
        """Move experts to the device or the host. Raises `InvalidInputError` if the editor has no choice."""
        if place != "device":
            raise InvalidInputError(f"The editor {self.name!r} keeps its experts on the device; {place!r} was given.")

    def scaled_weights(self, factor: float) -> AbstractContextManager[None] | None:
        """Inside the block, the weight of every expert in every answer is multiplied by `factor`, 0 to 1; afterwards
        answers are as before, bit for bit. None if the editor has no weights to scale."""
        return None

    def number(self, numbers: Mapping[str, int]) -> None:
        """Number active edits in the order in which they were made. `add` alone makes an edit the newest.

        Editors whose answers do not depend on the order ignore it, as this method does.
        """

    @property
    def ids_by_age(self) -> list[str]:
        """Ids of the active edits, the newest last."""
        return list(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, edit_id: str) -> bool:
        return edit_id in self.ids

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        expert, steps = self.make_expert(edit)
        self.add(edit_id, expert)
        return {"store_bytes": expert.store_bytes, "refine_steps": steps}

    def reset(self) -> None:
        """Undo every edit."""
        for edit_id in tuple(self.ids):
            self.undo(edit_id)

    def edited_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The active experts' tensors, named INDEX.FIELD, and their ids in the order in which they became active."""
        ids = self.ids_by_age
        experts = [self.get(edit_id) for edit_id in ids]
        tensors = {
            f"{index}.{name}": tensor.cpu() for index, one in enumerate(experts) for name, tensor in one.tensors.items()
        }
        return tensors, {"ids": ids}

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Replace the active edits by those of `edited_state`. Raises `CheckpointError` if they do not fit."""
        names = [field.name for field in fields(self.expert_class)]
        try:
            experts = [
                (edit_id, self.expert_class(**{name: tensors[f"{index}.{name}"] for name in names}))
                for index, edit_id in enumerate(note["ids"])
            ]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"The saved edits are not those of {self.name!r} ({error}).") from error
        self.reset()
        for edit_id, expert in experts:
            self.add(edit_id, expert)


def checked_config(kind: type[_Config], settings: Mapping[str, Any], owner: str) -> _Config:
    """A configuration of these settings. Raises `ConfigError` for unknown settings and invalid values.

    owner: what has these settings, for the message.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        known = ", ".join(kind.model_fields)
        raise ConfigError(f"The settings cannot be used: {issues_of(error)}. {owner} has {known}.") from error


def check_answers(edits: Sequence[tuple[str, Edit]]) -> None:
    """Raise `InvalidInputError` if an edit has no answer, before any edit is made."""
    for edit_id, edit in edits:
        if not edit.answer.strip():
            raise InvalidInputError(f"The answer of edit {edit_id!r} is empty. Give what the model should answer.")
