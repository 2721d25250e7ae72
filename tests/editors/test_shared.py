"""What retrieving editors share: the encoder, the memory, pairs and losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel

from liveedit.backbones import Backbone, HiddenTokens
from liveedit.backbones.prompt_transforms import PreparedQuestion
from liveedit.editors.shared import (
    EncoderConfig,
    FeatureMemory,
    QuestionEncoder,
    ScopeSimilarity,
    ScopeTask,
    TextExpert,
    read_questions,
    scope_loss,
)
from liveedit.editors.shared.wordings import wordings
from liveedit.errors import BackboneError, InvalidInputError, NotFoundError
from liveedit.experts.expert import expert_from_bytes, expert_to_bytes
from liveedit.samples import Edit, EditCase, Question
from liveedit.testing.family_tokenizers import TOKENS

LAYER = 3


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT of width 24 with 64 positions, as transformers saves it."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = TOKENS["llama"].build()
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["small", "named"])
def encoder(request: pytest.FixtureRequest, bert: str) -> QuestionEncoder:
    named = {"text_encoder": bert, "image_slots": 6} if request.param == "named" else {}
    torch.manual_seed(1)
    config = EncoderConfig.model_validate({"width": 192, "layer": LAYER, "features": 32, **named})
    return QuestionEncoder(config).eval()


@pytest.fixture
def questions(picture: Callable[[int], Image.Image]) -> list[Question]:
    return [
        Question("What color is the hat?", picture(1)),
        Question("What color is the hat?", picture(2)),
        Question("Can you say where this creature lives, and with whom?", picture(1)),
        Question("What is the capital of Coraland?"),
    ]


# -- the encoder -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_picture_and_prompt_both_count(
    encoder: QuestionEncoder, random_backbone: Backbone, questions: list[Question]
) -> None:
    features = encoder(read_questions(random_backbone, questions, LAYER))
    assert features.shape == (4, 32)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    apart = torch.cdist(features, features) + torch.eye(4)
    assert float(apart.min()) > 1e-4


@torch.no_grad()
def test_the_answer_is_not_read(encoder: QuestionEncoder, random_backbone: Backbone, questions: list[Question]) -> None:
    asked = encoder(read_questions(random_backbone, questions, LAYER))
    answered = read_questions(random_backbone, questions, LAYER, ["red", "a deep well", "four", "two"])
    assert bool(answered.answer_mask.any())
    torch.testing.assert_close(encoder(answered), asked, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_batch_reads_each_question_as_it_is_read_alone(
    encoder: QuestionEncoder, random_backbone: Backbone, questions: list[Question]
) -> None:
    alone = [encoder(read_questions(random_backbone, [question], LAYER))[0] for question in questions]
    together = encoder(read_questions(random_backbone, questions, LAYER))
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-3, rtol=1e-3)


def test_all_weights_learn(encoder: QuestionEncoder, random_backbone: Backbone, questions: list[Question]) -> None:
    features = encoder.train()(read_questions(random_backbone, questions, LAYER))
    (features @ torch.randn(32)).sum().backward()
    unused = {name for name, weight in encoder.named_parameters() if weight.grad is None}
    assert all("pooler" in name for name in unused), unused


@torch.no_grad()
def test_an_interceptor_does_not_stand_before_reading(random_backbone: Backbone, questions: list[Question]) -> None:
    expected = read_questions(random_backbone, questions, LAYER)

    def intrude(asked: object) -> list[PreparedQuestion]:
        raise AssertionError("an editor asked itself")

    with random_backbone.transformed(intrude):
        found = read_questions(random_backbone, questions, LAYER)
    assert torch.equal(found.hidden_states, expected.hidden_states)
    assert found.prompts == tuple(question.prompt for question in questions)


def test_a_named_encoder_reads_long_prompts_and_wants_texts(
    bert: str, random_backbone: Backbone, questions: list[Question]
) -> None:
    config = EncoderConfig.model_validate({"width": 192, "layer": LAYER, "text_encoder": bert, "image_slots": 6})
    encoder = QuestionEncoder(config).eval()
    long = replace(questions[0], prompt="where " * 70)
    tokens = read_questions(random_backbone, [long], LAYER)
    assert encoder(tokens).isfinite().all()
    with pytest.raises(BackboneError, match="read_questions"):
        encoder(replace(tokens, prompts=()))


def test_what_is_no_text_encoder_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="could not be loaded"):
        QuestionEncoder(EncoderConfig(width=192, layer=LAYER, text_encoder=str(tmp_path)))  # type: ignore[call-arg]


def test_the_border_lies_where_it_is_set() -> None:
    similarity = ScopeSimilarity(temperature=2.0, threshold=0.25)
    scores = similarity(torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(scores, math.exp(2.0) * torch.tensor([-0.25, 0.0, 0.75]))


# -- the memory --------------------------------------------------------------------------------------------------


def memory_of(rows: dict[str, list[float]]) -> FeatureMemory:
    memory = FeatureMemory()
    for edit_id, row in rows.items():
        memory.add(edit_id, torch.tensor(row))
    return memory


def test_the_nearest_edit_is_found_and_of_equals_the_latest() -> None:
    memory = memory_of({"a": [1.0, 0.0], "b": [0.6, 0.8], "c": [1.0, 0.0]})
    queries = torch.tensor([[1.0, 0.1], [0.0, 1.0]])
    ids, similarity = memory.nearest(queries)
    assert ids == ["c", "b"]
    torch.testing.assert_close(similarity, torch.tensor([1.0, 0.8]))
    memory.remove("c")
    assert memory.nearest(queries)[0] == ["a", "b"]
    memory.remove("b")
    assert memory.nearest(queries)[0] == ["a", "a"]
    memory.clear()
    assert len(memory) == 0
    with pytest.raises(NotFoundError, match="no edit to be found"):
        memory.nearest(queries)


def test_several_nearest_edits_by_hand() -> None:
    memory = memory_of({"east": [1.0, 0.0], "north": [0.0, 1.0], "east again": [1.0, 0.0]})
    query = torch.tensor([[0.8, 0.6]])
    expected = [("east again", 0.8), ("east", 0.8), ("north", 0.6)]
    for count, threshold, length in ((1, None, 1), (2, None, 2), (5, None, 3), (5, 0.7, 2), (5, 0.9, 0)):
        (row,) = memory.retrieve(query, count, threshold)
        assert [edit_id for edit_id, _ in row] == [edit_id for edit_id, _ in expected[:length]]
        assert [near for _, near in row] == pytest.approx([near for _, near in expected[:length]])


def test_unknown_and_known_ids_are_named() -> None:
    memory = memory_of({"a": [1.0, 1.0]})
    with pytest.raises(InvalidInputError, match="'a' is already there"):
        memory.add("a", torch.zeros(2))
    for failing in (memory.remove, memory.check):
        with pytest.raises(NotFoundError, match="no edit 'z'"):
            failing("z")
    assert torch.equal(memory.features, torch.ones(1, 2))


@pytest.mark.parametrize(
    ("prompt", "answer"), [("What color?", " deep\twell\n"), ("Où est 猫?", "🐈 – naïve"), ("", "x")]
)
def test_a_text_expert_comes_back_from_the_store_with_the_same_texts(prompt: str, answer: str) -> None:
    feature = torch.tensor([0.1, -2.5e-8])
    made = TextExpert.of(Edit(Question(prompt, None, "hat", "colour"), answer), feature)
    again = expert_from_bytes(expert_to_bytes(made), TextExpert)
    assert (again.edit.question.prompt, again.edit.answer) == (prompt, answer)
    assert torch.equal(again.feature, feature)
    assert again.digest == made.digest
    assert made.store_bytes == 2 * 4 + len(prompt.encode()) + len(answer.encode())


# -- training ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(shared_random_backbone: Backbone, train_cases: tuple[EditCase, ...]) -> ScopeTask:
    config = EncoderConfig(width=shared_random_backbone.width, layer=LAYER)
    made = ScopeTask(shared_random_backbone, config, train_cases)
    made.prepare()
    return made


def test_pairs_are_own_where_subject_and_question_agree(task: ScopeTask) -> None:
    pairs = task.pairs([0, 3, 5, 7], np.random.default_rng(0))
    assert len(pairs.edits) == 4
    assert pairs.own.shape == (16, 4)
    cases = [task.cases[case] for case in (0, 3, 5, 7)]
    for row, (question, answer) in enumerate(pairs.queries.items):
        case = cases[int(pairs.queries.case[row])]
        inside = question in [case.edit.question] + [
            probe.question for probe in case.named("text_generality", "modal_generality")
        ]
        assert inside == (row % 4 < 2)
        scope = case.edit.scope if inside else question.scope
        assert pairs.own[row].tolist() == [scope == other.edit.scope for other in cases]
        assert not inside or answer == case.edit.answer
    near = [task.cases[case].named("near_duplicate_locality")[0].question for case in (0, 3, 5, 7)]
    asked = [question for question, _ in pairs.queries.items]
    assert all(question in asked for question in near)


def test_kept_tokens_are_those_that_a_query_is_read_by(task: ScopeTask, random_backbone: Backbone) -> None:
    rows = task.rows([2, 4], [["reliability"], ["text_generality"]])
    read = read_questions(
        random_backbone, [question for question, _ in rows.items], LAYER, [answer for _, answer in rows.items]
    )
    assert isinstance(rows.tokens, HiddenTokens)
    assert rows.tokens.prompts == read.prompts
    assert torch.equal(rows.tokens.roles, read.roles)
    seen = read.attention_mask.bool()
    torch.testing.assert_close(rows.tokens.hidden_states[seen], read.hidden_states[seen], atol=0.1, rtol=0.1)
    torch.testing.assert_close(rows.tokens.embeddings[read.answer_mask], read.embeddings[read.answer_mask])


def test_scope_loss_by_hand() -> None:
    scores = torch.tensor([[1.0, -2.0], [0.5, -3.0]])
    own = torch.tensor([[True, False], [False, False]])
    positive = math.log1p(math.exp(0.5 - 1.0))
    negative = (math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(1.0) + math.exp(-2.5))) / 2
    ranking = -math.log(math.exp(1.0) / (math.exp(1.0) + math.exp(-2.0)))
    found = scope_loss(scores, own, margin=0.5, negative_weight=3.0)
    assert float(found) == pytest.approx(positive + ranking + 3 * negative, rel=1e-5)
    alone = scope_loss(scores[1:], own[1:], margin=0.5, negative_weight=3.0)
    assert float(alone) == pytest.approx(3 * math.log(1 + math.exp(1.0) + math.exp(-2.5)), rel=1e-5)


def test_a_few_steps_tell_edits_apart(task: ScopeTask) -> None:
    torch.manual_seed(0)
    encoder, similarity = QuestionEncoder(EncoderConfig(width=192, layer=LAYER, features=32)), ScopeSimilarity()  # type: ignore[call-arg]
    optimizer = torch.optim.Adam([*encoder.parameters(), *similarity.parameters()], 3e-3)
    pairs = task.pairs(list(range(8)), np.random.default_rng(1))

    def scores() -> torch.Tensor:
        return similarity(encoder(pairs.queries.tokens) @ encoder(pairs.edits.tokens).T)

    for _ in range(30):
        loss = scope_loss(scores(), pairs.own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = (scores() > 0) == pairs.own
    assert float(right.float().mean()) > 0.95
    assert float(right[pairs.own].float().mean()) > 0.9


# -- wordings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt", ["What color is the hat?", "Who?", "Was für ein Hut ist das, bitte?", "帽子是什么颜色？", "?"]
)
@pytest.mark.parametrize("count", [2, 3, 24, 60])
def test_wordings_are_as_many_as_asked_for_and_the_same_every_time(prompt: str, count: int) -> None:
    found = wordings(prompt, count)
    assert len(found) == count and found[0] == prompt
    assert all(one.strip() for one in found)
    assert found == wordings(prompt, count) == wordings(prompt, 100)[:count]


def test_wordings_vary_and_another_seed_gives_others() -> None:
    found = wordings("What color is the hat?", 24)
    assert found[1:4] == ["Please answer: What color is the hat?", "what color is the hat?", "What color is the hat"]
    assert len(set(found)) > 18
    others = wordings("What color is the hat?", 24, seed=1)
    assert others[:4] == found[:4] and others[4:] != found[4:]
    for word in ("color", "hat"):
        assert sum(word in one.lower() for one in found) > 12, "most wordings still ask for the same thing"
