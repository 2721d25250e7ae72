"""An editor for LiveEdit in one file: a memory of questions and answers.

An edit stores two keys and an answer. The keys are the mean hidden states of the question's image tokens and of its
prompt tokens, at one layer of the frozen model. A query whose keys are close to those of an edit gets the stored
answer: a bias on the logits makes its tokens the most likely ones. Every other query keeps its logits bit for bit.

The method learns nothing and generalises only as far as the hidden states do. It is an example of the interface.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from liveedit.answers import Fired
from liveedit.backbones import Backbone, TokenBatch
from liveedit.editors.base import ExpertEditor, Neighbour
from liveedit.errors import InvalidInputError, NotFoundError
from liveedit.experts import Expert
from liveedit.samples import Edit


class LookupConfig(BaseModel):
    """When a query counts as the question of an edit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_threshold: float = Field(0.7, ge=-1, le=1, description="Cosine that the image keys must exceed.")
    prompt_threshold: float = Field(0.98, ge=-1, le=1, description="Cosine that the prompt keys must exceed.")
    bias: float = Field(1e4, gt=0, description="Added to the logit of each stored answer token.")


@dataclass(frozen=True, eq=False)
class LookupExpert(Expert):
    """One edit: image_key, prompt_key: (width,) of unit length, the image key zero if there is no image.

    answer: (tokens,), the token ids as float32, because stored experts are float32. The ids are exact below 2**24.
    """

    image_key: Tensor
    prompt_key: Tensor
    answer: Tensor


@dataclass
class _Call(threading.local):
    """What one thread is asking: the winner of each row, where its answer starts, and how many tokens came before."""

    fired: list[tuple[Fired, ...]] = field(default_factory=list)
    experts: list[LookupExpert | None] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    cached: int = 0
    length: int = 0


class Lookup(ExpertEditor[LookupExpert]):
    """A nearest-neighbour memory. The weights of the backbone never change; two forward hooks do all the work.

    `margin = min(cos(image keys) - image_threshold, cos(prompt keys) - prompt_threshold)`. The active edit with the
    largest positive margin answers the query. Ties are broken by digest, so the order of edits is irrelevant.
    Only questions that are asked through `Backbone` are edited, because token roles are known only there.
    """

    name = "lookup"
    summary = "a memory of questions and answers (example of an editor in one file)"
    expert_class = LookupExpert
    settings_class = LookupConfig

    def __init__(self, backbone: Backbone, config: LookupConfig | None = None):
        super().__init__(backbone)
        self.config = config or LookupConfig()
        self.layer = backbone.default_edit_layer()
        self._experts: dict[str, LookupExpert] = {}
        self._call = _Call()
        self._hooks = [
            backbone.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            backbone.layers[self.layer].register_forward_hook(self._after_layer),
            backbone.output_embeddings.register_forward_hook(self._after_head),
        ]

    # -- editing ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def make_expert(self, edit: Edit) -> tuple[LookupExpert, int]:
        """The keys of the question and the tokens of the answer. No gradient step is taken."""
        inputs = self.backbone.encode([edit.question])
        images, prompts = _keys(self.backbone.hidden_states(inputs, self.layer), inputs)
        (answer,) = self.backbone.answer_tokens([edit.question], [edit.answer])
        return LookupExpert(images[0].cpu(), prompts[0].cpu(), torch.tensor(answer, dtype=torch.float32)), 0

    def add(self, edit_id: str, expert: LookupExpert) -> None:
        """Make an expert active. Raises `InvalidInputError` if the id is active or the width does not fit."""
        if edit_id in self._experts:
            raise InvalidInputError(f"The edit {edit_id!r} is active already. Undo it first.")
        if expert.image_key.shape != (self.backbone.width,) or expert.prompt_key.shape != (self.backbone.width,):
            raise InvalidInputError(f"The keys of edit {edit_id!r} do not have the width {self.backbone.width}.")
        self._experts[edit_id] = expert

    def undo(self, edit_id: str) -> None:
        """Remove one edit. Raises `NotFoundError` if it is not active."""
        self.get(edit_id)
        del self._experts[edit_id]

    def get(self, edit_id: str) -> LookupExpert:
        """The expert of an active edit. Raises `NotFoundError`."""
        if edit_id not in self._experts:
            raise NotFoundError(f"The edit {edit_id!r} is not active.")
        return self._experts[edit_id]

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the active edits."""
        return tuple(self._experts)

    def neighbours(self, expert: LookupExpert, most: int) -> list[Neighbour]:
        """The active edits with the largest margins to this one; at most `most`."""
        margins = self._margins(expert.image_key[None], expert.prompt_key[None])
        own = margins[0] if margins else []
        near = [Neighbour(edit_id, margin) for edit_id, margin in zip(self.ids, own, strict=True)]
        return sorted(near, key=lambda one: (-one.similarity, one.edit_id))[:most]

    def fired(self) -> list[tuple[Fired, ...]]:
        """The edit that answered each query of this thread's last batch."""
        return list(self._call.fired)

    def configuration(self) -> dict[str, Any]:
        """The whole `LookupConfig`."""
        return self.config.model_dump()

    def digest(self) -> str:
        """SHA-256 of name and configuration: they decide everything. An edits file belongs to one digest."""
        return hashlib.sha256(f"{self.name} {self.config.model_dump_json()}".encode()).hexdigest()

    def detach(self) -> None:
        """Remove the hooks and every edit."""
        for hook in self._hooks:
            hook.remove()
        super().detach()

    # -- answering -------------------------------------------------------------------------------------------

    def _before_decoder(self, decoder: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        cache = keywords.get("past_key_values")
        self._call.cached = 0 if cache is None else cache.get_seq_length()
        if not self._call.cached:  # A new question; with a filled cache, the decision of the prefill holds.
            self._call.fired, self._call.experts, self._call.starts = [], [], []

    def _after_layer(self, layer: Any, arguments: tuple[Any, ...], output: Any) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        self._call.length = states.shape[1]
        inputs = self.backbone.current_inputs
        if self._call.cached or inputs is None or not self._experts or len(states) % len(inputs):
            return
        repeated = len(states) // len(inputs)  # Beams repeat each question.
        margins = self._margins(*_keys(states[::repeated, : inputs.input_ids.shape[1]], inputs))
        ids, ranks = self.ids, {edit_id: expert.digest for edit_id, expert in self._experts.items()}
        for row, own in enumerate(margins):
            margin, edit_id = max(zip(own, ids, strict=True), key=lambda one: (one[0], ranks[one[1]]))
            expert = self._experts[edit_id] if margin > 0 else None
            self._call.fired.append((Fired(edit_id, 1.0, margin),) if expert else ())
            question = (inputs.image_mask | inputs.prompt_mask)[row].nonzero()
            self._call.experts += [expert] * repeated
            self._call.starts += [int(question.max()) + 1] * repeated

    def _after_head(self, head: Any, arguments: tuple[Any, ...], logits: Tensor) -> Tensor | None:
        if not any(self._call.experts) or logits.ndim != 3 or len(logits) != len(self._call.experts):
            return None
        changed = logits.clone()
        first = self._call.cached + self._call.length - logits.shape[1]  # The head may see the last positions only.
        for row, (expert, start) in enumerate(zip(self._call.experts, self._call.starts, strict=True)):
            for index, token in enumerate([] if expert is None else expert.answer.long().tolist()):
                place = start - 1 + index - first  # The position before a token predicts it.
                if 0 <= place < logits.shape[1]:
                    changed[row, place, token] += self.config.bias
        return changed

    def _margins(self, images: Tensor, prompts: Tensor) -> list[list[float]]:
        """(queries, active edits): by how much both cosines exceed their thresholds, the smaller of the two."""
        if not self._experts:
            return []
        experts = self._experts.values()
        image = _cosines(images, torch.stack([one.image_key for one in experts]))
        prompt = _cosines(prompts, torch.stack([one.prompt_key for one in experts]))
        margins = torch.minimum(image - self.config.image_threshold, prompt - self.config.prompt_threshold)
        return margins.round(decimals=9).tolist()  # Equal keys have equal margins, whatever the shape of the product.


def _keys(states: Tensor, inputs: TokenBatch) -> tuple[Tensor, Tensor]:
    """(batch, width) each, of unit length: the mean of the image tokens, zero without an image, and of the prompt."""
    normed = F.layer_norm(states.float(), states.shape[-1:])
    masks = (inputs.image_mask, inputs.prompt_mask)
    image, prompt = (F.normalize((normed * mask.to(normed.device)[..., None]).sum(1), dim=-1) for mask in masks)
    return image, prompt


def _cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """(queries, keys) in float64. A missing image is like a missing image and unlike any other."""
    queries, keys = queries.double().cpu(), keys.double().cpu()
    missing, absent = ~queries.any(1), ~keys.any(1)
    found = queries @ keys.T
    found[missing[:, None] & absent] = 1.0
    found[missing[:, None] != absent] = -1.0
    return found
