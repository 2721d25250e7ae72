"""Running a harness on an edited model, and its results in one form for both harnesses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...edited.model import EditedModel
from ...errors import InvalidInputError, NotFoundError

Harness = Literal["lm-eval", "lmms-eval"]

_EXTRAS: Final[Mapping[Harness, str]] = {"lm-eval": "eval", "lmms-eval": "eval-images"}
_NOT_METRICS: Final = frozenset(("name", "alias", "sample_len", "sample_count", "samples", "task"))
_STDERR: Final = "_stderr"


class EvalConfig(BaseModel):
    """What a harness is asked to measure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    harness: Harness = Field(description="The harness whose tasks are run.")
    tasks: tuple[str, ...] = Field(min_length=1, description="Tasks and groups of the harness.")
    limit: int | None = Field(default=None, ge=1, description="Documents of each task. None: all.")
    few_shot: int | None = Field(default=None, ge=0, description="Examples before each question. None: the task's own.")
    chat_template: bool = Field(default=False, description="lm-eval only: put questions into the model's chat format.")
    batch: int = Field(default=8, ge=1, description="Requests per forward pass.")


@dataclass(frozen=True)
class HarnessResults:
    """What a harness measured of one model.

    tasks: of each single task the number of `documents` and its `scores`: by metric, `value`, `stderr` (the harness's
    own standard error, None if it has none) and `higher_is_better` (None if the task does not say). groups: of each
    group its `tasks`, and `scores` in the same form. samples: what the harness says of each document and filter.
    requests: how many requests reached the model, and for how many of them edits fired.
    """

    tasks: dict[str, dict[str, Any]]
    groups: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]
    requests: dict[str, dict[str, int]]


def harness_version(harness: Harness) -> str:
    """The installed version of a harness. Raises `NotFoundError` if there is none."""
    try:
        return metadata.version(harness)
    except metadata.PackageNotFoundError as error:
        raise NotFoundError(
            f"{harness} is not installed. Install it with: pip install 'liveedit[{_EXTRAS[harness]}]'"
        ) from error


def run_harness(model: EditedModel, config: EvalConfig, include: Path | None = None) -> HarnessResults:
    """The results of these tasks on the model as it is now.

    include: a folder with further tasks (YAML), for tasks of one's own. Raises `NotFoundError` for a harness that is
    not installed or a task that it does not know.
    """
    harness_version(config.harness)
    if config.harness == "lm-eval":
        return _lm_eval(model, config, include)
    if config.chat_template:
        raise InvalidInputError("lmms-eval always asks in the model's chat format. Leave the chat template out.")
    return _lmms_eval(model, config, include)


def _lm_eval(model: EditedModel, config: EvalConfig, include: Path | None) -> HarnessResults:
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    from .lm_model import EditedLM

    manager = _manager(TaskManager, config, include)
    lm = EditedLM(model, config.batch)
    found = simple_evaluate(
        lm,
        tasks=list(config.tasks),
        num_fewshot=config.few_shot,
        limit=config.limit,
        apply_chat_template=config.chat_template,
        task_manager=manager,
    )
    return _results(found, lm.counts.to_dict())


def _lmms_eval(model: EditedModel, config: EvalConfig, include: Path | None) -> HarnessResults:
    from lmms_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lmms_eval.models import get_model  # pyright: ignore[reportMissingImports]
    from lmms_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    from .lmms_manifest import NAME

    manager = _manager(partial(TaskManager, model_name=NAME), config, include)
    lm = get_model(NAME)(model, config.batch)  # By its entry point, as lmms-eval's own command finds it.
    found = simple_evaluate(
        lm, tasks=list(config.tasks), num_fewshot=config.few_shot, limit=config.limit, task_manager=manager
    )
    return _results(found, lm.counts.to_dict())


def _manager(make: Callable[..., Any], config: EvalConfig, include: Path | None) -> Any:
    """The harness's index of tasks. A harness has thousands: they are read only if the folder lacks one."""
    wanted = list(config.tasks)
    if include is not None:
        own = make(include_path=str(include), include_defaults=False)
        if set(wanted) <= set(own.match_tasks(wanted)):
            return own
    manager = make(include_path=None if include is None else str(include))
    if unknown := sorted(set(wanted) - set(manager.match_tasks(wanted))):
        raise NotFoundError(
            f"{config.harness} has no task {', '.join(unknown)}. See `{config.harness} ls tasks` (or --tasks list), "
            "or give the folder of your own tasks (--include-path)."
        )
    return manager


# -- results in one form -------------------------------------------------------------------------------------


def _results(found: Any, requests: dict[str, dict[str, int]]) -> HarnessResults:
    better = found.get("higher_is_better") or {}
    counts = found.get("n-samples") or {}
    samples = found.get("samples") or {}
    groups = found.get("groups") or {}
    tasks = {
        name: {"documents": int(counts[name]["effective"]), "scores": _scores(found["results"][name], better.get(name))}
        for name in samples
    }
    within = found.get("group_subtasks") or {}
    grouped = {
        name: {"tasks": _single(name, within, tasks), "scores": _scores(values, better.get(name))}
        for name, values in groups.items()
    }
    rows = [_sample(name, one) for name, several in samples.items() for one in several]
    return HarnessResults(tasks, grouped, rows, requests)


def _scores(values: Mapping[str, Any], better: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The scores of a task or group. Keys of a harness are METRIC,FILTER; the filter "none" is left out."""
    scores = {}
    for key, value in values.items():
        metric, _, filtered = key.partition(",")
        if metric in _NOT_METRICS or _STDERR in metric or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{metric}{_STDERR},{filtered}" if filtered else f"{metric}{_STDERR}")
        name = metric if filtered in ("", "none") else f"{metric} ({filtered})"
        scores[name] = {
            "value": float(value),
            "stderr": float(stderr) if isinstance(stderr, int | float) else None,
            "higher_is_better": (better or {}).get(metric),
        }
    return scores


def _single(group: str, within: Mapping[str, Sequence[str]], tasks: Mapping[str, Any]) -> list[str]:
    """The single tasks of a group, also of the groups in it."""
    found: list[str] = []
    for name in within.get(group, ()):
        found += [name] if name in tasks else _single(name, within, tasks)
    return list(dict.fromkeys(found))


def _sample(task: str, one: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a document: its number, the expected and the given answers, and its scores."""
    names = ("doc_id", "doc_hash", "prompt_hash", "filter", "target", "resps", "filtered_resps")
    fixed = {"doc", "arguments", "target_hash", "metrics", "input", *names}
    kept = {name: one[name] for name in names if name in one}
    scores = {name: value for name, value in one.items() if name not in fixed}
    return json.loads(json.dumps({"task": task, **kept, "scores": scores}, default=str))
