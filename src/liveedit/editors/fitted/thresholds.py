"""Thresholds of a calibration: how similar features are that should not match.

Each is measured under a whitening that the features were not part of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .text_similarity import main_tokens, token_similarity
from .whitening import Whitening, content_of

_SAME_THING: Final = 0.7
"""Of two images of a calibration whose contents are more similar than this, one counts: they show the same thing."""

_UNKNOWN_QUESTIONS: Final = 0.75
"""The least similarity of readings in a model that does not know the calibration's questions: wordings that it knows
are more similar."""


def least_text_similarity(
    questions: Sequence[Float[Tensor, "tokens width"]],
    shape: tuple[int, int, int],
    whitening: Whitening,
    false_firing: float,
) -> float:
    """The similarity that all but a share of the hard questions stay below, to all hard questions of the same relation
    about something else.

    questions: the tokens of each. shape: relations, subjects, wordings.
    """
    found = [main_tokens(whitening(tokens)) for tokens in questions]
    tokens, weights = (torch.stack(part).unflatten(0, shape) for part in zip(*found, strict=True))
    nearest = []
    for relation, weight in zip(tokens, weights, strict=True):
        cosines = torch.einsum("swkd,txld->swtxkl", relation, relation)
        similar = token_similarity(cosines, weight[:, :, None, None], weight)
        for subject in range(len(relation)):
            similar[subject, :, subject] = -1.0
        nearest.append(similar.flatten(2).amax(-1).flatten())
    return float(torch.cat(nearest).quantile(1 - false_firing))


def least_image_similarity(images: Sequence[Float[Tensor, "tokens width"]], matches: float) -> float:
    """The similarity of contents that all but a share of the pairs of images stay below. images: the tokens of each."""
    half = len(images) // 2
    pairs = []
    for known, tested in ((images[:half], images[half:]), (images[half:], images[:half])):
        whitening = Whitening.of(torch.cat(list(known)))
        contents = _of_different_things(torch.stack([content_of(whitening(tokens)) for tokens in tested]))
        first, second = torch.triu_indices(len(contents), len(contents), offset=1)
        pairs.append((contents[first] * contents[second]).sum(-1))
    return float(torch.cat(pairs).quantile(1 - matches))


def _of_different_things(contents: Float[Tensor, "images width"]) -> Float[Tensor, "kept width"]:
    """The contents without those of a thing that an earlier image shows."""
    kept: list[int] = []
    for number, content in enumerate(contents):
        if not kept or float((contents[kept] @ content).max()) < _SAME_THING:
            kept.append(number)
    return contents[kept]


def least_reading(readings: Float[Tensor, "images questions wordings width"], matches: float) -> float:
    """The similarity of readings that all but a share of the pairs of different questions about the same image stay
    below; `_UNKNOWN_QUESTIONS` if most pairs of wordings of one question stay below as well."""
    same, different = [], []
    for known, tested in ((0, 1), (1, 0)):
        whitened = F.normalize(Whitening.of_wordings(readings[:, known::2])(readings[:, tested::2]), dim=-1)
        cosines = torch.einsum("irwd,isvd->rsiwv", whitened, whitened)
        one_question = torch.eye(len(cosines), dtype=torch.bool)
        other_wording = ~torch.eye(cosines.shape[-1], dtype=torch.bool)
        same.append(cosines[one_question][..., other_wording].flatten())
        different.append(cosines[~one_question].flatten())
    least = float(torch.cat(different).quantile(1 - matches))
    return least if float(torch.cat(same).median()) > least else _UNKNOWN_QUESTIONS
