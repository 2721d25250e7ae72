"""`vllm serve` with the plugin, asked by the `openai` client; a `liveedit serve` beside it makes the edits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from served_process import ServedProcess
from serving_fakes import data_uri
from vllm_process import VllmProcess

from liveedit.images import open_image
from liveedit.samples import EditCase, ImageSource, Question
from liveedit.store.store import EditStore

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

CLIENTS = 16


class Fleet(NamedTuple):
    """Two servers of vLLM and the maker of edits, all on the same edits file."""

    first: VllmProcess
    second: VllmProcess
    edits: Path
    settings: dict[str, Any]


@pytest.fixture(scope="module")
def fleet(vllm_is_here: None, tmp_path_factory: Any) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    edits = folder / "edits.db"
    maker = ServedProcess(edits, folder / "maker.log", "--editor", "liveedit")
    settings = {"edits": str(edits), "editor": "liveedit", "maker": maker.url}
    servers = [VllmProcess("tiny-llava", settings, folder / "first.log")]
    try:
        maker.wait_until_ready()
        servers[0].wait_until_ready()
        servers.append(VllmProcess("tiny-llava", settings, folder / "second.log", "--enforce-eager"))
        servers[1].wait_until_ready()
        yield Fleet(servers[0], servers[1], edits, settings)
    finally:
        for server in (*servers, maker):
            server.stop()


def uri_of(image: ImageSource | None) -> str:
    assert image is not None
    return data_uri(open_image(image))


def content(question: Question) -> list[Any]:
    return [
        {"type": "image_url", "image_url": {"url": uri_of(question.image)}},
        {"type": "text", "text": question.prompt},
    ]


def said(answer: Any) -> str:
    return answer.choices[0].message.content.strip()


def correct(server: VllmProcess, case: EditCase) -> str:
    """Make an edit through vLLM's own server; its id."""
    asked = case.edit.question
    body = {"prompt": asked.prompt, "answer": case.edit.answer, "image": uri_of(asked.image), "must_take": False}
    made = server.http.post("/v1/edits", json=body)
    assert made.status_code == 201, made.text
    return made.json()["id"]


def test_a_client_asks_corrects_asks_in_other_words_and_undoes(fleet: Fleet, many_cases: tuple[EditCase, ...]) -> None:
    case, server = many_cases[0], fleet.first
    own = content(case.edit.question)
    other = content(case.named("modal_generality")[0].question)
    before = said(server.ask(own)), said(server.ask(other))
    assert case.edit.answer not in before
    edit = correct(server, case)
    for asked in (own, other):
        answer = server.ask(asked)
        assert said(answer) == case.edit.answer
        assert [one["id"] for one in answer.model_extra["liveedit"]["edits"]] == [edit]
        chunks = list(server.ask(asked, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == case.edit.answer
        (named,) = [chunk.model_extra["liveedit"] for chunk in chunks if "liveedit" in (chunk.model_extra or {})]
        assert [one["id"] for one in named["edits"]] == [edit]
    unedited = server.ask(own, extra_body={"vllm_xargs": {"liveedit": "none"}})
    assert said(unedited) == before[0] and "liveedit" not in (unedited.model_extra or {})
    assert server.http.post(f"/v1/edits/{edit}/undo").status_code == 200
    assert (said(server.ask(own)), said(server.ask(other))) == before


def test_a_correction_through_one_server_is_answered_by_the_other(
    fleet: Fleet, many_cases: tuple[EditCase, ...]
) -> None:
    case = many_cases[1]
    asked = content(case.edit.question)
    before = said(fleet.second.ask(asked))
    edit = correct(fleet.first, case)
    started = time.monotonic()
    assert said(fleet.second.ask(asked)) == case.edit.answer != before
    assert time.monotonic() - started < 10  # The first request after the change; the limit is for busy machines.
    assert fleet.second.http.post(f"/v1/edits/{edit}/undo").status_code == 200
    assert said(fleet.first.ask(asked)) == before


def test_many_clients_get_no_wrong_answer_while_edits_come_and_go(
    fleet: Fleet, many_cases: tuple[EditCase, ...]
) -> None:
    cases = many_cases[2:10]
    contents = [content(case.edit.question) for case in cases]
    unedited = [said(fleet.first.ask(asked)) for asked in contents]
    ids = [correct(fleet.first, case) for case in cases]
    edited = [said(fleet.first.ask(asked)) for asked in contents]
    done = threading.Event()

    def change() -> None:
        for _ in range(4):
            for edit in ids[:4]:
                for verb in ("undo", "redo"):
                    assert fleet.second.http.post(f"/v1/edits/{edit}/{verb}").status_code == 200
        done.set()

    def ask(client: int) -> list[tuple[int, str, list[str], int]]:
        found = []
        while not done.is_set() or len(found) < 4:
            place = (client + len(found)) % len(cases)
            answer = (fleet.first, fleet.second)[client % 2].ask(contents[place])
            named = answer.model_extra["liveedit"]
            found.append((place, said(answer), [one["id"] for one in named["edits"]], named["revision"]))
        return found

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        changing = pool.submit(change)
        answers = [one for part in pool.map(ask, range(CLIENTS)) for one in part]
        changing.result()
    with EditStore(fleet.edits, create=False) as store:
        active = {revision: {edit.id for edit in store.list(at=revision)} for *_, revision in answers}
    assert len(active) > 4, "answers come from several revisions"
    for place, text, fired, revision in answers:
        is_active = ids[place] in active[revision]
        assert text == (edited if is_active else unedited)[place], (place, revision)
        assert (ids[place] in fired) == is_active


def test_a_killed_server_comes_back_with_all_edits(
    fleet: Fleet, many_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    case = many_cases[10]
    asked = content(case.edit.question)
    short_lived = VllmProcess("tiny-llava", fleet.settings, tmp_path / "killed.log", "--enforce-eager")
    short_lived.wait_until_ready()
    edit = correct(short_lived, case)
    assert said(short_lived.ask(asked)) == case.edit.answer
    short_lived.kill()
    again = VllmProcess("tiny-llava", fleet.settings, tmp_path / "again.log", "--enforce-eager")
    try:
        again.wait_until_ready()
        answer = again.ask(asked)
        assert said(answer) == case.edit.answer
        assert [one["id"] for one in answer.model_extra["liveedit"]["edits"]] == [edit]
    finally:
        again.stop()
