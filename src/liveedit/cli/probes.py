"""The file of `liveedit edit --probes`. A module of its own, so that other commands start without pydantic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ConfigError, issues_of


class LocalityQuestion(BaseModel):
    """A question whose answer should stay. image: a path, relative to the folder of the probes file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    image: Path | None = None


class Probes(BaseModel):
    """Content of a probes file: other wordings of an edit's question, and questions whose answers should stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rephrasings: tuple[str, ...] = ()
    locality: tuple[LocalityQuestion, ...] = ()


def probes_of(
    file: Path | None, image: Path | None, rephrasings: Sequence[str], locality: Sequence[str]
) -> tuple[list[str], list[tuple[Path | None, str]]]:
    """Rephrasings and locality questions of a probes file and of options. Those of options are about the edit's image.

    Raises `ConfigError` if the file cannot be used.
    """
    probes = Probes() if file is None else _read_probes(file)
    folder = Path() if file is None else file.parent
    questions = [(asked.image and folder / asked.image, asked.prompt) for asked in probes.locality]
    return [*rephrasings, *probes.rephrasings], [*((image, prompt) for prompt in locality), *questions]


def _read_probes(file: Path) -> Probes:
    try:
        return Probes.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"The probes {str(file)!r} cannot be read ({error.strerror}). Give a JSON file.") from error
    except ValidationError as error:
        raise ConfigError(
            f"The probes {str(file)!r} cannot be used: {issues_of(error)}. Give "
            '{"rephrasings": ["..."], "locality": [{"prompt": "...", "image": "other.png"}]}.'
        ) from error
