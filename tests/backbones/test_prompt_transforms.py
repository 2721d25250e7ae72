"""What stands between questions and model, against decoders that are run by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from liveedit.backbones import Backbone, TokenBatch, load_backbone
from liveedit.backbones.prompt_transforms import PreparedQuestion, PromptTransform, substitutes, unchanged
from liveedit.errors import BackboneError, InvalidInputError
from liveedit.samples import Question
from liveedit.testing.family_models import FAMILIES, WIDTH
from liveedit.testing.model_traces import hooks_of

ANSWERS = ["red", "the deep well", "four"]


@pytest.fixture(scope="module", params=["llava", "blip2-opt", "minigpt4", "llama"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param](folder)
    return load_backbone(folder, device="cpu")


@pytest.fixture
def backbone(shared: Backbone) -> Iterator[Backbone]:
    """A random model of the family, checked to be left without interceptor and hooks."""
    yield shared
    assert hooks_of(shared) == []
    assert shared._transform is None


@pytest.fixture
def questions(backbone: Backbone, picture: Callable[[int], Image.Image]) -> list[Question]:
    """Two with pictures, where the model reads them, and one without; of three lengths."""
    pictures = [picture(1), picture(2), None] if backbone.reads_images else [None] * 3
    prompts = ["What color is the hat?", "Can you say where this creature lives?", "How many?"]
    return [Question(prompt, image) for prompt, image in zip(prompts, pictures, strict=True)]


@pytest.fixture
def prefixes() -> list[Tensor | None]:
    """Three tokens, none, and two."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(3, WIDTH, generator=generator), None, torch.randn(2, WIDTH, generator=generator)]


def with_prefixes(prefixes: Sequence[Tensor | None]) -> PromptTransform:
    return lambda questions: [PreparedQuestion(*pair) for pair in zip(questions, prefixes, strict=True)]


def embedded(backbone: Backbone, inputs: TokenBatch) -> Tensor:
    """What the decoder takes of inputs without padding, (1, length, width): words, and the picture where it stands."""
    kept: list[Tensor] = []

    def keep(module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = named.get("inputs_embeds")
        kept.append(backbone.word_embeddings(inputs.input_ids) if given is None else given)

    handle = backbone.decoder.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        backbone.logits(inputs)
    finally:
        handle.remove()
    return kept[0]


def by_hand(backbone: Backbone, embeddings: Tensor) -> Tensor:
    """Logits of the decoder on these embeddings alone, (length, vocabulary)."""
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
    found = backbone.decoder(inputs_embeds=embeddings, attention_mask=mask, use_cache=False)
    return backbone.head(found.last_hidden_state)[0]


def prefixed_by_hand(backbone: Backbone, question: Question, answer: str | None, prefix: Tensor | None) -> Tensor:
    """Embeddings of one question behind its soft prompt, (1, length, width)."""
    inputs = backbone.encode([question], None if answer is None else [answer])
    parts = [embedded(backbone, inputs)]
    return torch.cat([prefix[None], *parts] if prefix is not None else parts, 1)


# -- soft prompts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["left", "right"])
@torch.no_grad()
def test_a_prefix_is_embeddings_before_the_first_token(
    backbone: Backbone, questions: list[Question], prefixes: list[Tensor | None], padding: str
) -> None:
    expected = [
        by_hand(backbone, prefixed_by_hand(backbone, *row)) for row in zip(questions, ANSWERS, prefixes, strict=True)
    ]
    unprefixed = backbone.logits(backbone.encode(questions, ANSWERS, padding))
    with backbone.transformed(with_prefixes(prefixes)):
        inputs = backbone.encode(questions, ANSWERS, padding)
    found = backbone.logits(inputs)
    assert inputs.prefix_mask.sum(1).tolist() == [3, 0, 2]
    for row in range(3):
        present = inputs.attention_mask[row].bool()
        torch.testing.assert_close(found[row, present], expected[row], atol=2e-4, rtol=1e-3)
    assert found[0, -1].sub(unprefixed[0, -1]).abs().max() > 1e-2


@torch.no_grad()
def test_states_and_masks_know_the_prefix(
    backbone: Backbone, questions: list[Question], prefixes: list[Tensor | None]
) -> None:
    plain = backbone.encode(questions, ANSWERS)
    with backbone.transformed(with_prefixes(prefixes)):
        inputs = backbone.encode(questions, ANSWERS)
    for name in ("image_mask", "prompt_mask", "answer_mask"):
        assert getattr(inputs, name).sum(1).tolist() == getattr(plain, name).sum(1).tolist()
        assert not bool((getattr(inputs, name) & inputs.prefix_mask).any())
    for row in range(3):
        kept = inputs.attention_mask[row].bool() & ~inputs.prefix_mask[row]
        assert torch.equal(inputs.input_ids[row, kept], plain.input_ids[row, plain.attention_mask[row].bool()])
    before, after = backbone.hidden_states(plain, 1), backbone.hidden_states(inputs, 1)
    assert after.shape[1] == inputs.input_ids.shape[1]
    assert (after[0, 3] - before[0, 0]).abs().max() > 1e-3


def greedy_by_hand(backbone: Backbone, embeddings: Tensor, tokens: int) -> str:
    """Tokens one by one, the whole sequence anew for each."""
    said: list[int] = []
    for _ in range(tokens):
        logits = by_hand(backbone, embeddings)[-1]
        if backbone.image_token_id is not None:
            logits[backbone.image_token_id] = float("-inf")
        said.append(int(logits.argmax()))
        stops = backbone.model.generation_config.eos_token_id
        if said[-1] in ([stops] if isinstance(stops, int) else stops):
            break
        embeddings = torch.cat([embeddings, backbone.word_embeddings(torch.tensor([[said[-1]]]))], 1)
    return backbone.tokenizer.decode(said, skip_special_tokens=True).split("###")[0].strip()


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_answers_follow_the_prefix_with_and_without_a_cache(
    backbone: Backbone, questions: list[Question], prefixes: list[Tensor | None], use_cache: bool
) -> None:
    rows = zip(questions, prefixes, strict=True)
    expected = [greedy_by_hand(backbone, prefixed_by_hand(backbone, q, None, p), 5) for q, p in rows]
    plain = backbone.generate(backbone.encode(questions, padding="left"), 5)
    with backbone.transformed(with_prefixes(prefixes)):
        inputs = backbone.encode(questions, padding="left")
    assert backbone.generate(inputs, 5, use_cache=use_cache) == expected
    assert expected != plain


@torch.no_grad()
def test_beams_and_several_sequences_carry_the_prefix_of_their_question(
    backbone: Backbone, questions: list[Question], prefixes: list[Tensor | None]
) -> None:
    expected = []
    for question, prefix in zip(questions, prefixes, strict=True):
        with backbone.transformed(with_prefixes([prefix])):
            alone = backbone.encode([question], padding="left")
        expected += backbone.generate(alone, 4, beams=3, sequences=2)
    with backbone.transformed(with_prefixes(prefixes)):
        inputs = backbone.encode(questions, padding="left")
    assert backbone.generate(inputs, 4, beams=3, sequences=2) == expected
    hand = prefixed_by_hand(backbone, questions[0], None, prefixes[0])
    generate = getattr(backbone.model, "language_model", backbone.model)
    generate = generate if hasattr(generate, "generate") else backbone.model
    suppressed = None if backbone.image_token_id is None else [backbone.image_token_id]
    tokens = generate.generate(
        inputs_embeds=hand,
        attention_mask=torch.ones(hand.shape[:2], dtype=torch.long),
        max_new_tokens=4,
        num_beams=3,
        num_return_sequences=2,
        do_sample=False,
        repetition_penalty=1.0,
        pad_token_id=backbone.pad_token_id,
        suppress_tokens=suppressed,
        eos_token_id=backbone.model.generation_config.eos_token_id,
    )
    texts = backbone.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert [text.split("###")[0].strip() for text in texts] == expected[:2]


def test_gradients_flow_into_the_prefix(
    backbone: Backbone, questions: list[Question], prefixes: list[Tensor | None]
) -> None:
    prefix = prefixes[0]
    assert prefix is not None
    with backbone.transformed(with_prefixes([prefix.requires_grad_(), None, None])):
        inputs = backbone.encode(questions, ANSWERS)
    backbone.logits(inputs)[0, -1, 0].backward()
    assert prefix.grad is not None
    assert bool((prefix.grad.abs().sum(1) > 0).all())


def test_a_prefix_counts_towards_the_longest_text(backbone: Backbone, questions: list[Question]) -> None:
    long = torch.zeros(backbone.decoder.config.max_position_embeddings, backbone.width)
    with backbone.transformed(with_prefixes([long])), pytest.raises(InvalidInputError, match="tokens, and"):
        backbone.encode(questions[:1])


# -- other wordings, substitute models -------------------------------------------------------------------------


@torch.no_grad()
def test_a_rewritten_question_is_the_question(backbone: Backbone, questions: list[Question]) -> None:
    other = Question("Is the hat of another colour than the coat?", questions[0].image)
    expected = backbone.encode([other, *questions[1:]], ANSWERS)

    def rewrite(asked: Sequence[Question]) -> list[PreparedQuestion]:
        return [PreparedQuestion(other if question is questions[0] else question) for question in asked]

    with backbone.transformed(rewrite):
        inputs = backbone.encode(questions, ANSWERS)
    assert torch.equal(inputs.input_ids, expected.input_ids)
    assert torch.equal(inputs.answer_mask, expected.answer_mask)
    assert torch.equal(backbone.logits(inputs), backbone.logits(expected))


class Parrot:
    """Says what it is asked, and gives every token of a row the number of the row's prompt's letters."""

    def generate(self, questions: Sequence[Question], max_new_tokens: int) -> list[str]:
        return [question.prompt for question in questions]

    def logits(self, questions: Sequence[Question], inputs: TokenBatch, rows: Sequence[int]) -> Tensor:
        letters = torch.tensor([float(len(question.prompt)) for question in questions])
        shape = (len(rows), inputs.input_ids.shape[1], 1)
        return letters[:, None, None].expand(shape).expand(-1, -1, VOCABULARY[0])


VOCABULARY = [0]


@torch.no_grad()
def test_a_substitute_answers_its_rows_alone(backbone: Backbone, questions: list[Question]) -> None:
    parrot = Parrot()
    plain = backbone.encode(questions, padding="left")
    VOCABULARY[0] = backbone.logits(plain).shape[-1]
    asked = [
        PreparedQuestion(questions[0], substitute=parrot),
        PreparedQuestion(questions[1]),
        PreparedQuestion(questions[2], substitute=parrot),
    ]
    assert substitutes(asked) == [(parrot, [0, 2])]
    with backbone.transformed(lambda _: asked):
        inputs = backbone.encode(questions, padding="left")
    texts = backbone.generate(plain, 4, beams=2, sequences=2)
    first, third = questions[0].prompt, questions[2].prompt
    expected = [first, first, *texts[2:4], third, third]
    assert backbone.generate(inputs, 4, beams=2, sequences=2) == expected
    found, untouched = backbone.logits(inputs), backbone.logits(plain)
    assert torch.equal(found[1], untouched[1])
    assert bool((found[0] == len(first)).all())
    assert bool((found[2] == len(third)).all())


# -- nothing in place --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_questions_as_they_are_give_the_same_bits(backbone: Backbone, questions: list[Question]) -> None:
    expected = backbone.logits(backbone.encode(questions, ANSWERS))
    with backbone.transformed(unchanged):
        inputs = backbone.encode(questions, ANSWERS)
    assert torch.equal(backbone.logits(inputs), expected)
    with backbone.transformed(with_prefixes([None] * 3)), backbone.transformed(None):
        assert backbone.encode(questions, ANSWERS).prepared == ()


@torch.no_grad()
def test_an_exception_leaves_no_hook(
    backbone: Backbone, questions: list[Question], prefixes: list[Tensor | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = backbone.logits(backbone.encode(questions, ANSWERS))
    with backbone.transformed(with_prefixes(prefixes)):
        inputs = backbone.encode(questions, ANSWERS)
    with monkeypatch.context() as patched:
        patched.setattr(type(backbone.layers[1]), "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            backbone.logits(inputs)
    with pytest.raises(ZeroDivisionError), backbone.transformed(lambda _: 1 / 0):  # type: ignore[arg-type]
        backbone.encode(questions)
    assert hooks_of(backbone) == []
    assert torch.equal(backbone.logits(backbone.encode(questions, ANSWERS)), expected)


def test_one_interceptor_at_a_time(backbone: Backbone, questions: list[Question]) -> None:
    seen: list[str] = []

    class Listening:
        def ask(self, questions: Sequence[Question]) -> list[PreparedQuestion]:
            seen.extend(question.prompt for question in questions)
            return unchanged(questions)

    first, second = Listening(), Listening()
    backbone.set_transform(first.ask)
    backbone.set_transform(first.ask)
    with pytest.raises(BackboneError, match="Detach it"):
        backbone.set_transform(second.ask)
    backbone.remove_transform(second.ask)
    backbone.encode(questions[:1])
    with backbone.transformed(None):
        backbone.encode(questions[1:])
    backbone.remove_transform(first.ask)
    backbone.encode(questions)
    assert seen == [questions[0].prompt]
