"""What rows begin with is computed once: the states are those of whole rows, in every family."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image
from torch import Tensor

from liveedit.backbones import Backbone, shared_beginning
from liveedit.backbones import hidden_states as states
from liveedit.backbones.hidden_states import HiddenStateCache
from liveedit.backbones.shared_beginning import SharedBeginning, read_states
from liveedit.samples import Question
from liveedit.testing import tiny_backbone, tiny_families

ASKED = "Think of it once more, for a long time, and say in a few words: "
PROMPTS = tuple(
    ASKED + question for question in ("What is this?", "What do the people there call such a thing?", "What for?")
)
SHARING = ("llava", "llama", "mistral")


def rows_seen(backbone: Backbone) -> list[tuple[int, int]]:
    """(rows, tokens) of each pass through the first layer, from now on."""
    found: list[tuple[int, int]] = []

    def note(layer: torch.nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.append((arguments[0].shape[0], arguments[0].shape[1]))

    backbone.layers[0].register_forward_pre_hook(note)
    return found


@pytest.mark.parametrize("family", tiny_families())
def test_states_are_those_of_whole_rows(family: str, picture: Callable[[int], Image.Image]) -> None:
    backbone = tiny_backbone(family)
    shown = picture(1) if backbone.reads_images else None
    inputs = backbone.encode([Question(prompt, shown) for prompt in PROMPTS], ["red", "a deep well", "four"])
    layer = len(backbone.layers) // 2
    present = inputs.attention_mask.bool()
    with torch.no_grad():
        wanted, logits = backbone.hidden_states(inputs, layer), backbone.logits(inputs)
        seen = rows_seen(backbone)
        found, final = read_states(backbone, inputs, layer)
        head = backbone.head(final)
    torch.testing.assert_close(found[present], wanted[present], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(head[inputs.predicting], logits[inputs.predicting], rtol=1e-3, atol=1e-3)
    if family in SHARING:
        (one, shared), (all_rows, own) = seen
        assert (one, all_rows) == (1, 3) and shared + own == inputs.roles.shape[1]
        assert shared >= int(inputs.image_mask[0].sum())


@pytest.mark.parametrize("family", tiny_families())
def test_logits_and_gradients_are_those_of_whole_rows(family: str, picture: Callable[[int], Image.Image]) -> None:
    """With a change to what one layer gives, whose gradient comes from the shared tokens as well."""
    backbone = tiny_backbone(family)
    shown = picture(1) if backbone.reads_images else None
    inputs = backbone.encode([Question(prompt, shown) for prompt in PROMPTS], ["red", "a deep well", "four"])
    layer = max(backbone.first_edit_layer, len(backbone.layers) // 2 - 1)
    beginning = SharedBeginning.of(backbone, inputs, layer)
    assert (beginning is not None) == (family in SHARING)
    if beginning is None:
        return
    states = backbone.hidden_states(inputs, layer).detach()
    change = torch.zeros(backbone.width, requires_grad=True)

    def changed(layer: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> object:
        return output + change if isinstance(output, Tensor) else (output[0] + change, *output[1:])

    handle = backbone.layers[layer + 1].register_forward_hook(changed)
    found: list[tuple[Tensor, Tensor]] = []
    for logits in (
        beginning.logits(states, inputs.predicting),
        backbone.logits_from(states, inputs, layer, inputs.predicting),
    ):
        (gradient,) = torch.autograd.grad(logits.float().log_softmax(-1)[:, 5].sum(), change)
        found.append((logits.detach(), gradient))
    handle.remove()
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-3 * float(found[1][1].abs().max()))
    assert beginning.rows == len(inputs)


def test_rows_with_different_images_are_read_whole(
    random_backbone: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    questions = [Question("What is this?", picture(seed)) for seed in (1, 2)]
    inputs = random_backbone.encode(questions, ["red", "blue"])
    assert shared_beginning._shared_tokens(random_backbone, inputs) == 0
    same = random_backbone.encode([questions[0]] * 2, ["red", "blue"])
    length = shared_beginning._shared_tokens(random_backbone, same)
    assert int(same.image_mask[0].sum()) <= length < int(same.prompt_mask[0].nonzero().max()) + 1


def test_questions_about_one_image_are_read_together_and_found_by_their_places(
    random_backbone: Backbone, picture: Callable[[int], Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [picture(1), picture(2)]
    items = [(Question(f"What is number {place}?", pictures[place % 2]), str(place)) for place in range(20)]
    items.insert(3, (Question("What is the capital of Coraland?"), "Faburg"))
    progress: list[int] = []
    together = HiddenStateCache(random_backbone, 2)
    together.fill(items, batch=8, progress=lambda done, total: progress.append(done))
    assert progress == [8, 10, 18, 20, 21]
    monkeypatch.setattr(states, "_MANY", 1000)
    apart = HiddenStateCache(random_backbone, 2)
    apart.fill(items, batch=1)
    for place in range(len(items)):
        found, wanted = together.batch([place]), apart.batch([place])
        assert torch.equal(found.input_ids, wanted.input_ids)
        for some, whole in ((found.hidden_states, wanted.hidden_states), (found.final, wanted.final)):
            assert (some - whole).abs().mean() < 0.02 * whole.abs().mean()
