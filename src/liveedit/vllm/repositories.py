"""The repositories of a worker: editors without the model's weights, which follow the stores of their edits."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..backbones.weightless import weightless_backbone
from ..edited.following import FollowedEdits
from ..editors import default_editor, expert_editor_class
from ..editors.shared.routed_editor import RoutedEditor
from ..errors import ConfigError
from ..store.store import EditStore
from .settings import RepositorySettings, Settings


class Repository:
    """The active edits of one store, and the editor that finds them."""

    def __init__(self, name: str, settings: RepositorySettings, backbone: str, device: torch.device):
        self.name = name
        self.store = EditStore(settings.edits)
        try:
            bound = self.store.binding
            weightless = weightless_backbone(backbone, device, bound.backbone_digest if bound else "unknown")
            chosen = settings.editor or (bound.editor if bound else default_editor(backbone, settings.editor_path))
            kind = expert_editor_class(chosen)
            if not issubclass(kind, RoutedEditor):
                raise ConfigError(f"The editor {chosen!r} of the repository {name!r} cannot route inside vLLM.")
            self.editor = kind.load(weightless, settings.editor_path)
            if bound is not None:
                self.store.bind(bound.backbone_digest, self.editor.digest(), backbone=bound.backbone, editor=chosen)
            self.followed = FollowedEdits(self.editor, self.store)
            self.followed.load()
        except BaseException:
            self.store.close()
            raise

    @property
    def revision(self) -> int:
        """The revision after which the edits are those of the store."""
        return self.followed.revision

    def follow(self, revision: int) -> None:
        """Have the edits that are active after this revision."""
        if revision != self.revision:
            self.followed.refresh(revision)


def opened(settings: Settings, model: str, device: torch.device) -> Mapping[str, Repository]:
    """All repositories by name. model: what vLLM has loaded. Raises as editors and stores do."""
    backbone = settings.backbone or model
    return {name: Repository(name, one, backbone, device) for name, one in settings.repositories.items()}
