"""Writing answers: sampling, stop strings, lengths and streams, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from liveedit.answering import Generated
from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.errors import InvalidInputError, WaitedTooLongError
from liveedit.images import open_image
from liveedit.samples import EditCase, Question
from liveedit.serving.decoding import DecodingState, SamplingParams
from liveedit.serving.served_model import GenerationRequest, GenerationResult, ServedModel
from liveedit.serving.settings import ServingSettings

END = 0


def letters(next_turn: str | None = None) -> Any:
    """A backbone whose tokens are characters."""

    def decode(tokens: list[int]) -> str:
        return bytes(token for token in tokens if token != END).decode("utf-8", "replace")

    def spoken(text: str) -> str:
        return (text.split(next_turn)[0] if next_turn else text).strip()

    return SimpleNamespace(decode=decode, end_token_ids=frozenset({END}), next_turn=next_turn, spoken=spoken)


def written(text: str, stop: tuple[str, ...] = (), next_turn: str | None = None) -> tuple[str, str | None, str]:
    """What comes of a model that says this: the text, why it ended, and all that a callback received."""
    heard: list[str] = []
    writing = DecodingState(letters(next_turn), SamplingParams(99, stop=stop), heard.append)
    for token in [*text.encode(), END]:
        if writing.take(token):
            break
    return writing.close(), writing.finish, "".join(heard)


@pytest.mark.parametrize(
    ("said", "stop", "expected"),
    [
        ("red", (), "red"),
        ("  red  ", (), "red"),
        ("red and blue", ("and",), "red "),
        ("red and blue", ("nd", "and b"), "red a"),
        ("red an blue", ("and",), "red an blue"),
        ("aab", ("ab",), "a"),
        ("red\nblue", ("\n",), "red"),
        ("größer", ("ß",), "grö"),
        ("stop", ("stop",), ""),
        ("", ("x",), ""),
    ],
)
def test_stop_strings_end_the_answer_and_are_never_heard(said: str, stop: tuple[str, ...], expected: str) -> None:
    assert written(said, stop) == (expected, "stop", expected)


def test_the_mark_of_the_next_turn_is_never_heard() -> None:
    assert written("teal ###Human: and?", next_turn="###") == ("teal", "stop", "teal")
    assert written("teal ## x", next_turn="###") == ("teal ## x", "stop", "teal ## x")


def test_the_length_ends_the_answer() -> None:
    writing = DecodingState(letters(), SamplingParams(3))
    assert [writing.take(token) for token in b"abc"] == [False, False, True]
    assert (writing.close(), writing.finish, len(writing.tokens)) == ("abc", "length", 3)


def test_an_answer_is_stopped_when_late_or_abandoned() -> None:
    late = DecodingState(letters(), SamplingParams(99), deadline=-math.inf)
    assert late.take(97)
    with pytest.raises(WaitedTooLongError):
        late.close()
    assert DecodingState(letters(), SamplingParams(99), is_abandoned=lambda: True).take(97)


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    scores, temperature, draws = torch.tensor([1.0, 0.0, -1.0, -math.inf]), 0.7, 4000
    writing = DecodingState(letters(), SamplingParams(1, temperature, seed=5))
    counts = torch.bincount(torch.stack([writing.perturbed(scores).argmax() for _ in range(draws)]), minlength=4)
    wanted = [math.exp(score / temperature) for score in (1.0, 0.0, -1.0)]
    for count, share in zip(counts.tolist(), [weight / sum(wanted) for weight in wanted], strict=False):
        assert abs(count / draws - share) < 4 * math.sqrt(share * (1 - share) / draws)
    assert counts[3] == 0


def test_a_temperature_near_zero_is_greedy() -> None:
    writing = DecodingState(letters(), SamplingParams(1, 1e-300, seed=1))
    assert all(int(writing.perturbed(torch.tensor([1.0, 1.1, 0.9])).argmax()) == 1 for _ in range(50))


# -- with a real model -----------------------------------------------------------------------------------


@pytest.fixture
def served(tiny_llava: Backbone) -> Any:
    with EditedModel.load(tiny_llava) as model:
        yield ServedModel(model, ServingSettings.model_validate({"prompt_tokens": 20}))


def texts(replies: list[GenerationResult | Exception]) -> list[str]:
    assert all(isinstance(reply, GenerationResult) for reply in replies)
    return [reply.text for reply in replies if isinstance(reply, GenerationResult)]


def test_greedy_answers_are_the_backbones_own_and_tokens_are_counted(
    served: ServedModel, eval_cases: tuple[EditCase, ...]
) -> None:
    questions = [case.edit.question for case in eval_cases[:4]]
    questions.append(Question("What is the capital of Coraland?"))
    backbone = served.model.backbone
    replies = served.answer([GenerationRequest(q.prompt, q.image, SamplingParams(16)) for q in questions])  # type: ignore[arg-type]
    for question, reply in zip(questions, replies, strict=True):
        assert isinstance(reply, GenerationResult)
        inputs = backbone.encode([question], padding="left")
        ((text, tokens),) = backbone.generate_tokens(inputs, 16)
        assert tokens is not None
        assert (reply.text, reply.finish, reply.fired) == (text, "stop", ())
        assert (reply.prompt_tokens, reply.answer_tokens) == (inputs.input_ids.shape[1], len(tokens))


def test_every_row_is_written_in_its_own_way(served: ServedModel, picture: Callable[[int], Image.Image]) -> None:
    """Alone and in company the same, whatever seed, temperature, length and stop strings the others have."""
    styles = [
        SamplingParams(1),
        SamplingParams(12, 8.0, 1),
        SamplingParams(12, 8.0, 2),
        SamplingParams(12, 8.0, 1),
        SamplingParams(5, 1.0, 3, ("e",)),
        SamplingParams(12),
    ]
    queries = [GenerationRequest("What color is the hat?", picture(3), style) for style in styles]
    together = texts(served.answer(queries))
    assert together == [texts(served.answer([query]))[0] for query in queries]
    assert together[1] == together[3] != together[2]
    assert "e" not in together[4]


def test_a_stream_says_what_the_answer_says(served: ServedModel, picture: Callable[[int], Image.Image]) -> None:
    heard: list[str] = []
    style = SamplingParams(24, 8.0, 4)
    asked = [
        GenerationRequest("What is this?", picture(1), style, heard.append),
        GenerationRequest("What is this?", picture(1), style),
    ]
    first, second = texts(served.answer(asked))
    assert first == second == "".join(heard)
    assert len(heard) > 1


EDITED = "bright yellow tulips"
HAT = "What color is the hat?"


def test_an_edited_answer_is_streamed_whole_and_others_piece_by_piece(
    served: ServedModel, eval_cases: tuple[EditCase, ...]
) -> None:
    """It may still be replaced by the unedited model's while it is decoded."""
    image = open_image(str(eval_cases[0].edit.question.image))
    assert served.model.edit(image, HAT, EDITED).took
    edited: list[str] = []
    other: list[str] = []
    unwatched: list[str] = []
    asked = [
        GenerationRequest(HAT, image, SamplingParams(24), edited.append),
        GenerationRequest("What is this?", None, SamplingParams(24, 8.0, 4), other.append),
    ]
    first, second = served.answer(asked)
    assert isinstance(first, GenerationResult) and isinstance(second, GenerationResult)
    assert (first.text, first.withheld, bool(first.fired)) == (EDITED, (), True)
    assert edited == [EDITED]
    assert len(other) > 1 and "".join(other) == second.text and not second.fired
    served.model.editor.answer_confidence = 0.0
    served.answer([replace(asked[0], on_text=unwatched.append)])
    assert len(unwatched) > 1 and "".join(unwatched) == EDITED


def test_an_answer_in_doubt_is_replaced_before_anything_is_sent(
    served: ServedModel, eval_cases: tuple[EditCase, ...]
) -> None:
    image = open_image(str(eval_cases[0].edit.question.image))
    heard: list[str] = []
    asked = [
        GenerationRequest("What is the capital of Coraland?", None, SamplingParams(16)),
        GenerationRequest(HAT, image, SamplingParams(16), heard.append),
    ]
    plain = served.answer(asked)
    unedited = texts(plain)
    receipt = served.model.edit(image, HAT, EDITED)
    assert texts(served.answer(asked)) == [unedited[0], EDITED]
    served.model.editor.answer_confidence = 1 - 1e-9
    heard.clear()
    first, second = served.answer(asked)
    assert isinstance(first, GenerationResult) and isinstance(second, GenerationResult)
    assert [first.text, second.text] == unedited and "".join(heard) == unedited[1]
    assert (second.fired, second.finish) == ((), "stop")
    assert [fired.edit_id for fired in second.withheld] == [receipt.id] and first.withheld == ()
    assert isinstance(plain[1], GenerationResult) and second.answer_tokens == plain[1].answer_tokens


def test_an_answer_is_in_doubt_for_the_tokens_that_are_given_alone(
    served: ServedModel, eval_cases: tuple[EditCase, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that has ended by its length takes part in one step more while others go on."""
    image = open_image(str(eval_cases[0].edit.question.image))
    served.model.edit(image, HAT, EDITED)
    answering = served.model.answering
    generate = answering.generate

    def doubtful(*arguments: Any, **options: Any) -> list[Generated]:
        return [replace(one, doubt=1 if one.answer.fired else None) for one in generate(*arguments, **options)]

    monkeypatch.setattr(answering, "generate", doubtful)
    short, long = served.answer([GenerationRequest(HAT, image, SamplingParams(count)) for count in (1, 16)])
    assert isinstance(short, GenerationResult) and isinstance(long, GenerationResult)
    assert (len(short.fired), short.withheld) == (1, ())
    assert (long.fired, len(long.withheld)) == ((), 1)


def test_long_prompts_and_markers_are_refused(served: ServedModel) -> None:
    with pytest.raises(InvalidInputError, match="at most 20"):
        served.check("hat " * 40)
    with pytest.raises(InvalidInputError, match="<image>"):
        served.check("What is <image>?")
    served.check("What color is the hat?")


@pytest.mark.parametrize("text", ["\U0001f600" * 3_000, "\U0001f600 " * 3_000, "x" * 32_000, f"{'x' * 1_999} " * 16])
def test_what_would_take_a_tokenizer_minutes_is_refused_at_once(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    given: list[int] = []
    tokenize = served.model.backbone.tokenize

    def counted(texts: list[str]) -> list[list[int]]:
        given.extend(map(len, texts))
        return tokenize(texts)

    monkeypatch.setattr(served.model.backbone, "tokenize", counted)
    with pytest.raises(InvalidInputError, match="at most"):
        served.check(text)
    assert max(given, default=0) <= 250


def test_an_answer_never_outgrows_the_models_places(served: ServedModel) -> None:
    config = served.model.backbone.decoder.config
    before, config.max_position_embeddings = config.max_position_embeddings, 16
    try:
        (reply,) = served.answer(
            [GenerationRequest("What is the capital of Coraland?", None, SamplingParams(200, 2.0, 1))]
        )
        with pytest.raises(InvalidInputError):
            served.answer(
                [GenerationRequest("What is the capital of the land of Coraland, if any?", None, SamplingParams(200))]
            )
    finally:
        config.max_position_embeddings = before
    assert isinstance(reply, GenerationResult) and reply.prompt_tokens + reply.answer_tokens <= 16
