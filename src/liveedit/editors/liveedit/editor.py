"""LiveEdit: each edit becomes a low-rank expert in one forward pass; experts are routed by image and prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...answers import Fired
from ...backbones import Backbone, HiddenTokens, TokenBatch
from ...backbones.hidden_states import HiddenStateCache
from ...errors import BackboneError, CheckpointError
from ...experts import ExpertRepository, LowRankExpert
from ...experts.blocks import ExpertsOn
from ...experts.repository import FEATURES
from ...samples import Edit, EditCase, Question
from ...training.distributed import ALONE, Processes
from ...training.trainer import StageConfig
from ..base import ExpertEditor, Neighbour
from ..heat_map import HeatMap
from ..trained import TrainedEditor
from .attention import attention_map
from .config import PAPER_CONFIG, PAPER_LOSSES, LiveEditConfig, LiveEditLosses
from .hook import RoutingHook
from .modules import LiveEditModules
from .neighbours import estimated_weights, neighbours
from .routing import AS_PUBLISHED, Routing, route
from .task import LiveEditTask


class LiveEdit(TrainedEditor, ExpertEditor[LowRankExpert]):
    """The editor of "Lifelong Knowledge Editing for Vision Language Models with Low-Rank Mixture-of-Experts" [1].

    Let h = [h_v; h_p; h_o] (tokens, d) be the hidden states of image, prompt and answer at the edit layer.

    An edit becomes an expert (equations 1 to 3), with CA(x, y) = softmax(x Wq (y Wk)^T) y Wv:

        U = CA_U(U0, h),  V = CA_V(V0, h)                                    (r, d) each
        phi_hat = CA_phi2(CA_phi1(phi0, h_p), h_v),  psi_hat = CA_psi(psi0, h_p)

    A query gets phi_bar and psi_bar from extractors of the same form with weights of their own (equation 4).
    Hard routing keeps the experts e that the query matches better than the vision sentinel, which is a learned image
    under the same prompt (equation 5). Soft routing mixes them (equations 6 and 7):

        phi_bar . phi_hat_e > phi_bar . phi_bar_sentinel
        h <- h + sum_e w_e relu(h U_e^T) V_e,  w = sigmoid(s) softmax(s),  s_e = psi_bar . psi_hat_e

    Inner products are divided by sqrt(d_m).

    d: width of the backbone; r: rank; d_m: module width; U0, V0, phi0, psi0: learned queries.

    Relative to the paper, the defaults of `LiveEditConfig` and `LiveEditLosses` differ where the description of a
    field says so; their `paper` methods give the exact form. docs/METHOD.md gives the reasons.

    [1] BibTeX key chen2025liveedit.
    """

    name = "liveedit"
    summary = "an expert per edit, generated in one forward pass (LiveEdit)"
    table_order = 90

    config_class = LiveEditConfig
    expert_class = LowRankExpert
    thread_safe = True
    options_class = LiveEditLosses
    paper_config = PAPER_CONFIG
    paper_options = PAPER_LOSSES
    training_cases = 16_000

    def __init__(self, backbone: Backbone, modules: LiveEditModules):
        check_fit(backbone, modules.config)
        super().__init__(backbone, modules)
        self.device = backbone.layer_device(self.config.layer)
        self.modules = modules.to(self.device)
        self.repository = ExpertRepository(self.device)
        self.combining = AS_PUBLISHED
        """How experts are combined; it may be replaced at any time."""
        self._weight_factor = 1.0
        self._hook = RoutingHook(backbone, self.config, self._route, _ActiveExperts(self))

    # -- its trained modules -----------------------------------------------------------------------------

    @classmethod
    def backbone_settings(cls, backbone: Backbone) -> dict[str, Any]:
        """Width, edit layer, length of the sentinel, and scope."""
        return {
            "width": backbone.width,
            "layer": backbone.default_edit_layer(),
            "image_tokens": max(1, backbone.image_tokens),
            "scope": "image" if backbone.reads_images else "text+image",
        }

    @classmethod
    def new_modules(cls, backbone: Backbone, config: LiveEditConfig) -> LiveEditModules:
        """Untrained generator and extractors. Raises `BackboneError` if they do not fit the backbone."""
        check_fit(backbone, config)
        return LiveEditModules(config)

    @classmethod
    def default_stages(cls) -> tuple[StageConfig, ...]:
        """Routing alone, then the generator alone.

        The joint stage has no steps by default: it gained nothing on the built-in backbones (docs/EXPERIMENTS.md).
        """
        return (
            StageConfig(name="routing", steps=1600, batch=160, learning_rate=1e-3),
            StageConfig(name="generator", steps=2400, batch=32, learning_rate=1e-3),
            StageConfig(name="joint", steps=0, batch=48, learning_rate=2e-4),
        )

    @classmethod
    def paper_stages(cls) -> tuple[StageConfig, ...]:
        """A start for routing and generator, then both jointly, as the paper's form mixes the experts of a batch."""
        return (
            StageConfig(name="routing", steps=1200, batch=160, learning_rate=1e-3),
            StageConfig(name="generator", steps=800, batch=32, learning_rate=1e-3),
            StageConfig(name="joint", steps=300, batch=32, learning_rate=3e-4),
        )

    @classmethod
    def new_task(
        cls,
        backbone: Backbone,
        config: LiveEditConfig,
        cases: Sequence[EditCase],
        store: HiddenStateCache,
        processes: Processes = ALONE,
        options: LiveEditLosses | None = None,
    ) -> LiveEditTask:
        """The training task of generator and routing. options: the losses; None for the improved form."""
        losses = options or LiveEditLosses.model_validate({})
        return LiveEditTask(backbone, config.layer, cases, losses, store, processes)

    # -- editing -----------------------------------------------------------------------------------------

    def make_experts(self, edits: Sequence[Edit]) -> list[LowRankExpert]:
        """Generate one expert per edit, in one forward pass of the unedited model. Nothing becomes active."""
        inputs = self.backbone.encode([edit.question for edit in edits], [edit.answer for edit in edits])
        with torch.no_grad():
            return self.modules.experts(self.read(inputs))

    def read(self, inputs: TokenBatch) -> HiddenTokens:
        """Hidden states at the edit layer of the unedited model."""
        with self.paused():
            hidden_states = self.backbone.hidden_states(inputs, self.config.layer).float()
        return HiddenTokens.of(inputs, hidden_states.to(self.device), self.backbone.embeddings(inputs).float())

    def add(self, edit_id: str, expert: LowRankExpert) -> None:
        """Make an expert active."""
        self.repository.add(edit_id, expert)

    def number(self, numbers: Mapping[str, int]) -> None:
        """Number active edits in the order in which they were made. Raises `NotFoundError`."""
        self.repository.number(numbers)

    def make_expert(self, edit: Edit) -> tuple[LowRankExpert, int]:
        """The expert of one edit; it takes no gradient steps."""
        return self.make_experts([edit])[0], 0

    def undo(self, edit_id: str) -> None:
        """Undo one edit: the model is as if it had never been made. Raises `NotFoundError`."""
        self.repository.remove(edit_id)

    def get(self, edit_id: str) -> LowRankExpert:
        """The expert of an active edit. Raises `NotFoundError`."""
        return self.repository.get(edit_id)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the active edits."""
        return self.repository.ids

    @property
    def ids_by_age(self) -> list[str]:
        """Ids of the active edits, the newest last."""
        return [self.repository.id_of(row) for row in self.repository.rows_by_age]

    def __len__(self) -> int:
        return len(self.repository)

    def __contains__(self, edit_id: str) -> bool:
        return edit_id in self.repository

    @property
    def needs_image(self) -> bool:
        """Whether only questions with an image can be edited: the configuration's scope."""
        return self.config.scope == "image"

    def neighbours(self, expert: LowRankExpert, most: int) -> list[Neighbour]:
        """Up to `most` active edits whose keys are most similar to the expert's, most similar first."""
        return neighbours(self.modules, expert, self.repository, most)

    def estimated_weights(self, expert: LowRankExpert, margin: float) -> dict[str, float]:
        """Estimated from the keys alone: see `neighbours.estimated_weights`.

        Where the nearest expert alone is taken, none: to its own question an edit is the nearest.
        """
        if self.combining.combine == "nearest":
            return {}
        return estimated_weights(self.modules, expert, margin, self.repository)

    def attention_map(self, question: Question, side: Literal["edit", "query"] = "query") -> HeatMap:
        """Where in its image phi is read from, by the extractor of queries or that of edits; see `attention`."""
        extractor = self.modules.bar if side == "query" else self.modules.hat
        return attention_map(self.backbone, extractor, self.read, question)

    occlusion_feature = "visual feature"

    def occlusion_features(self, questions: Sequence[Question]) -> Tensor:
        """phi of the queries, (questions, k d_m)."""
        return self.modules.query(self.read(self.backbone.encode(questions, padding="left"))).visual

    @contextmanager
    def scaled_weights(self, factor: float) -> Iterator[None]:
        """Inside the block, every weight is multiplied by `factor`, before the threshold of weights if there is one."""
        before, self._weight_factor = self._weight_factor, factor
        try:
            yield
        finally:
            self._weight_factor = before

    def reset(self) -> None:
        """Undo every edit."""
        self.repository.clear()

    def detach(self) -> None:
        """Remove hooks and edits from the backbone."""
        self._hook.remove()
        self.reset()

    def paused(self) -> AbstractContextManager[None]:
        """The model runs unedited inside the block; the active experts stay in place."""
        return self._hook.paused()

    def keep_experts_on(self, place: ExpertsOn, folder: str | Path | None = None) -> None:
        """Keep the experts' u and v on the device or the host from now on, as `ExpertRepository` does.

        Active experts are moved. Raises `StoreError` if they cannot be; then nothing changes.
        """
        moved = ExpertRepository(self.device, experts_on=place, folder=folder)
        for row, edit_id in enumerate(self.ids):
            moved.add(edit_id, self.repository.get(edit_id))
            moved.number({edit_id: self.repository.age_of(row)})
        self.repository = moved

    # -- saving and restoring the active edits -----------------------------------------------------------

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Replace the active edits by those of `edited_state`: answers are the same again, bit for bit.

        Raises `CheckpointError` if they do not fit this editor; then nothing changes.
        """
        check_saved(tensors, note, self.config)
        super().restore(tensors, note)

    # -- answering ---------------------------------------------------------------------------------------

    def fired(self) -> list[tuple[Fired, ...]] | None:
        """The edits that took part in the last batch, for each query; an empty list if none did."""
        routing = self._hook.routing
        return [] if routing is None else list(routing.fired)

    @property
    def routing_seconds(self) -> float:
        """Seconds that routing the last batch took."""
        return self._hook.routing_seconds

    @torch.no_grad()
    def _route(self, tokens: HiddenTokens) -> Routing | None:
        if not len(self.repository):
            return None
        precise = replace(tokens, hidden_states=tokens.hidden_states.float())
        reachable = tokens.has_image if self.config.scope == "image" else torch.ones_like(tokens.has_image)
        query = self.modules.query(precise)
        return route(self.modules, query, reachable, self.repository, self.combining, self._weight_factor)


class _ActiveExperts:
    """Its length is the number of active experts, also after `keep_experts_on` has replaced the repository."""

    def __init__(self, editor: LiveEdit):
        self._editor = editor

    def __len__(self) -> int:
        return len(self._editor.repository)


def check_fit(backbone: Backbone, config: LiveEditConfig) -> None:
    """Raise `BackboneError` if an editor of this configuration does not fit the backbone."""
    if config.width != backbone.width or config.layer >= len(backbone.layers) - 1:
        raise BackboneError(
            f"This editor was made for width {config.width} and layer {config.layer}; {backbone.name} "
            f"has width {backbone.width} and {len(backbone.layers)} layers. Train one for it: liveedit train."
        )


def check_saved(tensors: dict[str, Tensor], note: dict[str, Any], config: LiveEditConfig) -> None:
    """Raise `CheckpointError` unless these are active edits that an editor of this configuration saved."""
    ids = note.get("ids")
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids) or len(set(ids)) != len(ids):
        raise CheckpointError(
            "Saved edits need a list of ids without repetition. These were not saved by LiveEdit, or they are damaged."
        )
    feature = (config.feature_parts * config.module_width,)
    for number in range(len(ids)):
        rank = len(tensors.get(f"{number}.u", ()))
        wanted = {"u": (rank, config.width), "v": (rank, config.width)} | dict.fromkeys(FEATURES, feature)
        found = {name: tuple(tensors[key].shape) for name in wanted if (key := f"{number}.{name}") in tensors}
        if found != wanted or not rank:
            raise CheckpointError(
                f"A saved edit has the shapes {found}; this editor takes {wanted}. Use the editor that made it."
            )
