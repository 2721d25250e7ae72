"""Generator and feature extractors: equations 1 to 4 of the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones.tokens import HiddenTokens
from ...experts import LowRankExpert
from ..shared.attention import CrossAttention, Source, left_pack
from ..shared.routing import QueryFeatures
from .config import LiveEditConfig


class ExpertGenerator(nn.Module):
    """`U = CA_U(U0, [h_v; h_p; h_o])`, `V = CA_V(V0, [h_v; h_p; h_o])` (equation 1).

    h_v, h_p, h_o: hidden states of image, prompt and answer at the edit layer. U0, V0: trained, (r, d_m). U, V: (r, d),
    one pair per edit. With `answer_source` other than "states" the answer's word embeddings, each with a trained
    vector for its position and one for the answer's length, are a second source with key and value matrices of their
    own: a departure from the paper.
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
        if config.value_start is not None:
            for weight in self.attend_v.values.parameters():
                if weight.ndim == 2:
                    weight.data.copy_(config.value_start * torch.eye(*weight.shape))
        if embedded:
            self.slots = nn.Embedding(config.answer_slots, config.width)
            self.lengths = nn.Embedding(config.answer_slots, config.width)
            nn.init.normal_(self.slots.weight, std=0.5)
            nn.init.normal_(self.lengths.weight, std=0.5)

    def forward(self, tokens: HiddenTokens) -> tuple[Float[Tensor, "batch r d"], Float[Tensor, "batch r d"]]:
        """U and V of a batch of edits. Raises `InvalidInputError` if word embeddings are needed and missing."""
        read = tokens.image_mask | tokens.prompt_mask
        if self.config.answer_source != "embeddings":
            read = read | tokens.answer_mask
        sources: list[Source] = [(tokens.hidden_states, read)]
        if self.config.answer_source != "states":
            sources.append(self._answer(tokens))
        batch = len(tokens)
        u = self.attend_u(self.u0.expand(batch, -1, -1), sources)
        v = self.attend_v(self.v0.expand(batch, -1, -1), sources)
        return u, v

    def _answer(self, tokens: HiddenTokens) -> Source:
        """The answer's embeddings, moved to the front, with the vectors of their positions and of their number."""
        embeddings, present = left_pack(tokens.embeddings, tokens.answer_mask)
        embeddings = F.layer_norm(embeddings.to(self.slots.weight.dtype), embeddings.shape[-1:])
        last = self.config.answer_slots - 1
        position = torch.arange(present.shape[1], device=embeddings.device).clamp(max=last)
        length = (present.sum(1, keepdim=True) - 1).clamp(0, last)
        return embeddings + self.slots(position) + self.lengths(length), present


class FeatureExtractor(nn.Module):
    """`phi = CA_phi2(CA_phi1(phi0, h_p), h_v)` and `psi = CA_psi(psi0, h_p)` (equation 3).

    phi: what in the image the prompt asks about; psi: the prompt alone; both (k d_m,). Without `hard_prompt`, phi =
    CA_phi2(phi0, h_v) does not depend on the prompt ("HR*" of the paper's table 2), and there is no CA_phi1.
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

    def asked(self, prompt: Source) -> Float[Tensor, "batch parts part_width"]:
        """`CA_phi1(phi0, h_p)`: what the prompt asks for; phi0 without `hard_prompt`."""
        start = self.phi0.expand(len(prompt[0]), -1, -1)
        return start if self.attend_phi1 is None else self.attend_phi1(start, [prompt])

    def visual(
        self, asked: Float[Tensor, "batch parts part_width"], image: Source
    ) -> Float[Tensor, "batch feature_width"]:
        """phi: the part of the image that the prompt asks for."""
        return self._finish(self.attend_phi2(asked, [image]))

    def attribution(
        self, asked: Float[Tensor, "batch parts part_width"], image: Source
    ) -> Float[Tensor, "batch tokens"]:
        """Share of each image token in phi: the attention of CA_phi2. Each row sums to 1.

        Averaged over heads and over the feature vectors (one in the paper's form, k with `features="set"`).
        """
        return self.attend_phi2.weights(asked, [image]).float().mean((1, 2))

    def visual_shared(
        self, asked: Float[Tensor, "batch parts part_width"], image: Float[Tensor, "1 tokens d"]
    ) -> Float[Tensor, "batch feature_width"]:
        """phi of one image that all rows share: its keys and values are computed once."""
        read = self.attend_phi2(asked.flatten(0, 1)[None], [(image, image.new_ones(image.shape[:2]).bool())])
        return self._finish(read[0].unflatten(0, asked.shape[:2]))

    def prompt(self, prompt: Source) -> Float[Tensor, "batch feature_width"]:
        """psi: the prompt."""
        return self._finish(self.attend_psi(self.psi0.expand(len(prompt[0]), -1, -1), [prompt]))

    def _finish(self, feature: Tensor) -> Tensor:
        feature = feature.flatten(1).float()
        return F.normalize(feature, dim=-1) if self.config.similarity == "cosine" else feature


@dataclass(frozen=True)
class EditFeatures:
    """Experts U, V of a batch of edits, and their features phi_hat (visual) and psi_hat (prompt)."""

    u: Float[Tensor, "batch r d"]
    v: Float[Tensor, "batch r d"]
    visual: Float[Tensor, "batch feature_width"]
    prompt: Float[Tensor, "batch feature_width"]


class LiveEditModules(nn.Module):
    """Everything that is trained: the generator, two feature extractors and the sentinel.

    hat: the extractor of edits; bar: the extractor of queries, as the paper writes their features.
    """

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

    def edit(self, tokens: HiddenTokens) -> EditFeatures:
        """Experts and features of edits, in one pass."""
        u, v = self.generator(tokens)
        visual, prompt = self.edit_features(tokens)
        return EditFeatures(u, v, visual, prompt)

    def experts(self, tokens: HiddenTokens) -> list[LowRankExpert]:
        """One expert for each edit of a batch, in one pass."""
        made = self.edit(tokens)
        parts: tuple[Tensor, ...] = (made.u, made.v, made.visual, made.prompt, self.query_features(tokens))
        return [LowRankExpert(*(part[row].clone() for part in parts)) for row in range(len(tokens))]

    def edit_features(
        self, tokens: HiddenTokens
    ) -> tuple[Float[Tensor, "batch feature_width"], Float[Tensor, "batch feature_width"]]:
        """phi_hat and psi_hat (equation 3)."""
        prompt = left_pack(tokens.hidden_states, tokens.prompt_mask)
        image = left_pack(tokens.hidden_states, tokens.image_mask)
        return self.hat.visual(self.hat.asked(prompt), image), self.hat.prompt(prompt)

    def prompt_features(self, tokens: HiddenTokens) -> Float[Tensor, "batch feature_width"]:
        """psi_hat alone (equation 3): what `edit_features` gives second."""
        return self.hat.prompt(left_pack(tokens.hidden_states, tokens.prompt_mask))

    def query_features(self, tokens: HiddenTokens) -> Float[Tensor, "batch feature_width"]:
        """phi_bar of the questions alone (equation 4): what `query` gives as `visual`."""
        prompt = left_pack(tokens.hidden_states, tokens.prompt_mask)
        return self.bar.visual(self.bar.asked(prompt), left_pack(tokens.hidden_states, tokens.image_mask))

    def query(self, tokens: HiddenTokens) -> QueryFeatures:
        """Features of queries, and of the sentinel under the same prompts (equations 4 and 5)."""
        prompt = left_pack(tokens.hidden_states, tokens.prompt_mask)
        asked = self.bar.asked(prompt)
        visual = self.bar.visual(asked, left_pack(tokens.hidden_states, tokens.image_mask))
        sentinel = self.bar.visual_shared(asked, self.sentinel.to(tokens.hidden_states.dtype)[None])
        return QueryFeatures(visual, self._raised(sentinel, visual), self.bar.prompt(prompt))

    def _raised(
        self, sentinel: Float[Tensor, "batch feature_width"], query: Float[Tensor, "batch feature_width"]
    ) -> Float[Tensor, "batch feature_width"]:
        """The sentinel, moved along the query so far that it is more similar to it by `visual_threshold`."""
        if not self.config.visual_threshold:
            return sentinel
        squared = query.square().sum(-1, keepdim=True)
        moved = sentinel + self.config.visual_threshold / self.visual_scale / squared * query
        return torch.where(squared > 0, moved, sentinel)  # Without norm, that of a query without an image is 0.

    def visual_score(
        self, query: Float[Tensor, "*#batch feature_width"], edit: Float[Tensor, "*#batch feature_width"]
    ) -> Float[Tensor, "*batch"]:
        """Similarity of visual features of queries and edits, along the last dimension."""
        return (query * edit).sum(-1) * self.visual_scale

    def prompt_score(
        self, query: Float[Tensor, "*#batch feature_width"], edit: Float[Tensor, "*#batch feature_width"]
    ) -> Float[Tensor, "*batch"]:
        """Similarity s of prompt features of queries and edits, along the last dimension."""
        return (query * edit).sum(-1) * self.prompt_scale - self.prompt_shift

    @property
    def visual_scale(self) -> Tensor | float:
        """Factor on a dot product of visual features: 1 / sqrt(d_m) in the paper."""
        return self.visual_temperature.exp() if self.config.similarity == "cosine" else self._dot_scale

    @property
    def prompt_scale(self) -> Tensor | float:
        """Factor on a dot product of prompt features: 1 / sqrt(d_m) in the paper."""
        return self.prompt_temperature.exp() if self.config.similarity == "cosine" else self._dot_scale

    @property
    def prompt_shift(self) -> Tensor:
        """What is subtracted from s: trained with cosines, and the calibrated `prompt_threshold`."""
        return self.prompt_offset + self.config.prompt_threshold

    @property
    def _dot_scale(self) -> float:
        averaged = self.config.feature_parts if self.config.features == "set" else 1
        return 1 / (averaged * math.sqrt(self.config.module_width))
