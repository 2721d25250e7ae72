"""Generator and feature extractors: equations 1 to 4 of the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...experts import LowRankExpert
from .config import LiveEditConfig

Source = tuple[Tensor, Tensor]
"""Tokens (batch, length, width) and which of them count, (batch, length) booleans."""


class CrossAttention(nn.Module):
    """`CA(x, y) = softmax(x Wq (y Wk)^T / sqrt(d_k)) y Wv` (equation 2).

    Several heads, LayerNorm on queries and sources, biases and an output projection are switched on by `heads`
    and `norm`. Each source has key and value matrices of its own; attention runs over all sources together.
    """

    def __init__(
        self,
        query_width: int,
        source_widths: Sequence[int],
        key_width: int,
        value_width: int,
        heads: int,
        norm: bool,
    ):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(query_width, key_width, bias=norm)
        self.keys = nn.ModuleList(nn.Linear(width, key_width, bias=norm) for width in source_widths)
        self.values = nn.ModuleList(nn.Linear(width, value_width, bias=norm) for width in source_widths)
        self.query_norm = nn.LayerNorm(query_width) if norm else nn.Identity()
        self.source_norms = nn.ModuleList(nn.LayerNorm(width) if norm else nn.Identity() for width in source_widths)
        self.output = nn.Linear(value_width, value_width) if norm else nn.Identity()

    def forward(self, x: Tensor, sources: Sequence[Source]) -> Tensor:
        """x: (batch, queries, query width) -> (batch, queries, value width)."""
        normed = self._normed(sources)
        weights = self._weights(x, normed, [counts for _, counts in sources])
        value = self._split(_joined([layer(tokens) for layer, tokens in zip(self.values, normed, strict=True)]))
        return self.output((weights @ value).transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, sources: Sequence[Source]) -> Tensor:
        """softmax(x Wq (y Wk)^T / sqrt(d_k)): how much is read of each token, (batch, heads, queries, all tokens).

        Sums to 1 over the tokens that count; 0 for all others, and throughout where none counts.
        """
        return self._weights(x, self._normed(sources), [counts for _, counts in sources])

    def _normed(self, sources: Sequence[Source]) -> list[Tensor]:
        return [norm(tokens) for norm, (tokens, _) in zip(self.source_norms, sources, strict=True)]

    def _weights(self, x: Tensor, normed: list[Tensor], counts: list[Tensor]) -> Tensor:
        query = self._split(self.query(self.query_norm(x)))
        key = self._split(_joined([layer(tokens) for layer, tokens in zip(self.keys, normed, strict=True)]))
        mask = _joined(counts)[:, None, None, :]
        scores = query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        # A row whose sources are all masked (no answer, no image) reads nothing rather than everything.
        return scores.softmax(-1) * mask

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def left_pack(tokens: Tensor, counts: Tensor) -> Source:
    """The tokens that count, moved to the front in their order, as long as the longest row needs.

    Attention reads the same from them as from all tokens, without keys and values for those that do not count.
    """
    longest = max(1, int(counts.sum(1).max()))
    if longest == counts.shape[1]:
        return tokens, counts
    order = torch.argsort(counts.int(), dim=1, descending=True, stable=True)[:, :longest]
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1])), counts.gather(1, order)


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


@dataclass(frozen=True)
class TokenStates:
    """States at the edit layer with the kinds of their tokens.

    states: (batch, length, d). image, prompt, answer: (batch, length) booleans. embeddings: (batch, length, d), the
    word embeddings of the same tokens.
    """

    states: Tensor
    image: Tensor
    prompt: Tensor
    answer: Tensor
    embeddings: Tensor

    @property
    def text(self) -> Tensor:
        """Prompt and answer."""
        return self.prompt | self.answer

    def __len__(self) -> int:
        return len(self.states)


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
