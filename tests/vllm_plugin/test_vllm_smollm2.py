"""A released model with real weights in `vllm serve`: corrected, asked in other words, compared with transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from real_weights import smollm2_file
from served_process import ServedProcess
from vllm_process import VllmProcess

from liveedit.answers import same_answer
from liveedit.backbones import load_backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.fitted import FittedExperts
from liveedit.samples import Question

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),
]

EDITOR = "fitted-experts"
TOKENS = 8

FACTS = (
    ("What is the capital of France?", "Lyon", "Which city is France's capital?"),
    ("Who wrote the play Hamlet?", "Ada Novak", "Who is the author of the play Hamlet?"),
    ("What colour is the sky?", "green", "Which colour does the sky have?"),
)
"""Question, new answer, the question in other words."""

OTHERS = (
    "What is the capital of Italy?",
    "What is the capital of Japan?",
    "Who wrote the play Faust?",
    "Who composed the opera Carmen?",
    "What colour is grass?",
    "How many legs does a spider have?",
    "How many days are in a week?",
    "Name a colour of the rainbow.",
    "What is the largest planet?",
    "What do bees make?",
    "Which animal barks?",
    "What is the chemical symbol of gold?",
    "In which country is Madrid?",
    "What is 2 plus 3?",
)


class Served(NamedTuple):
    """vLLM with the plugin, and the same edits in an edited model on transformers."""

    server: VllmProcess
    model: EditedModel

    def ask(self, prompt: str, **further: Any) -> tuple[str, list[str]]:
        """The answer of vLLM, and the edits that fired."""
        answer = self.server.ask(prompt, max_tokens=TOKENS, **further)
        named = (answer.model_extra or {}).get("liveedit", {"edits": []})
        return answer.choices[0].message.content.strip(), [one["id"] for one in named["edits"]]


@pytest.fixture(scope="module")
def served(vllm_is_here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """SmolLM2-135M-Instruct as a checkpoint, its calibration, a maker of edits, and vLLM."""
    folder = tmp_path_factory.mktemp("smollm2")
    model, calibration, edits = folder / "model", folder / "calibration", folder / "edits.db"
    save_checkpoint(model)
    backbone = load_backbone(model, device="cpu")
    FittedExperts.calibrate(backbone, calibration, {})
    maker = ServedProcess(
        edits, folder / "maker.log", "--backbone", model, "--editor", EDITOR, "--editor-path", calibration
    )
    found = {"edits": str(edits), "editor": EDITOR, "editor_path": str(calibration), "maker": maker.url}
    server = VllmProcess(str(model), {"backbone": str(model), **found}, folder / "vllm.log", "--enforce-eager")
    try:
        maker.wait_until_ready()
        server.wait_until_ready()
        with EditedModel.load(backbone, edits=edits, editor=EDITOR, editor_path=calibration) as edited:
            yield Served(server, edited)
    finally:
        server.stop()
        maker.stop()


def save_checkpoint(folder: Path) -> None:
    """Convert the packaged GGUF file, which vLLM does not take."""
    backbone = load_backbone(smollm2_file("make vllm-env"), device="cpu")
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)


def test_a_fact_is_corrected_asked_in_other_words_and_undone(served: Served) -> None:
    prompt, answer, reworded = FACTS[0]
    before = [served.ask(asked)[0] for asked in (prompt, reworded)]
    assert not any(same_answer(text, answer) for text in before)
    made = served.server.http.post("/v1/edits", json={"prompt": prompt, "answer": answer})
    assert made.status_code == 201, made.text
    edit = made.json()["id"]
    assert served.ask(prompt) == (answer, [edit])
    assert served.ask(reworded) == (answer, [edit])
    assert served.ask(prompt, extra_body={"vllm_xargs": {"liveedit": "none"}})[0] == before[0]
    assert served.server.http.post(f"/v1/edits/{edit}/undo").status_code == 200
    assert [served.ask(asked) for asked in (prompt, reworded)] == [(text, []) for text in before]


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompts_of_a_completion_have_edits_of_their_own(served: Served, stream: bool) -> None:
    prompt, answer, _ = FACTS[0]
    made = served.server.http.post("/v1/edits", json={"prompt": prompt, "answer": answer})
    assert made.status_code == 201, made.text
    asked = (OTHERS[0], prompt, OTHERS[1])
    tokens = [served.model.backbone.encode([Question(one)]).input_ids[0].tolist() for one in asked]
    given = served.server.openai.completions.create(
        model=served.server.name, prompt=tokens, max_tokens=TOKENS, temperature=0, stream=stream
    )
    ends = [choice for event in (given if stream else [given]) for choice in with_edits(event)]
    found = {place: [one["id"] for one in fired["edits"]] for place, fired in ends}
    assert found == {0: [], 1: [made.json()["id"]], 2: []}
    assert served.server.http.post(f"/v1/edits/{made.json()['id']}/undo").status_code == 200


def with_edits(event: Any) -> Iterator[tuple[int, Any]]:
    """Choices of a completion, or of an event of its stream, with the edits that are named for them."""
    for choice in event.choices:
        named = (choice.model_extra or {}).get("liveedit") or (event.model_extra or {}).get("liveedit")
        if named is not None:
            yield choice.index, named


def test_answers_are_those_of_transformers(served: Served) -> None:
    """Edited and not, of questions that are edits' own, in other words, and about other things."""
    for prompt, answer, _ in FACTS[1:]:
        served.model.edit(None, prompt, answer, must_take=False)
    served.model.refresh()
    questions = [asked for prompt, _, reworded in FACTS for asked in (prompt, reworded)] + list(OTHERS)
    assert len(questions) >= 20
    asked = [(None, question) for question in questions]
    given = served.model.ask_batch(asked, TOKENS)
    found = [served.ask(question) for question in questions]
    for question, answer, (text, edits) in zip(questions, given, found, strict=True):
        assert edits == [one.edit_id for one in (*(answer.fired or ()), *answer.withheld)], question
        assert text == answer.text or answer.withheld, question  # vLLM withholds no answer that is in doubt.
    assert sum(bool(answer.fired) for answer in given) >= 3
    assert not any(edits for _, edits in found[-len(OTHERS) :])
    with served.model.editor.paused():
        unedited = [answer.text for answer in served.model.ask_batch(asked, TOKENS)]
    without = {"extra_body": {"vllm_xargs": {"liveedit": "none"}}}
    assert [served.ask(question, **without)[0] for question in questions] == unedited
