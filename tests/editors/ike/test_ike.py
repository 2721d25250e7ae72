"""IKE: the nearest edit is told in the prompt, past two thresholds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from liveedit.backbones import Backbone
from liveedit.editors.ike import InContext, InContextConfig
from liveedit.errors import NotFoundError
from liveedit.samples import Edit, EditCase, Question

Maker = Callable[..., InContext]


@pytest.fixture
def made(random_backbone: Backbone) -> Iterator[Maker]:
    """Makes editors on the random backbone, whose states are alike all over: its thresholds must be set for it."""
    attached: list[InContext] = []

    def make(**settings: object) -> InContext:
        attached.append(InContext(random_backbone, InContextConfig.model_validate(settings)))
        return attached[-1]

    yield make
    for editor in attached:
        editor.detach()


@pytest.fixture
def edits(picture: Callable[[int], Image.Image]) -> list[tuple[str, Edit]]:
    return [
        ("first", Edit(Question("What color is the hat?", picture(1)), "red {braces}")),
        ("second", Edit(Question("Where does this creature live?", picture(2)), "deep well")),
        ("third", Edit(Question("What is the capital of Coraland?"), "Bree")),
    ]


def pooled_by_hand(backbone: Backbone, question: Question, layer: int) -> list[torch.Tensor | None]:
    """Unit vectors of picture and prompt in float64, token by token; None without a picture."""
    inputs = backbone.encode([question])
    states = backbone.hidden_states(inputs, layer)[0].double()
    found: list[torch.Tensor | None] = []
    for mask in (inputs.image_mask[0], inputs.prompt_mask[0]):
        rows = [F.layer_norm(states[place], states.shape[1:]) for place in mask.nonzero().flatten().tolist()]
        total = torch.stack(rows).sum(0) if rows else None
        found.append(None if total is None else total / total.norm())
    return found


@torch.no_grad()
def test_a_told_query_is_the_query_with_the_fact_before_it(made: Maker, edits: list[tuple[str, Edit]]) -> None:
    editor = made(image_threshold=0.999, prompt_threshold=0.999, demonstrations="Follow the facts.\n")
    backbone, questions = editor.backbone, [edit.question for _, edit in edits]
    texts = [
        "Follow the facts.\nNew fact: What color is the hat? red {braces}\nPrompt: What color is the hat?",
        "Follow the facts.\nNew fact: Where does this creature live? deep well\nPrompt: Where does this creature live?",
        "Follow the facts.\nNew fact: What is the capital of Coraland? Bree\nPrompt: What is the capital of Coraland?",
    ]
    told = [Question(text, question.image) for text, question in zip(texts, questions, strict=True)]
    expected = backbone.encode(told, ["red"] * 3)
    editor.edit(edits)
    inputs = backbone.encode(questions, ["red"] * 3)
    assert torch.equal(inputs.input_ids, expected.input_ids)
    assert torch.equal(backbone.logits(inputs), backbone.logits(expected))
    assert [[fired.edit_id for fired in row] for row in editor.fired() or []] == [["first"], ["second"], ["third"]]


@torch.no_grad()
def test_margins_are_those_of_the_lesser_likeness(
    made: Maker, edits: list[tuple[str, Edit]], picture: Callable[[int], Image.Image]
) -> None:
    editor = made(image_threshold=-0.25, prompt_threshold=-0.5, layer=2)
    backbone = editor.backbone
    query = Question("Say, what color has the hat?", picture(2))
    mine = pooled_by_hand(backbone, query, 2)
    expected = {}
    for edit_id, edit in edits[:2]:
        its = pooled_by_hand(backbone, edit.question, 2)
        likeness = [float(a @ b) for a, b in zip(mine, its, strict=True) if a is not None and b is not None]
        expected[edit_id] = min(likeness[0] + 0.25, likeness[1] + 0.5)
    editor.edit(edits)
    backbone.encode([query])
    ((fired,),) = editor.fired() or []
    assert fired.edit_id == max(expected, key=lambda name: expected[name])
    assert fired.margin == pytest.approx(max(expected.values()), abs=1e-4)


@pytest.mark.parametrize("name", ["image_threshold", "prompt_threshold"])
def test_both_must_exceed_their_threshold(made: Maker, edits: list[tuple[str, Edit]], name: str) -> None:
    editor = made(**{"image_threshold": -1.0, "prompt_threshold": -1.0, name: 1.0})
    editor.edit(edits[:2])
    asked = Question("Say, what color has the hat?", edits[1][1].question.image)
    if name == "image_threshold":
        asked = Question(edits[0][1].question.prompt, Image.new("RGB", (64, 64), "green"))
    inputs = editor.backbone.encode([asked])
    assert editor.fired() == [()]
    assert inputs.prepared[0].question == asked


def test_no_picture_is_unlike_any_picture(made: Maker, edits: list[tuple[str, Edit]]) -> None:
    editor = made(image_threshold=-1.0, prompt_threshold=-1.0)
    editor.edit(edits[:1])
    editor.backbone.encode([Question(edits[0][1].question.prompt)])
    assert editor.fired() == [()]
    editor.edit(edits[2:])
    editor.backbone.encode([Question("Any text?"), edits[0][1].question])
    assert [[fired.edit_id for fired in row] for row in editor.fired() or []] == [["third"], ["first"]]


def test_of_two_answers_to_one_question_the_later_is_told(made: Maker, edits: list[tuple[str, Edit]]) -> None:
    editor = made(image_threshold=0.9, prompt_threshold=0.9)
    question = edits[0][1].question
    editor.edit([edits[0], ("later", Edit(question, "blue"))])
    assert "hat? blue\n" in editor.backbone.encode([question]).prepared[0].question.prompt
    editor.undo("later")
    assert "hat? red {braces}\n" in editor.backbone.encode([question]).prepared[0].question.prompt


@torch.no_grad()
def test_what_is_kept_tells_the_same(made: Maker, edits: list[tuple[str, Edit]]) -> None:
    editor = made(image_threshold=0.9, prompt_threshold=0.9)
    backbone, questions = editor.backbone, [edit.question for _, edit in edits]
    unedited = backbone.logits(backbone.encode(questions))
    editor.edit(edits)
    expected = backbone.logits(backbone.encode(questions))
    state = editor.edited_state()
    editor.detach()
    assert torch.equal(backbone.logits(backbone.encode(questions)), unedited)
    again = made(image_threshold=0.9, prompt_threshold=0.9)
    again.restore(*state)
    assert torch.equal(backbone.logits(backbone.encode(questions)), expected)
    for edit_id in ("first", "second", "third"):
        again.undo(edit_id)
    assert backbone.encode(questions).prepared == ()
    with pytest.raises(NotFoundError, match="no edit 'first'"):
        again.undo("first")


def test_a_template_needs_its_three_fields() -> None:
    for template in ("{prompt} {answer}", "{prompt} {answer} {question} {name}", "{} {prompt} {answer} {question}"):
        with pytest.raises(ValueError, match=r"needs \['answer', 'prompt', 'question'\]"):
            InContextConfig(template=template)  # type: ignore[call-arg]


@torch.no_grad()
def test_on_the_built_in_backbone_a_rephrasing_is_found_and_another_picture_is_not(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]
) -> None:
    with InContext(tiny_llava) as editor:
        editor.edit([(case.id, case.edit) for case in eval_cases])
        own = [case.named("text_generality")[0].question for case in eval_cases]
        tiny_llava.encode(own)
        found = [row[0].edit_id if row else None for row in editor.fired() or []]
        right = sum(edit_id == case.id for edit_id, case in zip(found, eval_cases, strict=True))
        assert right >= 0.8 * len(eval_cases)
        others = [probe.question for case in eval_cases for probe in case.named("modal_locality")]
        tiny_llava.encode(others)
        assert sum(not row for row in editor.fired() or []) >= 0.9 * len(others)
