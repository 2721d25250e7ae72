"""First stage: the vision tower learns what an image shows, supervised by the scene.

Heads read a patch's own token for what lies in that patch (hat, things) and the mean of all tokens for the
rest. The emblem is predicted cell by cell, so that a creature which was never shown is seen as well as a known
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..datasets.world import catalog
from ..datasets.world.scene import Scene

_COLORS, _NOTHING = tuple(catalog.COLORS), len(catalog.THINGS)
_GLOBAL_HEADS = {
    "color": len(_COLORS),
    "legs": len(catalog.LEGS),
    "background": len(catalog.BACKGROUNDS),
    "pattern": len(catalog.PATTERNS),
    "side": len(catalog.SIDES),
    "known": catalog.KNOWN_CREATURES,
}


def use_linear_patches(vision_tower: Any) -> None:
    """Embed patches by one matrix product instead of a convolution: the same results, faster on CPUs."""
    convolution = vision_tower.embeddings.patch_embedding
    patch = convolution.kernel_size[0]

    def forward(self: nn.Conv2d, pixels: Tensor) -> Tensor:
        batch, channels, height, width = pixels.shape
        grid = pixels.view(batch, channels, height // patch, patch, width // patch, patch)
        flat = grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)
        embedded = F.linear(flat, self.weight.flatten(1), self.bias)
        return embedded.transpose(1, 2).reshape(batch, -1, height // patch, width // patch)

    convolution.forward = MethodType(forward, convolution)


def use_convolved_patches(vision_tower: Any) -> None:
    """Undo `use_linear_patches`."""
    del vision_tower.embeddings.patch_embedding.forward


class VisionTargets:
    """Targets of the heads for each of a batch of scenes; -100 if a head has none."""

    def __init__(self, scenes: Sequence[Scene]):
        self.emblem = torch.tensor(np.stack([scene.creature.cells.reshape(-1) for scene in scenes])).float()
        self.flat = {
            "color": _indices(_COLORS, (scene.color for scene in scenes)),
            "legs": torch.tensor([scene.legs - 2 for scene in scenes]),
            "background": _indices(tuple(catalog.BACKGROUNDS), (scene.background for scene in scenes)),
            "pattern": _indices(catalog.PATTERNS, (scene.pattern for scene in scenes)),
            "side": _indices(catalog.SIDES, (scene.side for scene in scenes)),
            "known": torch.tensor([_known_index(scene) for scene in scenes]),
        }
        self.hat_token = torch.tensor([hat_token(scene) for scene in scenes])
        self.hat = _indices(catalog.HATS, (scene.hat for scene in scenes))
        self.hat_color = _indices(_COLORS, (scene.hat_color for scene in scenes))
        self.thing_tokens = torch.tensor([[thing_token(scene, slot) for slot in range(4)] for scene in scenes])
        self.thing = torch.full((len(scenes), 4), _NOTHING)
        self.thing_color = torch.full((len(scenes), 4), -100)
        for row, scene in enumerate(scenes):
            for thing in scene.things:
                self.thing[row, thing.slot] = catalog.THINGS.index(thing.shape)
                self.thing_color[row, thing.slot] = _COLORS.index(thing.color)


class VisionHeads(nn.Module):
    """Linear heads on image tokens, dropped after the first stage."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.emblem = nn.Linear(width, catalog.EMBLEM_CELLS)
        self.flat = nn.ModuleDict({name: nn.Linear(width, size) for name, size in _GLOBAL_HEADS.items()})
        self.hat = nn.Linear(width, len(catalog.HATS))
        self.hat_color = nn.Linear(width, len(_COLORS))
        self.thing = nn.Linear(width, len(catalog.THINGS) + 1)
        self.thing_color = nn.Linear(width, len(_COLORS))

    def forward(self, tokens: Tensor, targets: VisionTargets) -> tuple[Tensor, dict[str, float]]:
        """Sum of all losses over tokens (batch, 16, width), and the accuracy of each head in percent."""
        tokens = self.norm(tokens)
        mean = tokens.mean(1)
        rows = torch.arange(len(tokens))[:, None]
        hats = tokens[rows[:, 0], targets.hat_token]
        things = tokens[rows, targets.thing_tokens].flatten(0, 1)
        emblem = self.emblem(mean)
        heads = {name: (head(mean), targets.flat[name]) for name, head in self.flat.items()}
        heads["hat"] = (self.hat(hats), targets.hat)
        heads["hat_color"] = (self.hat_color(hats), targets.hat_color)
        heads["thing"] = (self.thing(things), targets.thing.flatten())
        heads["thing_color"] = (self.thing_color(things), targets.thing_color.flatten())
        losses = [F.cross_entropy(logits, wanted) for logits, wanted in heads.values()]
        loss = torch.stack(losses).sum() + 4 * F.binary_cross_entropy_with_logits(emblem, targets.emblem)
        accuracy = {name: _percent(logits, wanted) for name, (logits, wanted) in heads.items()}
        accuracy["emblem"] = 100 * ((emblem > 0) == targets.emblem.bool()).all(-1).float().mean().item()
        return loss, accuracy


def hat_token(scene: Scene) -> int:
    """Index of the image token that holds the hat."""
    return 1 if scene.side == "left" else 2


def thing_token(scene: Scene, slot: int) -> int:
    """Index of the image token that holds the thing of this slot."""
    return 4 * slot + (3 if scene.side == "left" else 0)


def _known_index(scene: Scene) -> int:
    return int(scene.creature.key.removeprefix("known-")) if scene.creature.key.startswith("known-") else -100


def _indices(options: Sequence[str], values) -> Tensor:
    return torch.tensor([options.index(value) for value in values])


def _percent(logits: Tensor, wanted: Tensor) -> float:
    asked = wanted >= 0
    return 100 * (logits.argmax(-1) == wanted)[asked].float().mean().item() if asked.any() else 100.0
