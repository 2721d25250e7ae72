"""Judged answers: a judge behind a small local service, its verdicts in files, its agreement with exact match."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from liveedit.errors import InvalidInputError, NotFoundError
from liveedit.evaluation.judging import Judge, cohens_kappa, judge_folder, judged_metrics, verdict_of

QUESTION = re.compile(r"Right answer: (.*)\nAnswer to judge: (.*)\n")


class Service:
    """Calls an answer right that contains the expected one; says nothing useful of an answer "odd"."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.asked.append(body["messages"][0]["content"])
                self._send({"choices": [{"index": 0, "message": service.reply(), "finish_reason": "stop"}]})

            def _send(self, content: dict[str, Any]) -> None:
                data = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "j", **content})
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def reply(self) -> dict[str, str]:
        found = QUESTION.search(self.asked[-1])
        assert found is not None
        expected, answer = found.groups()
        text = "Hmm." if answer == "odd" else "CORRECT" if expected in answer else "INCORRECT."
        return {"role": "assistant", "content": text}


@pytest.fixture
def service() -> Iterator[Service]:
    found = Service()
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def raw(case: str, probe: str, answer: str, exact: bool) -> dict[str, Any]:
    return {"case": case, "probe": probe, "prompt": "Who?", "expected": "Paris", "answer": answer, "exact_match": exact}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results = tmp_path / "results"
    results.mkdir()
    row = {"editor": "e", "backbone": "b", "data": "d", "edits": 4, "seed": 0}
    (results / "e-4-seed0.json").write_text(json.dumps(row))
    answers = [
        raw("1", "reliability", "Paris", True),
        raw("2", "reliability", "It is Paris", False),
        raw("3", "reliability", "Rome", False),
        raw("4", "reliability", "odd", False),
        raw("4", "text_generality", "Rome", False),
        raw("4", "text_locality", "Rome", False),
    ]
    (results / "e-4-seed0.answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))
    return tmp_path


def test_answers_are_judged_once_and_the_replies_kept(service: Service, folder: Path) -> None:
    (row,) = judge_folder(folder, Judge(service.address, "j"), workers=1)
    assert len(service.asked) == 4, "the same answer to the same question is judged once, locality not at all"
    assert row["editor"] == "e"
    metric = row["metrics"]["reliability"]
    assert (metric["count"], metric["unreadable"]) == (4, 1)
    thirds = pytest.approx(200 / 3), pytest.approx(100 / 3), pytest.approx(200 / 3)
    assert (metric["judged_right"], metric["exact_match"], metric["agreement"]) == thirds
    # Judged: right, right, wrong; exact: right, wrong, wrong. p = 2/3, e = 2/3 * 1/3 + 1/3 * 2/3 = 4/9.
    assert metric["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    kept = [json.loads(line) for line in (folder / "results/e-4-seed0.verdicts.jsonl").read_text().splitlines()]
    assert {(one["answer"], one["reply"], one["verdict"]) for one in kept} == {
        ("Paris", "CORRECT", True),
        ("It is Paris", "CORRECT", True),
        ("Rome", "INCORRECT.", False),
        ("odd", "Hmm.", None),
    }


def test_kept_verdicts_are_not_asked_for_again_unless_the_judge_is_another(service: Service, folder: Path) -> None:
    first = judge_folder(folder, Judge(service.address, "j"), workers=2)
    asked = len(service.asked)
    with (folder / "results/e-4-seed0.verdicts.jsonl").open("a") as stream:
        stream.write('{"question": "cut')
    assert judge_folder(folder, Judge("http://127.0.0.1:9/v1", "j"), workers=2) == first
    assert len(service.asked) == asked
    judge_folder(folder, Judge(service.address, "another"), workers=2)
    assert len(service.asked) == 2 * asked


def test_the_command_reports(service: Service, folder: Path, run: Any) -> None:
    code, output, _ = run("results", "judge", folder, "--endpoint", service.address, "--model", "j", "--json")
    assert code == 0
    assert json.loads(output)["rows"][0]["metrics"]["text_generality"]["judged_right"] == 0.0
    assert "κ" in (folder / "judged.md").read_text()
    assert json.loads((folder / "judged.json").read_text())["judge"]["model"] == "j"


def test_a_judge_that_cannot_be_reached_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"at http://127.0.0.1:9/v1 gave no verdict"):
        judge_folder(folder, Judge("http://127.0.0.1:9/v1", "j", seconds=2.0), workers=1)
    with pytest.raises(NotFoundError, match="no rows with raw answers"):
        judge_folder(tmp_path / "results", Judge("http://127.0.0.1:9/v1", "j"))


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [("CORRECT", True), ("Incorrect.", False), ("**CORRECT**", True), ("CORRECT or INCORRECT", None), ("", None)],
)
def test_only_one_of_two_words_is_a_verdict(reply: str, wanted: bool | None) -> None:
    assert verdict_of(reply) is wanted


def test_kappa_by_hand() -> None:
    # 20 of 50 both yes, 15 both no, 5 and 10 mixed: p = 0.7, e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    first = [True] * 25 + [False] * 25
    second = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    assert cohens_kappa([True, True], [True, True]) is None
    with pytest.raises(InvalidInputError):
        cohens_kappa([True], [])


def test_metrics_without_a_readable_verdict_have_no_shares() -> None:
    found = judged_metrics([{"probe": "reliability", "exact_match": True, "verdict": None}])
    assert found["reliability"]["judged_right"] is None and found["reliability"]["unreadable"] == 1
