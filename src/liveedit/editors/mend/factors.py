"""Gradients of a backbone's MLP matrices as outer products, and changes of the same form.

The gradient of a loss in a matrix W (out x in) that maps u to W u is sum_t delta_t u_t^T over tokens t, with delta the
gradient in the output (paper, section 3.1). A change is kept in that form as well: it is never multiplied out if it
is only to be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ...backbones import Backbone
from ...backbones.tokens import TokenBatch
from ...errors import BackboneError

_OUTSIDE_MLP = ("attn", "attention")


@dataclass(frozen=True)
class Matrix:
    """One editable weight: the linear module that holds it, and its name counted from the decoder's layers."""

    name: str
    module: nn.Linear

    @property
    def shape(self) -> tuple[str, int, int]:
        """Name, inputs, outputs."""
        return self.name, self.module.in_features, self.module.out_features


@dataclass(frozen=True)
class Factors:
    """Token by token, the outer products that make up a matrix for each of several cases.

    inputs: (cases, tokens, in). outputs: (cases, tokens, out). kept: (cases, tokens) booleans, false at padding.
    As a gradient, `outputs` holds delta; as a change, what is added to the weight is sum_t outputs_t inputs_t^T.
    """

    inputs: Tensor
    outputs: Tensor
    kept: Tensor

    def dense(self) -> Tensor:
        """The matrices, (cases, out, in)."""
        return (self.outputs * self.kept[..., None]).transpose(1, 2) @ self.inputs

    def together(self, count: int) -> Factors:
        """The sums of `count` neighbouring cases each: their tokens concatenated; the last may be of fewer."""
        groups = -(-len(self.inputs) // count)
        joined = [
            torch.cat([part, part.new_zeros(groups * count - len(part), *part.shape[1:])]).reshape(
                groups, count * part.shape[1], *part.shape[2:]
            )
            for part in (self.inputs, self.outputs, self.kept)
        ]
        return Factors(*joined)


def mlp_matrices(backbone: Backbone, layers: int) -> list[Matrix]:
    """The MLP matrices of the last decoder layers: every linear module that is no part of attention.

    Raises `BackboneError` if there are none, if they cannot be changed, or if the model cannot be run from
    the states before them.
    """
    first = len(backbone.layers) - layers
    if first - 1 < backbone.first_edit_layer:
        most = len(backbone.layers) - 1 - backbone.first_edit_layer
        raise BackboneError(f"{layers} layers were to be edited; {backbone.name} allows {most} at most.")
    found = [
        Matrix(f"{number}.{name}", module)
        for number in range(first, len(backbone.layers))
        for name, module in backbone.layers[number].named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in _OUTSIDE_MLP)
    ]
    if not found:
        raise BackboneError(f"{backbone.name} has no linear MLP modules in its last {layers} layers.")
    for matrix in found:
        weight = matrix.module.weight
        if weight.is_meta or not weight.is_floating_point():
            raise BackboneError(
                f"Layer {matrix.name} of {backbone.name} is offloaded or quantized ({weight.dtype}): its weights "
                "cannot be changed. Load the model whole, in float32, bfloat16 or float16."
            )
    return found


def edit_gradients(
    backbone: Backbone, matrices: Sequence[Matrix], hidden_states: Tensor, tokens: TokenBatch
) -> list[Factors]:
    """Gradients of each case's edit loss in these matrices, as factors in float32 without graph.

    The loss of a case is the NLL of its answer, averaged over the answer's tokens; cases do not mix. hidden_states:
    (cases, tokens, width) before the first edited layer. Tokens whose gradient is exactly zero are dropped: they add
    nothing, and normalisation would make something of them.
    """
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def record(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(arguments[0].detach())
        outputs.append(output)

    with torch.enable_grad(), _hooked([(matrix, record) for matrix in matrices]):
        start = hidden_states.detach().to(backbone.dtype).requires_grad_(True)
        logits = backbone.logits_from(start, tokens, layer_before(matrices), tokens.predicting)
        nll = F.cross_entropy(logits.float(), tokens.targets.to(logits.device), reduction="none")
        rows = tokens.answer_mask.nonzero()[:, 0].to(nll.device)
        gradients = torch.autograd.grad((nll / rows.bincount()[rows]).sum(), outputs)
    real = tokens.attention_mask.bool()
    return [_without_padding(u, delta, real) for u, delta in zip(inputs, gradients, strict=True)]


def _without_padding(u: Tensor, delta: Tensor, real: Tensor) -> Factors:
    """The tokens that carry a gradient, moved to the front of each case; OPT's MLP sees all tokens in one row."""
    u, delta = (part.float().reshape(*real.shape, -1) for part in (u, delta))
    kept = (delta != 0).any(-1) & real.to(delta.device)
    tokens = max(1, int(kept.sum(1).max()))
    order = torch.argsort((~kept).long(), dim=1, stable=True)[:, :tokens]
    cases = torch.arange(len(order), device=order.device)[:, None]
    return Factors(u[cases, order], delta[cases, order], kept[cases, order])


@contextmanager
def changed(matrices: Sequence[Matrix], changes: Sequence[Factors], case: Tensor, length: int) -> Iterator[None]:
    """Inside, each row of a batch meets weights with its own case's change; gradients flow into the changes.

    case: (rows,) integers, the case of each row; length: tokens of each row. What is added to a matrix's output x W^T
    is (x inputs^T) outputs, so that no changed weight is ever made.
    """
    grid = _Grid(case, len(changes[0].inputs))
    hooks = [(matrix, _adding(change, grid, length)) for matrix, change in zip(matrices, changes, strict=True)]
    with _hooked(hooks):
        yield


Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]


def _adding(change: Factors, grid: _Grid, length: int) -> Hook:
    inputs, outputs = change.inputs.transpose(1, 2), change.outputs * change.kept[..., None]

    def add(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = arguments[0].reshape(-1, length, arguments[0].shape[-1])
        read = grid.by_case(x).to(inputs.dtype) @ inputs.to(x.device)
        added = grid.by_row(read @ outputs.to(x.device), length)
        return output + added.reshape(output.shape).to(output.dtype)

    return add


class _Grid:
    """Rows of a batch grouped by case, so that one product serves all rows of a case."""

    def __init__(self, case: Tensor, cases: int):
        counts = torch.bincount(case, minlength=cases)
        self.cases, self.most = cases, int(counts.max())
        order = case.argsort(stable=True)
        within = torch.arange(len(case), device=case.device) - (counts.cumsum(0) - counts)[case[order]]
        self._slot = torch.empty_like(case)
        self._slot[order] = case[order] * self.most + within
        self._source = case.new_zeros(cases * self.most)  # Empty slots compute the first row and drop it.
        self._source[self._slot] = torch.arange(len(case), device=case.device)

    def by_case(self, x: Tensor) -> Tensor:
        """(rows, length, size) as (cases, most rows x length, size)."""
        return x[self._source.to(x.device)].reshape(self.cases, -1, x.shape[-1])

    def by_row(self, x: Tensor, length: int) -> Tensor:
        """What `by_case` did, undone."""
        return x.reshape(self.cases * self.most, length, x.shape[-1])[self._slot.to(x.device)]


def layer_before(matrices: Sequence[Matrix]) -> int:
    """The layer from whose states on the model meets the edited matrices."""
    return int(matrices[0].name.split(".")[0]) - 1


@contextmanager
def _hooked(hooks: Sequence[tuple[Matrix, Hook]]) -> Iterator[None]:
    handles: list[RemovableHandle] = []
    try:
        for matrix, hook in hooks:
            handles.append(matrix.module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
