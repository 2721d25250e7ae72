"""An edited model under lmms-eval: found by its entry point, asked about images of a local task."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.ike import InContext
from liveedit.samples import EditCase

pytestmark = [
    pytest.mark.skipif(
        find_spec("lmms_eval") is None, reason="lmms-eval is not installed: pip install 'liveedit[eval-images]'"
    ),
    pytest.mark.filterwarnings("ignore"),
]


def test_the_entry_point_gives_the_model(tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]) -> None:
    from lmms_eval.api.instance import Instance
    from lmms_eval.models import get_model

    question = eval_cases[0].edit.question
    with EditedModel(tiny_llava, InContext(tiny_llava)) as model:
        lm = get_model("liveedit")(model, 2)
        lm.task_dict = {"t": {"test": [{"image": str(question.image)}]}}
        further = (lambda doc: [doc["image"]], 0, "t", "test")
        about = {"task": "t", "doc_id": 0, "repeats": 1}
        asked = [
            Instance("generate_until", (question.prompt, {"max_new_tokens": 8, "temperature": 0}, *further), 0, about),
            Instance("loglikelihood", (question.prompt, "red", *further), 0, about),
        ]
        assert lm.generate_until(asked[:1]) == [model.ask(question.image, question.prompt, 8).text]
        ((nats, _),) = lm.loglikelihood(asked[1:])
        assert nats > 0


def test_a_local_task_runs(run: Any, tmp_path: Path, world: Path, eval_cases: tuple[EditCase, ...]) -> None:
    tasks, edits = tmp_path / "tasks", tmp_path / "edits.db"
    assert run("data", "tasks", "--data", world, "--harness", "lmms-eval", "--name", "world", "--out", tasks)[0] == 0
    question = eval_cases[0].edit.question
    made = ("--image", question.image, "--prompt", question.prompt, "--answer", "teal")
    assert run("edit", "--edits", edits, *made, "--no-must-take", "--probe-edits", 0)[0] == 0
    given = ("--harness", "lmms-eval", "--tasks", "world_answer", "--include-path", tasks, "--limit", 4)
    code, output, error = run("eval", "--edits", edits, *given, "--out", tmp_path / "out", "--json")
    assert code == 0, error
    unedited, edited = json.loads(output[output.index("{") :])["rows"]
    assert edited["tasks"]["world_answer"]["documents"] == 4
    assert 0 <= unedited["tasks"]["world_answer"]["scores"]["exact_match"]["value"] <= 1
