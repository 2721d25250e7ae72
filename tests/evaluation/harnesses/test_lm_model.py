"""An edited model under lm-eval: without edits as lm-eval's own model, with edits routed by the context alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from liveedit.backbones import Backbone, TokenBatch, TokenRole
from liveedit.edited.model import EditedModel
from liveedit.editors.ike import InContext

pytestmark = [
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'liveedit[eval]'"),
    pytest.mark.filterwarnings("ignore"),
]

EDITED = "What color is the hat of the tall creature?"
ANSWER = "turquoise"


def request(kind: Any, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@pytest.fixture
def model(tiny_llava: Backbone) -> Iterator[EditedModel]:
    with EditedModel(tiny_llava, InContext(tiny_llava)) as opened:
        yield opened


@pytest.fixture
def lm(model: EditedModel) -> Any:
    from liveedit.evaluation.harnesses.lm_model import EditedLM

    return EditedLM(model, batch=3)


@pytest.fixture
def own(tiny_llava: Backbone) -> Any:
    """lm-eval's own model of the same weights."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=tiny_llava.model, tokenizer=tiny_llava.tokenizer, backend="causal", batch_size=3)


def test_the_unedited_model_scores_as_lm_evals_own(lm: Any, own: Any) -> None:
    long = "the hat is red and the creature is tall " * 400  # More than the model has positions.
    pairs = [
        ("What color?", " red"),
        ("What color?", " blue"),
        ("What color?", " red and blue"),
        ("", "the hat"),
        (long, " red"),
    ]
    requests = [request("loglikelihood", *pair) for pair in pairs]
    for (found, greedy), (wanted, wanted_greedy) in zip(
        lm.loglikelihood(requests), own.loglikelihood(requests), strict=True
    ):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        assert greedy == wanted_greedy
    texts = [request("loglikelihood_rolling", "the hat is red"), request("loglikelihood_rolling", long)]
    assert lm.loglikelihood_rolling(texts) == pytest.approx(own.loglikelihood_rolling(texts), rel=1e-4)


def test_the_unedited_model_generates_as_lm_evals_own(lm: Any, own: Any) -> None:
    asked = [
        ("What color is the hat?", {"until": ["\n"], "max_gen_toks": 6}),
        ("the", {"until": ["a"], "max_gen_toks": 9}),
    ]
    requests = [request("generate_until", *one) for one in asked]
    assert lm.generate_until(requests) == own.generate_until(requests)


def test_a_continuation_is_the_answer_and_its_context_the_question(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TokenBatch] = []
    logits = Backbone.logits
    monkeypatch.setattr(Backbone, "logits", lambda self, inputs: (seen.append(inputs), logits(self, inputs))[1])
    lm.loglikelihood([request("loglikelihood", "What color is the hat?", " dark red")])
    (inputs,) = seen
    context = lm.tok_encode("What color is the hat?")
    roles = [TokenRole.PROMPT] * len(context) + [TokenRole.ANSWER] * (inputs.roles.shape[1] - len(context))
    assert inputs.roles[0].tolist() == roles
    assert int(inputs.answer_mask.sum()) > 0


def test_edits_are_found_by_the_context_alone(model: EditedModel, lm: Any, own: Any) -> None:
    other = "Where do small creatures live?"
    pairs = [(EDITED, " red"), (EDITED, f" {ANSWER}"), (other, " red"), (other, f" {EDITED}")]
    requests = [request("loglikelihood", *pair) for pair in pairs]
    before = lm.loglikelihood(requests)
    model.edit(None, EDITED, ANSWER, must_take=False, probe_edits=0)
    after = lm.loglikelihood(requests)
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True, True]
    assert lm.counts.to_dict()["loglikelihood"] == {"asked": 8, "with_edits": 2, "withheld": 0}
    # What this editor does: the fact stands before the question.
    (item,) = model.backbone.prepared([request_question(EDITED)])
    with model.editor.paused():
        (wanted,) = own.loglikelihood([request("loglikelihood", item.question.prompt, f" {ANSWER}")])
    assert after[1][0] == pytest.approx(wanted[0], rel=1e-4)


def request_question(prompt: str) -> Any:
    from liveedit.samples import Question

    return Question(prompt)


def test_a_withheld_answer_is_the_unedited_models(
    model: EditedModel, lm: Any, own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.edit(None, EDITED, ANSWER, must_take=False, probe_edits=0)
    asked = [request("generate_until", EDITED, {"until": ["\n"], "max_gen_toks": 5})]
    edited = lm.generate_until(asked)
    monkeypatch.setattr("liveedit.answering.Generated.is_in_doubt", lambda self, tokens=None: bool(self.answer.fired))
    withheld = lm.generate_until(asked)
    with model.editor.paused():
        assert withheld == own.generate_until(asked) != edited
    assert lm.counts.to_dict()["generate_until"] == {"asked": 2, "with_edits": 1, "withheld": 1}


def test_each_row_of_a_batch_stops_at_its_own_string(tiny_llava: Backbone) -> None:
    from liveedit.evaluation.harnesses.lm_model import StopStrings

    text = [tiny_llava.tokenize(["a hat"])[0][-2:], tiny_llava.tokenize(["red red"])[0][-2:]]
    stops = StopStrings(tiny_llava, ["hat", ""], 1, 2)
    ids = torch.tensor([[0, *row] for row in text])
    assert stops(ids, None).tolist() == [True, False]
    assert stops.lengths == [2, None]


@pytest.mark.timeout(600)
def test_tasks_run_before_and_after_edits(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [
        {
            "prompt": f"The home of creature {number} is",
            "target_new": "the moon",
            "subject": f"creature {number}",
            "rephrase_prompt": f"Creature {number} lives in",
            "locality_prompt": f"The color of creature {number} is",
            "locality_ground_truth": color,
        }
        for number, color in enumerate(("red", "green", "blue", "teal", "pink"))
    ]
    (tmp_path / "facts.json").write_text(json.dumps(rows))
    tasks = tmp_path / "tasks"
    assert run("data", "tasks", "--data", f"counterfact:{tmp_path / 'facts.json'}", "--out", tasks)[0] == 0
    edits = tmp_path / "edits.db"
    made = ("--prompt", EDITED, "--answer", ANSWER, "--no-must-take", "--probe-edits", 0)
    assert run("edit", "--edits", edits, "--editor", "ike", *made)[0] == 0
    names = ("facts_choice", "facts_answer")
    given = ("--tasks", *names, "--include-path", tasks, "--out", tmp_path / "out")
    code, output, error = run("eval", "--edits", edits, "--editor", "ike", *given, "--json")
    assert code == 0, error
    unedited, edited = json.loads(output)["rows"]
    assert (unedited["edits"], edited["edits"]) == (0, 1)
    assert {name: task["documents"] for name, task in edited["tasks"].items()} == dict.fromkeys(names, 5)
    assert edited["tasks"]["facts_choice"]["scores"]["acc"]["stderr"] is not None
    assert run("results", "verify", tmp_path / "out")[0] == 0
