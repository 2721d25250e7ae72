"""The built-in language models: tokenizer, rows, resuming their training, what they know, and long texts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from liveedit.backbones import Backbone, built_in_folder, load_backbone
from liveedit.backbones.families.parts import Parts
from liveedit.backbones.families.text_only import TextBackbone
from liveedit.cli import main
from liveedit.datasets import read
from liveedit.datasets.facts import catalog, questions
from liveedit.editors.ft import FineTuneLast
from liveedit.errors import CheckpointError, NotFoundError
from liveedit.pretraining.cards import measure_language_model
from liveedit.pretraining.language_models import (
    LANGUAGE_MODELS,
    WINDOW,
    BuiltInLanguageModel,
    LanguageModelConfig,
    draw_rows,
    pack,
    train_language_model,
)
from liveedit.samples import Question
from liveedit.testing.model_traces import weight_bits

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
FEW = LanguageModelConfig(language_steps=3, batch=8, long_rows=1, long_turns=3, save_every=1)


@pytest.fixture(params=LANGUAGE_MODELS.values(), ids=LANGUAGE_MODELS)
def built_in(request: pytest.FixtureRequest) -> BuiltInLanguageModel:
    """Each of the built-in language models, untrained."""
    return request.param


def untrained(built_in: BuiltInLanguageModel) -> TextBackbone:
    return TextBackbone("random", built_in.build(seed=1), Parts(built_in.tokenizer(), None, None))


def trained(name: str) -> Backbone:
    try:
        return load_backbone(name, device="cpu")
    except NotFoundError as missing:
        pytest.skip(f"an optional distribution: {missing}")


def test_they_are_small_and_of_their_classes(built_in: BuiltInLanguageModel) -> None:
    model = built_in.build()
    assert type(model).__name__ == built_in.base
    assert 2e6 < sum(value.numel() for value in model.parameters()) < 3e6
    assert model.config.max_position_embeddings == 4096


def test_words_of_the_facts_are_one_token_and_any_text_comes_back() -> None:
    tokenizer = LANGUAGE_MODELS["tiny-llama-lm"].tokenizer()
    for word in questions.vocabulary():
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1, word
    for text in (" two  spaces", "日本語 🙂 naïve", "a" * 3000, "\x00Ġ", "Ada Kelstrom of Kelhaven, 1234"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.all_special_ids)


def test_a_row_is_what_the_backbone_makes_of_question_and_answer(built_in: BuiltInLanguageModel) -> None:
    backbone = untrained(built_in)
    short, long = draw_rows(backbone.tokenizer, LanguageModelConfig(batch=48), np.random.default_rng(0))
    assert len(short) == 48 and {len(row) for row in short} == {1}
    assert sum(prompt.startswith("Say ") for ((prompt, _),) in short) == 12
    ids, mask, labels = pack(backbone.tokenizer, short)
    facts = [row[0] for row in short[:36]]
    inputs = backbone.encode([Question(prompt) for prompt, _ in facts], [answer for _, answer in facts])
    length = inputs.input_ids.shape[1]
    assert torch.equal(ids[:36, :length] * mask[:36, :length], inputs.input_ids * inputs.attention_mask)
    assert torch.equal(labels[:36, :length] >= 0, inputs.answer_mask)
    assert torch.equal(labels[labels >= 0], ids[labels >= 0])
    # A long row is its turns, one behind the other, behind a single start.
    ids, mask, _ = pack(backbone.tokenizer, long[:1])
    one_by_one = [row[present.bool()].tolist() for row, present in zip(*_rows(backbone, long[0]), strict=True)]
    assert ids[0].tolist() == [one_by_one[0][0], *(token for row in one_by_one for token in row[1:])]
    assert mask.all()


def _rows(backbone: Backbone, turns: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask, _ = pack(backbone.tokenizer, [[turn] for turn in turns])
    return ids, mask


def test_facts_are_those_of_the_catalogue_in_wordings_that_are_not_kept_back() -> None:
    tokenizer = LANGUAGE_MODELS["tiny-llama-lm"].tokenizer()
    truth = {
        questions.wordings(relation, wording)[index].format(subject.name): subject.answer(relation)
        for subject in catalog.known_subjects()
        for relation in subject.relations
        for wording in ("train", "unseen_by_editor")
        for index in range(len(questions.wordings(relation, wording)))
    }
    short, long = draw_rows(tokenizer, LanguageModelConfig(), np.random.default_rng(1))
    for prompt, answer in (turn for row in [*short, *long] for turn in row):
        if prompt.startswith("Say "):
            assert prompt == f"Say {answer}"
        else:
            assert truth[prompt.split(": ")[-1].removeprefix("Hello. ")] == answer


def test_states_and_the_layers_behind_them_make_the_logits_of_long_texts(built_in: BuiltInLanguageModel) -> None:
    """Also where the text is longer than Mistral's window."""
    backbone = untrained(built_in)
    prompts = ["What does it sell? " * 60, "Who?"]
    inputs = backbone.encode([Question(prompt) for prompt in prompts], ["salt", "Ada"])
    assert inputs.input_ids.shape[1] > 2 * WINDOW
    with torch.no_grad():
        whole = backbone.logits(inputs)[inputs.predicting]
        states = backbone.hidden_states(inputs, 3)
        resumed = backbone.logits_from(states, inputs, 3, inputs.predicting)
    torch.testing.assert_close(resumed, whole, atol=1e-4, rtol=1e-4)


def test_the_window_of_mistral_is_in_force() -> None:
    """A token that lies further back than all layers' windows together cannot be seen; Llama sees it."""
    far = 6 * WINDOW + 8
    for name, seen in (("tiny-llama-lm", True), ("tiny-mistral-lm", False)):
        backbone = untrained(LANGUAGE_MODELS[name])
        texts = [f"{word} " + "salt " * far for word in ("silk", "coal")]
        with torch.no_grad():
            first, second = (backbone.logits(backbone.encode([Question(text)]))[0, -1] for text in texts)
        assert torch.equal(first, second) is not seen


def test_a_training_that_was_cut_off_ends_with_the_same_bits(built_in: BuiltInLanguageModel, tmp_path: Path) -> None:
    few = LanguageModelConfig(**{**vars(FEW), "backbone": built_in.name})

    def stop(stage: str, step: int, steps: int, figures: dict[str, float]) -> None:
        assert figures["loss_nats"] > 0
        if step == 2:
            raise KeyboardInterrupt

    train_language_model(tmp_path / "whole", few)
    with pytest.raises(KeyboardInterrupt):
        train_language_model(tmp_path / "cut", few, stop)
    train_language_model(tmp_path / "cut", few)
    whole, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert {value.dtype for value in whole.values()} == {torch.float16}
    with pytest.raises(CheckpointError, match="Choose another folder"):
        train_language_model(tmp_path / "whole", LanguageModelConfig(**{**vars(few), "rate": 1e-3}))


def test_the_command_trains_one_and_refuses_what_belongs_to_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def few_facts(backbone: Backbone, progress: Callable[[int, int], None]) -> dict[str, dict[str, float]]:
        progress(1, 1)
        return {"home": {"train": 1.0, "unseen_by_editor": 2.0, "unseen": 3.0}}

    monkeypatch.setattr("liveedit.pretraining.cards.measure_language_model", few_facts)
    command = ["train-backbone", "tiny-mistral-lm", "--out", str(tmp_path), "--language-steps", "1", "--card", "--json"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    model = Path(printed["model"])
    card = json.loads((model / "model_card.json").read_text())
    assert card["accuracy"] == printed["accuracy"]
    assert json.loads(card["pretraining"])["language_steps"] == 1
    assert "| home | 1.0 | 2.0 | 3.0 |" in (model / "README.md").read_text()
    assert type(load_backbone(model, device="cpu")).__name__ == "TextBackbone"
    assert main([*command, "--images", "3"]) == 1
    assert "--images was given, but tiny-mistral-lm reads no images" in capsys.readouterr().err
    assert main(["train-backbone", "tiny-bert", "--out", str(tmp_path)]) == 1
    assert "tiny-llama-lm, tiny-mistral-lm" in capsys.readouterr().err


# -- the trained ones ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_they_know_their_facts_in_wordings_never_seen(name: str) -> None:
    backbone = trained(name)
    rng, asked = np.random.default_rng(5), []
    for subject in catalog.known_subjects()[::11]:
        asked += [
            (questions.ask(subject.name, relation, "unseen", rng), subject.answer(relation))
            for relation in subject.relations
        ]
    answers = backbone.generate(backbone.encode([Question(prompt) for prompt, _ in asked], padding="left"), 8)
    assert len(asked) == 230
    assert sum(truth == given for (_, truth), given in zip(asked, answers, strict=True)) >= 0.95 * len(asked)
    weights = sum(file.stat().st_size for file in built_in_folder(name).iterdir())
    assert weights <= 8e6, "a built-in language model is at most 8 MB"


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_the_shipped_tokenizer_is_the_built_one_and_the_card_tells_the_recipe(name: str) -> None:
    backbone = trained(name)
    assert backbone.tokenizer.get_vocab() == LANGUAGE_MODELS[name].tokenizer().get_vocab()
    assert backbone.tokenizer.chat_template is None
    card = json.loads((built_in_folder(name) / "model_card.json").read_text())
    assert LanguageModelConfig(**json.loads(card["pretraining"])) == LanguageModelConfig(backbone=name)
    assert min(min(values.values()) for values in card["accuracy"].values()) >= 95


def test_the_card_asks_for_every_fact_in_every_group_of_wordings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that always says "salt" is right as often as salt is the answer."""
    backbone = untrained(LANGUAGE_MODELS["tiny-llama-lm"])
    asked: list[str] = []

    def says_salt(inputs: object, tokens: int) -> list[str]:
        count = len(inputs)  # type: ignore[arg-type]
        asked.extend(["?"] * count)
        return ["salt"] * count

    monkeypatch.setattr(backbone, "generate", says_salt)
    accuracy = measure_language_model(backbone)
    assert len(asked) == 3 * 2520
    towns = [subject for subject in catalog.known_subjects() if subject.kind == "town"]
    salt = 100 * sum(town.answer("goods") == "salt" for town in towns) / len(towns)
    assert accuracy["goods"] == dict.fromkeys(("train", "unseen_by_editor", "unseen"), round(salt, 2))
    assert accuracy["river"] == dict.fromkeys(("train", "unseen_by_editor", "unseen"), 0)


@pytest.mark.parametrize(
    ("format", "file"),
    [
        ("zsre", "zsre/zsre_mend_eval.sample.json"),
        ("selfcheckgpt", "selfcheckgpt/hallucination-edit.json"),
        ("selfcheckgpt", "selfcheckgpt/hallucination-train.json"),
    ],
)
def test_every_real_row_fits_and_can_be_edited(format: str, file: str) -> None:
    if not (DATA / file).is_file():
        pytest.skip(f"{file} is not under LIVEEDIT_DATA ({DATA})")
    backbone = trained("tiny-llama-lm")
    cases = read(format, DATA / file)
    questions_ = [case.edit.question for case in cases]
    inputs = backbone.encode(questions_, [case.edit.answer for case in cases])
    assert inputs.attention_mask.sum(1).max() < 1000
    before = weight_bits(backbone)
    with FineTuneLast(backbone) as editor:
        records = editor.edit([(case.id, case.edit) for case in cases[:2]])
        assert [record.edit_id for record in records] == [case.id for case in cases[:2]]
        assert weight_bits(backbone) != before
    assert weight_bits(backbone) == before
