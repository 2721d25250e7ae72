"""Gradients as outer products, against autograd; changes in hooks, against changed weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from liveedit.backbones import Backbone
from liveedit.backbones.tokens import TokenBatch
from liveedit.editors.mend.factors import Factors, Matrix, changed, edit_gradients, layer_before, mlp_matrices
from liveedit.errors import BackboneError
from liveedit.samples import Edit

LAYERS = 2


def encoded(backbone: Backbone, edits: list[Edit]) -> TokenBatch:
    return backbone.encode([edit.question for edit in edits], [edit.answer for edit in edits])


def gradients_of(backbone: Backbone, edits: list[Edit]) -> list[Factors]:
    matrices, inputs = mlp_matrices(backbone, LAYERS), encoded(backbone, edits)
    with torch.no_grad():
        states = backbone.hidden_states(inputs, layer_before(matrices))
    return edit_gradients(backbone, matrices, states, inputs)


def autograd_gradients(backbone: Backbone, edit: Edit) -> list[Tensor]:
    """The weights' own gradients of the NLL of the answer's tokens and of its end, through the whole model."""
    inputs = encoded(backbone, [edit])
    weights = [matrix.module.weight for matrix in mlp_matrices(backbone, LAYERS)]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        positions = inputs.answer_mask[0].nonzero().flatten()
        predicted = backbone.logits(inputs)[0, positions - 1].log_softmax(-1)
        loss = -predicted[torch.arange(len(positions)), inputs.input_ids[0, positions]].mean()
        return list(torch.autograd.grad(loss, weights))
    finally:
        for weight in weights:
            weight.requires_grad_(False)


def test_the_matrices_are_those_of_the_last_layers_mlps(random_models: dict[str, Backbone]) -> None:
    names = {kind: [matrix.name for matrix in mlp_matrices(model, LAYERS)] for kind, model in random_models.items()}
    gated = [f"{layer}.mlp.{part}_proj" for layer in (4, 5) for part in ("gate", "up", "down")]
    assert names["tiny-llava"] == names["tiny-minigpt4"] == gated
    assert names["tiny-blip2"] == ["4.fc1", "4.fc2", "5.fc1", "5.fc2"]


@pytest.mark.parametrize("layers", [6, 7])
def test_the_first_layer_is_never_edited(random_backbone: Backbone, layers: int) -> None:
    with pytest.raises(BackboneError, match=f"{layers} layers were to be edited; tiny-random allows 5 at most"):
        mlp_matrices(random_backbone, layers)


def test_factors_multiply_out_to_the_gradient_of_autograd(backbone: Backbone, edits: list[Edit]) -> None:
    batched = [factors.dense() for factors in gradients_of(backbone, edits)]
    for case, edit in enumerate(edits):
        expected = autograd_gradients(backbone, edit)
        for found, wanted in zip(batched, expected, strict=True):
            torch.testing.assert_close(found[case], wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()) + 1e-9)


def test_padding_and_tokens_without_gradient_are_not_kept(random_backbone: Backbone, edits: list[Edit]) -> None:
    inputs = encoded(random_backbone, edits)
    *_, last = gradients_of(random_backbone, edits)
    # Behind the last layer nothing mixes tokens: only those that predict the answer can have a gradient there.
    assert last.kept.sum(1).tolist() == inputs.answer_mask.sum(1).tolist()
    earlier = gradients_of(random_backbone, edits)[0]
    assert (earlier.kept.sum(1) < inputs.attention_mask.sum(1)).all()  # The end itself predicts nothing.
    assert (earlier.kept.sum(1) > inputs.answer_mask.sum(1)).all()


def random_changes(matrices: list[Matrix], cases: int, tokens: int = 3) -> list[Factors]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for _, inputs, outputs in (matrix.shape for matrix in matrices):
        u = torch.randn(cases, tokens, inputs, generator=generator)
        v = 0.02 * torch.randn(cases, tokens, outputs, generator=generator)
        made.append(Factors(u, v, torch.rand(cases, tokens, generator=generator) < 0.8))
    return made


@pytest.mark.parametrize("case", [[0, 0, 1], [1, 0, 1], [0, 1, 2]])
def test_each_row_meets_its_own_changed_weights(backbone: Backbone, edits: list[Edit], case: list[int]) -> None:
    matrices, inputs = mlp_matrices(backbone, LAYERS), encoded(backbone, edits)
    changes = random_changes(matrices, 3)
    with torch.no_grad():
        unchanged = backbone.logits(inputs)
        with changed(matrices, changes, torch.tensor(case), inputs.input_ids.shape[1]):
            found = backbone.logits(inputs)
        for row, own in enumerate(case):
            kept = [matrix.module.weight.clone() for matrix in matrices]
            try:
                for matrix, change in zip(matrices, changes, strict=True):
                    products = [
                        torch.outer(change.outputs[own, token], change.inputs[own, token])
                        for token in range(3)
                        if change.kept[own, token]
                    ]
                    matrix.module.weight += sum(products, torch.zeros_like(matrix.module.weight))
                expected = backbone.logits(inputs)[row]
            finally:
                for matrix, weight in zip(matrices, kept, strict=True):
                    matrix.module.weight.copy_(weight)
            real = inputs.attention_mask[row].bool()
            torch.testing.assert_close(found[row][real], expected[real], rtol=1e-3, atol=2e-4)
            assert (found[row][real] - unchanged[row][real]).abs().max() > 0.05


def test_hooks_go_also_after_an_exception(backbone: Backbone, edits: list[Edit]) -> None:
    matrices, inputs = mlp_matrices(backbone, LAYERS), encoded(backbone, edits)
    with torch.no_grad():
        before = backbone.logits(inputs)
        with (
            pytest.raises(ZeroDivisionError),
            changed(matrices, random_changes(matrices, 1), torch.zeros(3, dtype=torch.long), inputs.input_ids.shape[1]),
        ):
            raise ZeroDivisionError
        assert torch.equal(backbone.logits(inputs), before)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_cases_together_are_the_sums_of_neighbours(random_models: dict[str, Backbone], count: int) -> None:
    change = random_changes(mlp_matrices(random_models["tiny-blip2"], 1), 5)[0]
    alone, together = change.dense(), change.together(count).dense()
    expected = torch.stack([alone[start : start + count].sum(0) for start in range(0, 5, count)])
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)
