"""States at the edit layer, computed once and kept: in memory, or memory-mapped on disk when they are large."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InvalidInputError
from ..samples import Question
from .backbone import Backbone
from .tokens import Inputs, before_each, pad

IN_MEMORY_BYTES = 1 << 31
"""Beyond this, states go to a file that the system pages in as needed."""

Item = tuple[Question, str]
"""A question and the answer behind it."""


@dataclass(frozen=True)
class HiddenStateBatch:
    """A right-padded batch of kept states.

    states: (batch, length, d) float32. ids: (batch, length). image, prompt, answer: (batch, length) booleans.
    final: (answer tokens in the batch, d), the unedited model's last hidden states that predict them, row by row.
    positions: (axes, batch, length) where the family has positions of its own.
    """

    states: Tensor
    ids: Tensor
    image: Tensor
    prompt: Tensor
    answer: Tensor
    final: Tensor
    positions: Tensor | None = None

    @property
    def image_mask(self) -> Tensor:
        """(batch, length) booleans: `image`, by its name in `Layout`."""
        return self.image

    @property
    def attention_mask(self) -> Tensor:
        """(batch, length) integers."""
        return (self.image | self.prompt | self.answer).long()

    @property
    def predicting(self) -> Tensor:
        """(batch, length) booleans: the positions before each answer token."""
        return before_each(self.answer)

    @property
    def targets(self) -> Tensor:
        """(answer tokens in the batch,) token ids."""
        return self.ids[self.answer]

    def select(self, rows: Tensor) -> HiddenStateBatch:
        """Some rows, given as (batch,) booleans, in their order."""
        final = self.final[rows[self.answer.nonzero()[:, 0]]]
        positions = None if self.positions is None else self.positions[:, rows]
        return HiddenStateBatch(
            self.states[rows],
            self.ids[rows],
            self.image[rows],
            self.prompt[rows],
            self.answer[rows],
            final,
            positions,
        )

    def to(self, device: torch.device) -> HiddenStateBatch:
        """The same batch on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)

    def __len__(self) -> int:
        return len(self.ids)


class HiddenStateCache:
    """States at a layer for a fixed list of questions with answers, one forward pass each.

    Kept in bfloat16, without padding. `folder` is where they go when they exceed `IN_MEMORY_BYTES` (a temporary
    folder by default).
    """

    def __init__(self, backbone: Backbone, layer: int, folder: Path | None = None):
        self.backbone, self.layer, self._folder = backbone, layer, folder
        self._ids: list[Tensor] = []
        self._kinds: list[Tensor] = []
        self._positions: list[Tensor] | None = None
        self._starts: list[int] = []
        self._final_starts: list[int] = []
        self._states, self._final = torch.empty(0), torch.empty(0)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def fill(
        self,
        items: Sequence[Item],
        batch: int = 64,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Run the backbone over all items. Mixed precision for float32 models: bfloat16 products, float32 sums."""
        if not items:
            raise InvalidInputError("No question was given to keep the states of. Give at least one.")
        chunks = [items[start : start + batch] for start in range(0, len(items), batch)]
        states_found: list[Tensor] = []
        final_found: list[Tensor] = []
        spill = _Spill(self._spill_file) if self.estimated_bytes(len(items)) > IN_MEMORY_BYTES else None
        for done, chunk in enumerate(chunks, 1):
            inputs = self.backbone.encode([question for question, _ in chunk], [answer for _, answer in chunk])
            states, final = self._run(inputs)
            flat = states[inputs.attention_mask.bool().cpu()]
            if spill is None:
                states_found.append(flat)
            else:
                spill.write(flat)
            final_found.append(final)
            self._remember(inputs)
            progress(min(done * batch, len(items)), len(items))
        self._states = torch.cat(states_found) if spill is None else spill.tensor(self.backbone.width)
        self._final = torch.cat(final_found)

    def batch(self, indices: Sequence[int]) -> HiddenStateBatch:
        """These items as one batch."""
        ids = pad([self._ids[index].tolist() for index in indices], self.backbone.pad_token_id, "right")
        kind = pad([self._kinds[index].tolist() for index in indices], -1, "right")
        states = torch.zeros(*ids.shape, self.backbone.width)
        finals = []
        for row, index in enumerate(indices):
            length, start = len(self._ids[index]), self._starts[index]
            states[row, :length] = self._states[start : start + length]
            answer_tokens = int((self._kinds[index] == 2).sum())
            finals.append(self._final[self._final_starts[index] : self._final_starts[index] + answer_tokens])
        final, positions = torch.cat(finals).float(), self._padded_positions(indices)
        found = HiddenStateBatch(states, ids, kind == 1, kind == 0, kind == 2, final, positions)
        return found.to(self.backbone.layer_device(self.layer))

    def _padded_positions(self, indices: Sequence[int]) -> Tensor | None:
        if self._positions is None:
            return None
        kept = [self._positions[index] for index in indices]
        axes = [pad([row[axis].tolist() for row in kept], 0, "right") for axis in range(len(kept[0]))]
        return torch.stack(axes)

    @torch.no_grad()
    def _run(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []

        def keep(module: object, arguments: object, output: Tensor | tuple[Tensor, ...]) -> None:
            kept.append(output if isinstance(output, Tensor) else output[0])

        handles = [
            self.backbone.layers[self.layer].register_forward_hook(keep),
            self.backbone.output_embeddings.register_forward_pre_hook(
                lambda module, arguments: kept.append(arguments[0])
            ),
        ]
        kind = self.backbone.device.type
        try:
            with torch.autocast(kind, torch.bfloat16, enabled=self.backbone.dtype == torch.float32):
                self.backbone.logits(inputs)
        finally:
            for handle in handles:
                handle.remove()
        states, final = kept
        return states.bfloat16().cpu(), final[inputs.predicting.to(final.device)].bfloat16().cpu()

    def _remember(self, inputs: Inputs) -> None:
        kinds = inputs.image_mask.int() + 2 * inputs.answer_mask.int()
        for row in range(len(inputs)):
            present = inputs.attention_mask[row].bool()
            self._starts.append(self._starts[-1] + len(self._ids[-1]) if self._ids else 0)
            previous = int((self._kinds[-1] == 2).sum()) if self._kinds else 0
            self._final_starts.append(self._final_starts[-1] + previous if self._final_starts else 0)
            self._ids.append(inputs.input_ids[row][present].cpu())
            self._kinds.append(kinds[row][present].to(torch.int8).cpu())
        if self.backbone.has_positions:
            self._positions = self._positions or []
            self._positions += [_positions_of(inputs, row) for row in range(len(inputs))]

    def estimated_bytes(self, items: int) -> int:
        """Estimated size of the hidden states of this many items; beyond `IN_MEMORY_BYTES` they go to a file."""
        tokens_each = self.backbone.image_tokens + 32
        return items * tokens_each * self.backbone.width * 2

    @property
    def _spill_file(self) -> Path:
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="liveedit-states-")
            self._folder = Path(self._temporary.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / "states.bf16"


def _positions_of(inputs: Inputs, row: int) -> Tensor:
    """(axes, tokens) of one row; a batch of text alone counts on all axes."""
    present = inputs.attention_mask[row].bool()
    if inputs.positions is None:
        return torch.arange(int(present.sum())).expand(3, -1)
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
