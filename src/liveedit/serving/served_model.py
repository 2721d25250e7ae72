"""The model as the service sees it: everything that the service wants of an `EditedModel`, in one place."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import LogitsProcessorList, StoppingCriteriaList

from ..answers import Fired
from ..backbones import Inputs
from ..edited.model import EditedModel, Receipt
from ..edited.recheck import CheckedEdit
from ..errors import EditPurgedError, InvalidInputError, NotFoundError
from ..samples import Question
from ..store.idempotency import ChangeRequest
from ..store.records import EditPage, Event, State, StoredEdit
from .decoding import Finish, Listener, Sampling, Stopping, Style, Writing
from .settings import ServingSettings
from .workers import default_workers

_ID = re.compile(r"[0-9a-f]{8}")
_LONGEST_WORD = 2000
"""In bytes of UTF-8, for languages that are written without spaces."""

_PIECE = 250
"""So many characters are tokenized at once to see whether a text is far too long."""

_LOOK_SECONDS = 0.25
"""How old the edits of others may be when a batch is answered."""


@dataclass(frozen=True)
class Query:
    """A question of a request. `listener` and `is_abandoned` are called on a thread of the model."""

    prompt: str
    image: Image.Image | None
    style: Style
    listener: Listener | None = None
    is_abandoned: Callable[[], bool] = lambda: False

    @property
    def pixels(self) -> int:
        """The size of its image."""
        return 0 if self.image is None else self.image.width * self.image.height


@dataclass(frozen=True)
class Reply:
    """An answer: its text, why it ended, what it took, and which edits took part."""

    text: str
    finish: Finish
    prompt_tokens: int
    """Tokens of the question, its image and the chat format."""
    answer_tokens: int
    fired: tuple[Fired, ...]
    revision: int = 0
    """The revision of the edits that it was written by."""


@dataclass(frozen=True)
class Correction:
    """An edit of a request, and what it is checked on: rephrasings, and questions that it should leave alone."""

    prompt: str
    answer: str
    image: Image.Image | None = None
    rephrasings: tuple[str, ...] = ()
    author: str | None = None
    note: str | None = None
    locality: tuple[tuple[Image.Image | None, str], ...] = ()
    supersede: bool = True
    must_take: bool = False

    @property
    def pixels(self) -> int:
        """The size of its images."""
        images = (self.image, *(image for image, _ in self.locality))
        return sum(image.width * image.height for image in images if image is not None)


class ServedModel:
    """An `EditedModel` under the limits of a service.

    Several threads may answer at once, and read the store; whatever changes the edits, or asks them again, is to be
    called alone.
    """

    def __init__(self, model: EditedModel, settings: ServingSettings):
        self.model, self.settings = model, settings
        self._threads = torch.get_num_threads()
        parameters = sum(weight.numel() for weight in model.backbone.model.parameters())
        self.workers: int = settings.workers or default_workers(model.backbone.device, parameters)
        """How many threads answer beside each other."""
        self._looked = float("-inf")

    def enter_worker(self) -> None:
        """Take this thread's share of the processor."""
        torch.set_num_threads(max(1, self._threads // self.workers))

    # -- following others --------------------------------------------------------------------------------

    def is_outdated(self) -> bool:
        """Whether other replicas have changed the edits. Looked for now and then, because it takes time."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return False
        if self.model.store.latest_revision() != self.model.revision:
            return True
        self._looked = now
        return False

    def refresh(self) -> None:
        """Take in what other replicas have changed."""
        self.model.refresh()
        self._looked = time.monotonic()

    # -- answering ---------------------------------------------------------------------------------------

    def check(self, query: Query) -> None:
        """Raise `InvalidInputError` for a prompt that is too long or holds the marker of an image; cheap."""
        backbone = self.model.backbone
        backbone.check_texts([query.prompt])
        if query.prompt.isascii() and 2 * len(query.prompt) <= self.settings.prompt_tokens:
            return  # Hardly a tokenizer makes more tokens than there are letters.
        self._check_words(query.prompt)
        tokens = len(backbone.tokenize([query.prompt])[0])
        if tokens > self.settings.prompt_tokens:
            raise self._too_long(f"{tokens:,}")

    def _check_words(self, text: str) -> None:
        """Refuse what would take a tokenizer minutes: some need time by the cube of a word's length."""
        longest = max((len(word.encode()) for word in text.split()), default=0)
        if longest > _LONGEST_WORD:
            raise InvalidInputError(
                f"The prompt has {longest:,} bytes without a space; at most {_LONGEST_WORD:,} are taken. Shorten it."
            )
        pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
        found = 0
        for piece in pieces:
            # Cutting words adds tokens, and so does beginning anew.
            found += len(self.model.backbone.tokenize([piece])[0])
            if found > 1.25 * self.settings.prompt_tokens + 2 * len(pieces):
                raise self._too_long(f"more than {self.settings.prompt_tokens:,}")

    def _too_long(self, tokens: str) -> InvalidInputError:
        return InvalidInputError(
            f"The prompt has {tokens} tokens; at most {self.settings.prompt_tokens:,} are taken. Shorten it."
        )

    def answer(self, queries: Sequence[Query], deadline: float = float("inf")) -> list[Reply | Exception]:
        """Answers to several questions in one batch; an exception in place of one that came too late.

        Raises what `Backbone.encode` raises where one of the questions cannot be taken.
        """
        return self._written(*self._prepared(queries, deadline))

    def _prepared(self, queries: Sequence[Query], deadline: float) -> tuple[Inputs, list[Writing]]:
        backbone = self.model.backbone
        inputs = backbone.encode([Question(query.prompt, query.image) for query in queries], padding="left")
        rows = [
            Writing(backbone, self._fitting(query.style, length), query.listener, query.is_abandoned, deadline)
            for query, length in zip(queries, _lengths(inputs), strict=True)
        ]
        return inputs, rows

    def _written(self, inputs: Inputs, rows: Sequence[Writing]) -> list[Reply | Exception]:
        self.model.backbone.generate_tokens(
            inputs,
            max(row.style.new_tokens for row in rows),
            logits_processor=LogitsProcessorList([Sampling(rows)]),
            stopping_criteria=StoppingCriteriaList([Stopping(rows)]),
        )
        fired = self.model.editor.fired() or [()] * len(rows)
        return [
            _reply(row, length, edits, self.model.revision)
            for row, length, edits in zip(rows, _lengths(inputs), fired, strict=True)
        ]

    @property
    def routing_seconds(self) -> float | None:
        """How long finding the edits of this thread's last batch took; None where none are in force."""
        return self.model.editor.routing_seconds if len(self.model) else None

    def _fitting(self, style: Style, length: int) -> Style:
        """No more tokens than the model has places for."""
        places: int | None = getattr(self.model.backbone.decoder.config, "max_position_embeddings", None)
        if places is None or length + style.new_tokens <= places:
            return style
        if length >= places:
            raise InvalidInputError(f"The question takes {length} tokens of {places}: no room is left for an answer.")
        return Style(places - length, style.temperature, style.seed, style.stop)

    # -- correcting --------------------------------------------------------------------------------------

    def edit(self, wanted: Correction, request: ChangeRequest | None = None) -> Receipt:
        """Make an edit and check it. Raises as `EditedModel.edit`; nothing changes then."""
        for text in (wanted.prompt, wanted.answer, *wanted.rephrasings, *(prompt for _, prompt in wanted.locality)):
            self.check(Query(text, None, Style(1)))
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

    def undo(self, edit_id: str, author: str | None = None, request: ChangeRequest | None = None) -> StoredEdit:
        """Take an edit back. Raises `NotFoundError` for an id that is not whole or unknown, `EditStateError`."""
        return self.model.undo(self._known(edit_id), author=author, request=request)

    def redo(self, edit_id: str, author: str | None = None, request: ChangeRequest | None = None) -> StoredEdit:
        """Put an undone edit into force again. Raises as `undo` does."""
        return self.model.redo(self._known(edit_id), author=author, request=request)

    def check_edits(self, edits: Sequence[StoredEdit]) -> list[CheckedEdit]:
        """Ask these edits again; those that are in force no more are left out."""
        self.model.refresh()
        active = [edit for edit in edits if edit.id in self.model.editor]
        return list(self.model.check(active, batch=self.settings.batch))

    @property
    def needs_image(self) -> bool:
        """Whether an edit without an image is refused."""
        return self.model.editor.needs_image

    def count(self) -> int:
        """How many edits are in force."""
        return len(self.model)

    # -- reading the store: on any thread ----------------------------------------------------------------

    def page(self, state: State, newest_first: bool, after: str | None, limit: int) -> EditPage:
        """Some edits. Raises `NotFoundError` where there is no edit of exactly the id `after`."""
        after = None if after is None else _whole(after)
        return self.model.store.page(state, newest_first=newest_first, after=after, limit=limit)

    def one(self, edit_id: str) -> EditPage:
        """The edit of exactly this id, in force or not, as a page. Raises `NotFoundError`."""
        return self.model.store.one(_whole(edit_id))

    def thumbnail(self, edit_id: str) -> bytes:
        """The thumbnail of an edit as PNG. Raises `NotFoundError` where there is none, `EditPurgedError`."""
        (edit,) = self.one(edit_id).edits
        if edit.purged_at is not None:
            raise EditPurgedError(f"The edit {edit_id!r} was purged, at {edit.purged_at}, and its thumbnail with it.")
        found = edit.thumbnail
        if found is None:
            raise NotFoundError(f"The edit {edit_id!r} has no image.")
        return found

    def look_at_store(self) -> None:
        """Raise `StoreError` where the store cannot be read."""
        self.model.store.latest_revision()

    def history(self, edit_id: str) -> tuple[Event, ...]:
        """What happened to an edit, oldest first. Raises `NotFoundError`."""
        return self.model.store.history(self._known(edit_id))

    def _known(self, edit_id: str) -> str:
        """This id, if it is that of an edit: what the store says of unknown ones takes reading all ids."""
        (edit,) = self.one(edit_id).edits
        return edit.id


def _lengths(inputs: Inputs) -> list[int]:
    """Tokens of each question."""
    return inputs.attention_mask.sum(1).tolist()


def _whole(edit_id: str) -> str:
    """The id, if it is a whole one: the store takes beginnings too, which are no way to name what is to be undone."""
    if _ID.fullmatch(edit_id) is None:
        raise NotFoundError(f"There is no edit {edit_id!r}. Give the whole id; list the edits to see theirs.")
    return edit_id


def _reply(row: Writing, length: int, fired: tuple[Fired, ...], revision: int) -> Reply | Exception:
    try:
        text = row.close()
    except Exception as error:
        return error
    return Reply(text, row.finish or "length", length, len(row.tokens), fired, revision)
