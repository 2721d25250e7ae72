"""A released chat model that nobody trained for this: inspected, edited, saved, and corrected with real facts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from torch import Tensor

from liveedit import EditedModel
from liveedit.answering import Answering
from liveedit.answers import same_answer
from liveedit.backbones import Backbone, load_backbone
from liveedit.datasets import read
from liveedit.doctor import examine
from liveedit.editors import editor_class
from liveedit.samples import Edit, EditCase, Question
from liveedit.serving.app import create_app
from liveedit.serving.engine import Engine
from liveedit.serving.served_model import ServedModel
from liveedit.serving.settings import ServingSettings
from liveedit.store.store import EditStore

pytestmark = [pytest.mark.real, pytest.mark.slow]

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
EDITOR = "fitted-experts"

CAPITAL = Question("What is the capital of France?")
COMPOSER = Question("Who composed the opera Carmen?")
OTHERS = (COMPOSER, Question("How many legs does a spider have?"), Question("Name a colour of the rainbow."))
SHORT = 8
"""Tokens of an answer that is only to stay as it was."""


@torch.no_grad()
def logits(backbone: Backbone, *questions: Question) -> list[Tensor]:
    return [backbone.logits(backbone.encode([question], padding="left")) for question in questions]


def test_it_answers_as_it_was_trained_to(smollm2: Backbone) -> None:
    """The template and the end of a turn come from the file."""
    assert smollm2.prompt_text(CAPITAL).endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm2.tokenizer.decode([smollm2.end_token_id]) == "<|im_end|>"
    (answer,) = Answering(smollm2).ask([CAPITAL])
    assert answer.text == "The capital of France is Paris."


def test_every_check_of_the_doctor_holds(smollm2: Backbone) -> None:
    diagnosis = examine(smollm2)
    assert [check for check in diagnosis.checks if not check.holds] == []
    assert diagnosis.plan["layers"] == 30


def test_saved_it_is_an_ordinary_checkpoint(smollm2: Backbone, tmp_path: Path) -> None:
    smollm2.model.save_pretrained(tmp_path)
    smollm2.tokenizer.save_pretrained(tmp_path)
    again = load_backbone(tmp_path, device="cpu")
    assert again.prompt_text(CAPITAL) == smollm2.prompt_text(CAPITAL)
    assert torch.equal(*logits(smollm2, CAPITAL), *logits(again, CAPITAL))
    assert (again.digest(), again.end_token_id) == (smollm2.digest(), smollm2.end_token_id)


def test_an_edit_takes_from_an_edits_file_and_undo_is_exact(smollm2: Backbone, tmp_path: Path) -> None:
    file, before = tmp_path / "edits.db", logits(smollm2, CAPITAL, *OTHERS)
    texts = [answer.text for answer in Answering(smollm2).ask(OTHERS, SHORT)]
    with EditedModel(smollm2, editor_class(EDITOR).load(smollm2), EditStore(file)) as model:  # type: ignore[arg-type]
        receipt = model.edit(None, CAPITAL.prompt, "Lyon", rephrasings=["Which city is France's capital?"])
        assert receipt.took and not same_answer(receipt.answer_before, "Lyon")
    assert all(map(torch.equal, before, logits(smollm2, CAPITAL, *OTHERS))), "a closed model leaves no trace"
    with EditedModel(smollm2, editor_class(EDITOR).load(smollm2), EditStore(file)) as model:  # type: ignore[arg-type]
        answer = model.ask(None, CAPITAL.prompt)
        assert answer.text == "Lyon"
        assert [fired.edit_id for fired in answer.fired or ()] == [receipt.id]
        assert [model.ask(None, other.prompt, SHORT).text for other in OTHERS] == texts
        model.undo(receipt.id)
        assert all(map(torch.equal, before, logits(smollm2, CAPITAL, *OTHERS)))
        model.redo(receipt.id)
        assert model.ask(None, CAPITAL.prompt).text == "Lyon"


def test_it_is_served(smollm2: Backbone, tmp_path: Path) -> None:
    """Corrected and rolled back through the API, as a running service is."""
    settings = ServingSettings.model_validate({})
    asked = {"model": "smollm2", "messages": [{"role": "user", "content": CAPITAL.prompt}], "max_tokens": SHORT}
    with EditedModel.load(smollm2, edits=tmp_path / "edits.db") as model:
        served = ServedModel(model, settings)
        app = create_app(Engine(served, settings), "smollm2", served, None)
        with TestClient(app, base_url="http://127.0.0.1") as client:

            def said() -> str:
                answer = client.post("/v1/chat/completions", json=asked)
                assert answer.is_success, answer.text
                return answer.json()["choices"][0]["message"]["content"]

            before = said()
            made = client.post("/v1/edits", json={"prompt": CAPITAL.prompt, "answer": "Lyon"})
            assert made.is_success and made.json()["evidence"]["took"], made.text
            assert said() == "Lyon" != before
            assert client.post(f"/v1/edits/{made.json()['id']}/undo").is_success
            assert said() == before


def real_facts(count: int) -> list[EditCase]:
    """The first rows about different subjects: rows about the same one contradict each other."""
    file = DATA / "zsre" / "zsre_wise_1000.json"
    if not file.is_file():
        pytest.skip(f"{file.name} is not under LIVEEDIT_DATA ({DATA})")
    by_subject: dict[str | None, EditCase] = {}
    for case in read("zsre", file):
        by_subject.setdefault(case.edit.question.subject, case)
    return list(by_subject.values())[:count]


@pytest.mark.timeout(600)  # On a busy machine.
def test_twenty_real_facts_at_once(smollm2: Backbone) -> None:
    """Answers are generated freely. Unrelated questions keep the answers that the unedited model gives."""
    cases = real_facts(20)
    edited = [case.edit.question for case in cases]
    unrelated = [case.named("text_locality")[0].question for case in cases]
    plain = [answer.text for answer in Answering(smollm2).ask_all(unrelated, SHORT)]
    before = logits(smollm2, edited[0], unrelated[0])
    with editor_class(EDITOR).load(smollm2) as editor:
        editor.edit([(case.id, case.edit) for case in cases])
        answering = Answering(smollm2, editor)
        answers = [answer.text for answer in answering.ask_all(edited)]
        kept = [answer.text for answer in answering.ask_all(unrelated, SHORT)]
    taken = sum(same_answer(text, case.edit.answer) for text, case in zip(answers, cases, strict=True))
    assert taken >= 18
    assert sum(map(str.__eq__, kept, plain)) >= 18
    assert all(map(torch.equal, before, logits(smollm2, edited[0], unrelated[0])))


def test_facts_in_the_prompt_stay_out_of_unrelated_questions(smollm2: Backbone) -> None:
    """Two thirds of these prompts are the chat template: compared as a whole, with 0.95, they are all alike."""
    edits = [("capital", Edit(CAPITAL, "Lyon")), ("composer", Edit(COMPOSER, "Verdi"))]
    asked = [*(edit.question for _, edit in edits), Question("Which city is the capital of France?"), *OTHERS[1:]]

    def fired(**settings: object) -> list[str | None]:
        with editor_class("ike").configured(smollm2, settings) as editor:
            editor.edit(edits)
            smollm2.encode(asked)
            return [row[0].edit_id if row else None for row in editor.fired() or []]

    assert fired() == ["capital", "composer", "capital", None, None]
    assert None not in fired(calibrated=False)
