"""`liveedit serve` and `keys`: a service that is asked and corrected over HTTP, and who may do it."""

from __future__ import annotations

from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from ..errors import ConfigError
from .arguments import BackboneName, EditorName, EditorPath, EditsLocation, ExpertsOn, Json, LoadOptions, loading
from .console import console, load_quietly, note, print_fields, print_json

if TYPE_CHECKING:
    from ..serving.api_keys import KeyFile

KeysFile = Annotated[Path, typer.Option("--keys", help="The file of API keys (JSON); only their digests are in it.")]

keys = typer.Typer(no_args_is_help=True, help="Make, list and remove the API keys of a service.")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(serve)
    app.add_typer(keys, name="keys")


# Help says of the limits what `ServingSettings` says, in the same words; a test compares them. To import those here
# would make every command wait.
def serve(
    edits: EditsLocation,
    backbone: BackboneName = "tiny-llava",
    load: LoadOptions = None,
    editor: EditorName = "liveedit-refine",
    editor_path: EditorPath = None,
    experts_on: ExpertsOn = "device",
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=0, max=65535)] = 8000,
    keep_images: Annotated[
        bool, typer.Option("--keep-images", help="Keep whole images with edits: checks ask about them exactly.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="What clients call it; the backbone's name by default.")] = None,
    keys: Annotated[Path | None, typer.Option(help="The file of API keys, made by `liveedit keys add`.")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Ask for no keys; on a loopback address alone.")] = False,
    queue: Annotated[int | None, typer.Option(help="Most requests that wait for the model.  [default: 256]")] = None,
    queue_seconds: Annotated[
        float | None, typer.Option(help="Longest wait for the model, in seconds.  [default: 30.0]")
    ] = None,
    answer_seconds: Annotated[
        float | None, typer.Option(help="Longest time for an answer once begun, in seconds.  [default: 60.0]")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Most questions that are answered at once.  [default: 64]")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Batches that are answered side by side; one by default but for small models."),
    ] = None,
    body_bytes: Annotated[int | None, typer.Option(help="Largest request body, in bytes.  [default: 8388608]")] = None,
    image_pixels: Annotated[int | None, typer.Option(help="Largest image, in pixels.  [default: 16000000]")] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(help="Longest prompt, in tokens of text; those of the image are free.  [default: 1024]"),
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens; also where a request names none.  [default: 256]")
    ] = None,
    allow_images_from: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Fetch images of requests from below this URL; may be given several times."),
    ] = None,
) -> None:
    """Serve the model: asked by OpenAI's protocol, corrected by /v1/edits, until SIGTERM or Ctrl-C."""
    given = {
        "queue": queue,
        "queue_seconds": queue_seconds,
        "answer_seconds": answer_seconds,
        "batch": batch,
        "workers": workers,
        "body_bytes": body_bytes,
        "image_pixels": image_pixels,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "allow_images_from": tuple(allow_images_from or ()),
    }
    _check_extra()
    from pydantic import ValidationError

    from ..errors import issues_of
    from ..serving.fetching import Place
    from ..serving.memory import keep_memory
    from ..serving.settings import ServingSettings

    try:
        settings = ServingSettings.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(f"The limits cannot be used: {issues_of(error)}.") from error
    for place in settings.allow_images_from:
        Place.parse(place)
    holders = _holders(host, keys, no_auth)
    keep_memory()
    load_quietly()
    from ..edited.model import EditedModel
    from ..serving.server import model_name, reserved, server_of

    options: dict[str, Any] = {
        "edits": edits,
        "keep_images": keep_images,
        "editor": editor,
        "editor_path": editor_path,
        "experts_on": experts_on,
        **loading(load),
    }
    with closing(reserved(host, port)) as door, EditedModel.load(backbone, **options) as model:
        called, port = name or model_name(backbone), door.getsockname()[1]
        server = server_of(model, called, settings, holders, host, port)
        note(f"Serving {called!r} with {len(model):,} edits at {host}, port {port}; SIGTERM or Ctrl-C stops it.")
        server.run([door])


@keys.command("add")
def add_key(
    keys: KeysFile,
    role: Annotated[
        Literal["ask", "edit", "admin"], typer.Option(help="ask; edit (may ask too); admin (may read the metrics too).")
    ] = "ask",
    name: Annotated[str | None, typer.Option(help="Whose it is, for the list.")] = None,
    json: Json = False,
) -> None:
    """Make a key and print it, this once: the file keeps its digest alone."""
    from ..serving.api_keys import KeyFile

    key, text = KeyFile(keys).add(role, name)
    if json:
        print_json({"id": key.id, "role": key.role, "name": key.name, "key": text})
        return
    print_fields({"key": text, "id": key.id, "role": key.role, "name": key.name})
    note("This is the only time that the key is shown.")


@keys.command("list")
def list_keys(keys: KeysFile, json: Json = False) -> None:
    """The keys of a file, without the keys themselves."""
    from ..serving.api_keys import KeyFile

    found = [key.model_dump(mode="json", exclude={"sha256"}) for key in _existing(KeyFile(keys)).keys]
    if json:
        print_json({"keys": found})
        return
    table = Table("Id", "Role", "Name", "Made (UTC)")
    for key in found:
        table.add_row(key["id"], key["role"], key["name"] or "", key["created_at"])
    console().print(table)


@keys.command("remove")
def remove_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")], keys: KeysFile, json: Json = False
) -> None:
    """Take a key away; a running service follows at once."""
    from ..serving.api_keys import KeyFile

    removed = _existing(KeyFile(keys)).remove(key_id)
    if json:
        print_json({"removed": removed.id})
        return
    note(f"The key {removed.id} ({removed.role}) is removed.")


def _existing(file: KeyFile) -> KeyFile:
    if not file.path.exists():
        raise ConfigError(f"There is no file {str(file.path)!r}. `liveedit keys add` makes one.")
    return file


def _check_extra() -> None:
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client", "httpx2") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"Serving needs {', '.join(missing)}, not installed here: pip install 'liveedit[serve]'.")


def _holders(host: str, keys: Path | None, no_auth: bool) -> KeyFile | None:
    """Who may do what; refuses a service that is open to strangers."""
    from ..serving.api_keys import KeyFile
    from ..serving.middleware import is_loopback

    if no_auth and keys is not None:
        raise ConfigError("--keys and --no-auth were both given. Give one of them.")
    if no_auth:
        if not is_loopback(host):
            raise ConfigError(
                f"--no-auth was given with the address {host!r}, which others can reach. Listen at 127.0.0.1, or make "
                "keys (`liveedit keys add --role edit --keys FILE`) and give --keys FILE."
            )
        return None
    if keys is None:
        raise ConfigError(
            "Who may ask and edit? Make keys (`liveedit keys add --role edit --keys FILE`) and give --keys FILE, or "
            "give --no-auth on a loopback address."
        )
    file = _existing(KeyFile(keys))
    if not file.keys:
        raise ConfigError(f"There are no keys in {str(keys)!r}. Make one: liveedit keys add --role edit --keys {keys}.")
    return file
