"""Models of the hub: whether a name stands for one, and where it is loaded from. The hub is asked once."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, get_session, get_token, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import hf_raise_for_status, validate_repo_id

from ..errors import BackboneError
from ..hub.repositories import unreachable
from ..registry import BUILT_IN, check_backbone_name, near_backbones

_CONFIG = "config.json"
_SECONDS = 4.0
"""How long the hub may take to answer."""


def hub_source(name: str) -> str:
    """What transformers loads for a name that is neither built-in nor a folder: a hub name, or a folder of its cache.

    The hub is asked once, for `_SECONDS` at most. If it does not answer, the model comes from the local cache. Raises
    `BackboneError` if there is no such model, or if the hub does not answer and the model is not in the cache.
    """
    cached = _cached_folder(name)
    if cached is None:
        _check_spelling(name)
    try:
        _ask_once(hf_hub_url(name, _CONFIG))
    except EntryNotFoundError:
        raise BackboneError(
            f"{name} at {constants.ENDPOINT} has no config.json, so it is no transformers checkpoint. Give another, or "
            "download its GGUF file and give the path of that."
        ) from None
    except GatedRepoError:
        if cached is None:
            raise BackboneError(
                f"{name} is gated: ask for access on its page at {constants.ENDPOINT}, log in with `hf auth login`, "
                "and try again."
            ) from None
    except RepositoryNotFoundError:
        if cached is None:
            raise BackboneError(
                f"There is no backbone {name!r}: no folder, and no public model at {constants.ENDPOINT}.{_advice(name)}"
            ) from None
    except Exception as error:  # The hub's client may be replaced, and each has its own errors of the network.
        if cached is None:
            raise BackboneError(
                f"There is no folder {name!r}, and {unreachable(error)}, so no model of this name can be downloaded; "
                f"none is in the local cache.{_advice(name)}"
            ) from error
    else:
        return name
    return str(cached)


def _ask_once(url: str) -> None:
    """One request without retries; the hub's own functions also report to it which program asks."""
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    hf_raise_for_status(get_session().head(url, headers=headers, timeout=_SECONDS))


def _check_spelling(name: str) -> None:
    """Reject, before the hub is asked, what is no name of a hub or nearly that of a built-in model."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise BackboneError(
            f"There is no folder {name!r}, and it is no hub name (OWNER/NAME).{_advice(name)}"
        ) from None
    check_backbone_name(name)


def _cached_folder(name: str) -> Path | None:
    """The folder of the model in the local cache, if there is one."""
    try:
        file = try_to_load_from_cache(name, _CONFIG)
    except HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def _advice(name: str) -> str:
    return near_backbones(name) or (
        f" Give a built-in name ({', '.join(BUILT_IN)}), a folder with a transformers checkpoint, a GGUF file, or the "
        "name of a model at the hub."
    )
