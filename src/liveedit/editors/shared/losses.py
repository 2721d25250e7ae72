"""Losses that several methods are trained with, in nats."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def answer_nll(logits: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"]) -> Float[Tensor, ""]:
    """`-log f(o | v, p)`, averaged over answer tokens (LiveEdit, equations 9 and 10), in nats."""
    return F.cross_entropy(logits.float(), targets)


def locality_kl(
    base_logits: Float[Tensor, "tokens vocabulary"],
    edited_logits: Float[Tensor, "tokens vocabulary"],
    exchanged: bool = False,
) -> Float[Tensor, ""]:
    """`KL(f || f_edited)` per answer token (LiveEdit, equation 11), in nats; `exchanged` as in the released code."""
    base, edited = base_logits.float().log_softmax(-1), edited_logits.float().log_softmax(-1)
    first, second = (edited, base) if exchanged else (base, edited)
    return F.kl_div(second, first, log_target=True, reduction="batchmean")
