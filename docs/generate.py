"""Pages of the reference that are made from the code at each build of the site, so that they cannot go stale.

`PAGES` maps a path below docs/ to the function that writes it. `docs/site_hooks.py` adds them to the site.
Print one with `python docs/generate.py reference/cli.md`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import liveedit
from liveedit import errors
from liveedit.cli import app
from liveedit.editors import editor_class, editor_names

# -- the commands ----------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, such as "edits undo"."""

    def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        below = getattr(command, "commands", None)
        if below is None:
            yield name, command
            return
        for word, one in below.items():
            yield from walk(one, f"{name} {word}".strip())

    yield from walk(typer.main.get_command(app), "")


def parameters(command: Any) -> list[Any]:
    """Arguments and options of a command, without --help."""
    return [one for one in command.get_params(typer.Context(command)) if one.name != "help"]


def command_page() -> str:
    """Every command of `liveedit`, with each argument, option and default."""
    parts = [
        "# Commands",
        "This page is made from the code. `liveedit COMMAND --help` prints the same. `liveedit --version` prints the "
        "version; `--debug` before or after any command shows the traceback of an error.",
    ]
    for name, command in commands():
        given = parameters(command)
        arguments = [one for one in given if not getattr(one, "opts", [""])[0].startswith("-")]
        options = [one for one in given if one not in arguments and not one.hidden]
        usage = " ".join(["liveedit", name, *(_metavar(one) for one in arguments), "[OPTIONS]"])
        parts += [f"## liveedit {name}", _text(command.help), f"```\n{usage}\n```"]
        rows = [(_names(one), _type(one), _default(one), _text(one.help)) for one in (*arguments, *options)]
        if rows:
            parts.append(_table(("option", "takes", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def _metavar(parameter: Any) -> str:
    return (parameter.metavar or parameter.name.upper()) + ("" if parameter.nargs == 1 else "...")


def _names(parameter: Any) -> str:
    if not parameter.opts[0].startswith("-"):
        return f"`{_metavar(parameter)}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _type(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return "nothing"
    descriptor = getattr(parameter, "type_descriptor", None)
    found = type_words(getattr(descriptor, "annotation", None)) if descriptor else parameter.metavar or ""
    return found + (", several" if parameter.multiple and "several" not in found else "")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value in (None, (), []) or value is False or callable(value) else f"`{value}`"


# -- limits and settings ---------------------------------------------------------------------------------------


def limits_page() -> str:
    """Limits of the service, from `ServingSettings` and the options of `liveedit serve`."""
    from liveedit.serving.settings import ServingSettings

    serve = dict(commands())["serve"]
    options = {one.name: one.opts[0] for one in parameters(serve)}
    rows = [
        (f"`{options[name]}`" if name in options else f"`{name}` (no option)", *field_words(field))
        for name, field in ServingSettings.model_fields.items()
    ]
    return (
        "\n\n".join(
            (
                "# Limits of the service",
                "This page is made from the code (`liveedit.serving.settings.ServingSettings`). A request that exceeds "
                "a limit is refused, and the message names the limit. [Serving](../SERVING.md#limits) says which "
                "status each refusal has.",
                _table(("option of `liveedit serve`", "takes", "default", "meaning"), rows),
            )
        )
        + "\n"
    )


def settings_page() -> str:
    """Every setting of every installed editor, from its pydantic model."""
    parts = [
        "# Settings of the editors",
        "This page is made from the code. Settings of a trained editor are given to `liveedit train --set "
        "SETTING=VALUE`; settings of an editor that needs no training to `liveedit bench --set NAME.SETTING=VALUE`. "
        "[Which editor to choose](../CHOOSING.md) compares the editors.",
    ]
    for name in built_in_editors():
        kind = editor_class(name)
        models = list(settings_models(name))
        parts += [f"## {name}", f"`{kind.__module__}.{kind.__qualname__}`: {kind.summary}."]
        if not models:
            parts.append("It has no settings.")
        for model in models:
            rows = [(f"`{field}`", *field_words(info)) for field, info in model.model_fields.items()]
            parts += [f"### {name}: {model.__name__}", _summary(model), _table(_SETTING, rows)]
    return "\n\n".join(parts) + "\n"


def built_in_editors() -> list[str]:
    """Names of the editors of this package."""
    return [name for name in editor_names() if editor_class(name).__module__.startswith("liveedit.")]


def settings_models(editor: str) -> Iterator[type[BaseModel]]:
    """The pydantic models that are defined in the folder or file of this editor."""
    kind = editor_class(editor)
    own = {getattr(kind, name, None) for name in ("settings_class", "config_class", "options_class")} - {None}
    module = sys.modules[kind.__module__]
    package = module.__name__.rpartition(".")[0]
    if package.count(".") < 2:  # One file: only the models that the class names are this editor's.
        yield from sorted((one for one in own if _is_model(one)), key=lambda model: model.__name__)
        return
    found: dict[str, type[BaseModel]] = {}
    folder = importlib.import_module(package)
    for entry in pkgutil.iter_modules(folder.__path__):
        _collect(importlib.import_module(f"{package}.{entry.name}"), found)
    yield from (found[name] for name in sorted(found))


def _collect(module: ModuleType, found: dict[str, type[BaseModel]]) -> None:
    for name, value in vars(module).items():
        if _is_model(value) and not name.startswith("_") and value.__module__ == module.__name__:
            found[name] = value


def _is_model(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseModel)


# -- the programming interface ---------------------------------------------------------------------------------

_MODULES = {
    "Samples and answers": ("liveedit.samples", "liveedit.answers", "liveedit.answering"),
    "Errors": ("liveedit.errors",),
    "Testing": ("liveedit.testing",),
    "Editors": ("liveedit.editors", "liveedit.editors.base", "liveedit.editors.trained", "liveedit.experts.expert"),
    "Backbones": (
        "liveedit.backbones",
        "liveedit.backbones.backbone",
        "liveedit.backbones.loading",
        "liveedit.backbones.tokens",
        "liveedit.backbones.prompt_transforms",
    ),
    "Datasets": ("liveedit.datasets", "liveedit.datasets.base", "liveedit.datasets.sources"),
}
"""Modules that an extension works with, by the title of their page. A module that does not exist is left out."""


def public_page() -> str:
    """The names of `liveedit.__all__`, each by its docstring."""
    parts = [
        "# Public names",
        "`from liveedit import NAME`. These names follow the version number; everything else may move between "
        "versions. This page is made from `liveedit.__all__` and the docstrings.",
    ]
    shown = {module for modules in _MODULES.values() for module in modules}
    for name in liveedit.__all__:
        value = getattr(liveedit, name)
        parts.append(f"## {name}")
        if not hasattr(value, "__qualname__"):
            parts.append(f"A `{type(value).__name__}`: the installed version.")
            continue
        path = f"{value.__module__}.{value.__qualname__}"
        if value.__module__ in shown:  # Each docstring stands on one page only.
            parts += [_summary(value), f"[`{path}`][{path}]"]
        else:
            parts.append(_members(value))
    return "\n\n".join(parts) + "\n"


def module_page(title: str) -> str:
    """Several modules by their docstrings."""
    parts = [f"# {title}"]
    for name in _MODULES[title]:
        if not exists(name):
            continue
        parts.append(f"## {name}\n\n::: {name}\n    options:\n      heading_level: 3")
        below = importlib.import_module(name)
        if hasattr(below, "__path__"):
            parts += [_members(value) for value in _defined_below(below)]
    if len(parts) == 1:
        parts.append("This version has none.")
    return "\n\n".join(parts) + "\n"


def _defined_below(package: ModuleType) -> list[Any]:
    """What a package exports from modules that have no section of their own."""
    shown = {name for names in _MODULES.values() for name in names}
    exported = (getattr(package, name) for name in getattr(package, "__all__", ()))
    public = {getattr(liveedit, name) for name in liveedit.__all__}  # The page of public names has these.
    return [
        one for one in exported if hasattr(one, "__qualname__") and one not in public and one.__module__ not in shown
    ]


def _members(value: Any) -> str:
    return f"::: {value.__module__}.{value.__qualname__}\n    options:\n      heading_level: 3"


def exists(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def error_classes() -> list[type[errors.LiveEditError]]:
    """Every error class, the base first."""
    return [
        value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.LiveEditError)
    ]


# -- words -----------------------------------------------------------------------------------------------------

_SETTING = ("setting", "takes", "default", "meaning")


def field_words(field: FieldInfo) -> tuple[str, str, str]:
    """What a field takes, its default, its meaning."""
    bounds = [
        f"{sign} {getattr(one, name):,}"
        for one in field.metadata
        for name, sign in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
        if getattr(one, name, None) is not None
    ]
    takes = ", ".join([type_words(field.annotation), *bounds])
    if field.is_required():
        default = "required"
    elif field.default is PydanticUndefined:
        default = f"`{field.default_factory()}`" if field.default_factory else ""  # type: ignore[call-arg]
    else:
        default = f"`{field.default!r}`" if isinstance(field.default, str) else f"`{field.default}`"
    return takes, default, _text(field.description)


def type_words(annotation: Any) -> str:
    """A type in words."""
    if annotation is None or annotation is type(None):
        return "nothing"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (list, tuple, set, frozenset):
        return f"{type_words(inner[0])}, several" if inner else "several"
    if inner and (origin is Union or str(origin) == "<class 'types.UnionType'>"):
        return " or ".join(type_words(one) for one in inner)
    plain = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    if annotation in plain:
        return plain[annotation]
    name = getattr(annotation, "__name__", str(annotation))
    return "a path" if name == "Path" else f"`{name}`"


def _text(text: str | None) -> str:
    return " ".join((text or "").replace("|", "\\|").split())


def _summary(value: Any) -> str:
    return _text((inspect.getdoc(value) or "").split("\n\n")[0])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": command_page,
    "reference/limits.md": limits_page,
    "reference/settings.md": settings_page,
    "reference/public.md": public_page,
    **{f"reference/{title.lower().replace(' ', '-')}.md": lambda title=title: module_page(title) for title in _MODULES},
}

if __name__ == "__main__":
    for page in sys.argv[1:] or PAGES:
        print(PAGES[page]())
