"""`liveedit push-editor`, `edits push` and `edits pull`: editors and edits in repositories of a hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

from ..registry import DEFAULT_TRAINED_EDITOR
from .arguments import loading
from .console import console, counted, load_quietly, print_json
from .options import BackboneName, EditsLocation, Json, LoadOptions, OnConflict

if TYPE_CHECKING:
    from ..store.store import Imported

Repository = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; created if it does not exist.")]
License = Annotated[
    str | None, typer.Option("--license", help="The licence as the hub names it, such as apache-2.0, for the card.")
]
Public = Annotated[bool, typer.Option("--public", help="Create a repository that everybody can read.")]
Branch = Annotated[str | None, typer.Option("--branch", help="The branch to push to. Default: main.")]


def register(app: typer.Typer) -> None:
    """Add the command for editors; those for edits are in the group `edits`."""
    app.command("push-editor")(push_editor)


def push_editor(
    repository: Repository,
    editor: Annotated[
        str, typer.Option("--editor", help="A trained editor, or fitted-experts with its calibration.")
    ] = DEFAULT_TRAINED_EDITOR,
    editor_path: Annotated[
        Path | None, typer.Option("--editor-path", help="Its folder. Default: the one of a built-in backbone.")
    ] = None,
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Folder of `liveedit bench --out`: its figures of this editor.")
    ] = None,
    license: License = None,
    public: Public = False,
    branch: Branch = None,
    json: Json = False,
) -> None:
    """Push an editor with a model card into a repository of a hub; the repository's name is then its --editor-path."""
    load_quietly()
    from ..backbones import load_backbone
    from ..editors import pretrained_editor_class
    from ..evaluation.card_scores import scores_of_report
    from ..hub.repositories import check_token

    check_token(None)
    kind = pretrained_editor_class(editor)
    with kind.load(load_backbone(backbone, **loading(load)), str(editor_path) if editor_path else None) as loaded:
        scores = [] if results is None else scores_of_report(results, loaded.digest())
        card = {"license": license, "scores": scores}
        commit = loaded.push_to_hub(repository, private=not public, branch=branch, model_card_kwargs=card)
        done = {"repository": repository, "commit": str(commit), "editor": editor, "editor_digest": loaded.digest()}
    _print_pushed(done, f"the editor {editor}", public, json)


def push_edits(
    repository: Repository,
    edits: EditsLocation,
    active: Annotated[
        bool, typer.Option("--active", help="Only active edits, without undone ones and history.")
    ] = False,
    license: License = None,
    public: Public = False,
    branch: Branch = None,
    json: Json = False,
) -> None:
    """Push the edits as a bundle with a card into a repository of a hub. It has questions, answers, images, authors."""
    from ..hub.repositories import check_token
    from ..store.hub_bundle import FILE, HubBundle
    from ..store.store import EditStore

    check_token(None)
    with TemporaryDirectory(prefix="liveedit-push-") as folder, EditStore(edits, create=False) as store:
        contents = store.export_bundle(Path(folder) / FILE, whole=not active)
        bundle = HubBundle(Path(folder) / FILE)
        card = {"license": license}
        commit = bundle.push_to_hub(repository, private=not public, branch=branch, model_card_kwargs=card)
    done = {
        "repository": repository,
        "commit": str(commit),
        "edits": len(contents.edits),
        "revision": contents.revision,
    }
    _print_pushed(done, counted(len(contents.edits), "edit"), public, json)


def pull_edits(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository that `edits push` wrote.")],
    edits: EditsLocation,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A branch, a tag or a commit of the repository. Default: main.")
    ] = None,
    on_conflict: OnConflict = "refuse",
    json: Json = False,
) -> None:
    """Import the edits of a repository: all of them or none. The edits file is created if it does not exist."""
    from ..store.hub_bundle import HubBundle

    import_bundle(HubBundle.from_pretrained(repository, revision=revision).path, edits, on_conflict, json)


def import_bundle(bundle: Path, edits: str, on_conflict: Literal["refuse", "supersede", "keep"], json: bool) -> None:
    """Import a bundle and print what became of its edits."""
    from ..store.store import EditStore

    with EditStore(edits) as store:
        done = store.import_bundle(bundle, on_conflict=on_conflict)
        left = len(store)
    if json:
        print_json({**asdict(done), "active_edits": left})
        return
    for line in _import_report(done, left, kept=on_conflict == "keep"):
        console().print(Text(line))


def _import_report(done: Imported, left: int, kept: bool) -> Iterator[str]:
    there, purged = len(done.already_there), len(done.purged_here)
    yield (
        f"Imported {counted(len(done.added), 'edit')}; {there:,} {'was' if there == 1 else 'were'} there already, "
        f"{purged:,} {'was purged here and stays' if purged == 1 else 'were purged here and stay'} purged (active "
        f"edits: {left:,})."
    )
    if done.repeated:
        repeated = counted(len(done.repeated), "imported edit")
        yield f"{repeated} superseded an active edit of the same question with the same answer."
    if done.contradictions:
        what = "all stay active" if kept else "the later edit superseded the earlier"
        yield f"{counted(len(done.contradictions), 'contradiction')}; {what}:"
        yield from map(str, done.contradictions)


def _print_pushed(done: dict[str, Any], what: str, public: bool, json: bool) -> None:
    if json:
        print_json(done)
        return
    kind = "" if public else " A repository that did not exist is private."
    console().print(Text(f"Pushed {what} to {done['repository']}: {done['commit']}.{kind}"))
