"""Bundles of edits in repositories of a hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Self

from huggingface_hub import ModelCard

from ..answers import same_answer
from ..errors import HubError
from ..hub.cards import card
from ..hub.pushing import Pushable
from ..hub.repositories import folder_of
from .bundle import BundleContents, open_bundle
from .records import StoredEdit

FILE: Final = "edits.safetensors"
"""The name of a bundle in its repository."""

_USAGE: Final = """```
liveedit edits pull {repository} --edits edits.db
liveedit ask --backbone {backbone} --edits edits.db --prompt TEXT
```

The edits work with the backbone and the editor of the digests above, and with no other."""


class HubBundle(Pushable):
    """A bundle that `EditStore.export_bundle` wrote, as a repository of a hub has it: the file, unchanged, and a card.

    `EditStore.import_bundle` reads its `path`. Raises `StoreError` for a file that is no bundle, or damaged.
    """

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """The mixin's own would write the path on this machine into the repository."""
        return object.__new__(cls)

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open_bundle(self.path) as bundle:
            bundle.check()
            self.contents: BundleContents = bundle.contents

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, source: str | Path, *, revision: str | None = None, **options: Any
    ) -> Self:
        """The bundle in a folder, or in a repository of a hub, OWNER/NAME or OWNER/NAME@REVISION.

        revision, options: as for `hub.repositories.folder_of`. Raises as it does, `HubError` if there is no bundle, and
        `StoreError` if it is damaged.
        """
        file = folder_of(source, revision=revision, **options) / FILE
        if not file.is_file():
            raise HubError(f"{str(source)!r} holds no {FILE}, so it has no edits. `liveedit edits push` writes one.")
        return cls(file)

    def _save_pretrained(self, save_directory: Path) -> None:
        shutil.copyfile(self.path, save_directory / FILE)

    def generate_model_card(self, repo_id: str = "OWNER/NAME", license: str | None = None) -> ModelCard:
        """The card of these edits. license: as the hub names it."""
        binding = self.contents.binding
        backbone, editor = (binding.backbone, binding.editor) if binding else ("BACKBONE", "none")
        return card(
            title=f"Edits of {backbone}",
            summary=f"Edits that LiveEdit's editor `{editor}` made for the model `{backbone}`, with their experts.",
            facts={
                "backbone": binding and binding.backbone,
                "backbone digest": binding and binding.backbone_digest,
                "editor": binding and binding.editor,
                "editor digest": binding and binding.editor_digest,
                **_facts(self.contents),
            },
            usage=_USAGE.format(repository=repo_id, backbone=backbone),
            backbone=backbone,
            license=license,
            tags=[editor, "edits"],
        )


def _facts(contents: BundleContents) -> dict[str, object]:
    """Numbers of edits, their data, and what their trials found."""
    active = [edit for edit in contents.edits if edit.is_active]
    blobs = [contents.blobs.get(edit.id, {}) for edit in contents.edits]
    whole, small = (sum(kind in one for one in blobs) for kind in ("image", "thumbnail"))
    return {
        "active edits T": f"{len(active):,}",
        "undone or purged edits": f"{len(contents.edits) - len(active):,}",
        "revision": contents.revision,
        "history": "whole" if contents.whole else "not included",
        "data": f"questions and answers of the edits; {whole:,} whole images, {small:,} thumbnails",
        **{f"trials: {name}": found for name, found in _trials(active)},
    }


def _trials(edits: Iterable[StoredEdit]) -> Iterator[tuple[str, str]]:
    """What the trials of edits found, each at the time of its edit."""
    edits = list(edits)
    known = [(edit, edit.evidence) for edit in edits if edit.evidence is not None]
    yield "edits that took", _share(same_answer(edit.answer_after or "", edit.answer) for edit in edits)
    yield "rephrasings that took", _share(one.took for _, found in known for one in found.rephrasings)
    yield "locality probes that kept their answer", _share(one.kept for _, found in known for one in found.locality)
    yield "earlier edits that kept their answer", _share(one.kept for _, found in known for one in found.earlier_edits)
    asked = [
        one.is_broken(edit.answer)
        for edit, found in known
        for one in (*found.rephrasings, *found.locality, *found.earlier_edits)
    ]
    yield "broken answers", _share(broken for broken in asked if broken is not None)


def _share(values: Iterable[bool]) -> str:
    found = list(values)
    return f"{sum(found):,} of {len(found):,}" if found else "none asked"
