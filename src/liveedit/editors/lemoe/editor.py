"""LEMoE: one expert per batch of edits, beside one FFN, found by a key that is compared with the question's value."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...answers import Fired
from ...backbones import Backbone, TokenBatch
from ...errors import BackboneError, CheckpointError, ConfigError, NotFoundError
from ...progress import Progress, no_progress
from ...samples import Edit, Question
from ..base import Editor, EditRecord, check_answers
from ..shared.everyday_questions import EVERYDAY_QUESTIONS
from .anchors import CentringMean, QueryEmbedding, grey_image
from .calibration import best_separation
from .config import LemoeConfig
from .experts import FeedForward, Weights, mixed_output, new_expert, store_bytes
from .hook import ExpertHook
from .learning import Batch, Learned, learn
from .planning import Embedder, plan_batches
from .routing import KeyRouter, Route, TokenGate

_READ_AT_ONCE = 64


class Lemoe(Editor):
    """The editor of "LEMoE: Advanced Mixture of Experts Adaptor for Lifelong Model Editing" (Wang and Li 2024).

    Beside the FFN of one layer, `h(x) = FFN(x) + lambda sum_i g(i | e) f_i(x)`; the model's own weights stay as they
    are. A batch of edits inserts one expert f_i and one key k_i, which are frozen from then on. A question is known by
    its anchor e (see `anchors`), and `g(i | e) = top_k softmax_i(k_i . v)`, `v = W_up silu(W_down e)`, the same in
    training as in answering; decided once per sequence and kept while the answer is generated from the KV cache.
    Batches are planned by K-means, so that each holds similar edits.

    The paper's full text was not at hand: `LemoeConfig` marks what is reconstructed. A text-only model is edited in
    the same way.
    """

    name = "lemoe"
    summary = "an expert per batch of edits beside an FFN, found by key and value (LEMoE)"
    table_order = 70
    settings_class = LemoeConfig

    def __init__(self, backbone: Backbone, config: LemoeConfig | None = None, embedder: Embedder | None = None):
        """`embedder` gives what batches are planned by, instead of the anchors."""
        super().__init__(backbone)
        self.config = config or LemoeConfig()
        if not backbone.reads_images:
            self.config = self.config.model_copy(update={"anchor": self.config.anchor.removesuffix("+image")})
        self.config = _calibrated(backbone, self.config)
        self.layer = _edit_layer(backbone, self.config)
        self.device = backbone.layer_device(self.layer)
        self.embedder = embedder
        self.place = FeedForward.of(backbone.layers[self.layer])
        self.experts: list[Weights] = []
        self.edits_of: list[list[str]] = []
        """The ids of each expert's edits."""
        self.processed_by: dict[str, int] = {}
        self.gate = TokenGate(self.config, backbone.width, self.device)
        self._keys: KeyRouter | None = None
        self._mean: CentringMean | None = None
        self._usage: Tensor | None = None
        by_key = self._route if self.config.routing == "kv_anchor" else None
        self._hook = ExpertHook(
            backbone, self.layer, self.place, by_key, self._added, self.experts, self.config.by_state
        )

    # -- editing -----------------------------------------------------------------------------------------

    def edit(self, edits: Sequence[tuple[str, Edit]], progress: Progress = no_progress) -> list[EditRecord]:
        """Make edits, batch by batch, in the planned order; records come in the given order.

        A record's time is its share of its batch's time and of the planning; `details` hold the expert, the place in
        the planned order, and the worst loss of the batch.
        """
        check_answers(edits)
        if not edits:
            return []
        started, before = time.perf_counter(), len(self.processed_by)
        groups = self.groups([edit for _, edit in edits])
        planning = (time.perf_counter() - started) / len(edits)
        records: dict[int, EditRecord] = {}
        for places in groups:
            started = time.perf_counter()
            details = self._insert([edits[place] for place in places])
            milliseconds = 1000 * ((time.perf_counter() - started) / len(places) + planning)
            for place in places:
                noted = {**details["details"], "place": before + len(records)}
                records[place] = EditRecord(edits[place][0], milliseconds, **{**details, "details": noted})
                progress(len(records), len(edits))
        return [records[place] for place in range(len(edits))]

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        """A batch of one."""
        return self._insert([(edit_id, edit)])

    def groups(self, edits: Sequence[Edit]) -> list[list[int]]:
        """The planned batches. Edits that fit into one batch stay in their order."""
        if len(edits) <= self.config.batch_edits:
            return [list(range(len(edits)))]
        if self.config.order == "clustered":
            embeddings = (self.embedder or self.anchors_of_edits)(edits)
        else:
            embeddings = torch.empty(len(edits), 0)
        return plan_batches(embeddings, self.config.batch_edits, self.config.order, self.config.seed)

    def _insert(self, edits: Sequence[tuple[str, Edit]]) -> dict[str, Any]:
        """One expert for these edits; if it fails, nothing has changed."""
        questions = [edit.question for _, edit in edits]
        inputs = self.backbone.encode(questions, [edit.answer for _, edit in edits])
        with torch.no_grad(), self._hook.recording():
            states = self.backbone.hidden_states(inputs, self.layer - 1)
            query = self._embed(inputs)
        number = len(self.experts)
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + number)
        expert = new_expert(self.place, self.backbone.width, self.config, generator, self.device)
        kept = self._routing_state()
        try:
            batch = Batch(inputs, states)
            learned = self._learn_gated(expert, batch) if self._keys_off else self._learn_keyed(expert, batch, query)
        except BaseException:
            self._load_routing(kept)
            raise
        self.experts.append(expert)
        self._hook.edits_changed()
        self.edits_of.append([edit_id for edit_id, _ in edits])
        processing = self.route_of(questions) if self._keys_off or not self.config.force_new_expert else None
        self.processed_by |= dict(zip(self.edits_of[-1], processing or [number] * len(edits), strict=True))
        size = store_bytes(expert) // len(edits)
        worst = round(learned.worst_nats, 6)
        return {
            "refine_steps": learned.steps,
            "store_bytes": size,
            "details": {"expert": number, "worst_nats": worst},
        }

    def _learn_keyed(self, expert: Weights, batch: Batch, query: QueryEmbedding) -> Learned:
        router, config = self._router(), self.config
        anchors = self._anchors(query)
        number = router.insert(anchors)
        keys, experts = router.keys.clone(), [*self.experts, expert]
        route = router.forced(anchors, keys, number) if config.force_new_expert else router.route(anchors)
        trained = list(expert.values())
        # Where the gate is the softmax, or chooses freely, the answers' loss reaches the new key.
        reaches_key = config.gate == "softmax" or not config.force_new_expert
        newest = keys[-1:].clone()
        if reaches_key:
            trained.append(newest)

        def added(x: Tensor) -> Tensor:
            now = route
            if reaches_key:
                current = torch.cat([keys[:-1], newest])
                now = (
                    router.forced(anchors, current, number)
                    if config.force_new_expert
                    else router.route(anchors, current)
                )
            chosen, weights = now.experts[: len(x)], now.weights[: len(x)]
            return config.strength * mixed_output(experts, chosen, weights, x, self.place.activation)

        alike = not reaches_key and route.is_the_same_for_all
        with self._hook.paused():
            learned = learn(self.backbone, self.layer, self.place, batch, trained, added, config, alike)
        router.keys = torch.cat([keys[:-1], newest])
        return learned

    def _learn_gated(self, expert: Weights, batch: Batch) -> Learned:
        number, rows = self.gate.insert(), self.gate.rows.clone()
        experts, trained = [*self.experts, expert], list(expert.values())
        if self.config.conventional_trains == "all":
            experts = [*({name: value.clone() for name, value in one.items()} for one in self.experts), expert]
            trained = [value for one in experts for value in one.values()]

        def added(x: Tensor) -> Tensor:
            flat = x.flatten(0, 1)
            route = self.gate.route(flat, rows)
            mixed = mixed_output(experts, route.experts, route.weights, flat, self.place.activation)
            return self.config.strength * mixed.view_as(x)

        with self._hook.paused():
            learned = learn(self.backbone, self.layer, self.place, batch, [*trained, rows], added, self.config)
        self.gate.rows, self.experts[:] = rows, experts[:number]
        return learned

    # -- undo -------------------------------------------------------------------------------------

    def undo(self, edit_id: str) -> None:
        """Undo an edit that has an expert to itself. Raises `NotFoundError` for any other.

        The other experts and their keys stay as they are.
        """
        alone = [number for number, ids in enumerate(self.edits_of) if ids == [edit_id]]
        if not alone or self._keys_off or self.config.projection != "fixed":
            raise NotFoundError(
                f"The editor {self.name!r} cannot undo {edit_id!r} alone: only an edit with an expert to itself can be "
                "undone, with KV anchor routing and a fixed projection. For all others reset it."
            )
        (number,) = alone[-1:]
        self._router().remove(number)
        del self.experts[number], self.edits_of[number]
        self._hook.edits_changed()
        self.processed_by = {
            other: expert - (expert > number) for other, expert in self.processed_by.items() if expert != number
        }

    def reset(self) -> None:
        """Undo every edit."""
        self.experts.clear()
        self._hook.edits_changed()
        self.edits_of.clear()
        self.processed_by.clear()
        self.gate = TokenGate(self.config, self.backbone.width, self.device)
        self._keys = None

    def detach(self) -> None:
        """Remove hooks and experts from the backbone."""
        self._hook.remove()
        self.reset()

    # -- saving -----------------------------------------------------------------------------------------

    def edited_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Experts, keys and anchors, and which edits each expert has."""
        tensors = {f"routing.{name}": value for name, value in self._routing_state().items()}
        for number, expert in enumerate(self.experts):
            tensors |= {f"expert.{number}.{name}": value for name, value in expert.items()}
        tensors = {name: value.detach().clone() for name, value in tensors.items()}
        return tensors, {"edits_of": [list(ids) for ids in self.edits_of], "processed_by": dict(self.processed_by)}

    def restore(self, tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
        """Replace the edits by those of `edited_state`.

        Raises `CheckpointError` if a part is missing, and changes nothing then.
        """
        generator = torch.Generator().manual_seed(0)
        pattern = new_expert(self.place, self.backbone.width, self.config, generator, self.device)
        edits_of = [list(ids) for ids in note["edits_of"]]
        routing = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("routing.")}
        try:
            experts = [
                {name: tensors[f"expert.{number}.{name}"].to(self.device) for name in pattern}
                for number in range(len(edits_of))
            ]
            fits = all(expert[name].shape == pattern[name].shape for expert in experts for name in pattern)
            missing = self._routing_names(bool(edits_of)) - routing.keys()
        except KeyError as error:
            raise CheckpointError(f"The kept edits have no {error}. Keep them with the same version.") from error
        if missing or not fits:
            what = f"no {', '.join(sorted(missing))}" if missing else "experts of another shape"
            raise CheckpointError(f"The kept edits have {what}. Restore them under the settings they were made with.")
        self.reset()
        self.experts.extend(experts)
        self.edits_of.extend(edits_of)
        self.processed_by |= note["processed_by"]
        self._load_routing(routing)

    def _routing_state(self) -> dict[str, Tensor]:
        if self._keys_off:
            return {"rows": self.gate.rows}
        return {} if self._keys is None else self._keys.state()

    def _routing_names(self, any_edits: bool) -> set[str]:
        if self._keys_off:
            return {"rows"}
        return set(self._router().state()) if any_edits else set()

    def _load_routing(self, state: dict[str, Tensor]) -> None:
        if self._keys_off:
            self.gate.rows = state["rows"].to(self.device)
        elif state:
            self._router().load(state)
        else:
            self._keys = None

    def configuration(self) -> dict[str, Any]:
        """The whole `LemoeConfig`, with the values that its Nones stand for."""
        config = self.config
        threshold, text_threshold = config.least_similarity
        found = {"layer": self.layer, "image_weight": config.image_length}
        return {**config.model_dump(mode="json"), **found, "threshold": threshold, "text_threshold": text_threshold}

    def digest(self) -> str:
        """SHA-256 of the configuration."""
        return hashlib.sha256(json.dumps(self.configuration(), sort_keys=True).encode()).hexdigest()

    # -- routing -----------------------------------------------------------------------------------------

    def fired(self) -> list[tuple[Fired, ...]] | None:
        """For each question of the last batch, the edit with the nearest anchor of each expert that answered.

        An expert holds a batch of edits, and which of them it answers by is not known. None with conventional routing.
        """
        if self._keys_off:
            return None
        route = self._hook.route
        if route is None:
            return []
        return [
            tuple(Fired(self.edits_of[one.expert][one.place], one.weight, one.margin) for one in row)
            for row in self._router().nearest(route)
        ]

    def trained_by(self) -> dict[str, int]:
        """The expert that processed each edit when its batch had been trained, by edit id."""
        return dict(self.processed_by)

    @torch.no_grad()
    def route_of(self, questions: Sequence[Question]) -> list[int]:
        """The expert of each question, -1 for none; with conventional routing, that of most weight in its tokens."""
        if not self.experts:
            return [-1] * len(questions)
        found: list[int] = []
        for start in range(0, len(questions), _READ_AT_ONCE):
            inputs = self.backbone.encode(questions[start : start + _READ_AT_ONCE])
            self.backbone.hidden_states(inputs, self.layer)
            route, usage = self._hook.route, self._usage
            chosen = route.experts[:, 0] if route is not None else usage.argmax(1) if usage is not None else None
            assert chosen is not None
            found += chosen.tolist()
        return found

    @torch.no_grad()
    def anchors_of_edits(self, edits: Sequence[Edit]) -> Tensor:
        """(edits, a) anchors, by which batches are planned unless another embedder was given."""
        return self.anchors_of([edit.question for edit in edits])

    @torch.no_grad()
    def anchors_of(self, questions: Sequence[Question]) -> Tensor:
        """(questions, a) anchors."""
        return torch.cat([self._anchors(query) for query in self._embeddings_of(questions)])

    def _anchors(self, query: QueryEmbedding) -> Tensor:
        return self._centring_mean().anchors(query.to(self.device), self.config)

    def _centring_mean(self) -> CentringMean:
        """Read from the model once; no edit changes it."""
        if self._mean is None:
            self._mean = self._read_mean()
        return self._mean

    def _read_mean(self) -> CentringMean:
        (everyday,) = self._embeddings_of([Question(text) for text in EVERYDAY_QUESTIONS])
        has_image = everyday
        if self.backbone.reads_images:
            grey = grey_image()
            (has_image,) = self._embeddings_of([Question(text, grey) for text in EVERYDAY_QUESTIONS])
        shared = everyday.text, has_image.text, has_image.image
        return CentringMean(*(part.mean(0).to(self.device) for part in shared))

    def _embeddings_of(self, questions: Sequence[Question]) -> list[QueryEmbedding]:
        found: list[QueryEmbedding] = []
        with torch.no_grad(), self._hook.recording():
            for start in range(0, len(questions), _READ_AT_ONCE):
                found.append(self._embed(self.backbone.encode(questions[start : start + _READ_AT_ONCE])))
        return found

    def _embed(self, inputs: TokenBatch) -> QueryEmbedding:
        """The pooled embeddings of these questions, which the hook records."""
        self.backbone.hidden_states(inputs, self.layer if self.config.by_state else 0)
        assert self._hook.query_embedding is not None
        return self._hook.query_embedding

    def _router(self) -> KeyRouter:
        if self._keys is None:
            by_key = self.config.null_expert == "key"
            everyday = self.anchors_of([Question(text) for text in EVERYDAY_QUESTIONS]) if by_key else None
            width = len(self._centring_mean().text) * (1 + self.config.with_image)
            self._keys = KeyRouter(self.config, width, self.device, everyday)
        return self._keys

    @property
    def _keys_off(self) -> bool:
        return self.config.routing == "conventional"

    @torch.no_grad()
    def _route(self, query: QueryEmbedding) -> Route:
        with torch.autocast(self.device.type, enabled=False):  # What is measured in bfloat16 is routed in float32.
            return self._router().route(self._anchors(query))

    @torch.no_grad()
    def _added(self, route: Route | None, x: Tensor, question: Tensor | None) -> Tensor:
        """What the experts add to the FFN's output, in float32 whatever the model computes in."""
        with torch.autocast(self.device.type, enabled=False):
            return self._added_precisely(route, x, question)

    def _added_precisely(self, route: Route | None, x: Tensor, question: Tensor | None) -> Tensor:
        precise = x.to(self.device).float()
        if route is not None:
            mixed = mixed_output(self.experts, route.experts, route.weights, precise, self.place.activation)
            return self.config.strength * mixed
        flat = precise.flatten(0, 1)
        by_token = self.gate.route(flat)
        if question is not None:
            shares = self.gate.shares(flat).view(*x.shape[:2], -1) * question.to(self.device)[..., None]
            self._usage = shares.sum(1)
        mixed = mixed_output(self.experts, by_token.experts, by_token.weights, flat, self.place.activation)
        return self.config.strength * mixed.view_as(precise)


def _calibrated(backbone: Backbone, config: LemoeConfig) -> LemoeConfig:
    """The configuration with the layer and the threshold that the neutral questions show, where they are not given.

    Only for language models: for questions about images, the similarity of images decides as well.
    """
    given = config.layer is not None and config.text_threshold is not None
    if given or not config.calibrated or not config.by_state or backbone.reads_images:
        return config
    layer = _edit_layer(backbone, config)
    last = layer if config.layer is not None else max(layer, len(backbone.layers) - 2)
    found = best_separation(backbone, range(layer, last + 1), config.false_firing, config.centered)
    if found is None:
        return config
    threshold = found.threshold if config.text_threshold is None else config.text_threshold
    return config.model_copy(update={"layer": found.layer, "text_threshold": threshold})


def _edit_layer(backbone: Backbone, config: LemoeConfig) -> int:
    """The layer by the configuration, or the backbone's edit layer where the layers before can be left out."""
    count, first = len(backbone.layers), backbone.first_edit_layer + 1
    if count <= first:
        raise BackboneError(f"{backbone.name} has {count} layers, too few to put experts into.")
    if config.layer is None:
        return max(first, backbone.default_edit_layer())
    if not first <= config.layer < count:
        raise ConfigError(
            f"layer = {config.layer} was given, and {backbone.name} can be edited in layers {first} to {count - 1}. "
            "Give one of them, or None."
        )
    return config.layer
