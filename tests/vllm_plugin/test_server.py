"""`vllm serve` with the plugin, asked by the `openai` client; a `liveedit serve` beside it makes the edits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import postgres_server
import pytest
from served_process import ServedProcess
from serving_fakes import data_uri
from vllm_process import VllmProcess

from liveedit.images import open_image
from liveedit.samples import EditCase, ImageSource, Question
from liveedit.store.store import EditStore

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

CLIENTS = 16


FILE, DATABASE = "file", "database"
"""The repositories of edits, named after their stores."""


class Fleet(NamedTuple):
    """Two servers of vLLM on the same stores of edits. The makers of edits are beside them, one for each store."""

    first: VllmProcess
    second: VllmProcess
    edits: dict[str, str]
    settings: dict[str, Any]


@pytest.fixture(scope="module")
def fleet(vllm_is_here: None, request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Fleet]:
    """Both stores in the same servers, as two tenants: starting two more servers would take half a minute."""
    folder = tmp_path_factory.mktemp("fleet")
    edits = {FILE: str(folder / "edits.db")}
    if postgres_server.reason_to_skip() is None:
        edits[DATABASE] = request.getfixturevalue("postgres_server").empty_database()
    with ExitStack() as started:

        def start(server: Any) -> Any:
            started.callback(server.stop)
            return server

        makers = {
            name: start(ServedProcess(location, folder / f"{name}.log", "--editor", "liveedit"))
            for name, location in edits.items()
        }
        repositories = {
            name: {"edits": edits[name], "editor": "liveedit", "maker": maker.url} for name, maker in makers.items()
        }
        settings = {"repositories": repositories, "default": FILE}
        first = start(VllmProcess("tiny-llava", settings, folder / "first.log"))
        for server in (*makers.values(), first):
            server.wait_until_ready()
        second = start(VllmProcess("tiny-llava", settings, folder / "second.log", "--enforce-eager"))
        second.wait_until_ready()
        yield Fleet(first, second, edits, settings)


@pytest.fixture(params=[FILE, pytest.param(DATABASE, marks=pytest.mark.postgres)])
def repository(request: pytest.FixtureRequest, fleet: Fleet) -> str:
    """Edits in a file, and edits in a database."""
    if request.param not in fleet.edits:
        pytest.skip(str(postgres_server.reason_to_skip()))
    return request.param


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


def of(repository: str) -> dict[str, Any]:
    """What a request gives to be answered with the edits of a repository."""
    return {"extra_body": {"vllm_xargs": {"liveedit": repository}}}


def fired_for(answer: Any) -> list[str]:
    """Ids of the edits that an answer names."""
    return [one["id"] for one in answer.model_extra["liveedit"]["edits"]]


def correct(server: VllmProcess, case: EditCase, repository: str = FILE) -> str:
    """Make an edit through vLLM's own server; its id."""
    asked = case.edit.question
    body = {"prompt": asked.prompt, "answer": case.edit.answer, "image": uri_of(asked.image), "must_take": False}
    made = server.http.post("/v1/edits", json=body, params={"repository": repository})
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
        assert fired_for(answer) == [edit]
        chunks = list(server.ask(asked, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == case.edit.answer
        (named,) = [chunk.model_extra["liveedit"] for chunk in chunks if "liveedit" in (chunk.model_extra or {})]
        assert [one["id"] for one in named["edits"]] == [edit]
    unedited = server.ask(own, extra_body={"vllm_xargs": {"liveedit": "none"}})
    assert said(unedited) == before[0] and "liveedit" not in (unedited.model_extra or {})
    assert server.http.post(f"/v1/edits/{edit}/undo").status_code == 200
    assert (said(server.ask(own)), said(server.ask(other))) == before


def test_a_change_through_one_server_is_in_the_next_answer_of_the_other(
    fleet: Fleet, repository: str, many_cases: tuple[EditCase, ...]
) -> None:
    case, named = many_cases[1], {"repository": repository}
    asked = content(case.edit.question)
    before = said(fleet.second.ask(asked, **of(repository)))
    edit = correct(fleet.first, case, repository)
    for verb in (None, "undo", "redo", "undo"):
        if verb is not None:
            assert fleet.second.http.post(f"/v1/edits/{edit}/{verb}", params=named).status_code == 200
        for server in (fleet.second, fleet.first):  # Each is asked once after a change.
            answer = server.ask(asked, **of(repository))
            assert said(answer) == (before if verb == "undo" else case.edit.answer)
            assert (edit in fired_for(answer)) == (verb != "undo")
    assert before != case.edit.answer


def test_the_tenants_of_a_server_do_not_see_each_others_edits(fleet: Fleet, many_cases: tuple[EditCase, ...]) -> None:
    if DATABASE not in fleet.edits:
        pytest.skip(str(postgres_server.reason_to_skip()))
    case = many_cases[11]
    asked = content(case.edit.question)
    edit = correct(fleet.first, case, DATABASE)
    assert fired_for(fleet.second.ask(asked, **of(DATABASE))) == [edit]
    assert edit not in fired_for(fleet.second.ask(asked, **of(FILE)))


def test_many_clients_get_no_wrong_answer_while_edits_come_and_go(
    fleet: Fleet, repository: str, many_cases: tuple[EditCase, ...]
) -> None:
    cases = many_cases[2:10]
    contents = [content(case.edit.question) for case in cases]
    unedited = [said(fleet.first.ask(asked, **of(repository))) for asked in contents]
    ids = [correct(fleet.first, case, repository) for case in cases]
    edited = [said(fleet.first.ask(asked, **of(repository))) for asked in contents]
    done = threading.Event()

    def change() -> None:
        for _ in range(4):
            for edit in ids[:4]:
                for verb in ("undo", "redo"):
                    made = fleet.second.http.post(f"/v1/edits/{edit}/{verb}", params={"repository": repository})
                    assert made.status_code == 200
        done.set()

    def ask(client: int) -> list[tuple[int, str, list[str], int]]:
        found = []
        while not done.is_set() or len(found) < 4:
            place = (client + len(found)) % len(cases)
            answer = (fleet.first, fleet.second)[client % 2].ask(contents[place], **of(repository))
            found.append((place, said(answer), fired_for(answer), answer.model_extra["liveedit"]["revision"]))
        return found

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        changing = pool.submit(change)
        answers = [one for part in pool.map(ask, range(CLIENTS)) for one in part]
        changing.result()
    with EditStore(fleet.edits[repository], create=False) as store:
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
        assert fired_for(answer) == [edit]
    finally:
        again.stop()
