"""The `EditedModel` under the limits of a service: what the worker threads call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from PIL import Image
from transformers import LogitsProcessorList, StoppingCriteriaList

from ..answering import Answering, Generated
from ..answers import Answer, Fired, above_threshold
from ..backbones.positions import answer_room
from ..edited.model import EditedModel
from ..edited.near import NearEdit
from ..edited.receipt import Receipt
from ..edited.recheck import CheckedEdit
from ..editors.base import Editor
from ..errors import InvalidInputError
from ..samples import Question
from ..store.idempotency import ChangeRequest
from ..store.records import StoredEdit
from ..store.store import EditStore
from .decoding import (
    DecodingState,
    FinishReason,
    RowStoppingCriteria,
    SamplingParams,
    SamplingProcessor,
    TextCallback,
)
from .settings import ServingSettings

_LONGEST_WORD: Final = 2000
"""In bytes of UTF-8. High enough for languages that are written without spaces."""

_PIECE: Final = 250
"""Characters that are tokenized at once when a long text is counted."""

_REVISION_SECONDS: Final = 0.25
"""Greatest age of the last check for changes by other processes when a batch is answered."""

_SMALL_PARAMETERS: Final = 50_000_000
_MOST_WORKERS: Final = 8


@dataclass(frozen=True)
class GenerationRequest:
    """A question to answer. `on_text` and `is_abandoned` are called on a worker thread."""

    prompt: str
    image: Image.Image | None
    params: SamplingParams
    on_text: TextCallback | None = None
    is_abandoned: Callable[[], bool] = lambda: False

    @property
    def pixels(self) -> int:
        """The size of its image, in pixels."""
        return 0 if self.image is None else self.image.width * self.image.height


@dataclass(frozen=True)
class GenerationResult:
    """An answer: its text, why it ended, its tokens, and which edits fired."""

    text: str
    finish: FinishReason
    prompt_tokens: int
    """Tokens of the question, including its image and the chat format."""
    answer_tokens: int
    fired: tuple[Fired, ...]
    revision: int = 0
    """The revision of the edits that were active."""
    withheld: tuple[Fired, ...] = ()
    """The edits that fired for an answer in doubt, in whose place the unedited model answered."""


@dataclass(frozen=True)
class Correction:
    """An edit to make and its probes: rephrasings, and questions whose answers should stay (`locality`)."""

    prompt: str
    answer: str
    image: Image.Image | None = None
    rephrasings: tuple[str, ...] = ()
    author: str | None = None
    note: str | None = None
    locality: tuple[tuple[Image.Image | None, str], ...] = ()
    supersede: bool = True
    must_take: bool = True

    @property
    def pixels(self) -> int:
        """The size of its images, in pixels."""
        images = (self.image, *(image for image, _ in self.locality))
        return sum(image.width * image.height for image in images if image is not None)


class ServedModel:
    """An `EditedModel` under the limits of a service.

    Several threads may call `answer` and read `store` at once. Everything that changes edits, or asks them again,
    needs the model for itself.
    """

    def __init__(self, model: EditedModel, settings: ServingSettings):
        self.model, self.settings = model, settings
        self._threads = torch.get_num_threads()
        self.workers: int = number_of_workers(model, settings)
        """The number of worker threads."""
        self._checked_at = float("-inf")

    @property
    def store(self) -> EditStore:
        """The stored edits. Any thread may read them."""
        return self.model.store

    def start_worker(self) -> None:
        """Limit the calling worker thread to its share of the processor."""
        torch.set_num_threads(max(1, self._threads // self.workers))

    # -- changes by other processes ----------------------------------------------------------------------

    def is_outdated(self) -> bool:
        """Whether other processes changed the edits. The store is asked only now and then, because that takes time."""
        now = time.monotonic()
        if now - self._checked_at < _REVISION_SECONDS:
            return False
        if self.store.latest_revision() != self.model.revision:
            return True
        self._checked_at = now
        return False

    def refresh(self) -> None:
        """Load the changes of other processes."""
        self.model.refresh()
        self._checked_at = time.monotonic()

    # -- answering ---------------------------------------------------------------------------------------

    def check(self, prompt: str) -> None:
        """Raise `InvalidInputError` if a prompt has too many tokens or contains an image marker. This is fast."""
        backbone = self.model.backbone
        backbone.check_texts([prompt])
        if prompt.isascii() and 2 * len(prompt) <= self.settings.prompt_tokens:
            return  # No common tokenizer makes more tokens than characters.
        self._check_words(prompt)
        tokens = len(backbone.tokenize([prompt])[0])
        if tokens > self.settings.prompt_tokens:
            raise self._too_long(f"{tokens:,}")

    def _check_words(self, text: str) -> None:
        """Refuse texts that a tokenizer needs minutes for: some take time cubic in the length of a word."""
        longest = max((len(word.encode()) for word in text.split()), default=0)
        if longest > _LONGEST_WORD:
            raise InvalidInputError(
                f"The prompt has {longest:,} bytes without a space; at most {_LONGEST_WORD:,} are accepted. Shorten it."
            )
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        found = 0
        for piece in pieces:
            # Cutting the text adds tokens at the cuts, hence the tolerance.
            found += len(self.model.backbone.tokenize([piece])[0])
            if found > 1.25 * self.settings.prompt_tokens + 2 * len(pieces):
                raise self._too_long(f"more than {self.settings.prompt_tokens:,}")

    def _too_long(self, tokens: str) -> InvalidInputError:
        return InvalidInputError(
            f"The prompt has {tokens} tokens; at most {self.settings.prompt_tokens:,} are accepted. Shorten it."
        )

    def answer(
        self, requests: Sequence[GenerationRequest], deadline: float = float("inf")
    ) -> list[GenerationResult | Exception]:
        """Answers to several questions in one batch; an exception for each answer that is late.

        Raises as `Backbone.encode` does if one of the questions cannot be encoded.
        """
        rows, generated, lengths = self._decode(self.model.answering, requests, deadline)
        # A row that a stop string or its length has ended is decoded on with the others for one step.
        doubtful = [
            place
            for place, (row, one) in enumerate(zip(rows, generated, strict=True))
            if one.is_in_doubt(len(row.tokens)) and not row.is_late
        ]
        withheld = {place: generated[place].answer for place in doubtful}
        if doubtful:
            with self.model.answering.unedited() as plain:
                instead, answers, _ = self._decode(plain, [requests[place] for place in doubtful], deadline)
            for place, row, one in zip(doubtful, instead, answers, strict=True):
                rows[place], generated[place] = row, one
        return [
            _result(row, length, one.answer, self.model.revision, withheld.get(place))
            for place, (row, length, one) in enumerate(zip(rows, lengths, generated, strict=True))
        ]

    def _decode(
        self, answering: Answering, requests: Sequence[GenerationRequest], deadline: float
    ) -> tuple[list[DecodingState], list[Generated], list[int]]:
        """Decode one batch: the state of each answer, the answer, and the length of its question in tokens."""
        inputs = answering.encode([Question(request.prompt, request.image) for request in requests])
        lengths = inputs.attention_mask.sum(1).tolist()
        rows = self._rows(answering.editor, requests, lengths, deadline)
        longest = max(row.params.new_tokens for row in rows)
        if len(rows) > 1 and self.model.backbone.answer_room(inputs, longest) < longest:
            # The positions that the longest question leaves would cut the answers to the others.
            alone = [self._decode(answering, [request], deadline) for request in requests]
            return (
                [row[0] for row, _, _ in alone],
                [one[0] for _, one, _ in alone],
                [length[0] for _, _, length in alone],
            )
        generated = answering.generate(
            inputs,
            longest,
            logits_processor=LogitsProcessorList([SamplingProcessor(rows)]),
            stopping_criteria=StoppingCriteriaList([RowStoppingCriteria(rows)]),
        )
        return rows, generated, lengths

    def _rows(
        self, editor: Editor | None, requests: Sequence[GenerationRequest], lengths: Sequence[int], deadline: float
    ) -> list[DecodingState]:
        return [
            DecodingState(
                self.model.backbone,
                self._fitting(request.params, length),
                request.on_text,
                request.is_abandoned,
                deadline,
                partial(_is_held, editor, place),
            )
            for place, (request, length) in enumerate(zip(requests, lengths, strict=True))
        ]

    @property
    def routing_seconds(self) -> float | None:
        """Seconds spent on routing this thread's last batch; None if no edit is active or it was not measured."""
        return self.model.editor.routing_seconds if len(self.model) else None

    def _fitting(self, params: SamplingParams, length: int) -> SamplingParams:
        """The parameters, with the length limited to the positions that the model has left."""
        return replace(params, new_tokens=answer_room(self.model.backbone.positions, length, params.new_tokens))

    # -- editing -----------------------------------------------------------------------------------------

    def edit(self, wanted: Correction, request: ChangeRequest | None = None) -> Receipt:
        """Make an edit and try it out. Raises as `EditedModel.edit`; nothing changes then."""
        for text in (wanted.prompt, wanted.answer, *wanted.rephrasings, *(prompt for _, prompt in wanted.locality)):
            self.check(text)
        return self.model.edit(
            wanted.image,
            wanted.prompt,
            wanted.answer,
            rephrasings=wanted.rephrasings,
            locality=wanted.locality,
            probe_edits=self.settings.probe_edits,
            supersede=wanted.supersede,
            must_take=wanted.must_take,
            author=wanted.author,
            note=wanted.note,
            request=request,
        )

    def check_edits(self, edits: Sequence[StoredEdit]) -> list[CheckedEdit]:
        """Ask these edits again. Those that are no longer active are left out."""
        self.model.refresh()
        active = [edit for edit in edits if edit.id in self.model.editor]
        return list(self.model.check(active, batch=self.settings.batch))

    def near(self, edit_id: str, most: int) -> list[NearEdit]:
        """Up to `most` active edits nearest to this one; see `EditedModel.near`."""
        self.model.refresh()
        return self.model.near(edit_id, most)


def number_of_workers(model: EditedModel, settings: ServingSettings) -> int:
    """The number of workers that the settings ask for, or else the default; one if the editor is not thread-safe."""
    if not model.editor.thread_safe:
        return 1
    parameters = sum(weight.numel() for weight in model.backbone.model.parameters())
    return settings.workers or default_workers(model.backbone.device, parameters)


def default_workers(device: torch.device, parameters: int) -> int:
    """The number of workers: one per processor thread, up to eight, for a small model on a CPU; else one.

    The operations of a small model are too short to be split over threads: the threads would mostly wait for each
    other. The weights of a large model are read from memory once per batch, and accelerators run large batches fast.
    """
    if device.type != "cpu" or parameters >= _SMALL_PARAMETERS:
        return 1
    return min(_MOST_WORKERS, torch.get_num_threads())


def _is_held(editor: Editor | None, place: int) -> bool:
    """Whether the answer in this row of this thread's batch may still be replaced by the unedited model's."""
    if editor is None or not editor.answer_confidence:
        return False
    fired = editor.fired()
    return bool(fired and above_threshold(fired[place]))


def _result(
    row: DecodingState, length: int, answer: Answer, revision: int, withheld: Answer | None
) -> GenerationResult | Exception:
    """withheld: the edited answer in whose place this one is."""
    try:
        text = row.close()
    except Exception as error:
        return error
    fired = answer.fired or ()
    kept_back = above_threshold(withheld.fired) if withheld is not None else ()
    return GenerationResult(text, row.finish or "length", length, len(row.tokens), fired, revision, kept_back)
