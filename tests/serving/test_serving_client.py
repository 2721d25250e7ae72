"""The official `openai` client against a server of the built-in model, and the command line around it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from serving_fakes import data_uri, listening
from typer import Context
from typer.main import get_command

from liveedit.backbones import Backbone, load_backbone
from liveedit.cli import app, main
from liveedit.cli.serving import limit_options, serving_settings
from liveedit.edited.model import EditedModel
from liveedit.images import image_digest, open_image
from liveedit.samples import EditCase
from liveedit.serving.api_keys import KeyFile
from liveedit.serving.app import create_app
from liveedit.serving.engine import Engine
from liveedit.serving.served_model import ServedModel
from liveedit.serving.settings import ServingSettings


class Served:
    """A running server, and clients of it."""

    def __init__(self, url: str, keys: dict[str, str]):
        self.url, self.keys = url, keys
        self.openai = self.client(keys["ask"])
        self.http = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {keys['edit']}"}, timeout=60)

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture
def served(tiny_llava: Backbone, tmp_path: Path) -> Iterator[Served]:
    file = KeyFile(tmp_path / "keys.json")
    keys = {role: file.add(role)[1] for role in ("ask", "edit")}  # type: ignore[arg-type]
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db") as model:
        settings = ServingSettings.model_validate({"prompt_tokens": 64})
        wrapped = ServedModel(model, settings)
        engine = Engine(wrapped, settings)
        with listening(engine, create_app(engine, "tiny-llava", wrapped, file)) as (url, _):
            running = Served(url, keys)
            yield running
            running.openai.close()
            running.http.close()


def uri_of(case: EditCase) -> str:
    image = case.edit.question.image
    assert image is not None
    return data_uri(open_image(image))


def messages(case: EditCase) -> list[Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": uri_of(case)}},
        {"type": "text", "text": case.edit.question.prompt},
    ]
    return [{"role": "user", "content": parts}]


def test_the_openai_client_asks_about_an_image_while_it_is_edited(
    served: Served, eval_cases: tuple[EditCase, ...]
) -> None:
    case = eval_cases[0]
    create = served.openai.chat.completions.create
    assert [model.id for model in served.openai.models.list()] == ["tiny-llava"]
    before = create(model="tiny-llava", messages=messages(case), temperature=0)
    assert before.choices[0].message.content != case.edit.answer
    assert before.choices[0].finish_reason == "stop"

    rephrasings = [probe.question.prompt for probe in case.named("text_generality")]
    wanted = {"prompt": case.edit.question.prompt, "answer": case.edit.answer, "image": uri_of(case)}
    made = served.http.post("/v1/edits", json={**wanted, "rephrasings": rephrasings})
    assert made.status_code == 201
    edit = made.json()
    assert edit["evidence"]["took"]
    assert edit["evidence"]["answer_before"] == before.choices[0].message.content
    assert [said["prompt"] for said in edit["evidence"]["rephrasings"]] == rephrasings

    after = create(model="tiny-llava", messages=messages(case), max_tokens=8, seed=1)
    assert after.choices[0].message.content == case.edit.answer
    (fired,) = after.model_extra["liveedit"]["edits"]  # type: ignore[index]
    assert fired["id"] == edit["id"] and fired["weight"] > 0.5 and fired["margin"] > 0

    usage = {"include_usage": True}
    chunks = list(create(model="tiny-llava", messages=messages(case), stream=True, stream_options=usage))  # type: ignore[call-overload]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == case.edit.answer
    assert chunks[-1].usage == after.usage
    assert chunks[-2].choices[0].finish_reason == "stop"

    assert served.http.post(f"/v1/edits/{edit['id']}/undo").json()["undone_at"]
    undone = create(model="tiny-llava", messages=messages(case), temperature=0)
    assert undone.choices[0].message.content == before.choices[0].message.content
    assert undone.model_extra["liveedit"] == {"edits": [], "withheld": [], "revision": 2}  # type: ignore[index]
    assert served.http.post(f"/v1/edits/{edit['id'][:4]}/redo").status_code == 404
    assert served.http.post(f"/v1/edits/{edit['id']}/redo").json()["undone_at"] is None
    redone = create(model="tiny-llava", messages=messages(case), temperature=0)
    assert redone.choices[0].message.content == case.edit.answer


def test_the_openai_client_understands_refusals(served: Served, eval_cases: tuple[EditCase, ...]) -> None:
    create = served.openai.chat.completions.create
    asked: list[Any] = [{"role": "user", "content": "What color is the hat?"}]
    with pytest.raises(openai.BadRequestError, match="system") as refused:
        create(model="tiny-llava", messages=[{"role": "system", "content": "Be brief."}, *asked])
    assert (refused.value.param, refused.value.code) == ("messages.0.role", "not_supported")
    with pytest.raises(openai.BadRequestError, match="at most 64"):
        create(model="tiny-llava", messages=[{"role": "user", "content": "hat " * 200}])
    with pytest.raises(openai.NotFoundError, match="tiny-llava"):
        create(model="gpt-4o", messages=asked)
    with pytest.raises(openai.AuthenticationError), served.client("le-wrong") as stranger:
        stranger.models.list()
    with served.client(served.keys["ask"]) as asking, pytest.raises(openai.PermissionDeniedError):
        asking.get("/edits", cast_to=object)
    refused_marker = served.http.post("/v1/edits", json={"prompt": "<image>?", "answer": "x", "image": "data:,"})
    assert refused_marker.status_code == 400


def test_an_edit_without_an_image_is_refused_where_no_question_would_find_it(served: Served) -> None:
    refused = served.http.post("/v1/edits", json={"prompt": "Who?", "answer": "Bruvak"})
    assert refused.status_code == 400 and "image" in refused.json()["error"]["message"]


def test_an_edit_through_one_replica_is_answered_by_another_within_a_second(
    served: Served, tmp_path: Path, eval_cases: tuple[EditCase, ...]
) -> None:
    case = eval_cases[1]
    wanted = {"prompt": case.edit.question.prompt, "answer": case.edit.answer, "image": uri_of(case)}
    body = {"model": "other", "messages": messages(case)}
    settings = ServingSettings.model_validate({})
    with EditedModel.load(load_backbone("tiny-llava", device="cpu"), edits=tmp_path / "edits.db") as model:
        wrapped = ServedModel(model, settings)
        engine = Engine(wrapped, settings)
        with listening(engine, create_app(engine, "other", wrapped, None)) as (url, _):

            def ask() -> Any:
                return httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()

            assert ask()["choices"][0]["message"]["content"] != case.edit.answer
            made = served.http.post("/v1/edits", json=wanted).json()
            time.sleep(0.5)
            after = ask()
            assert after["choices"][0]["message"]["content"] == made["evidence"]["answer_after"] == case.edit.answer
            assert [fired["id"] for fired in after["liveedit"]["edits"]] == [made["id"]]
            served.http.post(f"/v1/edits/{made['id']}/undo")
            time.sleep(0.5)
            assert ask()["liveedit"]["edits"] == []


# -- the commands ----------------------------------------------------------------------------------------


def test_keys_are_made_listed_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "keys.json")
    assert main(["keys", "add", "--role", "edit", "--name", "night", "--keys", path, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert KeyFile(path).holder(made["key"])
    assert main(["keys", "list", "--keys", path, "--json"]) == 0
    listed = capsys.readouterr().out
    assert made["key"] not in listed
    assert [(key["id"], key["role"], key["name"]) for key in json.loads(listed)["keys"]] == [
        (made["id"], "edit", "night")
    ]
    assert main(["keys", "remove", made["id"], "--keys", path]) == 0
    assert KeyFile(path).keys == ()
    assert main(["keys", "add", "--role", "root", "--keys", path]) == 1
    assert main(["keys", "list", "--keys", str(tmp_path / "none.json")]) == 1


def test_every_limit_is_an_option_with_the_words_of_the_settings() -> None:
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    shown = {option.name: option for option in command.get_params(Context(command))}
    for name, field in ServingSettings.model_fields.items():
        assert shown[name].help == field.description
        assert shown[name].default == (None if name == "allow_images_from" else field.default)


def test_help_of_serving_loads_the_settings_but_no_model() -> None:
    code = (
        "import sys; from liveedit.cli import main; main(['serve', '--help']); "
        "sys.exit(bool({'torch', 'fastapi', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "[default: 256]" in shown and "[default: 8388608]" in shown and "--kept-idempotency-keys" in shown


def test_other_commands_do_not_load_the_settings() -> None:
    code = (
        "import sys; from liveedit.cli import main; main(['--help']); "
        "sys.exit('liveedit.serving.settings' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_limits_reach_the_settings() -> None:
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    given = ["--edits", "e.db", "--queue", "3", "--answer-seconds", "1.5", "--workers", "2"]
    given += ["--allow-images-from", "https://a.example/", "--allow-images-from", "https://b.example/x"]
    context = command.make_context("serve", given)
    limits = {option.name: context.params[option.name] for option in limit_options()}
    assert serving_settings(limits) == ServingSettings(
        queue=3, answer_seconds=1.5, workers=2, allow_images_from=("https://a.example/", "https://b.example/x")
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--no-auth", "--host", "0.0.0.0"], "127.0.0.1"),
        (["--no-auth", "--host", "example.org"], "127.0.0.1"),
        (["--no-auth", "--host", "300.1.1.1"], "'300.1.1.1' is no IP address"),
        (["--no-auth", "--host", "::g"], "'::g' is no IP address"),
        (["--no-auth", "--host", "[::"], "'[::' is no IP address"),
        (["--no-auth", "--host", "[::2]"], "127.0.0.1"),
        (["--host", "[::1]"], "--no-auth"),
        (["--no-auth", "--keys", "KEYS"], "one of them"),
        ([], "--no-auth"),
        (["--keys", "KEYS"], "liveedit keys add"),
        (["--no-auth", "--queue", "0"], "queue"),
    ],
)
def test_a_service_open_to_strangers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    edits = tmp_path / "edits.db"
    options = [str(tmp_path / "keys.json") if option == "KEYS" else option for option in options]
    assert main(["serve", "--edits", str(edits), *options]) == 1
    assert said in capsys.readouterr().err
    assert not edits.exists()


def test_serving_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liveedit.cli.serving.find_spec", lambda name: None if name == "uvicorn" else object())
    assert main(["serve", "--edits", str(tmp_path / "edits.db"), "--no-auth"]) == 1
    assert "uvicorn" in (said := capsys.readouterr().err) and "pip install 'liveedit[serve]'" in said


@pytest.mark.slow
def test_the_command_serves_until_sigterm_and_keeps_the_edits(tmp_path: Path, eval_cases: tuple[EditCase, ...]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    edits = tmp_path / "edits.db"
    command = [sys.executable, "-m", "liveedit", "serve", "--edits", str(edits), "--port", str(port), "--no-auth"]
    command += ["--keep-images"]
    url, case = f"http://127.0.0.1:{port}", eval_cases[0]
    wanted = {"prompt": case.edit.question.prompt, "answer": case.edit.answer, "image": uri_of(case)}
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        try:
            until = time.monotonic() + 300
            while time.monotonic() < until:
                try:
                    httpx2.get(f"{url}/readyz")
                    break
                except httpx2.TransportError:
                    time.sleep(0.2)
            made = httpx2.post(f"{url}/v1/edits", json=wanted, timeout=60).json()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    with EditedModel.load("tiny-llava", edits=edits) as model:
        assert [stored.id for stored in model.edits()] == [made["id"]]
        picture = model.store.image(made["id"])
    asked = case.edit.question.image
    assert picture is not None and asked is not None
    assert image_digest(open_image(picture)) == image_digest(open_image(asked))


def test_a_taken_port_is_told_before_anything_is_loaded(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, out, err = run("serve", "--edits", str(tmp_path / "edits.db"), "--no-auth", "--port", port)
    assert status == 1 and "cannot listen at" in err and "--port" in err and "Serving" not in out + err
