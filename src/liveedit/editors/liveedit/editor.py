"""LiveEdit: each edit becomes a low-rank expert in one forward pass; experts are routed by image and prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ...backbones import BUILT_IN, Backbone, HiddenTokens
from ...backbones.hidden_states import HiddenStateCache
from ...errors import BackboneError, ConfigError, InvalidInputError
from ...experts import LowRankExpert
from ...experts.repository import FEATURES
from ...progress import Progress, no_progress
from ...samples import Edit, EditCase, Question
from ...training.distributed import ALONE, Processes
from ...training.trainer import StageConfig
from ..base import Neighbour
from ..heat_map import HeatMap
from ..shared.routed_editor import RoutedEditor
from ..shared.routing import QueryFeatures
from ..trained import TrainedEditor
from .attention import attention_map
from .config import PAPER_CONFIG, PAPER_LOSSES, PAPER_TRAINING, LiveEditConfig, LiveEditLosses
from .modules import LiveEditModules
from .neighbours import estimated_weights, neighbours
from .starting import standardize
from .task import LiveEditTask
from .thresholds import choose_thresholds


class LiveEdit(TrainedEditor, RoutedEditor):
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
    options_class = LiveEditLosses
    starting_settings = frozenset({"value_start", "standardized_start"})
    calibrated_settings = frozenset({"visual_threshold", "prompt_threshold"})
    paper_config = PAPER_CONFIG
    paper_options = PAPER_LOSSES
    paper_training = PAPER_TRAINING
    training_cases = 16_000

    def __init__(self, backbone: Backbone, modules: LiveEditModules):
        check_fit(backbone, modules.config)
        super().__init__(backbone, modules)
        self._attach(self.config.layer, self.config)
        self.modules = modules.to(self.device)

    @property
    def similarities(self) -> LiveEditModules:
        """The trained modules: they hold the temperatures of both similarities."""
        return self.modules

    def query(self, tokens: HiddenTokens) -> QueryFeatures:
        """phi_bar, psi_bar, and phi_bar of the sentinel."""
        return self.modules.query(tokens)

    @property
    def feature_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every feature has k d_m numbers."""
        return dict.fromkeys(FEATURES, (self.config.feature_parts * self.config.module_width,))

    def reachable(self, tokens: HiddenTokens) -> Tensor:
        """Queries with an image, or all: the configuration's scope."""
        return tokens.has_image if self.config.scope == "image" else super().reachable(tokens)

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
        """All losses together from the start, for up to 200,000 steps of 8 edits (section 7.4)."""
        return (
            StageConfig(name="routing", steps=0, batch=160, learning_rate=1e-3),
            StageConfig(name="generator", steps=0, batch=32, learning_rate=1e-3),
            StageConfig(name="joint", steps=200_000, batch=8, learning_rate=1e-4),
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

    @classmethod
    def start(cls, modules: LiveEditModules, task: LiveEditTask) -> None:
        """See `LiveEditConfig.standardized_start`."""
        standardized = modules.config.standardized_start
        if standardized is None:
            standardized = modules.config.norm and task.backbone.name not in BUILT_IN
        if standardized:
            standardize(modules, task.sample())

    def calibrate_on(
        self, cases: Sequence[EditCase], false_firing: float = 0.05, progress: Progress = no_progress
    ) -> dict[str, float]:
        """Choose `visual_threshold` and `prompt_threshold`: see `choose_thresholds`.

        Raises `ConfigError` if soft weights do not depend on s alone, `InvalidInputError` while edits are active.
        """
        before = self.config
        if before.weighting not in ("both", "absolute"):
            raise ConfigError(
                "With soft_routing=false or soft_factors=relative no threshold of s keeps an edit out. Calibrate an "
                "editor with soft_factors=both or absolute."
            )
        if len(self):
            raise InvalidInputError(
                f"{len(self)} edits are active, and edits are bound to the thresholds that they were made with. Reset "
                "the editor before."
            )
        plain = before.model_copy(update=dict.fromkeys(self.calibrated_settings, 0.0))
        task = self.new_task(self.backbone, plain, cases, HiddenStateCache(self.backbone, plain.layer))
        task.prepare(progress)
        try:
            self._use(plain)
            chosen = choose_thresholds(task.routed_queries(self.modules), false_firing)
        except BaseException:
            self._use(before)
            raise
        found = {"visual_threshold": chosen.visual, "prompt_threshold": chosen.prompt}
        self._use(plain.model_copy(update=found))
        return {**found, "found_percent": 100 * chosen.found, "false_firing_percent": 100 * chosen.false_firing}

    def _use(self, config: LiveEditConfig) -> None:
        """Take another configuration of the same modules."""
        self.config = self.modules.config = config

    # -- editing -----------------------------------------------------------------------------------------

    def make_experts(self, edits: Sequence[Edit]) -> list[LowRankExpert]:
        """Generate one expert per edit, in one forward pass of the unedited model. Nothing becomes active."""
        inputs = self.backbone.encode([edit.question for edit in edits], [edit.answer for edit in edits])
        with torch.no_grad():
            return self.modules.experts(self.read(inputs))

    def make_expert(self, edit: Edit) -> tuple[LowRankExpert, int]:
        """The expert of one edit; it takes no gradient steps."""
        return self.make_experts([edit])[0], 0

    @property
    def needs_image(self) -> bool:
        """Whether only questions with an image can be edited: see `LiveEditConfig.reaches_text`."""
        return not self.config.reaches_text

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


def check_fit(backbone: Backbone, config: LiveEditConfig) -> None:
    """Raise `BackboneError` if an editor of this configuration does not fit the backbone."""
    if config.width != backbone.width or config.layer >= len(backbone.layers) - 1:
        raise BackboneError(
            f"This editor was made for width {config.width} and layer {config.layer}; {backbone.name} "
            f"has width {backbone.width} and {len(backbone.layers)} layers. Train one for it: liveedit train."
        )
    if not backbone.reads_images and not config.reaches_text:
        raise BackboneError(
            f"With these settings edits are found by their image alone, and {backbone.name} reads text alone: no edit "
            'would ever fire. Leave out --form paper, or set scope to "text+image" and norm to true.'
        )
