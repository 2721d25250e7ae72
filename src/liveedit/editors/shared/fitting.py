"""Gradient steps on one expert until its edit is right, through the layers after the edit layer alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from ...backbones import Backbone, HiddenTokens, TokenBatch
from ...backbones.kept_prompt import KeptPrompt
from ...progress import report_step
from .routing import ExpertForm, changed_tokens, expert_residual, output_scale

_GATE_ELSEWHERE = -0.2
"""What the input of a gate is regressed on at other positions than its own; at its own it is 1."""

_RIDGE = 1e-3
"""Regularisation of that regression, per position."""

_NEAR = 0.3
"""An edit is verified after a step in which all probabilities came this near to the wanted one: verifying costs half
a step."""


class FittingConfig(BaseModel):
    """How the expert of one edit is fitted by gradient steps, and when its answer is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=200, ge=0, description="Gradient steps at most; 0 takes none.")
    gate_rate: float = Field(
        default=0.02, gt=0, description="Learning rate on the U of a longer answer, relative to its spread."
    )
    value_rate: float = Field(
        default=0.3,
        gt=0,
        description="Learning rate on the V of a longer answer, relative to the spread of the hidden states.",
    )
    least_weight: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="Other wordings are fitted at random weights between this and 1, so that the answer does not "
        "depend on the weight.",
    )
    image_noise: float = Field(
        default=0.05,
        ge=0,
        description="Noise on the image tokens' hidden states, relative to their standard deviation.",
    )
    confidence: float = Field(
        default=0.8, gt=0, lt=1, description="The edit is right if each of its tokens has at least this probability."
    )
    answer_confidence: float = Field(
        default=0.7,
        ge=0,
        lt=1,
        description="If a token of an edited answer has less probability than this, the unedited model answers "
        "instead. 0 never asks it.",
    )


@dataclass(frozen=True)
class Passage:
    """Questions with one answer, encoded, and their hidden states at the edit layer. The edit's own question is first.

    Right-padded; every row has the same number of answer tokens.
    """

    inputs: TokenBatch
    tokens: HiddenTokens

    @property
    def answer_length(self) -> int:
        """Number of answer tokens, the end token included."""
        return int(self.inputs.answer_mask[0].sum())


@dataclass(frozen=True)
class _Suffix:
    """A passage with the hidden states that its later layers run from, and what they keep of its prompts."""

    passage: Passage
    states: Tensor
    kept: KeptPrompt | None


@dataclass(frozen=True)
class Start:
    """Where gradient steps start, and how far a step goes: Adam's learning rates of u and v."""

    u: Float[Tensor, "r d"]
    v: Float[Tensor, "r d"]
    rate_u: float
    rate_v: float


class Fitting:
    """Fits u and v of one edit.

    Hidden states at the edit layer are computed once; a step runs only the later layers, over all positions of an
    answer at once, and of the prompt only from the first token on that the expert changes (`KeptPrompt`). Each step
    takes one of the passages in turn, with noise on the image tokens that stays the same, and gives every row but the
    first a random weight, so that the answer does not depend on the weight that routing gives.
    """

    def __init__(self, backbone: Backbone, layer: int, form: ExpertForm, settings: FittingConfig):
        self.backbone, self.layer, self.form, self.settings = backbone, layer, form, settings

    def from_gates(self, passages: Sequence[Passage], elsewhere: Sequence[HiddenTokens]) -> Start:
        """A start for answers that are longer than a generated expert can hold: a row of u and v for each answer token.

        Row t of u is a gate for the position that predicts answer token t: by ridge regression its input is 1 there, in
        every wording, and below 0 at the other positions and at all text positions of `elsewhere`. v is 0: nothing is
        changed before the first step.
        """
        length = passages[0].answer_length
        own = torch.cat([self._normed(one.tokens)[one.inputs.predicting.to(self._device(one))] for one in passages])
        others = [self._normed(tokens)[self._changed(tokens)] for tokens in elsewhere]
        others += [
            self._normed(one.tokens)[self._changed(one.tokens) & ~one.inputs.predicting.to(self._device(one))]
            for one in passages
        ]
        rest = torch.cat(others)
        inputs = torch.cat([own, rest]).double()
        wanted = inputs.new_full((len(inputs), length), _GATE_ELSEWHERE)
        wanted[torch.arange(len(own)), torch.arange(len(own)) % length] = 1.0
        gates = _ridge_regression(inputs, wanted).T.float()
        # expert_residual multiplies by a fixed factor: without it a gate of 1 adds its row of v as it is.
        u = gates / output_scale(self.form)
        size = float(own.std()) if self.form.expert_input == "states" else float(passages[0].tokens.hidden_states.std())
        return Start(u, torch.zeros_like(u), self.settings.gate_rate * float(u.std()), self.settings.value_rate * size)

    def run(self, start: Start, passages: Sequence[Passage]) -> tuple[Tensor, Tensor, int]:
        """u, v and the number of steps: until every answer token is right in all passages, or `FittingConfig.steps`."""
        settings, generator = self.settings, torch.Generator(device=self.backbone.device).manual_seed(0)
        u, v = (part.clone() for part in (start.u, start.v))
        trained = [(part.requires_grad_(), rate) for part, rate in ((u, start.rate_u), (v, start.rate_v)) if rate > 0]
        optimizer = torch.optim.Adam([{"params": [part], "lr": rate} for part, rate in trained], betas=(0.9, 0.99))
        clean = [self._suffix(passage, passage.tokens.hidden_states) for passage in passages]
        noisy = [self._noisy(suffix, generator) for suffix in clean]
        for step in range(settings.steps):
            loss, lowest = self._loss(noisy[step % len(noisy)], u, v, generator)
            optimizer.zero_grad()
            loss.backward()
            for group, (_, rate) in zip(optimizer.param_groups, trained, strict=True):
                group["lr"] = rate * _schedule(step, settings.steps)
            optimizer.step()
            report_step(step + 1, settings.steps)
            if lowest >= settings.confidence - _NEAR:
                following = (clean[(step + 1 + more) % len(clean)] for more in range(len(clean)))
                if all(self._is_right(one, u.detach(), v.detach()) for one in following):
                    return u.detach(), v.detach(), step + 1
        return u.detach(), v.detach(), settings.steps

    @torch.no_grad()
    def is_right(self, passage: Passage, u: Tensor, v: Tensor) -> bool:
        """Whether every answer token of the passage has at least `FittingConfig.confidence`, at weight 1."""
        return self._is_right(self._suffix(passage, passage.tokens.hidden_states), u, v)

    @torch.no_grad()
    def _is_right(self, suffix: _Suffix, u: Tensor, v: Tensor) -> bool:
        states = suffix.states
        log_likelihood = -self._losses(suffix, u, v, states.new_ones(len(states), 1))
        return bool((log_likelihood.exp() >= self.settings.confidence).all())

    def _loss(self, suffix: _Suffix, u: Tensor, v: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
        """Cross-entropy of the answer tokens, of which those that are right already count little; and the lowest of
        their probabilities."""
        least, states = self.settings.least_weight, suffix.states
        weights = least + (1 - least) * torch.rand(len(states), 1, generator=generator, device=states.device)
        weights[0] = 1.0
        losses = self._losses(suffix, u, v, weights)
        probabilities = (-losses.detach()).exp()
        missing = 1.05 - probabilities
        return (losses * missing).sum() / missing.sum(), float(probabilities.min())

    def _losses(self, suffix: _Suffix, u: Tensor, v: Tensor, weights: Tensor) -> Tensor:
        """(answer tokens,) cross-entropy with this expert alone active."""
        inputs, tokens = suffix.passage.inputs, suffix.passage.tokens
        residual = expert_residual(suffix.states, u[None], v[None], weights, self.form)
        edited = (suffix.states + residual * self._changed(tokens)[..., None]).to(self.backbone.dtype)
        if suffix.kept is None:
            logits = self.backbone.logits_from(edited, inputs, self.layer, inputs.predicting)
        else:
            logits = suffix.kept.logits(edited, inputs.predicting)
        return F.cross_entropy(logits.float(), inputs.targets.to(logits.device), reduction="none")

    def _suffix(self, passage: Passage, states: Tensor) -> _Suffix:
        changed = self._changed(passage.tokens)
        plain = states.to(self.backbone.dtype)
        return _Suffix(passage, states, KeptPrompt.of(self.backbone, passage.inputs, self.layer, plain, changed))

    def _noisy(self, suffix: _Suffix, generator: torch.Generator) -> _Suffix:
        """The same with noise on the image tokens; itself if there are none."""
        passage, states = suffix.passage, suffix.states
        if not bool(passage.tokens.image_mask.any()):
            return suffix
        noise = torch.randn(states.shape, generator=generator, device=states.device) * states.std()
        return self._suffix(passage, states + self.settings.image_noise * noise * passage.tokens.image_mask[..., None])

    def _normed(self, tokens: HiddenTokens) -> Tensor:
        """What experts read."""
        states = tokens.hidden_states
        return F.layer_norm(states, states.shape[-1:]) if self.form.expert_input == "normed" else states

    def _changed(self, tokens: HiddenTokens) -> Tensor:
        return changed_tokens(tokens, self.form)

    def _device(self, passage: Passage) -> torch.device:
        return passage.tokens.hidden_states.device


def _ridge_regression(inputs: Tensor, wanted: Tensor) -> Tensor:
    """(width, outputs) coefficients. inputs: (positions, width); wanted: (positions, outputs)."""
    ridge = _RIDGE * len(inputs)
    if len(inputs) < inputs.shape[1]:  # The same coefficients, from the smaller system.
        gram = inputs @ inputs.T
        return inputs.T @ torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), wanted)
    gram = inputs.T @ inputs
    return torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), inputs.T @ wanted)


def _schedule(step: int, steps: int) -> float:
    """A short warm-up, then a cosine down to a tenth."""
    return min(1.0, (step + 1) / 5) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
