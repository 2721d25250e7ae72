"""`liveedit serve` and `liveedit keys`: the HTTP service and its API keys."""

from __future__ import annotations

import socket
from contextlib import closing
from importlib.util import find_spec
from inspect import Parameter, Signature
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from typer.core import TyperCommand

from ..errors import ConfigError, issues_of
from .console import console, counted, load_quietly, note, print_fields, print_json
from .loading import ModelOptions
from .options import EditsLocation, Json, with_options

if TYPE_CHECKING:
    from ..serving.api_keys import KeyFile
    from ..serving.settings import ServingSettings

KeysFile = Annotated[Path, typer.Option("--keys", help="The file of API keys (JSON). It contains only their digests.")]

keys = typer.Typer(no_args_is_help=True, help="Make, list and remove the API keys of a service.")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(cls=ServeCommand)(serve)
    app.add_typer(keys, name="keys")


# The settings are imported only when `serve` is run or its help is shown, so that other commands start fast.
class ServeCommand(TyperCommand):
    """`serve`, with an option for each field of `ServingSettings`. Their values reach the function as `ctx.obj`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The options of the function, then those of the limits."""
        return [*super().get_params(ctx), *limit_options()]

    def invoke(self, ctx: Any) -> Any:
        """Take the limits out of the function's arguments."""
        ctx.obj = {option.name: ctx.params.pop(option.name) for option in limit_options()}
        return super().invoke(ctx)


def limit_options() -> list[Any]:
    """An option for each field of `ServingSettings`, with its description and its default."""
    from ..serving.settings import ServingSettings

    def limits(**values: Any) -> None: ...

    parameters = []
    for name, field in ServingSettings.model_fields.items():
        is_list = field.default == ()
        option = typer.Option(help=field.description, rich_help_panel="Limits", metavar="URL" if is_list else None)
        annotation = Annotated[list[str] if is_list else field.annotation, option]
        default = None if is_list else field.default
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    limits.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    app = typer.Typer(add_completion=False)
    app.command()(limits)
    return [option for option in typer.main.get_command(app).params if option.name in ServingSettings.model_fields]


@with_options(ModelOptions)
def serve(
    ctx: typer.Context,
    edits: EditsLocation,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=0, max=65535)] = 8000,
    keep_images: Annotated[
        bool, typer.Option("--keep-images", help="Keep whole images with edits, so that checks ask about them exactly.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="The model's name in requests; the backbone's name by default.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="The file of API keys, made by `liveedit keys add`.")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Require no API key; only at a loopback address.")] = False,
    *,
    options: ModelOptions,
) -> None:
    """Serve the model over HTTP until SIGTERM or Ctrl-C: OpenAI's chat protocol, and /v1/edits for corrections."""
    _check_extra()
    settings = serving_settings(ctx.obj)
    host = _checked_host(host)
    holders = _key_file(host, keys, no_auth)
    load_quietly()
    from ..serving.server import keep_freed_memory, model_name, reserved, server_of

    keep_freed_memory()
    loaded = options.edited_model(edits, keep_images=keep_images)
    with closing(reserved(host, port)) as bound, loaded as model:
        called, port = name or model_name(options.backbone), bound.getsockname()[1]
        server = server_of(model, called, settings, holders, host, port)
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        note(f"Serving {called!r} with {counted(len(model), 'edit')} at {address}. Stop it with SIGTERM or Ctrl-C.")
        server.run([bound])


def serving_settings(limits: dict[str, Any]) -> ServingSettings:
    """The settings of these options. Raises `ConfigError` if one is out of its range."""
    from pydantic import ValidationError

    from ..serving.fetching import UrlPrefix
    from ..serving.settings import ServingSettings

    given = {name: tuple(value) if isinstance(value, list) else value for name, value in limits.items()}
    try:
        settings = ServingSettings.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(f"The limits cannot be used: {issues_of(error)}. See `liveedit serve --help`.") from error
    for prefix in settings.allow_images_from:
        UrlPrefix.parse(prefix)
    return settings


@keys.command("add")
def add_key(
    keys: KeysFile,
    role: Annotated[
        Literal["ask", "edit", "admin"],
        typer.Option(help="ask; edit (includes ask); admin (includes edit, and reads the metrics)."),
    ] = "ask",
    name: Annotated[str | None, typer.Option(help="The owner, for the list.")] = None,
    json: Json = False,
) -> None:
    """Make a key and print it. It is shown only once: the file keeps its digest."""
    from ..serving.api_keys import KeyFile

    key, text = KeyFile(keys).add(role, name)
    if json:
        print_json({"id": key.id, "role": key.role, "name": key.name, "key": text})
        return
    print_fields({"key": text, "id": key.id, "role": key.role, "name": key.name})
    note("The key is not shown again.")


@keys.command("list")
def list_keys(keys: KeysFile, json: Json = False) -> None:
    """List the keys of a file, without their texts."""
    from ..serving.api_keys import KeyFile

    found = [key.model_dump(mode="json", exclude={"sha256"}) for key in _existing(KeyFile(keys)).keys]
    if json:
        print_json({"keys": found})
        return
    table = Table("Id", "Role", "Name", "Created (UTC)")
    for key in found:
        table.add_row(key["id"], key["role"], key["name"] or "", key["created_at"])
    console().print(table)


@keys.command("remove")
def remove_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")], keys: KeysFile, json: Json = False
) -> None:
    """Remove a key. A running service refuses it at once."""
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


def _checked_host(host: str) -> str:
    """The address to listen at, IPv6 without the brackets of URLs; names are looked up later.

    Raises `ConfigError` for what looks like an IP address and is none.
    """
    try:
        if ":" in host:
            return str(IPv6Address(host[1:-1] if host[0] + host[-1] == "[]" else host))
        if host and set(host) <= set("0123456789."):
            socket.inet_aton(host)  # It knows short forms too, such as 127.1.
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--host {host!r} is no IP address (IPv4: four numbers from 0 to 255). Give 127.0.0.1 to serve this "
            "machine alone, 0.0.0.0 for all of its addresses, or one of its addresses or names."
        ) from error
    return host


def _key_file(host: str, keys: Path | None, no_auth: bool) -> KeyFile | None:
    """The API keys; None for --no-auth. Raises `ConfigError` if other machines could use the service without a key."""
    from ..serving.api_keys import KeyFile
    from ..serving.middleware import is_loopback

    if no_auth and keys is not None:
        raise ConfigError("--keys and --no-auth were both given. Give one of them.")
    if no_auth:
        if not is_loopback(host):
            raise ConfigError(
                f"--no-auth was given with the address {host!r}, which other machines can reach. Use 127.0.0.1, or "
                "make keys (`liveedit keys add --role edit --keys FILE`) and give --keys FILE."
            )
        return None
    if keys is None:
        raise ConfigError(
            "Neither --keys nor --no-auth was given. Make keys (`liveedit keys add --role edit --keys FILE`) and give "
            "--keys FILE, or give --no-auth at a loopback address."
        )
    file = _existing(KeyFile(keys))
    if not file.keys:
        raise ConfigError(f"There are no keys in {str(keys)!r}. Make one: liveedit keys add --role edit --keys {keys}.")
    return file
