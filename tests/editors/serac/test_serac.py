"""SERAC: who answers what, and that nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from liveedit.backbones import Backbone
from liveedit.backbones.families.parts import Parts
from liveedit.backbones.families.text_only import TextBackbone
from liveedit.editors.serac import Serac
from liveedit.editors.serac.counterfactual import Rewrite
from liveedit.editors.serac.task import SeracTask, pair_loss
from liveedit.editors.shared import read_questions
from liveedit.errors import BackboneError, InvalidInputError, NotFoundError
from liveedit.pretraining.tokenizer import build_tokenizer
from liveedit.samples import Edit, EditCase, Question

SMALL = {"features": 32, "classifier_layers": 1, "counterfactual_width": 32, "counterfactual_heads": 2}


@pytest.fixture
def editor(random_backbone: Backbone) -> Iterator[Serac]:
    """Untrained, with a scope as narrow as the very question of an edit."""
    with Serac.untrained(random_backbone, Serac.new_config(random_backbone, **SMALL), seed=2) as made:
        narrow(made)
        yield made


def narrow(editor: Serac, temperature: float = math.log(1e5), offset: float = 1e5 - 5) -> None:
    similarity = editor.modules.classifier.similarity
    torch.nn.init.constant_(similarity.temperature, temperature)
    torch.nn.init.constant_(similarity.offset, offset)


@pytest.fixture
def edits(picture: Callable[[int], Image.Image]) -> list[tuple[str, Edit]]:
    return [
        ("hat", Edit(Question("What color is the hat?", picture(1)), "red")),
        ("home", Edit(Question("Where does this creature live?", picture(2)), "deep well")),
    ]


@pytest.fixture
def others(picture: Callable[[int], Image.Image]) -> list[Question]:
    """The same question of another picture, another of the same picture, and one without."""
    return [
        Question("What color is the hat?", picture(2)),
        Question("How many legs are there?", picture(1)),
        Question("What is the capital of Coraland?"),
    ]


def logits_of(backbone: Backbone, questions: list[Question], answers: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return backbone.logits(backbone.encode(questions, answers))


def test_what_no_edit_reaches_gets_the_backbones_answer_bit_for_bit(
    editor: Serac, edits: list[tuple[str, Edit]], others: list[Question]
) -> None:
    backbone, asked = editor.backbone, [edits[0][1].question, *others]
    answers = ["red", "blue", "four", "Cormarburg"]
    before = logits_of(backbone, asked, answers)
    editor.edit(edits)
    after = logits_of(backbone, asked, answers)
    assert torch.equal(after[1:], before[1:])
    assert not torch.equal(after[0], before[0])
    backbone.generate(backbone.encode(asked, padding="left"), 2)
    assert [[fired.edit_id for fired in row] for row in editor.fired() or []] == [["hat"], [], [], []]


def test_what_an_edit_reaches_is_answered_by_the_counterfactual_model(
    editor: Serac, edits: list[tuple[str, Edit]], others: list[Question]
) -> None:
    backbone, model = editor.backbone, editor.modules.counterfactual
    editor.edit(edits)
    asked = [others[0], edits[1][1].question, edits[0][1].question]
    rewrites = [Rewrite(edit.question.prompt, edit.answer, edit.question.prompt) for _, edit in reversed(edits)]
    free = backbone.generate(backbone.encode(asked, padding="left"), 6)
    assert free[1:] == model.generate(rewrites, 6)
    for padding in ("right", "left"):
        inputs = backbone.encode(asked, ["blue", "deep well", "red"], padding)
        with torch.no_grad():
            found = backbone.logits(inputs)[1:][inputs.predicting[1:]]
            expected = model(rewrites, [row[mask].tolist() for row, mask in zip(*rows_of(inputs), strict=True)])
        assert torch.equal(found, expected)


def rows_of(inputs) -> tuple[torch.Tensor, torch.Tensor]:
    return inputs.input_ids[1:], inputs.answer_mask[1:]


def test_the_probability_is_that_of_a_slow_reference(
    editor: Serac, edits: list[tuple[str, Edit]], others: list[Question]
) -> None:
    narrow(editor, 1.2, 2.5)
    similarity = editor.modules.classifier.similarity
    editor.edit(edits)
    encoder, layer = editor.modules.classifier.encoder, editor.config.layer
    for question, (edit_id, probability) in zip(others, editor.in_scope(others), strict=True):
        logits = {}
        for name, edit in edits:
            pair = (question, edit.question)
            one, other = (encoder(read_questions(editor.backbone, [each], layer))[0].double() for each in pair)
            cosine = (one @ other / (one.norm() * other.norm())).item()
            logits[name] = math.exp(similarity.temperature.item()) * cosine - similarity.offset.item()
        best = max(logits, key=lambda name: logits[name])
        assert edit_id == best
        assert probability == pytest.approx(1 / (1 + math.exp(-logits[best])), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("log_odds", "answers"), [(-0.8, False), (-0.05, False), (0.05, True), (0.8, True)])
def test_the_border_of_a_scope_is_a_probability_of_one_half(
    editor: Serac, edits: list[tuple[str, Edit]], others: list[Question], log_odds: float, answers: bool
) -> None:
    encoder, asked = editor.modules.classifier.encoder, others[0]
    one, other = encoder(read_questions(editor.backbone, [asked, edits[0][1].question], editor.config.layer))
    narrow(editor, temperature=0.0, offset=float(one @ other) - log_odds)
    editor.edit(edits[:1])
    editor.backbone.encode([asked])
    (row,) = editor.fired() or []
    assert bool(row) is answers
    assert [fired.margin for fired in row] == pytest.approx([1 / (1 + math.exp(-log_odds)) - 0.5] * answers, abs=1e-3)


def test_the_latest_of_two_edits_of_the_same_thing_answers_until_it_is_taken_back(
    editor: Serac, edits: list[tuple[str, Edit]]
) -> None:
    question = edits[0][1].question
    editor.edit([edits[0], ("again", Edit(question, "green")), edits[1]])
    assert editor.in_scope([question])[0][0] == "again"
    editor.undo("again")
    assert editor.in_scope([question])[0][0] == "hat"


def test_undoing_an_edit_leaves_what_would_be_without_it(
    editor: Serac, edits: list[tuple[str, Edit]], others: list[Question]
) -> None:
    asked, answers = [edits[0][1].question, edits[1][1].question, *others], ["red"] * 5
    untouched = logits_of(editor.backbone, asked, answers)
    editor.edit(edits[:1])
    alone = logits_of(editor.backbone, asked, answers)
    editor.edit(edits[1:])
    editor.undo("home")
    assert torch.equal(logits_of(editor.backbone, asked, answers), alone)
    editor.undo("hat")
    assert torch.equal(logits_of(editor.backbone, asked, answers), untouched)
    assert editor.backbone._transform is None
    with pytest.raises(NotFoundError, match="'hat'"):
        editor.undo("hat")


def test_kept_edits_answer_as_before_in_a_fresh_editor(editor: Serac, edits: list[tuple[str, Edit]]) -> None:
    asked, answers = [edit.question for _, edit in edits], ["red", "deep well"]
    editor.edit(edits)
    before = logits_of(editor.backbone, asked, answers)
    state = editor.edited_state()
    editor.detach()
    fresh = Serac.untrained(editor.backbone, editor.config, seed=2)
    narrow(fresh)
    with fresh:
        fresh.restore(*state)
        assert torch.equal(logits_of(editor.backbone, asked, answers), before)


def test_a_saved_editor_is_the_same_when_loaded(editor: Serac, edits: list[tuple[str, Edit]], tmp_path: Path) -> None:
    editor.save_pretrained(tmp_path)
    loaded = Serac.from_pretrained(tmp_path, editor.backbone)
    assert loaded.digest() == editor.digest()
    assert loaded.configuration() == editor.configuration()


def test_a_picture_marker_in_an_answer_is_refused_before_anything_changes(
    editor: Serac, edits: list[tuple[str, Edit]]
) -> None:
    with pytest.raises(InvalidInputError, match="stands for an image"):
        editor.edit([("bad", Edit(edits[0][1].question, "a <image> of red"))])
    assert len(editor.memory) == 0
    assert editor.backbone._transform is None


def test_settings_of_another_backbone_are_refused(random_backbone: Backbone) -> None:
    config = Serac.new_config(random_backbone, **SMALL)
    with pytest.raises(BackboneError, match="Leave these settings out"):
        Serac.new_modules(random_backbone, config.model_copy(update={"vocabulary": 7}))


def test_a_model_that_reads_text_alone_can_be_edited() -> None:
    shape = LlamaConfig(
        vocab_size=1000, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    torch.manual_seed(7)
    backbone = TextBackbone("text", LlamaForCausalLM(shape), Parts(build_tokenizer(), None, None))
    asked = [Question("What is the capital of Coraland?"), Question("How many legs are there?")]
    before = logits_of(backbone, asked, ["red", "four"])
    with Serac.untrained(backbone, Serac.new_config(backbone, **SMALL), seed=2) as editor:
        narrow(editor)
        editor.edit([("capital", Edit(asked[0], "deep well"))])
        after = logits_of(backbone, asked, ["red", "four"])
        assert torch.equal(after[1], before[1]) and not torch.equal(after[0], before[0])
    assert torch.equal(logits_of(backbone, asked, ["red", "four"]), before)


# -- training --------------------------------------------------------------------------------------------


def test_the_pair_loss_is_binary_cross_entropy_summed_over_the_edits_out_of_scope() -> None:
    scores = torch.tensor([[2.0, -1.0], [0.5, -3.0]])
    own = torch.tensor([[True, False], [False, False]])
    inside = -math.log(1 / (1 + math.exp(-2.0)))
    outside = [-math.log(1 - 1 / (1 + math.exp(-score))) for score in (-1.0, 0.5, -3.0)]
    expected = inside + 3.0 * sum(outside) / 2
    assert float(pair_loss(scores, own, 3.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("stage", "trained"), [("classifier", "classifier."), ("counterfactual", "counterfactual.")])
def test_each_stage_trains_its_own_part_until_it_is_better(
    random_backbone: Backbone, train_cases: tuple[EditCase, ...], stage: str, trained: str
) -> None:
    import numpy as np

    config = Serac.new_config(random_backbone, **SMALL, random_answers=0.0)
    torch.manual_seed(0)
    modules = Serac.new_modules(random_backbone, config)
    task = SeracTask(random_backbone, config, train_cases[:8])
    task.prepare()
    optimizer = torch.optim.AdamW(modules.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss, _ = task.loss(modules, stage, range(6), np.random.default_rng(0))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        assert all((part.grad is not None) == name.startswith(trained) for name, part in modules.named_parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    figures = task.validate(modules.eval(), range(6, 8))
    assert all(0 <= value <= 100 for value in figures.values())
