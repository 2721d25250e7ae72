"""Editing and asking put a question into the same chat format, or both leave it as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image

from liveedit.answering import Answering
from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.ft import FineTuneConfig, FineTuneLast
from liveedit.editors.reference import small_editor
from liveedit.samples import Edit, Question

ANSWER = "a deep well"


@contextmanager
def sequences_read(backbone: Backbone) -> Iterator[list[list[int]]]:
    """Every sequence of token ids that the model reads inside, without what it generates. None may be padded."""
    found: list[list[int]] = []

    def note(embeddings: Any, arguments: tuple[Any, ...]) -> None:
        if arguments[0].shape[1] > 1:  # One token is a generated one.
            found.extend(arguments[0].tolist())

    handle = backbone.word_embeddings.register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def test_what_is_edited_is_what_is_asked(family_backbone: Backbone, asked: list[Question]) -> None:
    question = asked[0]
    with sequences_read(family_backbone) as given:
        (answer,) = Answering(family_backbone).ask([question], 1)
    assert answer.tokens is not None
    prompt = given[0]
    assert all(sequence == prompt for sequence in given)
    text = family_backbone.tokenizer.decode(prompt)
    assert question.prompt in text and family_backbone.prompt_text(Question("x")).split("x")[0].strip() in text
    makers: dict[str, Callable[[], Any]] = {
        "weights": lambda: FineTuneLast(family_backbone, FineTuneConfig(steps=1)),
        "experts": lambda: small_editor(family_backbone),
    }
    if not family_backbone.reads_images:
        makers["experts"] = lambda: small_editor(family_backbone, scope="text+image")
    for name, make in makers.items():
        with make() as editor, sequences_read(family_backbone) as read:
            editor.edit([("edit", Edit(question, ANSWER))])
        assert read, name
        for sequence in read:
            assert sequence[: len(prompt)] == prompt, name
            assert family_backbone.decode(sequence[len(prompt) :]).strip() in ("", ANSWER), name


@pytest.mark.parametrize("prompt", ["What is this called?", " USER: hello\n", "[INST] x [/INST]"])
def test_a_tokenizer_without_a_template_gets_the_prompt_as_it_is(language_model: Backbone, prompt: str) -> None:
    ids = language_model.encode([Question(prompt)]).input_ids[0].tolist()
    assert ids == language_model.tokenizer(prompt)["input_ids"]
    with_answer = language_model.encode([Question(prompt)], [ANSWER])
    assert with_answer.input_ids[0][with_answer.prompt_mask[0]].tolist() == ids


def test_the_trial_and_later_questions_are_asked_alike(
    tiny_llava: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    with EditedModel.load(tiny_llava) as model:
        with sequences_read(tiny_llava) as asked:
            model.ask(picture(1), "What is this?")
        with sequences_read(tiny_llava) as read:
            model.edit(picture(1), "What is this?", "red")
        assert asked[0] in read
