"""The plugin inside one of vLLM's workers: it reads hidden states, routes requests and adds their experts."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ..errors import ConfigError
from .repositories import Repository
from .requests import AskedQuestion, EditedRequest, ScheduledTokens
from .settings import Settings
from .slots import ExpertSlots

_REMEMBERED: Final = 10_000
"""Ended requests whose fired edits can still be asked for."""

_log = logging.getLogger("vllm.liveedit")


class EditingWorker:
    """Follows the requests of one model runner. Every rank has its own, and all come to the same decisions.

    hidden states: with tensor parallelism they are whole at the end of each layer.
    """

    def __init__(self, settings: Settings, repositories: Mapping[str, Repository], device: torch.device):
        self._settings, self.repositories = settings, repositories
        self._slots = {
            name: ExpertSlots(one.editor.form, one.editor.backbone.width, device) for name, one in repositories.items()
        }
        self.layers = sorted({layer for one in repositories.values() for layer in one.editor.read_layers})
        """Layers whose output is read or changed."""
        self._requests: dict[str, EditedRequest | None] = {}
        """Those in progress; None for one that uses no repository."""
        self._ended: OrderedDict[str, EditedRequest] = OrderedDict()
        self._parts: list[ScheduledTokens] = []

    # -- steps -------------------------------------------------------------------------------------------

    def before_step(self, revisions: Mapping[str, int], ended: Iterable[str]) -> None:
        """Apply changes of edits, and forget requests that have ended. No step is in progress."""
        for request_id in ended:
            if (request := self._requests.pop(request_id, None)) is not None:
                request.end()
                self._remember(request_id, request)
        for name, revision in revisions.items():
            self.repositories[name].follow(revision)

    def begin(self, rows: Iterable[tuple[str, int, Any]]) -> None:
        """A forward pass begins. rows: id, number of tokens and state of each request, in the order of the batch."""
        start = 0
        for request_id, count, state in rows:
            request = self._request(request_id, state)
            if request is not None:
                request.starts(state.num_computed_tokens)
                self._parts.append(ScheduledTokens(request, start, start + count, state.num_computed_tokens))
            start += count

    def end(self) -> None:
        """The forward pass has ended."""
        self._parts = []

    @torch.no_grad()
    def after_layer(self, hidden_states: Tensor, residual: Tensor | None, layer: int) -> None:
        """Read and change what a layer has computed, (tokens, width). Their sum is the layer's hidden state.

        hidden_states is changed in place; residual: what vLLM adds to it later, None if it is added already.
        """
        ending: list[EditedRequest] = []
        for part in self._parts:
            editor = part.request.repository.editor
            if not part.request.is_decided and layer in editor.read_layers:
                self._read(part, hidden_states, residual, layer)
                if part.ends_prompt and layer == editor.layer:
                    ending.append(part.request)
        for name, repository in self.repositories.items() if ending else ():
            self._decide(name, [request for request in ending if request.repository is repository])
        changing = [
            part
            for part in self._parts
            if part.request.slot is not None and layer == part.request.repository.editor.layer
        ]
        if changing:
            self._change(changing, hidden_states, residual)

    def fired(self, request_id: str) -> dict[str, Any] | None:
        """The edits that fired for a request, and their revision; None if it used no repository, or is unknown.

        request_id: as clients know it. Several answers to one request have the same edits.
        """
        for known in (self._requests, self._ended):
            for name, request in reversed(known.items()):
                if request is not None and _is_of(name, request_id):
                    return request.to_dict() if request.is_decided else None
        return None

    # -- inside ------------------------------------------------------------------------------------------

    def _request(self, request_id: str, state: Any) -> EditedRequest | None:
        if request_id not in self._requests:
            self._requests[request_id] = self._new_request(state)
        return self._requests[request_id]

    def _new_request(self, state: Any) -> EditedRequest | None:
        params = state.sampling_params
        name = None if params is None else self._settings.repository_of(params.extra_args)
        if name is None or state.prompt_token_ids is None:
            return None
        return EditedRequest(self.repositories[name], self._slots[name], tuple(state.prompt_token_ids))

    def _remember(self, request_id: str, request: EditedRequest) -> None:
        self._ended[request_id] = request
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)

    def _read(self, part: ScheduledTokens, hidden_states: Tensor, residual: Tensor | None, layer: int) -> None:
        rows = slice(part.start, part.start + part.of_prompt)
        part.request.keep(layer, _sum(hidden_states[rows], None if residual is None else residual[rows]))

    def _decide(self, name: str, requests: Sequence[EditedRequest]) -> None:
        """Route requests of one repository together: the experts' features are read once for all of them."""
        asked: list[tuple[EditedRequest, AskedQuestion]] = []
        try:
            for request in requests:
                try:
                    asked.append((request, request.question()))
                except RuntimeError:
                    self._log_unedited(name)
            routings = self.repositories[name].editor.route_each([question for _, question in asked])
            for (request, question), routing in zip(asked, routings, strict=True):
                request.decided(question, routing)
        except Exception:  # The engine would stop for all requests if it were raised.
            self._log_unedited(name)
        for request in requests:
            if not request.is_decided:
                request.decided(None, None)

    def _log_unedited(self, name: str) -> None:
        _log.exception(
            "A request to the repository %r is answered by the unedited model, because its edits could not be found.",
            name,
        )

    def _change(self, parts: list[ScheduledTokens], hidden_states: Tensor, residual: Tensor | None) -> None:
        alone = {id(part.request.slots): part.request.slots for part in parts}
        for slots in alone.values():
            own = [part for part in parts if part.request.slots is slots]
            single = [part for part in own if part.stop - part.start == 1 and not part.of_prompt]
            for part in own:
                if part not in single:
                    rows = part.changed_rows().to(hidden_states.device)
                    states = _sum(hidden_states[rows], None if residual is None else residual[rows])
                    added = slots.residual(states, part.request.slot or 0)
                    hidden_states[rows] += added.to(hidden_states.dtype)
            if single:
                device = hidden_states.device
                rows = torch.tensor([part.start for part in single], device=device)
                numbers = torch.tensor([part.request.slot for part in single], device=device)
                states = _sum(hidden_states[rows], None if residual is None else residual[rows])
                hidden_states[rows] += slots.residual_of_each(states, numbers).to(hidden_states.dtype)


def check_engine(config: Any, repositories: Mapping[str, Repository]) -> None:
    """Raise `ConfigError` if vLLM is configured to do what edits do not work with. config: vLLM's VllmConfig."""
    if config.parallel_config.pipeline_parallel_size > 1:
        raise ConfigError("Edits need all layers in one process. Give tensor parallelism instead of pipeline stages.")
    if config.speculative_config is not None:
        raise ConfigError("Edits do not work with speculative decoding yet. Leave it out.")
    if config.kv_transfer_config is not None:
        raise ConfigError("Edits do not work with KV transfer: prompts would arrive without hidden states.")
    mode = config.compilation_config.cudagraph_mode
    if mode is not None and mode.has_full_cudagraphs():
        raise ConfigError(
            f"cudagraph_mode is {mode.name}: experts are found in plain Python between CUDA graphs. Give "
            '--compilation-config \'{"cudagraph_mode": "PIECEWISE"}\'.'
        )
    chunked = config.scheduler_config.enable_chunked_prefill
    for name, repository in repositories.items():
        if chunked and repository.editor.form.residual_tokens != "answer":
            raise ConfigError(
                f"The editor {repository.editor.name!r} of the repository {name!r} changes tokens of the prompt, which "
                "chunked prefill would compute before the experts are found. Give --no-enable-chunked-prefill."
            )


def _is_of(name: str, request_id: str) -> bool:
    """Whether vLLM's name of a request is for what a client knows by this id.

    vLLM adds parts at the end, and a number in front of one of several answers.
    """
    number, separator, rest = name.partition("_")
    own = rest if separator and number.isdigit() else name
    return own == request_id or own.startswith(f"{request_id}-")


def _sum(hidden_states: Tensor, residual: Tensor | None) -> Tensor:
    return hidden_states if residual is None else hidden_states + residual
