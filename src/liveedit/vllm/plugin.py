"""The entry point of `vllm.general_plugins`: what is wrapped in vLLM's processes. Tried with vLLM 0.32."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Final

from ..errors import ConfigError, StoreError
from ..store.store import EditStore
from . import layer
from .checkpoints import load_llava_weights
from .repositories import opened
from .settings import Settings
from .worker import EditingWorker, check_engine

_WRAPPED: Final = "_liveedit_wrapped"
_ATTRIBUTE: Final = "liveedit_worker"
_REVISIONS: Final = "liveedit_revisions"
_SETTINGS: Final = "liveedit_settings"

_log = logging.getLogger("vllm.liveedit")


def register() -> None:
    """Wrap what edits need in this process. Safe to call several times."""
    from vllm.config import CompilationConfig  # pyright: ignore[reportMissingImports]
    from vllm.v1.core.sched.scheduler import Scheduler  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.input_processor import InputProcessor  # pyright: ignore[reportMissingImports]
    from vllm.v1.worker.gpu.model_runner import (  # pyright: ignore[reportMissingImports]
        GPUModelRunner as SecondModelRunner,
    )
    from vllm.v1.worker.worker_base import WorkerBase  # pyright: ignore[reportMissingImports]

    if layer.OPERATION not in CompilationConfig._attention_ops:
        # Graphs are split at it, as at attention, so that it runs in Python between CUDA graphs.
        CompilationConfig._attention_ops.append(layer.OPERATION)
    _wrap(InputProcessor, "process_inputs", _process_inputs)
    _wrap(Scheduler, "schedule", _schedule)
    for runner in _runners():
        if "load_model" in vars(runner):
            _wrap(runner, "load_model", _load_model)
    _wrap(SecondModelRunner, "load_model", _refuse_model)
    first = _runners()[0]
    _wrap(first, "execute_model", _execute_model)
    _wrap(first, "_model_forward", _model_forward)
    WorkerBase.liveedit_fired = _fired


def _runners() -> list[type[Any]]:
    """The model runners that are supported: the first one is the base of the others."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner  # pyright: ignore[reportMissingImports]
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # pyright: ignore[reportMissingImports]

    return [GPUModelRunner, CPUModelRunner]


def _wrap(owner: type[Any], name: str, around: Callable[..., Any]) -> None:
    """Replace a method by one that calls `around(original, self, ...)`, once."""
    original = getattr(owner, name)
    if hasattr(original, _WRAPPED):
        return

    @functools.wraps(original)
    def wrapped(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return around(original, self, *arguments, **keywords)

    setattr(wrapped, _WRAPPED, True)
    setattr(owner, name, wrapped)


# -- in the process of the API server: requests -------------------------------------------------------------


def _process_inputs(original: Any, processor: Any, *arguments: Any, **keywords: Any) -> Any:
    """A request that uses edits shares no cached prefix: not with unedited requests, nor with those of other edits."""
    request = original(processor, *arguments, **keywords)
    settings = _settings(processor)
    if settings is None or request.sampling_params is None:
        return request
    try:
        repository = settings.repository_of(request.sampling_params.extra_args)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    if repository is not None:
        if request.prompt_token_ids is None:
            raise ValueError(
                "The prompt was given as embeddings, in which edits cannot be found. Give text or token ids, or "
                'vllm_xargs={"liveedit": "none"} for the unedited model.'
            )
        request.cache_salt = f"{request.cache_salt or ''}liveedit:{repository}"
        request.sampling_params.skip_reading_prefix_cache = True
    return request


def _settings(processor: Any) -> Settings | None:
    if not hasattr(processor, _SETTINGS):  # Validated once: each request needs them.
        setattr(processor, _SETTINGS, Settings.of(processor.vllm_config.additional_config))
    return getattr(processor, _SETTINGS)


# -- in the process of the engine: revisions ------------------------------------------------------------------


def _schedule(original: Any, scheduler: Any, *arguments: Any, **keywords: Any) -> Any:
    """Tell all workers with each new request which revision of the edits is the latest, so that all have the same."""
    output = original(scheduler, *arguments, **keywords)
    if output.scheduled_new_reqs and (stores := _stores(scheduler)):
        setattr(output, _REVISIONS, _latest(stores))
    return output


def _stores(scheduler: Any) -> dict[str, EditStore]:
    if not hasattr(scheduler, "liveedit_stores"):
        settings = Settings.of(scheduler.vllm_config.additional_config)
        named = {} if settings is None else settings.repositories
        scheduler.liveedit_stores = {name: EditStore(one.edits) for name, one in named.items()}
    return scheduler.liveedit_stores


def _latest(stores: dict[str, EditStore]) -> dict[str, int]:
    """Revisions by repository. One whose store does not answer keeps the edits that it has."""
    found = {}
    for name, store in stores.items():
        try:
            found[name] = store.latest_revision()
        except StoreError:
            _log.exception("The edits of the repository %r stay as they are: their store does not answer.", name)
    return found


# -- in the processes of the workers: hidden states -----------------------------------------------------------


def _load_model(original: Any, runner: Any, *arguments: Any, **keywords: Any) -> Any:
    from vllm.model_executor.models.llava import (  # pyright: ignore[reportMissingImports]
        LlavaForConditionalGeneration,
    )

    _wrap(LlavaForConditionalGeneration, "load_weights", load_llava_weights)
    result = original(runner, *arguments, **keywords)
    settings = Settings.of(runner.vllm_config.additional_config)
    if settings is not None:
        repositories = opened(settings, runner.model_config.model, runner.device)
        check_engine(runner.vllm_config, repositories)
        worker = EditingWorker(settings, repositories, runner.device)
        depth = len(next(iter(repositories.values())).editor.backbone.layers)
        layer.attach(runner.model, depth, worker.layers, worker)
        setattr(runner, _ATTRIBUTE, worker)
    return result


def _refuse_model(original: Any, runner: Any, *arguments: Any, **keywords: Any) -> Any:
    """vLLM's second model runner keeps requests in another way, and would leave edits out without a word."""
    if Settings.of(runner.vllm_config.additional_config) is not None:
        raise ConfigError("Edits do not work with vLLM's second model runner yet. Set VLLM_USE_V2_MODEL_RUNNER=0.")
    return original(runner, *arguments, **keywords)


def _execute_model(original: Any, runner: Any, scheduled: Any, *arguments: Any, **keywords: Any) -> Any:
    worker: EditingWorker | None = getattr(runner, _ATTRIBUTE, None)
    if worker is None:
        return original(runner, scheduled, *arguments, **keywords)
    worker.before_step(getattr(scheduled, _REVISIONS, {}), scheduled.finished_req_ids)
    runner.liveedit_scheduled = scheduled.num_scheduled_tokens
    try:
        return original(runner, scheduled, *arguments, **keywords)
    finally:
        runner.liveedit_scheduled = None


def _model_forward(original: Any, runner: Any, *arguments: Any, **keywords: Any) -> Any:
    counts = getattr(runner, "liveedit_scheduled", None)
    if counts is None:  # A dummy run, or no edits.
        return original(runner, *arguments, **keywords)
    worker: EditingWorker = getattr(runner, _ATTRIBUTE)
    worker.begin((name, counts[name], runner.requests[name]) for name in runner.input_batch.req_ids)
    try:
        return original(runner, *arguments, **keywords)
    finally:
        worker.end()


def _fired(worker: Any, request_ids: list[str]) -> list[dict[str, Any] | None]:
    """For `collective_rpc`: the edits that fired for each of these requests."""
    editing = getattr(worker.model_runner, _ATTRIBUTE, None)
    return [None if editing is None else editing.fired(request_id) for request_id in request_ids]
