"""Cached hidden states: equal to a direct computation, in memory and on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from liveedit.backbones import Backbone
from liveedit.backbones import hidden_states as states
from liveedit.backbones.hidden_states import HiddenStateCache, Item
from liveedit.samples import Question

LAYER = 3


@pytest.fixture
def items(picture: Callable[[int], Image.Image]) -> list[Item]:
    return [
        (Question("What color is the hat?", picture(1)), "red"),
        (Question("What is the capital of Coraland?"), "Faburg"),
        (Question("Can you say where this creature lives?", picture(2)), "the deep well"),
        (Question("How many legs are there?", picture(3)), "four"),
        (Question("What is the language of Coraland?"), "Corish"),
    ]


def close(kept: torch.Tensor, wanted: torch.Tensor) -> None:
    """Within what bfloat16 products through a few layers may differ, relative to the size of the states."""
    assert (kept - wanted).abs().mean() < 0.02 * wanted.abs().mean()


def test_kept_states_are_those_of_a_forward_pass(random_backbone: Backbone, items: list[Item]) -> None:
    store = HiddenStateCache(random_backbone, LAYER)
    store.fill(items, batch=2)
    assert len(store) == 5
    order = [3, 1, 0]
    batch = store.batch(order)
    chosen = [items[index] for index in order]
    inputs = random_backbone.encode([item[0] for item in chosen], [item[1] for item in chosen])
    assert torch.equal(batch.input_ids[inputs.attention_mask.bool()], inputs.input_ids[inputs.attention_mask.bool()])
    present = inputs.attention_mask.bool()
    assert torch.equal(batch.roles[present], inputs.roles[present])
    assert torch.equal(batch.image_mask, inputs.image_mask)
    assert torch.equal(batch.prompt_mask, inputs.prompt_mask)
    assert torch.equal(batch.answer_mask, inputs.answer_mask)
    assert torch.equal(batch.attention_mask, inputs.attention_mask)
    assert torch.equal(batch.targets, inputs.input_ids[inputs.answer_mask])
    assert len(batch) == 3
    with torch.no_grad():
        direct = random_backbone.hidden_states(inputs, LAYER)
        logits = random_backbone.logits(inputs)
        back = random_backbone.logits_from(batch.hidden_states, batch, LAYER, batch.predicting)
        head = random_backbone.head(batch.final)
    present = inputs.attention_mask.bool()
    close(batch.hidden_states[present], direct[present])
    assert not batch.hidden_states[~present].any()
    close(head, logits[batch.predicting])
    close(back, logits[batch.predicting])
    assert batch.predicting.sum() == batch.answer_mask.sum()


def test_predicting_positions_stand_before_the_answer(random_backbone: Backbone, items: list[Item]) -> None:
    store = HiddenStateCache(random_backbone, LAYER)
    store.fill(items)
    batch = store.batch(range(5))
    for row in range(5):
        answer = batch.answer_mask[row].nonzero().flatten()
        assert batch.predicting[row].nonzero().flatten().tolist() == (answer - 1).tolist()


def test_states_on_disk_are_those_in_memory(
    random_backbone: Backbone, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = HiddenStateCache(random_backbone, LAYER)
    in_memory.fill(items, batch=2)
    monkeypatch.setattr(states, "IN_MEMORY_BYTES", 0)
    on_disk = HiddenStateCache(random_backbone, LAYER, tmp_path / "states")
    on_disk.fill(items, batch=2)
    tokens = int(in_memory.batch(range(5)).attention_mask.sum())
    (file,) = (tmp_path / "states").iterdir()
    assert file.stat().st_size == tokens * random_backbone.width * 2
    for order in ([0, 1, 2, 3, 4], [4, 2]):
        first, second = in_memory.batch(order), on_disk.batch(order)
        names = [name for name, value in vars(first).items() if isinstance(value, torch.Tensor)]
        assert {"roles", "input_ids", "hidden_states", "final"} <= set(names)
        assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)
        assert first.positions is None and second.positions is None


def test_a_folder_is_found_where_none_is_given(
    random_backbone: Backbone, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "IN_MEMORY_BYTES", 0)
    store = HiddenStateCache(random_backbone, LAYER)
    store.fill(items)
    assert store.batch([0]).hidden_states.abs().sum() > 0
    assert store._temporary is not None
    folder = Path(store._temporary.name)
    store._temporary.cleanup()
    assert not folder.exists()


def test_progress_counts_the_items(random_backbone: Backbone, items: list[Item]) -> None:
    seen: list[tuple[int, int]] = []
    HiddenStateCache(random_backbone, LAYER).fill(
        items, batch=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
