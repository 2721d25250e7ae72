"""The built-in backbone's parts: tokenizer, packed rows, targets of its stages, and resuming its training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from liveedit.backbones import Backbone, built_in_folder, load_backbone
from liveedit.backbones.families import backbone_class
from liveedit.datasets.world import catalog, questions
from liveedit.datasets.world.drawing import Pose, draw
from liveedit.datasets.world.scene import draw_scene
from liveedit.errors import CheckpointError, NotFoundError
from liveedit.pretraining.images import ImagePool, scene_of
from liveedit.pretraining.language_stage import alignment_words, image_turns, text_turns
from liveedit.pretraining.models import BUILT_INS, TINY_BLIP2, BuiltIn, VisionPart, language_parts
from liveedit.pretraining.rows import RowPacker
from liveedit.pretraining.tokenizer import build_tokenizer
from liveedit.pretraining.train import PretrainingConfig, learning_rate, train_backbone
from liveedit.pretraining.vision_stage import VisionHeads, VisionTargets, use_convolved_patches, use_linear_patches
from liveedit.samples import Question

NASTY = [
    "",
    " ",
    "red",
    " red  ball ",
    "tabs\tand\nnew\r\nlines\n\n",
    "don't 50% $5.00 (C++) <b>&amp;</b> [1] {x} \\n",
    "naïve café Ünïcödé ß ẞ",
    "日本語のテキスト 中文 한국어",
    "שלום עולם مرحبا بالعالم",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈",
    "zero\u200bwidth \ufeffbom \u00a0space",
    "combining e\u0301 a\u0308",
    "\x00\x01\x7f",
    "Ġ is a letter too",
    "a" * 3000,
    "WhatColorIsTheHat?",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.mark.parametrize("text", NASTY)
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_words_of_the_world_are_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in questions.vocabulary():
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1, word


def test_the_shipped_tokenizer_is_the_built_one(tokenizer: PreTrainedTokenizerFast, tiny_llava: Backbone) -> None:
    assert tiny_llava.tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.fixture(params=BUILT_INS.values(), ids=BUILT_INS)
def built_in(request: pytest.FixtureRequest) -> BuiltIn:
    """Each of the built-in backbones, untrained."""
    return request.param


def untrained(built_in: BuiltIn) -> Backbone:
    model = built_in.build(seed=1)
    return backbone_class(model.config.model_type, reads_images=True)("random", model, built_in.processor())


@pytest.mark.parametrize("known", [True, False])
def test_packed_rows_answer_as_one_question_at_a_time(built_in: BuiltIn, known: bool) -> None:
    backbone = untrained(built_in)
    model, tokenizer = backbone.model, backbone.tokenizer
    rng = np.random.default_rng(3)
    creature = catalog.known_creatures()[5]
    if not known:
        creature = catalog.Creature("", creature.emblem, "", "", "")
    scene = draw_scene("packed", creature, rng, things=2)
    image = draw(scene, Pose())
    turns = image_turns(scene, rng)
    facts = text_turns(tokenizer, rng)[:3]
    rows = RowPacker(built_in.layout).pack([(True, turns), (False, facts)])
    pixels = backbone.encode([Question("?", image)]).pixel_values
    project, decoder = language_parts(model)
    with torch.no_grad():
        shown = project(VisionPart(model)(pixels))
        embeddings = backbone.word_embeddings(rows.ids)
        embeddings = embeddings.masked_scatter((rows.ids == backbone.image_token_id)[..., None], shown)
        hidden = decoder(
            inputs_embeds=embeddings,
            attention_mask=rows.attention_mask(torch.float32),
            position_ids=rows.positions,
            use_cache=False,
        ).last_hidden_state
        packed = backbone.head(hidden)
    for row, asked in enumerate((turns, facts)):
        for segment, (prompt, answer) in enumerate(asked, 1):
            inputs = backbone.encode([Question(prompt, None if row else image)], [answer])
            with torch.no_grad():
                alone = backbone.logits(inputs)[0]
            mine = rows.segments[row] == segment
            own_tokens = (inputs.attention_mask[0] == 1).clone()
            own_tokens[: int((rows.segments[row] == 0).sum())] = False  # The beginning is shared by the row.
            assert torch.equal(rows.ids[row][mine], inputs.input_ids[0][own_tokens])
            torch.testing.assert_close(packed[row][mine], alone[own_tokens], atol=1e-4, rtol=1e-4)
            labels = rows.labels[row][mine]
            assert torch.equal(labels[labels >= 0], inputs.input_ids[inputs.answer_mask])


def test_vision_is_taken_over_whole(tmp_path: Path) -> None:
    """tiny-minigpt4 sees as the checkpoint sees that it is given, and learns to speak by itself."""
    source = TINY_BLIP2.build(seed=5)
    TINY_BLIP2.processor().save_pretrained(tmp_path / "source")
    source.save_pretrained(tmp_path / "source")
    few = PretrainingConfig(**{**vars(SMALL), "backbone": "tiny-minigpt4"})
    train_backbone(tmp_path / "out", few, vision_source=tmp_path / "source")
    trained = load_backbone(tmp_path / "out" / "model", device="cpu")
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = (VisionPart(model)(pixels) for model in (source, trained.model))
    torch.testing.assert_close(found, wanted, atol=5e-3, rtol=5e-3)  # Saved in fp16.
    assert type(trained).__name__ == "Blip2Backbone"
    assert len(trained.generate(trained.encode([Question("What is this?")], padding="left"), 2)) == 1


def test_strangers_are_asked_nothing_that_only_facts_answer() -> None:
    rng = np.random.default_rng(0)
    creature = catalog.Creature("", catalog.EmblemMint().draw(rng), "", "", "")
    for _ in range(20):
        turns = image_turns(draw_scene("stranger", creature, rng), rng)
        assert all(answer for _, answer in turns)


@pytest.mark.parametrize("side", ["left", "right"])
def test_alignment_words_lie_where_things_are_drawn(tokenizer: PreTrainedTokenizerFast, side: str) -> None:
    """Patches are 16 x 16: the hat lies at x = 24 or 40, y = 8, things at x = 56 or 8, one patch row each."""
    rng = np.random.default_rng(1)
    scene = draw_scene("aligned", catalog.known_creatures()[0], rng, things=2)
    while scene.side != side:
        scene = draw_scene("aligned", catalog.known_creatures()[0], rng, things=2)
    words = alignment_words(scene, tokenizer)
    assert words.shape == (16, 3)
    said = [{tokenizer.decode([int(word)]).strip() for word in row if word >= 0} for row in words]
    hat = {"left": 1, "right": 2}[side]
    assert said[hat] == {scene.hat, scene.hat_color}
    column = {"left": 3, "right": 0}[side]
    for thing in scene.things:
        assert said[4 * thing.slot + column] == {thing.shape, thing.color}
    for center in (5, 6, 9, 10):
        assert scene.color in said[center]
        assert any(scene.creature.name.startswith(word) for word in said[center])
    used = {hat, 5, 6, 9, 10, *(4 * thing.slot + column for thing in scene.things)}
    assert all(not said[token] for token in range(16) if token not in used)


def test_what_a_patch_shows_is_in_the_picture() -> None:
    """Taking a thing away changes pixels of its own patch alone."""
    rng = np.random.default_rng(2)
    scene = draw_scene("patch", catalog.known_creatures()[0], rng, things=1)
    without = type(scene)(**{**{name: getattr(scene, name) for name in scene.__slots__}, "things": ()})
    changed = np.asarray(draw(scene, Pose())) != np.asarray(draw(without, Pose()))
    rows, columns = np.nonzero(changed.any(-1))
    (thing,) = scene.things
    assert set(rows // 16) == {thing.slot}
    assert set(columns // 16) == {3 if scene.side == "left" else 0}


def test_linear_patches_are_the_convolution(random_backbone: Backbone) -> None:
    embeddings = random_backbone.model.model.vision_tower.embeddings
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        convolved = embeddings(pixels)
        use_linear_patches(random_backbone.model.model.vision_tower)
        try:
            linear = embeddings(pixels)
        finally:
            use_convolved_patches(random_backbone.model.model.vision_tower)
        again = embeddings(pixels)
    torch.testing.assert_close(linear, convolved, atol=1e-5, rtol=1e-5)
    assert torch.equal(again, convolved)


def test_vision_heads_report_a_perfect_answer_as_perfect() -> None:
    """Heads that are handed the targets get 100 % everywhere and a loss near zero."""
    scenes = [scene_of(index, seed=0) for index in range(6)]
    targets = VisionTargets(scenes)
    heads = VisionHeads(8)

    class Told(nn.Module):
        def __init__(self, wanted: torch.Tensor, size: int):
            super().__init__()
            self.wanted, self.size = wanted, size

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return 50.0 * F.one_hot(self.wanted.flatten().clamp(min=0), self.size).float()

    for name, size in (("hat", len(catalog.HATS)), ("hat_color", len(catalog.COLORS))):
        setattr(heads, name, Told(getattr(targets, name), size))
    heads.thing = Told(targets.thing, len(catalog.THINGS) + 1)  # type: ignore[assignment]
    heads.thing_color = Told(targets.thing_color, len(catalog.COLORS))  # type: ignore[assignment]
    for name in heads.flat:
        heads.flat[name] = Told(targets.flat[name], heads.flat[name].out_features)
    emblem = nn.Linear(8, 25)
    emblem.forward = lambda tokens: 100.0 * (targets.emblem - 0.5)  # type: ignore[method-assign, assignment]
    heads.emblem = emblem
    loss, accuracy = heads(torch.randn(6, 16, 8), targets)
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert set(accuracy.values()) == {100.0}


def test_a_picture_pool_is_drawn_once_and_depends_on_seed_and_index(tmp_path: Path) -> None:
    first = ImagePool(tmp_path / "a", 6, seed=4)
    drawn = (tmp_path / "a" / "images.npy").stat().st_mtime_ns
    again = ImagePool(tmp_path / "a", 6, seed=4)
    assert (tmp_path / "a" / "images.npy").stat().st_mtime_ns == drawn
    longer = ImagePool(tmp_path / "b", 8, seed=4)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.pixels, longer.pixels[:6])
    other = ImagePool(tmp_path / "c", 6, seed=5)
    assert not np.array_equal(first.pixels, other.pixels)


def test_pictures_are_normalised_as_the_processor_does(tmp_path: Path, tiny_llava: Backbone) -> None:
    from PIL import Image

    pool = ImagePool(tmp_path, 3, seed=4)
    processed = tiny_llava.encode([Question("?", Image.fromarray(np.array(pool.pixels[1])))]).pixel_values
    assert processed is not None
    torch.testing.assert_close(pool.normalized([1]), processed, atol=1e-5, rtol=0)


SMALL = PretrainingConfig(
    seed=1,
    images=64,
    vision_steps=3,
    vision_batch=8,
    language_steps=3,
    language_batch=4,
    text_rows=1,
    save_every=1,
)


@pytest.mark.slow
def test_a_pretraining_that_was_cut_off_ends_with_the_same_bits(tmp_path: Path) -> None:
    def stop_at(wanted: tuple[str, int]) -> object:
        def report(stage: str, step: int, steps: int, figures: Mapping[str, float] | None = None, /) -> None:
            if (stage, step) == wanted:
                raise KeyboardInterrupt

        return report

    train_backbone(tmp_path / "whole", SMALL)
    for wanted in (("vision", 2), ("language", 3)):
        with pytest.raises(KeyboardInterrupt):
            train_backbone(tmp_path / "cut", SMALL, stop_at(wanted))  # type: ignore[arg-type]
    train_backbone(tmp_path / "cut", SMALL)
    whole, cut = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert {value.dtype for value in whole.values()} == {torch.float16}
    loaded = load_backbone(tmp_path / "whole" / "model", device="cpu")
    assert len(loaded.generate(loaded.encode([Question("What is this?")], padding="left"), 2)) == 1
    other = PretrainingConfig(**{**vars(SMALL), "language_rate": 2e-3})
    with pytest.raises(CheckpointError, match="Choose another folder"):
        train_backbone(tmp_path / "whole", other)


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, 1000, 2.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(2.0)
    assert rates[99] == pytest.approx(2.0)
    assert 0.04 <= rates[-1] < 0.05


@pytest.mark.parametrize("name", BUILT_INS)
def test_built_in_backbones_know_their_world(name: str) -> None:
    """Nearly all attributes and facts of known creatures come out right: the checkpoints are the trained ones."""
    try:
        backbone = load_backbone(name, device="cpu")
    except NotFoundError as missing:
        pytest.skip(f"an optional distribution: {missing}")
    rng, batch, truths = np.random.default_rng(123), [], []
    for index in range(8):
        scene = draw_scene(f"check-{index}", catalog.known_creatures()[index], rng)
        for topic in questions.topics(scene)[:10]:
            batch.append(Question(questions.ask(topic, "train", rng), draw(scene, Pose())))
            truths.append(questions.answer(scene, topic))
    answers = backbone.generate(backbone.encode(batch, padding="left"), 8)
    assert len(truths) == 80
    assert sum(truth == answer for truth, answer in zip(truths, answers, strict=True)) > 76
    weights = sum(file.stat().st_size for file in built_in_folder(name).iterdir())
    assert weights <= 12e6, "a built-in model is at most 12 MB"
