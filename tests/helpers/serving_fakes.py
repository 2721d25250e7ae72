"""A model without weights for the service, and a real server on a free port."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from fastapi import FastAPI
from PIL import Image

from liveedit.answers import Fired
from liveedit.edited.near import NearEdit
from liveedit.edited.receipt import Receipt
from liveedit.edited.recheck import CheckedEdit
from liveedit.errors import EditStateError, InvalidInputError, NotFoundError
from liveedit.serving.api_keys import KeyFile
from liveedit.serving.app import create_app
from liveedit.serving.engine import Engine
from liveedit.serving.served_model import Correction, GenerationRequest, GenerationResult, ServedModel
from liveedit.serving.server import Server
from liveedit.serving.settings import ServingSettings
from liveedit.store.idempotency import ChangeRequest
from liveedit.store.records import EditPage, Event, StoredEdit


class FakeModel:
    """Answers "PROMPT: LEFT/RIGHT"; an edit changes left and right, with time to look between the two.

    A prompt with "bad" spoils the batch that it is in; one with "broken" breaks the model; "endless" is answered until
    its asker leaves. `gate` holds answers up while it is cleared.
    """

    def __init__(self, pause_s: float = 0.0) -> None:
        self.left = self.right = ""
        self.pause_s = pause_s
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.calls: list[int | str] = []
        self.stored: dict[str, StoredEdit] = {}
        self.undone: dict[str, StoredEdit] = {}
        self.edits_made = 0
        self.made: dict[str, tuple[ChangeRequest, Any]] = {}
        self.was_abandoned = False
        self.withheld: tuple[Fired, ...] = ()
        self.store_problem: Exception | None = None
        self.routing_seconds: float | None = 0.001
        self.workers = 1
        self.workers_entered: list[str] = []
        self.news = 0
        """How often `refresh` has something to do."""
        self.refresh_problem: Exception | None = None

    def start_worker(self) -> None:
        self.workers_entered.append(threading.current_thread().name)

    def is_outdated(self) -> bool:
        if self.store_problem is not None:
            raise self.store_problem
        return self.news > 0

    def refresh(self) -> None:
        if self.refresh_problem is not None:
            raise self.refresh_problem
        self.news -= 1
        self.change(f"news {self.news}")

    def check(self, prompt: str) -> None:
        if "unfit" in prompt:
            raise InvalidInputError("Unfit.")

    def answer(self, queries: Sequence[GenerationRequest], deadline: float) -> list[GenerationResult | Exception]:
        self.entered.set()
        self.gate.wait(30)
        prompts = [query.prompt for query in queries]
        if any("broken" in prompt for prompt in prompts):
            raise RuntimeError("secret details")
        if any("bad" in prompt for prompt in prompts):
            raise InvalidInputError("A bad question.")
        self.calls.append(len(queries))
        for query in queries:
            if query.prompt == "endless":
                self.write_endlessly(query)
        return [self._reply(query) for query in queries]

    def _reply(self, query: GenerationRequest) -> GenerationResult:
        left = self.left
        time.sleep(self.pause_s)
        text = f"{query.prompt}: {left}/{self.right}"
        if query.on_text is not None:
            for piece in (text[:3], text[3:]):
                query.on_text(piece)
        faint = Fired("faint", 1e-9, 0.1)
        fired = (faint, Fired(self.left, 0.75, 1.5)) if self.left else (faint,)
        return GenerationResult(text, "stop", 7, 3, fired, withheld=self.withheld)

    def write_endlessly(self, query: GenerationRequest) -> None:
        assert query.on_text is not None
        until = time.monotonic() + 20
        while not query.is_abandoned() and time.monotonic() < until:
            query.on_text("more ")
            time.sleep(0.01)
        self.was_abandoned = query.is_abandoned()

    def change(self, value: str) -> None:
        self.calls.append(value)
        self.left = value
        time.sleep(self.pause_s)
        self.right = value

    def once(self, request: ChangeRequest | None, make: Callable[[], Any]) -> Any:
        """As the store remembers what a request made."""
        if request is None:
            return make()
        if request.sha256 not in self.made:
            self.made[request.sha256] = request, make()
            return self.made[request.sha256][1]
        first, result = self.made[request.sha256]
        request.check_same(first.body_sha256)
        return replace(result, replayed=True) if isinstance(result, Receipt) else replace(result).as_replay()

    def edit(self, wanted: Correction, request: ChangeRequest | None = None) -> Receipt:
        return self.once(request, lambda: self.made_edit(wanted))

    def made_edit(self, wanted: Correction) -> Receipt:
        if wanted.answer == "bad":
            raise InvalidInputError("A bad answer.")
        self.edits_made += 1
        edit_id = f"{self.edits_made:08x}"
        self.change(edit_id)
        given: dict[str, Any] = {"prompt": wanted.prompt, "answer": wanted.answer, "editor": "fake"}
        given |= {"author": wanted.author, "note": wanted.note}
        self.stored[edit_id] = StoredEdit(**given, id=edit_id, number=self.edits_made, created_at="2026-01-01")
        receipt = Receipt(edit_id, wanted.prompt, wanted.answer, "old", wanted.answer, 5.0, 0, 100)
        return replace(receipt, author=wanted.author, note=wanted.note)

    def undo(self, edit_id: str, *, author: str | None = None, request: ChangeRequest | None = None) -> StoredEdit:
        return self.once(request, lambda: self.undone_edit(edit_id))

    def undone_edit(self, edit_id: str) -> StoredEdit:
        if not self.get(edit_id).is_active:
            raise EditStateError("Undone already.")
        self.change("")
        self.undone[edit_id] = replace(self.stored.pop(edit_id), undone_at="2026-01-02")
        return self.undone[edit_id]

    def redo(self, edit_id: str, *, author: str | None = None, request: ChangeRequest | None = None) -> StoredEdit:
        if self.get(edit_id).is_active:
            raise EditStateError("Active.")
        self.change(edit_id)
        self.stored[edit_id] = replace(self.undone.pop(edit_id), undone_at=None)
        return self.stored[edit_id]

    def get(self, edit_id: str) -> StoredEdit:
        found = self.stored.get(edit_id) or self.undone.get(edit_id)
        if found is None:
            raise NotFoundError(f"There is no edit {edit_id!r}.")
        return found

    # -- what the service reads of the edited model and of its store

    @property
    def model(self) -> FakeModel:
        return self

    @property
    def store(self) -> FakeModel:
        return self

    @property
    def editor(self) -> Any:
        return SimpleNamespace(needs_image=False, finds_neighbours=True, name="fake")

    def __len__(self) -> int:
        return len(self.stored)

    def page(self, state: str, *, newest_first: bool, after: str | None, limit: int, search: str | None) -> EditPage:
        return EditPage(tuple(self.stored.values())[:limit], frozenset(), False)

    def one(self, edit_id: str) -> EditPage:
        return EditPage((self.get(edit_id),), frozenset(), False)

    def history(self, edit_id: str) -> tuple[Event, ...]:
        return ()

    def check_edits(self, edits: Sequence[StoredEdit]) -> list[CheckedEdit]:
        self.calls.append(f"check {len(edits)}")
        said: dict[int, str | None] = {0: None, 1: "another"}
        return [
            CheckedEdit(
                *(edit.id, edit.prompt, edit.answer, said.get(edit.number % 3, edit.answer)),
                "nothing" if edit.number % 3 == 0 else "text",
                (Fired(edit.id, 0.5, 1.0), Fired("other", 0.25, 1.0), Fired("faint", 0.009, 1.0)),
                "another" if edit.number % 6 == 1 else "before",
            )
            for edit in edits
        ]

    def near(self, edit_id: str, most: int) -> list[NearEdit]:
        """The other active edits. Of each third one it is not known whether it collides; of the others, odd ones do."""
        edit = self.get(edit_id)
        return [
            NearEdit(
                *(other.id, other.prompt, other.answer, None, 10.0 - other.number),
                *((None, None) if other.number % 3 == 0 else (0.25, 0.4) if other.number % 2 else (0.0, 0.001)),
                is_estimate=False,
                asked_about="nothing" if other.number % 3 == 0 else "text",
                answers_differ=other.answer != edit.answer,
            )
            for other in self.stored.values()
            if other.id != edit_id
        ][:most]

    def latest_revision(self) -> int:
        if self.store_problem is not None:
            raise self.store_problem
        return 0


def fake_app(
    model: FakeModel, settings: ServingSettings | None = None, keys: KeyFile | None = None
) -> tuple[Engine[ServedModel], FastAPI]:
    """The application around a fake."""
    served = cast(ServedModel, model)
    engine = Engine(served, settings or ServingSettings.model_validate({}))
    return engine, create_app(engine, "fake", served, keys)


@contextmanager
def listening(engine: Engine[ServedModel], app: FastAPI, port: int = 0) -> Iterator[tuple[str, Server]]:
    """A server in a thread, and its URL; at the end it is stopped and finishes its work. port: 0 for a free one."""
    server = Server(engine, app, "127.0.0.1", port)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 30
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.handle_exit(15, None)
        thread.join(30)
    assert not thread.is_alive()


def data_uri(image: Image.Image, kind: str = "PNG") -> str:
    """An image as a data URI."""
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
