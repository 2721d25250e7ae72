"""Experts of the requests in progress, in buffers of a fixed size: one slot for each request."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from ..editors.shared.routing import ExpertForm, Routing, output_scale


class ExpertSlots:
    """U, V and weights of routed experts, (slots, rows, width) and (slots, rows).

    Rows are those of all experts of a request, one after the other; missing ones are zero. The buffers grow if an
    expert is larger than any before, or if there are more requests.
    """

    def __init__(self, form: ExpertForm, width: int, device: torch.device, slots: int = 16):
        self.form = form
        self._u = torch.zeros(slots, 1, width, device=device)
        self._v = torch.zeros_like(self._u)
        self._weights = torch.zeros(slots, 1, device=device)
        self._free = list(range(slots))

    def take(self, routing: Routing) -> int:
        """The slot in which the experts of a request are kept from now on. routing: of this request alone."""
        u, v = routing.u[0].flatten(0, 1), routing.v[0].flatten(0, 1)
        weights = routing.weights[0].repeat_interleave(routing.u.shape[2]) * output_scale(self.form)
        self._make_room(len(u))
        slot = self._free.pop()
        for buffer, part in ((self._u, u), (self._v, v), (self._weights, weights)):
            buffer[slot] = 0.0
            buffer[slot, : len(part)] = part
        return slot

    def release(self, slot: int) -> None:
        """The request has ended."""
        self._free.append(slot)

    def residual(self, states: Float[Tensor, "tokens width"], slot: int) -> Float[Tensor, "tokens width"]:
        """What the experts of one request add to the hidden states of its tokens (equation 6)."""
        active = F.relu(self._input(states) @ self._u[slot].T)
        return (active * self._weights[slot]) @ self._v[slot]

    def residual_of_each(
        self, states: Float[Tensor, "tokens width"], slots: Int64[Tensor, " tokens"]
    ) -> Float[Tensor, "tokens width"]:
        """As `residual`, for one token of each of several requests."""
        active = F.relu(torch.bmm(self._u[slots], self._input(states)[..., None]))[..., 0]
        return torch.bmm((active * self._weights[slots])[:, None], self._v[slots])[:, 0]

    def _input(self, states: Tensor) -> Tensor:
        precise = states.to(self._u.dtype)
        return F.layer_norm(precise, precise.shape[-1:]) if self.form.expert_input == "normed" else precise

    def _make_room(self, rows: int) -> None:
        slots, present = self._weights.shape
        more_slots, more_rows = (0 if self._free else slots), max(0, rows - present)
        if not more_slots and not more_rows:
            return
        self._u = F.pad(self._u, (0, 0, 0, more_rows, 0, more_slots))
        self._v = F.pad(self._v, (0, 0, 0, more_rows, 0, more_slots))
        self._weights = F.pad(self._weights, (0, more_rows, 0, more_slots))
        self._free += range(slots, slots + more_slots)
