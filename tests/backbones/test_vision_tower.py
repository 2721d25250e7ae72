"""A vision tower that sees each image once: the same answers, fewer computations, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from liveedit.backbones import Backbone, load_backbone
from liveedit.backbones.hidden_states import HiddenStateCache
from liveedit.backbones.vision_tower import SeenImages, find_vision_tower
from liveedit.samples import Question
from liveedit.testing.family_models import FAMILIES

READING_TEXT_ALONE = ("llama", "mistral")
SEES_ONCE = ("llava", "blip2-opt", "gemma3")


def questions(picture: Callable[[int], Image.Image], *seeds: int) -> list[Question]:
    return [Question("What color is the hat?", picture(seed)) for seed in seeds]


def counted(backbone: Backbone) -> list[int]:
    """The number of images of each call of the vision tower, from now on."""
    tower: Any = find_vision_tower(backbone.model)
    sizes: list[int] = []
    forward = tower.forward

    def counting(*arguments: Any, **keywords: Any) -> Any:
        given = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor)]
        sizes.append(len(given[0]))
        return forward(*arguments, **keywords)

    tower.forward = counting
    return sizes


@pytest.fixture(params=[name for name in FAMILIES if name not in READING_TEXT_ALONE])
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Backbone]:
    FAMILIES[request.param](tmp_path)
    return request.param, load_backbone(tmp_path, device="cpu")


def test_logits_of_every_family_are_the_same(
    family: tuple[str, Backbone], picture: Callable[[int], Image.Image]
) -> None:
    name, backbone = family
    batch = backbone.encode(questions(picture, 1, 2, 1))
    seen = SeenImages(backbone.model)
    with torch.no_grad():
        plain = backbone.logits(batch)
        sizes = counted(backbone)
        with seen.used():
            first, second = backbone.logits(batch), backbone.logits(batch)
        before = len(sizes)
        backbone.logits(batch)
    torch.testing.assert_close(first, plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(first, second)
    assert len(sizes) == before + 1, "outside, the tower runs again"
    if name in SEES_ONCE:
        assert sizes[:before] == [1, 1]


def test_an_image_gives_the_same_bits_in_every_batch(
    random_backbone: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    """Whatever was seen before it and beside it."""
    tower: Any = find_vision_tower(random_backbone.model)
    pixels = random_backbone.encode(questions(picture, 1, 2, 3)).pixel_values
    assert pixels is not None
    found = []
    for order in ([0, 1, 2], [2, 0], [0]):
        with SeenImages(random_backbone.model).used(), torch.no_grad():
            found.append(tower(pixels[order]).last_hidden_state[order.index(0)])
    assert all(torch.equal(found[0], other) for other in found)


def test_an_output_can_be_trained_on_after_an_answer_was_generated(
    random_backbone: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    """generate() runs in inference mode, whose tensors no gradient may pass."""
    (question,) = questions(picture, 1)
    projector: Any = random_backbone.model.model.multi_modal_projector
    with SeenImages(random_backbone.model).used():
        random_backbone.generate(random_backbone.encode([question], padding="left"), 2)
        projector.requires_grad_(True)
        try:
            random_backbone.logits(random_backbone.encode([question])).sum().backward()
            assert projector.linear_1.weight.grad is not None
        finally:
            projector.requires_grad_(False)
            projector.zero_grad(set_to_none=True)


def test_outputs_go_when_they_take_more_than_allowed(
    random_backbone: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    tower: Any = find_vision_tower(random_backbone.model)
    pixels = random_backbone.encode(questions(picture, 1, 2)).pixel_values
    assert pixels is not None
    seen, own = SeenImages(random_backbone.model, most_bytes=1), tower.forward
    sizes = counted(random_backbone)
    try:
        with seen.used(), torch.no_grad():
            for row in (0, 1, 1, 0):
                tower(pixels[row : row + 1])
        assert sizes == [1, 1, 1], "the one that was used last is kept"
    finally:
        tower.__dict__.pop("forward")
    assert tower.forward == own


def test_gradients_to_the_image_pass(random_backbone: Backbone, picture: Callable[[int], Image.Image]) -> None:
    tower: Any = find_vision_tower(random_backbone.model)
    pixels = random_backbone.encode(questions(picture, 1)).pixel_values
    assert pixels is not None
    pixels = pixels.clone().requires_grad_(True)
    with SeenImages(random_backbone.model).used():
        tower(pixels).last_hidden_state.sum().backward()
    assert pixels.grad is not None


def test_a_cache_of_hidden_states_sees_each_image_once_and_does_not_run_the_head(
    random_backbone: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    head = random_backbone.output_embeddings
    ran: list[int] = []
    handle = head.register_forward_hook(lambda *_: ran.append(1))
    sizes = counted(random_backbone)
    try:
        items = [(question, "red") for question in questions(picture, 1, 2, 1, 2, 1)]
        HiddenStateCache(random_backbone, 2).fill(items, batch=2)
    finally:
        handle.remove()
        find_vision_tower(random_backbone.model).__dict__.pop("forward")  # pyright: ignore[reportOptionalMemberAccess]
    assert sizes == [1, 1]
    assert not ran


def test_threads_replace_the_tower_each_for_itself(
    random_backbone: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    """The first thread enters before the second and leaves before it; a third runs the model meanwhile."""
    tower = find_vision_tower(random_backbone.model)
    assert tower is not None
    before = random_backbone.logits(random_backbone.encode([Question("What is this?", picture(1))]))
    own, entered, left = tower.forward, threading.Event(), threading.Event()
    found: list[Tensor] = []

    def second() -> None:
        with SeenImages(random_backbone.model).used():
            entered.set()
            assert left.wait(20)
            found.append(random_backbone.logits(random_backbone.encode([Question("What is this?", picture(1))])))

    other = threading.Thread(target=second)
    with torch.no_grad():
        with SeenImages(random_backbone.model).used():
            other.start()
            assert entered.wait(20)
            first = SeenImages(random_backbone.model)
            with first.used():
                random_backbone.logits(random_backbone.encode([Question("What is this?", picture(1))]))
        assert len(first._kept) == 1, "the inner one was asked"
        third = random_backbone.logits(random_backbone.encode([Question("What is this?", picture(1))]))
        left.set()
        other.join()
    assert torch.equal(found[0].detach(), before) and torch.equal(third, before)
    assert tower.forward == own and "forward" not in tower.__dict__
