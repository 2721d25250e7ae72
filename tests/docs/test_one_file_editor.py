"""The example of an editor outside the package: found by its entry point, and good for bench, edit, undo and serve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from serving_fakes import data_uri
from starlette.testclient import TestClient

from liveedit.backbones import Backbone
from liveedit.datasets.world import write_world
from liveedit.edited.model import EditedModel
from liveedit.errors import InvalidInputError, NotFoundError
from liveedit.images import open_image
from liveedit.samples import Edit, EditCase, Question
from liveedit.testing.model_traces import hooks_of

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "one_file_editor"
PROMPT = "What is this creature called?"


@pytest.fixture
def editor(module: ModuleType, tiny_llava: Backbone) -> Iterator[Any]:
    made = module.Lookup(tiny_llava)
    yield made
    made.detach()
    made.detach()
    assert hooks_of(tiny_llava) == []


def edits_of(cases: tuple[EditCase, ...]) -> list[tuple[str, Edit]]:
    return [(case.id, case.edit) for case in cases[:6]]


def logits_of(backbone: Backbone, questions: list[Question]) -> torch.Tensor:
    with torch.no_grad():
        return backbone.logits(backbone.encode(questions))


def test_every_edit_is_answered_and_undo_is_exact(editor: Any, eval_cases: tuple[EditCase, ...]) -> None:
    backbone, edits = editor.backbone, edits_of(eval_cases)
    questions = [edit.question for _, edit in edits]
    before = logits_of(backbone, questions)
    editor.edit(edits)
    assert backbone.generate(backbone.encode(questions, padding="left")) == [edit.answer for _, edit in edits]
    assert [[one.edit_id for one in fired] for fired in editor.fired()] == [[edit_id] for edit_id, _ in edits]
    editor.undo(edits[0][0])
    after_one = logits_of(backbone, questions)
    assert torch.equal(after_one[0], before[0]) and not torch.equal(after_one[1], before[1])
    for edit_id, _ in edits[1:]:
        editor.undo(edit_id)
    assert torch.equal(logits_of(backbone, questions), before)


def test_teacher_forced_and_free_answers_agree(editor: Any, eval_cases: tuple[EditCase, ...]) -> None:
    backbone, edits = editor.backbone, edits_of(eval_cases)
    editor.edit(edits)
    inputs = backbone.encode([edit.question for _, edit in edits], [edit.answer for _, edit in edits])
    with torch.no_grad():
        predicted = backbone.logits(inputs).argmax(-1)
    assert torch.equal(predicted[inputs.predicting], inputs.input_ids[inputs.answer_mask])


@pytest.mark.parametrize("options", [{"use_cache": False}, {"beams": 2}, {"beams": 2, "sequences": 2}])
def test_generation_without_a_cache_and_with_beams(
    editor: Any, eval_cases: tuple[EditCase, ...], options: dict[str, Any]
) -> None:
    backbone, edits = editor.backbone, edits_of(eval_cases)[:2]
    editor.edit(edits)
    inputs = backbone.encode([edit.question for _, edit in edits], padding="left")
    found = backbone.generate(inputs, **options)
    assert found[:: options.get("sequences", 1)] == [edit.answer for _, edit in edits]


def test_other_questions_keep_their_logits_bit_for_bit(editor: Any, eval_cases: tuple[EditCase, ...]) -> None:
    backbone, edits = editor.backbone, edits_of(eval_cases)
    others = [Question("What is the capital of Coraland?"), *(case.edit.question for case in eval_cases[6:10])]
    before = logits_of(backbone, others)
    answers = backbone.generate(backbone.encode(others, padding="left"))
    editor.edit(edits)
    assert torch.equal(logits_of(backbone, others), before)
    assert editor.fired() == [()] * len(others)
    assert backbone.generate(backbone.encode(others, padding="left")) == answers
    mixed = [edits[0][1].question, *others]
    assert backbone.generate(backbone.encode(mixed, padding="left")) == [edits[0][1].answer, *answers]


def test_the_order_of_edits_is_irrelevant(module: ModuleType, tiny_llava: Backbone, eval_cases: Any) -> None:
    question = eval_cases[0].edit.question
    answers = set()
    for order in ((0, 1), (1, 0)):
        with module.Lookup(tiny_llava) as editor:
            editor.edit([(f"edit-{index}", Edit(question, ("Bruvak", "Mirosen")[index])) for index in order])
            answers.add(tiny_llava.generate(tiny_llava.encode([question], padding="left"))[0])
    assert len(answers) == 1 and answers <= {"Bruvak", "Mirosen"}


def test_wrong_use_is_refused(editor: Any, module: ModuleType, eval_cases: tuple[EditCase, ...]) -> None:
    edits = edits_of(eval_cases)[:1]
    editor.edit(edits)
    with pytest.raises(InvalidInputError, match="is active already"):
        editor.edit(edits)
    with pytest.raises(InvalidInputError, match="width"):
        editor.add("new", module.LookupExpert(torch.zeros(3), torch.zeros(3), torch.zeros(1)))
    with pytest.raises(NotFoundError, match="is not active"):
        editor.undo("unknown")
    assert list(editor.ids) == [edits[0][0]]


def test_its_neighbours_are_the_most_similar_edits(editor: Any, eval_cases: tuple[EditCase, ...]) -> None:
    edits = edits_of(eval_cases)
    expert, steps = editor.make_expert(edits[2][1])
    assert steps == 0 and editor.neighbours(expert, 3) == []
    editor.edit(edits)
    near = editor.neighbours(expert, 3)
    assert len(near) == 3 and near[0].edit_id == edits[2][0]
    assert [one.similarity for one in near] == sorted((one.similarity for one in near), reverse=True)


def test_an_edits_file_keeps_its_experts_to_the_bit(
    module: ModuleType, tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    question = eval_cases[0].edit.question
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db", editor="lookup") as model:
        receipt = model.edit(question.image, question.prompt, "Bruvak")
        assert receipt.took
        edited = logits_of(tiny_llava, [question])
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db", editor="lookup") as model:
        assert torch.equal(logits_of(tiny_llava, [question]), edited)
        model.undo(receipt.id)
        assert len(model) == 0


def test_it_serves(module: ModuleType, tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path) -> None:
    from liveedit.serving.app import create_app
    from liveedit.serving.engine import Engine
    from liveedit.serving.served_model import ServedModel
    from liveedit.serving.settings import ServingSettings

    image = eval_cases[0].edit.question.image
    assert image is not None
    uri = data_uri(open_image(image))
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": PROMPT}]
    question = {"model": "tiny", "messages": [{"role": "user", "content": parts}]}
    settings = ServingSettings()  # type: ignore[call-arg]
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db", editor="lookup") as model:
        served = ServedModel(model, settings)
        engine = Engine(served, settings)
        with TestClient(create_app(engine, "tiny", served, None), base_url="http://127.0.0.1") as client:

            def ask() -> tuple[str, list[str]]:
                body = client.post("/v1/chat/completions", json=question).json()
                return body["choices"][0]["message"]["content"], [edit["id"] for edit in body["liveedit"]["edits"]]

            before = ask()
            made = client.post("/v1/edits", json={"image": uri, "prompt": PROMPT, "answer": "Bruvak"})
            assert made.status_code == 201, made.text
            edit_id = made.json()["id"]
            assert ask() == ("Bruvak", [edit_id])
            assert client.post(f"/v1/edits/{edit_id}/undo").status_code == 200
            assert ask() == before and before[1] == []


@pytest.mark.slow
@pytest.mark.timeout(600)  # Several processes, each of which imports torch.
def test_the_commands_find_it(installed: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "world", seed=1, train=0, eval=6)
    paths = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "liveedit", *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "lookup" in run("editors")
    shared = ["--edits", "edits.db", "--editor", "lookup"]
    about = ["--image", "world/images/eval-1-000000.png", "--prompt", PROMPT]
    asked = json.loads(run("ask", *about, "--json"))["text"]
    made = json.loads(run("edit", *shared, *about, "--answer", "Bruvak", "--json"))
    assert made["took"] and made["answer_before"] == asked
    assert json.loads(run("ask", *shared, *about, "--json"))["text"] == "Bruvak"
    run("edits", "undo", "--edits", "edits.db", made["id"])
    assert json.loads(run("ask", *shared, *about, "--json"))["text"] == asked
    bench = ["--data", "world", "--edits", "3", "--few-edits-cases", "3", "--seeds", "0", "--out", "bench"]
    assert "lookup" in run("bench", "--editor", "lookup", "none", *bench)


def test_its_readme_names_the_parts_that_it_has(module: ModuleType) -> None:
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    for name in ("LookupConfig", "LookupExpert", "_Call"):
        assert f"`{name}`" in readme and hasattr(module, name)
    for name in ("make_expert", "add", "undo", "get", "ids", "fired", "neighbours", "digest"):
        assert f"`{name}`" in readme and name in vars(module.Lookup)
