"""What the plugin reads of `additional_config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError

KEY: Final = "liveedit"
"""Name of the settings in `additional_config`, and of the choice of a repository in a request's `vllm_xargs`."""

NO_EDITS: Final = "none"
"""What a request gives to be answered by the unedited model."""

_ONLY: Final = "default"


class RepositorySettings(BaseModel):
    """One repository of edits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    edits: str = Field(description="The edits file, or the URL of a PostgreSQL database.")
    editor: str | None = Field(None, description="The editor of its edits; by default the one that made them.")
    editor_path: str | None = Field(None, description="The folder of a trained editor, or of a calibration.")
    maker: str | None = Field(
        None, description="URL of a `liveedit serve` with the same edits: it makes them for vLLM's `/v1/edits`."
    )


class Settings(BaseModel):
    """The plugin's settings. The fields of `RepositorySettings` at the top are a short form for one repository.

    With one repository, every request uses it unless it names `NO_EDITS`. With several, a request names the one that
    it uses in `vllm_xargs`, as `{"liveedit": NAME}`; others are answered by the unedited model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repositories: dict[str, RepositorySettings] = Field(min_length=1, description="Repositories by name.")
    default: str | None = Field(None, description="The repository of requests that name none.")
    backbone: str | None = Field(None, description="Built-in name or folder of the model; by default what vLLM loads.")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "edits" not in values:
            return values
        short = {name: values[name] for name in RepositorySettings.model_fields if name in values}
        rest = {name: value for name, value in values.items() if name not in short}
        if "repositories" in rest:
            raise ValueError("both edits and repositories were given; give one of them")
        return {"default": _ONLY, **rest, "repositories": {_ONLY: short}}

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        if NO_EDITS in self.repositories:
            raise ValueError(f"a repository is named {NO_EDITS!r}, which stands for the unedited model")
        if self.default is not None and self.default not in self.repositories:
            raise ValueError(f"default={self.default!r} is not one of {', '.join(self.repositories)}")
        return self

    @classmethod
    def of(cls, additional_config: Any) -> Self | None:
        """The settings in vLLM's `additional_config`; None if the plugin was not asked for.

        Raises `ConfigError` for settings that do not exist, and for values that are not allowed.
        """
        values = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        if values is None:
            return None
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, one['loc'])) or KEY}: {one['msg'].removeprefix('Value error, ')}"
                for one in error.errors()
            )
            raise ConfigError(
                f"--additional-config has {values!r} under {KEY!r}: {problems}. Give for instance "
                '{"liveedit": {"edits": "edits.db"}}.'
            ) from error

    def repository_of(self, further: Mapping[str, Any] | None) -> str | None:
        """The repository of a request with these `vllm_xargs`; None for the unedited model.

        Raises `ConfigError` for a name that does not exist.
        """
        wanted = (further or {}).get(KEY, self.default)
        if wanted is None or wanted == NO_EDITS:
            return None
        if wanted not in self.repositories:
            raise ConfigError(
                f"vllm_xargs names the repository {wanted!r}. There are {', '.join(self.repositories)}; "
                f"{NO_EDITS!r} asks the unedited model."
            )
        return str(wanted)
