"""A backbone without weights, for models that another engine runs: it knows tokens, families and layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from ..errors import BackboneError
from .backbone import Backbone
from .loading import import_towers, kind_of, located


class _Place(nn.Module):
    """Stands where a decoder layer is, on its device, and hands on what it is given. Editors put their hooks on it."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.place = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


def weightless_backbone(name: str, device: torch.device, digest: str = "") -> Backbone:
    """The backbone of this name, with its processor and its configuration. Its layers compute nothing.

    device: where the other engine computes hidden states. digest: that of the model itself, of which no weight is read
    here. Raises `BackboneError` as `load_backbone` does, and for a GGUF file.
    """
    source = located(name)
    if source.gguf is not None:
        raise BackboneError(f"{name} is a GGUF file. Give the folder of a transformers checkpoint.")
    import_towers(source.place)
    config = AutoConfig.from_pretrained(source.place)
    kind = kind_of(name, config)
    auto = AutoModelForImageTextToText if kind.reads_images else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    # Never read, but inputs are sent to where they are.
    model.get_input_embeddings().to_empty(device="cpu")
    backbone = kind(name, model, kind.load_processor(source.place))
    for number in range(len(backbone.layers)):
        backbone.layers[number] = _Place(device)
    backbone.known_digest = digest
    return backbone
