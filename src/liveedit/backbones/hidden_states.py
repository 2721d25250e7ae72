"""Hidden states at the edit layer, computed once and kept in memory, or memory-mapped on disk if they are large."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from torch import Tensor

from ..errors import InvalidInputError
from ..progress import Progress, no_progress
from ..samples import Question
from .backbone import Backbone
from .precision import mixed_precision
from .shared_beginning import read_states
from .tokens import HiddenTokens, TokenBatch, TokenRole, pad
from .vision_tower import SeenImages

IN_MEMORY_BYTES = 1 << 31
"""Larger caches are written to a file, which the operating system pages in as needed."""

_TEXT_TOKENS: Final = 32
"""Assumed length of a question with its answer, for estimating the size of a cache before it is filled."""

_MANY: Final = 8
"""Questions about one image that are read in a batch of their own."""

_KEPT_BYTES: Final = torch.bfloat16.itemsize
"""Bytes of one number in the cache."""

Item = tuple[Question, str]
"""A question and the answer that follows it."""


@dataclass(frozen=True)
class HiddenStateBatch(HiddenTokens):
    """A right-padded batch of cached hidden states, in float32.

    final: (answer tokens, width), the unedited model's final hidden states that predict the answer tokens, row by row.
    """

    _: KW_ONLY
    final: Tensor

    def select(self, rows: Tensor) -> HiddenStateBatch:
        """Some rows, given as (batch,) booleans, in their order."""
        return replace(
            self,
            roles=self.roles[rows],
            input_ids=self.input_ids[rows],
            positions=None if self.positions is None else self.positions[:, rows],
            hidden_states=self.hidden_states[rows],
            final=self.final[rows[self.answer_mask.nonzero()[:, 0]]],
        )


class HiddenStateCache:
    """Hidden states at a layer for a fixed list of questions with answers, from one forward pass for each.

    They are kept in bfloat16, without padding. `folder` is where they are written if they take more than
    `IN_MEMORY_BYTES` (a temporary folder by default).
    """

    def __init__(self, backbone: Backbone, layer: int, folder: Path | None = None):
        self.backbone, self.layer, self._folder = backbone, layer, folder
        self._ids: list[Tensor] = []
        self._roles: list[Tensor] = []
        self._positions: list[Tensor] | None = None
        self._slots: list[int] = []
        """By item, its place in the lists: those with the same image are read together."""
        self._starts: list[int] = []
        self._final_starts: list[int] = []
        self._states, self._final = torch.empty(0), torch.empty(0)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def fill(self, items: Sequence[Item], batch: int = 64, progress: Progress = no_progress) -> None:
        """Run the backbone over all items. Float32 models run in mixed precision: bfloat16 products, float32 sums."""
        if not items:
            raise InvalidInputError("No question was given, so there are no hidden states to keep. Give at least one.")
        chunks = _chunks([question for question, _ in items], batch)
        states_found: list[Tensor] = []
        final_found: list[Tensor] = []
        spill = _Spill(self._spill_file) if self.estimated_bytes(len(items)) > IN_MEMORY_BYTES else None
        seen = SeenImages(self.backbone.model)
        for chunk in chunks:
            questions, answers = zip(*(items[index] for index in chunk), strict=True)
            inputs = self.backbone.encode(questions, answers)
            with seen.used():
                states, final = self._run(inputs)
            flat = states[inputs.attention_mask.bool().cpu()]
            if spill is None:
                states_found.append(flat)
            else:
                spill.write(flat)
            final_found.append(final)
            self._remember(inputs)
            progress(len(self), len(items))
        self._slots = [slot for _, slot in sorted(zip(itertools.chain(*chunks), itertools.count(), strict=False))]
        self._states = torch.cat(states_found) if spill is None else spill.tensor(self.backbone.width)
        self._final = torch.cat(final_found)

    def batch(self, indices: Sequence[int]) -> HiddenStateBatch:
        """These items as one batch."""
        return self._batch([self._slots[index] for index in indices])

    def _batch(self, indices: Sequence[int]) -> HiddenStateBatch:
        ids = pad([self._ids[index].tolist() for index in indices], self.backbone.pad_token_id, "right")
        states = torch.zeros(*ids.shape, self.backbone.width)
        finals = []
        for row, index in enumerate(indices):
            length, start, final_start = len(self._ids[index]), self._starts[index], self._final_starts[index]
            states[row, :length] = self._states[start : start + length]
            finals.append(self._final[final_start : final_start + _answer_tokens(self._roles[index])])
        found = HiddenStateBatch(
            roles=pad([self._roles[index].tolist() for index in indices], TokenRole.PADDING, "right"),
            input_ids=ids,
            positions=self._padded_positions(indices),
            hidden_states=states,
            final=torch.cat(finals).float(),
        )
        return found.to(self.backbone.layer_device(self.layer))

    def _padded_positions(self, indices: Sequence[int]) -> Tensor | None:
        if self._positions is None:
            return None
        kept = [self._positions[index] for index in indices]
        axes = [pad([row[axis].tolist() for row in kept], 0, "right") for axis in range(len(kept[0]))]
        return torch.stack(axes)

    @torch.no_grad()
    def _run(self, inputs: TokenBatch) -> tuple[Tensor, Tensor]:
        """Hidden states at the layer, and final hidden states at the positions that predict the answers."""
        mixed = self.backbone.dtype == torch.float32
        with mixed_precision(self.backbone.device.type, mixed):
            states, final = read_states(self.backbone, inputs, self.layer)
        return states.bfloat16().cpu(), final[inputs.predicting.to(final.device)].bfloat16().cpu()

    def _remember(self, inputs: TokenBatch) -> None:
        for row in range(len(inputs)):
            present = inputs.attention_mask[row].bool()
            self._starts.append(self._starts[-1] + len(self._ids[-1]) if self._ids else 0)
            previous = _answer_tokens(self._roles[-1]) if self._roles else 0
            self._final_starts.append(self._final_starts[-1] + previous if self._final_starts else 0)
            self._ids.append(inputs.input_ids[row][present].cpu())
            self._roles.append(inputs.roles[row][present].to(torch.int8).cpu())
        if self.backbone.has_positions:
            self._positions = self._positions or []
            self._positions += [_positions_of(inputs, row) for row in range(len(inputs))]

    def estimated_bytes(self, items: int) -> int:
        """Estimated size of the hidden states of this number of items."""
        return items * (self.backbone.image_tokens + _TEXT_TOKENS) * self.backbone.width * _KEPT_BYTES

    @property
    def _spill_file(self) -> Path:
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="liveedit-states-")
            self._folder = Path(self._temporary.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / "states.bf16"


def _chunks(questions: Sequence[Question], size: int) -> list[list[int]]:
    """Places of the questions in chunks of at most this size. Those with the same image are in chunks of their own,
    if they are many."""
    by_image: dict[object, list[int]] = {}
    for place, question in enumerate(questions):
        image = question.image
        by_image.setdefault(id(image) if isinstance(image, Image.Image) else image, []).append(place)
    groups = [places for places in by_image.values() if len(places) >= _MANY]
    alone = {place for places in groups for place in places}
    groups.append([place for place in range(len(questions)) if place not in alone])
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def _answer_tokens(roles: Tensor) -> int:
    return int((roles == TokenRole.ANSWER).sum())


_POSITION_AXES: Final = 3
"""Time, height and width, in the families that have positions of their own."""


def _positions_of(inputs: TokenBatch, row: int) -> Tensor:
    """(axes, tokens) of one row. In a batch of text alone, all axes count the tokens."""
    present = inputs.attention_mask[row].bool()
    if inputs.positions is None:
        return torch.arange(int(present.sum())).expand(_POSITION_AXES, -1)
    return inputs.positions[:, row][:, present].cpu()


class _Spill:
    """Appends bfloat16 rows to a file, then maps it."""

    def __init__(self, file: Path):
        self.file = file
        self._rows = 0
        self.file.write_bytes(b"")

    def write(self, rows: Tensor) -> None:
        with self.file.open("ab") as stream:
            stream.write(rows.contiguous().view(torch.uint8).numpy().tobytes())
        self._rows += len(rows)

    def tensor(self, width: int) -> Tensor:
        flat = torch.from_file(str(self.file), shared=False, size=self._rows * width, dtype=torch.bfloat16)
        return flat.view(self._rows, width)
