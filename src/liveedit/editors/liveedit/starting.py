"""How the modules start where hidden states are far from alike in their dimensions, as in large language models.

There a few dimensions are far larger than all others. LayerNorm then leaves little of the others, in which questions
and images differ.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones import HiddenTokens
from .modules import LiveEditModules

_LEAST_SPREAD = 1e-3
"""Dimensions that vary less are not enlarged further."""


@torch.no_grad()
def standardize(modules: LiveEditModules, tokens: HiddenTokens) -> None:
    """Set the LayerNorms of the sources so that their outputs have mean 0 and standard deviation 1 in each dimension.

    tokens: inputs of the training, with images, for which this holds. The sentinel takes mean and standard deviation of
    the image's tokens.
    """
    states = tokens.hidden_states
    image, prompt = states[tokens.image_mask], states[tokens.prompt_mask]
    for extractor in (modules.hat, modules.bar):
        if extractor.attend_phi1 is not None:
            _standardize(extractor.attend_phi1.source_norms[0], prompt)
        _standardize(extractor.attend_phi2.source_norms[0], image)
        _standardize(extractor.attend_psi.source_norms[0], prompt)
    read = states[tokens.image_mask | tokens.text_mask]
    for attention in (modules.generator.attend_u, modules.generator.attend_v):
        _standardize(attention.source_norms[0], read)
    modules.sentinel.copy_(image.mean(0) + image.std(0) * modules.sentinel)


def _standardize(norm: nn.Module, rows: Float[Tensor, "tokens width"]) -> None:
    assert isinstance(norm, nn.LayerNorm)
    normed = F.layer_norm(rows.float(), rows.shape[-1:], eps=norm.eps)
    spread = normed.std(0).clamp(min=_LEAST_SPREAD)
    norm.weight.copy_(1 / spread)
    norm.bias.copy_(-normed.mean(0) / spread)
