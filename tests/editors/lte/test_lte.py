"""LTE: what is put before a query, when the tuned weights answer, and that nothing of it stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from liveedit.backbones import Backbone
from liveedit.backbones.families.parts import Parts
from liveedit.backbones.families.text_only import TextBackbone
from liveedit.editors.lte import LearningToEdit, LearningToEditConfig
from liveedit.editors.lte.config import PAPER_EDIT, PAPER_QUERY
from liveedit.editors.lte.context import with_edits
from liveedit.editors.lte.task import LearningToEditTask
from liveedit.editors.shared import read_questions
from liveedit.errors import BackboneError, ConfigError, InvalidInputError
from liveedit.pretraining.tokenizer import build_tokenizer
from liveedit.samples import Edit, EditCase, Question

SMALL = {"features": 32, "retriever_layers": 1}


@pytest.fixture
def editor(random_backbone: Backbone) -> Iterator[LearningToEdit]:
    """Untrained, with a change of the weights that is not nothing."""
    with stirred(random_backbone, LearningToEdit.new_config(random_backbone, **SMALL)) as made:
        yield made


def stirred(backbone: Backbone, config: LearningToEditConfig) -> LearningToEdit:
    made = LearningToEdit.untrained(backbone, config, seed=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.modules.tuning.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.fixture
def edits(picture: Callable[[int], Image.Image]) -> list[tuple[str, Edit]]:
    return [
        ("hat", Edit(Question("What color is the hat?", picture(1)), "red")),
        ("home", Edit(Question("Where does this creature live?", picture(2)), " deep well ")),
    ]


def logits_of(backbone: Backbone, questions: list[Question], answers: list[str]) -> torch.Tensor:
    with torch.no_grad():
        inputs = backbone.encode(questions, answers)
        return backbone.logits(inputs)[inputs.predicting]


def test_edits_stand_before_the_query_the_nearest_next_to_it(random_backbone: Backbone) -> None:
    templates = {"edit_template": PAPER_EDIT, "query_template": PAPER_QUERY}
    config = LearningToEdit.new_config(random_backbone, **templates)
    near, far = Edit(Question("Who is {he}?"), "Ann "), Edit(Question("Where?"), "here")
    asked = with_edits(config, Question("Who?", "image.png", "he", "name"), [near, far])
    expected = "[Updated Information] Where? here\n[Updated Information] Who is {he}? Ann\n[Query] Who?"
    assert asked == Question(expected, "image.png", "he", "name")
    bare = Question("Who?")
    assert with_edits(config, bare, []) is bare


def test_the_model_is_asked_with_the_edit_by_tuned_weights(
    editor: LearningToEdit, edits: list[tuple[str, Edit]]
) -> None:
    backbone, question = editor.backbone, edits[1][1].question
    editor.edit(edits)
    found = logits_of(backbone, [question], ["deep well"])
    assert [fired.edit_id for fired in (editor.fired() or [])[0]] == ["home"]
    told = Question(f"{question.prompt} = deep well\n{question.prompt}", question.image)
    with backbone.transformed(None):
        assert torch.equal(found, logits_of(backbone, [told], ["deep well"]))
        with editor.weights.paused():
            assert not torch.allclose(found, logits_of(backbone, [told], ["deep well"]))


def test_without_an_edit_the_model_is_the_untouched_one(editor: LearningToEdit, edits: list[tuple[str, Edit]]) -> None:
    backbone, asked, answers = editor.backbone, [edit.question for _, edit in edits], ["red", "deep well"]
    before = logits_of(backbone, asked, answers)
    editor.edit(edits)
    assert editor.weights.active
    editor.undo("hat")
    assert editor.weights.active
    editor.undo("home")
    assert not editor.weights.active
    assert torch.equal(logits_of(backbone, asked, answers), before)


def test_questions_are_found_as_the_untouched_model_reads_them(
    editor: LearningToEdit, edits: list[tuple[str, Edit]]
) -> None:
    questions = [edit.question for _, edit in edits]
    with torch.no_grad():
        expected = editor.modules.retriever(read_questions(editor.backbone, questions, editor.config.layer))
    editor.edit(edits)
    torch.testing.assert_close(editor.memory.features, expected, atol=1e-5, rtol=1e-5)
    cosines = [row[0][1] for row in editor.retrieve(questions)]
    assert cosines == pytest.approx([1.0, 1.0], abs=1e-5)


def test_below_the_threshold_a_query_stands_alone(random_backbone: Backbone, edits: list[tuple[str, Edit]]) -> None:
    config = LearningToEdit.new_config(random_backbone, **SMALL, threshold=0.9999)
    with stirred(random_backbone, config) as editor:
        editor.edit(edits)
        other = Question("What is the capital of Coraland?")
        found = logits_of(random_backbone, [other, edits[0][1].question], ["red", "red"])
        assert [len(row) for row in editor.fired() or []] == [0, 1]
        with random_backbone.transformed(None):
            alone = logits_of(random_backbone, [other], ["red"])
        torch.testing.assert_close(found[: len(alone)], alone, atol=1e-4, rtol=1e-4)


def test_the_trained_threshold_is_the_cosine_at_which_the_retriever_is_undecided(editor: LearningToEdit) -> None:
    torch.nn.init.constant_(editor.modules.similarity.temperature, math.log(20.0))
    torch.nn.init.constant_(editor.modules.similarity.offset, 13.0)
    assert editor.modules.threshold() == pytest.approx(13 / 20)


def test_a_model_that_reads_text_alone_can_be_edited() -> None:
    shape = LlamaConfig(
        vocab_size=1000, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    torch.manual_seed(7)
    backbone = TextBackbone("text", LlamaForCausalLM(shape), Parts(build_tokenizer(), None, None))
    asked, answers = [Question("What is the capital of Coraland?")], ["deep well"]
    before = logits_of(backbone, asked, answers)
    with stirred(backbone, LearningToEdit.new_config(backbone, **SMALL)) as editor:
        editor.edit([("capital", Edit(asked[0], "deep well"))])
        assert not torch.allclose(logits_of(backbone, asked, answers), before)
    assert torch.equal(logits_of(backbone, asked, answers), before)


def test_a_picture_marker_in_an_answer_is_refused_before_anything_changes(
    editor: LearningToEdit, edits: list[tuple[str, Edit]]
) -> None:
    with pytest.raises(InvalidInputError, match="stands for an image"):
        editor.edit([("bad", Edit(edits[0][1].question, "a <image> of red"))])
    assert len(editor.memory) == 0 and not editor.weights.active
    assert editor.backbone._transform is None


def test_kept_edits_answer_as_before_in_a_fresh_editor(editor: LearningToEdit, edits: list[tuple[str, Edit]]) -> None:
    asked, answers = [edit.question for _, edit in edits], ["red", "deep well"]
    editor.edit(edits)
    before = logits_of(editor.backbone, asked, answers)
    state = editor.edited_state()
    editor.detach()
    with stirred(editor.backbone, editor.config) as fresh:
        fresh.restore(*state)
        assert torch.equal(logits_of(editor.backbone, asked, answers), before)


def test_a_saved_editor_is_the_same_when_loaded(editor: LearningToEdit, tmp_path: Path) -> None:
    editor.save_pretrained(tmp_path)
    assert LearningToEdit.from_pretrained(tmp_path, editor.backbone).digest() == editor.digest()


def test_templates_without_a_needed_part_are_refused(random_backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="it needs \\['answer', 'question'\\]"):
        LearningToEdit.new_config(random_backbone, edit_template="{question}\n")
    with pytest.raises(ConfigError, match="query_template"):
        LearningToEdit.new_config(random_backbone, query_template="{edits}{question}{answer}")


def test_settings_of_another_backbone_are_refused(random_backbone: Backbone) -> None:
    config = LearningToEdit.new_config(random_backbone)
    with pytest.raises(BackboneError, match="Leave both out"):
        LearningToEdit.new_modules(random_backbone, config.model_copy(update={"layer": 99}))


# -- training --------------------------------------------------------------------------------------------


@pytest.fixture
def task(random_backbone: Backbone, train_cases: tuple[EditCase, ...]) -> LearningToEditTask:
    config = LearningToEdit.new_config(random_backbone, **SMALL, random_answers=0.0)
    made = LearningToEditTask(random_backbone, config, train_cases[:6])
    made.prepare()
    return made


def test_the_alignment_loss_is_that_of_a_slow_reference(task: LearningToEditTask) -> None:
    backbone, chosen = task.backbone, [0, 3, 5]
    with stirred(backbone, task.config) as editor:
        loss, figures = task.loss(editor.modules, "alignment", chosen, np.random.default_rng(4))
        rng = np.random.default_rng(4)
        followed, kept = task._followed(chosen, rng), task._kept(chosen, rng)
        editor.weights.activate()
        nats, divergences = [], []
        for question, answer in zip(followed.questions, followed.answers, strict=True):
            nats += nats_of(backbone, question, answer)
        for question, answer, place in zip(kept.questions, kept.answers, kept.places, strict=True):
            tuned = logits_of(backbone, [question], [answer]).double().log_softmax(-1)
            with editor.weights.paused():
                base = logits_of(backbone, [task.items[place][0]], [answer]).double().log_softmax(-1)
            divergences += (base.exp() * (base - tuned)).sum(-1).tolist()
        editor.weights.deactivate()
    assert figures["follow_loss_nats"] == pytest.approx(sum(nats) / len(nats), rel=1e-3)
    # The base's last states are kept in bfloat16.
    assert figures["keep_loss_nats"] == pytest.approx(sum(divergences) / len(divergences), rel=0.05)
    assert loss.item() == pytest.approx(
        figures["follow_loss_nats"] + task.config.keep_weight * figures["keep_loss_nats"], rel=1e-5
    )


def nats_of(backbone: Backbone, question: Question, answer: str) -> list[float]:
    inputs = backbone.encode([question], [answer])
    targets = inputs.input_ids[inputs.answer_mask].tolist()
    rows = logits_of(backbone, [question], [answer]).double().log_softmax(-1)
    return [-float(row[target]) for row, target in zip(rows, targets, strict=True)]


def test_edits_that_the_text_cannot_tell_apart_are_never_to_be_ignored(task: LearningToEditTask) -> None:
    for seed in range(8):
        kept = task._kept([1, 2], np.random.default_rng(seed))
        for question, place in zip(kept.questions, kept.places, strict=True):
            asked, _ = task.items[place]
            name = next(name for places in task.places for name, found in places.items() if found == place)
            has_edit = question.prompt != asked.prompt
            assert not has_edit or name in ("text_locality", "modal_locality", "same_image_locality")
            assert question.image == asked.image


@pytest.mark.parametrize(
    ("stage", "trained"),
    [("retriever", ("retriever.", "similarity.")), ("following", ("tuning.",)), ("alignment", ("tuning.",))],
)
def test_each_stage_trains_its_own_part_until_it_is_better(
    task: LearningToEditTask, stage: str, trained: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    modules = LearningToEdit.new_modules(task.backbone, task.config)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=3e-3 if stage == "retriever" else 2e-4)
    losses = []
    for _ in range(8):
        loss, _ = task.loss(modules, stage, range(3), np.random.default_rng(0))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        assert all((part.grad is not None) == name.startswith(trained) for name, part in modules.named_parameters())
        optimizer.step()
        losses.append(loss.item())
    assert math.isfinite(losses[-1]) and losses[-1] < 0.8 * losses[0]
    figures = task.validate(modules.eval(), range(3, 6))
    assert all(0 <= value <= 100 for value in figures.values())
