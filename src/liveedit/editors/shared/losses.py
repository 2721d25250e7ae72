"""Losses that several methods are trained with, in nats."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def answer_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """`-log f(o | v, p)`, averaged over answer tokens (equations 9 and 10), in nats."""
    return F.cross_entropy(logits.float(), targets)


def locality_kl(base_logits: Tensor, edited_logits: Tensor, exchanged: bool = False) -> Tensor:
    """`KL(f || f_edited)` per answer token (equation 11), in nats; `exchanged` as in the released code."""
    base, edited = base_logits.float().log_softmax(-1), edited_logits.float().log_softmax(-1)
    first, second = (edited, base) if exchanged else (base, edited)
    return F.kl_div(second, first, log_target=True, reduction="batchmean")
