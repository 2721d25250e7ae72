"""Generator and feature extractors: equations 1 to 4 of the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...experts import LowRankExpert
from ..shared.attention import CrossAttention, Source, left_pack
from ..shared.question_encoder import TokenStates
from .config import LiveEditConfig


class ExpertGenerator(nn.Module):
    """`U = CA_U(U0, [h_v; h_p; h_o])`, `V = CA_V(V0, [h_v; h_p; h_o])` (equation 1).

    U0, V0: trained, (r, d_m). U, V: (r, d), one pair per edit. With `answer_source` other than "states" the
    answer's word embeddings, each with a trained slot for its position and one for the answer's length, are a
    second source with key and value matrices of their own: a departure from the paper.
    """

    def __init__(self, config: LiveEditConfig):
        super().__init__()
        self.config = config
        embedded = config.answer_source != "states"
        widths = [config.width] * (2 if embedded else 1)
        self.u0 = nn.Parameter(torch.randn(config.rank, config.module_width) / math.sqrt(config.module_width))
        self.v0 = nn.Parameter(torch.randn(config.rank, config.module_width) / math.sqrt(config.module_width))
        shape = (config.module_width, widths, config.module_width, config.width, config.heads, config.norm)
        self.attend_u, self.attend_v = CrossAttention(*shape), CrossAttention(*shape)
        if embedded:
            self.slots = nn.Embedding(config.answer_slots, config.width)
            self.lengths = nn.Embedding(config.answer_slots, config.width)
            nn.init.normal_(self.slots.weight, std=0.5)
            nn.init.normal_(self.lengths.weight, std=0.5)

    def forward(
        self, states: Tensor, image: Tensor, prompt: Tensor, answer: Tensor, embeddings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """states, embeddings: (batch, length, d); masks: (batch, length). Returns U and V, (batch, r, d)."""
        seen = image | prompt | answer
        if self.config.answer_source == "embeddings":
            seen = image | prompt
        sources: list[Source] = [(states, seen)]
        if self.config.answer_source != "states":
            sources.append(self._answer(embeddings, answer))
        batch = len(states)
        u = self.attend_u(self.u0.expand(batch, -1, -1), sources)
        v = self.attend_v(self.v0.expand(batch, -1, -1), sources)
        return u, v

    def _answer(self, embeddings: Tensor, answer: Tensor) -> Source:
        """The answer's embeddings, gathered to the front, with their slots."""
        tokens, present = left_pack(embeddings, answer)
        tokens = F.layer_norm(tokens.to(self.slots.weight.dtype), tokens.shape[-1:])
        last = self.config.answer_slots - 1
        position = torch.arange(present.shape[1], device=tokens.device).clamp(max=last)
        length = (present.sum(1, keepdim=True) - 1).clamp(0, last)
        return tokens + self.slots(position) + self.lengths(length), present


class FeatureExtractor(nn.Module):
    """`phi = CA_phi2(CA_phi1(phi0, h_p), h_v)` and `psi = CA_psi(psi0, h_p)` (equation 3).

    phi: what in the image the prompt asks about; psi: the prompt alone; both (k d_m,). Without `hard_prompt`, phi =
    CA_phi2(phi0, h_v), whatever is asked ("HR*" of the paper's table 2), and there is no CA_phi1.
    """

    def __init__(self, config: LiveEditConfig):
        super().__init__()
        self.config = config
        whole = config.feature_parts * config.module_width
        parts, part = (1, whole) if config.features == "vector" else (config.feature_parts, config.module_width)
        shape = (part, [config.width], config.module_width, part, config.heads, config.norm)
        self.phi0 = nn.Parameter(torch.randn(parts, part) / math.sqrt(config.module_width))
        self.psi0 = nn.Parameter(torch.randn(parts, part) / math.sqrt(config.module_width))
        self.attend_phi1 = CrossAttention(*shape) if config.hard_prompt else None
        self.attend_phi2 = CrossAttention(*shape)
        self.attend_psi = CrossAttention(*shape)

    def asked(self, prompt: Source) -> Tensor:
        """`CA_phi1(phi0, h_p)`: what the prompt asks for, (batch, parts, part width); phi0 without `hard_prompt`."""
        start = self.phi0.expand(len(prompt[0]), -1, -1)
        return start if self.attend_phi1 is None else self.attend_phi1(start, [prompt])

    def visual(self, asked: Tensor, image: Source) -> Tensor:
        """phi: the asked-for part of the image, (batch, k d_m)."""
        return self._finish(self.attend_phi2(asked, [image]))

    def looked_at(self, asked: Tensor, image: Source) -> Tensor:
        """Shares of the image tokens in phi, (batch, tokens): the attention of CA_phi2, each row summing to 1.

        Averaged over heads and over the feature vectors (one in the paper's form, k with `features="set"`).
        """
        return self.attend_phi2.weights(asked, [image]).float().mean((1, 2))

    def visual_shared(self, asked: Tensor, image: Tensor) -> Tensor:
        """phi of one image, (1, tokens, d), that all rows share: its keys and values are made once."""
        read = self.attend_phi2(asked.flatten(0, 1)[None], [(image, image.new_ones(image.shape[:2]).bool())])
        return self._finish(read[0].unflatten(0, asked.shape[:2]))

    def prompt(self, prompt: Source) -> Tensor:
        """psi: the prompt, (batch, k d_m)."""
        return self._finish(self.attend_psi(self.psi0.expand(len(prompt[0]), -1, -1), [prompt]))

    def _finish(self, feature: Tensor) -> Tensor:
        feature = feature.flatten(1).float()
        return F.normalize(feature, dim=-1) if self.config.similarity == "cosine" else feature


@dataclass(frozen=True)
class EditFeatures:
    """What the editor makes of a batch of edits: U, V (batch, r, d); phi_hat, psi_hat (batch, k d_m)."""

    u: Tensor
    v: Tensor
    visual: Tensor
    prompt: Tensor


def split_experts(features: EditFeatures) -> list[LowRankExpert]:
    """One expert for each edit of a batch."""
    parts: tuple[Tensor, ...] = (features.u, features.v, features.visual, features.prompt)
    return [LowRankExpert(*(part[row].clone() for part in parts)) for row in range(len(features.u))]


@dataclass(frozen=True)
class QueryFeatures:
    """What the editor makes of a batch of queries: phi_bar, phi_bar of the sentinel, psi_bar, (batch, k d_m)."""

    visual: Tensor
    sentinel: Tensor
    prompt: Tensor


class LiveEditModules(nn.Module):
    """All that is trained: generator, the extractors at edit time (`hat`) and query time (`bar`), the sentinel."""

    def __init__(self, config: LiveEditConfig):
        super().__init__()
        self.config = config
        self.generator = ExpertGenerator(config)
        self.hat, self.bar = FeatureExtractor(config), FeatureExtractor(config)
        self.sentinel = nn.Parameter(torch.randn(config.image_tokens, config.width))
        cosine = config.similarity == "cosine"
        self.visual_temperature = nn.Parameter(torch.tensor(3.0), requires_grad=cosine)
        self.prompt_temperature = nn.Parameter(torch.tensor(3.0), requires_grad=cosine)
        self.prompt_offset = nn.Parameter(torch.tensor(0.0), requires_grad=cosine)

    def edit(self, tokens: TokenStates) -> EditFeatures:
        """Experts and edit-time features of edits, in one pass."""
        u, v = self.generator(tokens.states, tokens.image, tokens.prompt, tokens.answer, tokens.embeddings)
        visual, prompt = self.edit_features(tokens)
        return EditFeatures(u, v, visual, prompt)

    def edit_features(self, tokens: TokenStates) -> tuple[Tensor, Tensor]:
        """phi_hat and psi_hat."""
        prompt, image = left_pack(tokens.states, tokens.prompt), left_pack(tokens.states, tokens.image)
        return self.hat.visual(self.hat.asked(prompt), image), self.hat.prompt(prompt)

    def query(self, tokens: TokenStates) -> QueryFeatures:
        """Query-time features and the sentinel's, which sees the same prompt (equations 4 and 5)."""
        prompt = left_pack(tokens.states, tokens.prompt)
        asked = self.bar.asked(prompt)
        return QueryFeatures(
            self.bar.visual(asked, left_pack(tokens.states, tokens.image)),
            self.bar.visual_shared(asked, self.sentinel.to(tokens.states.dtype)[None]),
            self.bar.prompt(prompt),
        )

    def visual_score(self, bar: Tensor, hat: Tensor) -> Tensor:
        """Similarity of visual features along the last dimension, broadcast over the others."""
        return (bar * hat).sum(-1) * self.visual_scale

    def prompt_score(self, bar: Tensor, hat: Tensor) -> Tensor:
        """Similarity s of prompt features along the last dimension, broadcast over the others."""
        return (bar * hat).sum(-1) * self.prompt_scale - self.prompt_offset

    @property
    def visual_scale(self) -> Tensor | float:
        """Factor on a dot product of visual features: 1 / sqrt(d_m) in the paper."""
        return self.visual_temperature.exp() if self.config.similarity == "cosine" else self._dot_scale

    @property
    def prompt_scale(self) -> Tensor | float:
        """Factor on a dot product of prompt features: 1 / sqrt(d_m) in the paper."""
        return self.prompt_temperature.exp() if self.config.similarity == "cosine" else self._dot_scale

    @property
    def _dot_scale(self) -> float:
        averaged = self.config.feature_parts if self.config.features == "set" else 1
        return 1 / (averaged * math.sqrt(self.config.module_width))
