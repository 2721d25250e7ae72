"""Editors that are files: in a folder, or in a repository of a hub."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from huggingface_hub import ModelCard, constants

from ..backbones import Backbone
from ..errors import CheckpointError
from ..hub.cards import Score, card
from ..hub.pushing import Pushable
from ..hub.repositories import folder_of
from .base import Editor

_USAGE: Final = """```python
from liveedit import editor_class, load_backbone

backbone = load_backbone("{backbone}")
editor = editor_class("{editor}").from_pretrained("{repository}", backbone)
```

The commands take it as `--editor {editor} --editor-path {repository}`."""


class PretrainedEditor(Editor, Pushable):
    """An editor with files: trained modules, or a calibration.

    `save_pretrained` writes them without loss, with a model card. `push_to_hub` does the same into a repository, and
    `from_pretrained` loads both. A subclass gives `from_folder`, `_save_pretrained` and `facts`.
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """The mixin's own keeps copies of the constructor's arguments as a configuration; editors have one."""
        return object.__new__(cls)

    # -- for subclasses ----------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path, backbone: Backbone) -> Self:
        """Load what `_save_pretrained` wrote.

        Raises `CheckpointError` for files that are missing or damaged, `BackboneError` if they are for another model.
        """

    @abstractmethod
    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the files, so that what `from_folder` loads is the same to the bit."""

    def facts(self) -> dict[str, object]:
        """What a card says of this editor besides backbone and digests; None is left out."""
        return {}

    # -- files and repositories --------------------------------------------------------------------------

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, source: str | Path, backbone: Backbone, *, revision: str | None = None, **options: Any
    ) -> Self:
        """Load an editor from a folder, or from a repository of a hub, OWNER/NAME or OWNER/NAME@REVISION.

        revision, options: as for `hub.repositories.folder_of`. Raises as it does, and as `from_folder` does.
        """
        return cls.from_folder(folder_of(source, revision=revision, **options), backbone)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the files of this editor and its card into a folder of its own.

        A README.md that is there stays. options: of `ModelHubMixin.save_pretrained`. Raises `CheckpointError` for the
        folder of a model, whose `config.json` would be removed.
        """
        if (Path(save_directory) / constants.CONFIG_NAME).exists():
            raise CheckpointError(f"The folder {str(save_directory)!r} holds a model. Give the editor another.")
        return super().save_pretrained(save_directory, **options)

    def generate_model_card(
        self, repo_id: str = "OWNER/NAME", license: str | None = None, scores: Sequence[Score] = ()
    ) -> ModelCard:
        """The card of this editor. license: as the hub names it. scores: what was measured of it."""
        backbone = self.backbone
        return card(
            title=f"{self.name} for {backbone.name}",
            summary=f"An editor of LiveEdit for the model `{backbone.name}`: {self.summary}.",
            facts={
                "editor": self.name,
                "editor digest": self.digest(),
                "backbone": backbone.name,
                "backbone digest": backbone.digest(),
                **{f"backbone {name.replace('_', ' ')}": value for name, value in backbone.fingerprint.items()},
                **self.facts(),
            },
            usage=_USAGE.format(backbone=backbone.name, editor=self.name, repository=repo_id),
            backbone=backbone.name,
            scores=scores,
            license=license,
            tags=[self.name],
        )
