"""`liveedit train --editor NAME`: every editor with trained parts other than LiveEdit, all by one recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..backbones import Backbone
    from ..editors.trained import Report, TrainedEditor, TrainingResult
    from ..samples import EditCase
    from ..training.distributed import Processes
    from ..training.trainer import StageConfig

Training = Callable[["Backbone", "Sequence[EditCase]", Path, "Report", "Processes"], "TrainingResult"]
"""A training of some editor, its settings decided: backbone, cases, folder, report, processes."""


def trained_class(name: str) -> type[TrainedEditor]:
    """The editor of this name. Raises `ConfigError` where it has nothing to train."""
    from ..editors import editor_class, editor_names
    from ..editors.trained import TrainedEditor
    from ..errors import ConfigError

    kind = editor_class(name)
    if not issubclass(kind, TrainedEditor):
        others = [other for other in editor_names() if issubclass(editor_class(other), TrainedEditor)]
        raise ConfigError(f"The editor {name!r} has nothing to train. Those that have: {', '.join(others)}.")
    return kind


def drawn_cases(kind: type[TrainedEditor], data: str) -> int | None:
    """Cases that this editor's training makes of world or facts; None, which is all, of other data."""
    from ..datasets.sources import facts_seed, world_seed

    return None if world_seed(data) is None and facts_seed(data) is None else kind.training_cases


def train_other(
    kind: type[TrainedEditor],
    stages: tuple[StageConfig, ...],
    settings: dict[str, Any],
    validation: int | None,
    frozen: Backbone,
    cases: Sequence[EditCase],
    out: Path,
    report: Report,
    processes: Processes,
) -> TrainingResult:
    """Each given setting goes to the training or to the editor's configuration, whichever has it."""
    from ..editors.trained import train_editor
    from ..training.trainer import TrainingConfig

    given = {name: value for name, value in settings.items() if value is not None}
    of_training = {name: given.pop(name) for name in [*given] if name in TrainingConfig.model_fields}
    kept = validation or min(256, max(1, len(cases) // 4))
    training = TrainingConfig.model_validate({"stages": stages, "validation": kept, **of_training})
    return train_editor(kind, frozen, cases, kind.new_config(frozen, **given), training, out, report, processes)
