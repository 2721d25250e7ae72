"""Repositories of a hub: their names, their files in the local cache, and what is wrong in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token, snapshot_download
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ..errors import HubError, LiveEditError


def split_name(source: str | Path) -> tuple[str, str | None] | None:
    """OWNER/NAME[@REVISION] as the name of a repository and a revision; None if it is not of this form."""
    name, _, revision = str(source).partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return (name, revision or None) if name.count("/") == 1 else None


def folder_of(source: str | Path, *, revision: str | None = None, **options: Any) -> Path:
    """The folder `source`; if there is none and it is OWNER/NAME[@REVISION], that repository in the local cache.

    The hub is asked which commit a branch or tag is, and only files that the cache lacks are downloaded. Without an
    answer the cache is used. A commit that the cache has is not asked for. revision: a branch, a tag or a commit, if it
    is not in the name. options: of `huggingface_hub.snapshot_download` (token, cache_dir, force_download,
    local_files_only).

    Raises `HubError` if there is no such repository or revision, or if neither hub nor cache has it.
    """
    named = None if Path(source).exists() else split_name(source)
    if named is None:
        return Path(source)
    repository, named_revision = named
    with hub_errors(repository, folder=str(source)):
        return Path(snapshot_download(repository, revision=revision or named_revision, **options))


def check_token(token: str | bool | None) -> None:
    """Raise `HubError` if nothing can be pushed because there is no token."""
    if not (token if isinstance(token, str) else get_token()):
        raise HubError(
            "There is no token of the hub, and a push needs one that may write. Log in with `hf auth login`, or set "
            "HF_TOKEN."
        )


@contextmanager
def hub_errors(repository: str, folder: str | None = None) -> Iterator[None]:
    """Turn errors of the hub's client into a `HubError` of one sentence.

    folder: what was given and is no folder, if it may have been meant as one.
    """
    lead = "" if folder is None else f"There is no folder {folder!r}. "
    try:
        yield
    except LiveEditError:
        raise
    except Exception as error:  # The hub's client may be replaced, and each has its own errors of the network.
        if (problem := _problem(repository, error)) is None:
            raise
        raise HubError(lead + problem) from error


def unreachable(error: Exception) -> str:
    """Why the hub gave no answer that can be used, as a clause."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to ask the hub"
    if isinstance(error, HfHubHTTPError):
        return f"the hub at {constants.ENDPOINT} answered with status {error.response.status_code}"
    if isinstance(error, FileMetadataError):
        return f"{constants.ENDPOINT} does not answer as a hub does (see HF_ENDPOINT)"
    return f"the hub at {constants.ENDPOINT} cannot be reached"


def _problem(repository: str, error: Exception) -> str | None:
    """What is wrong and what to do; None for errors that have nothing to do with the hub."""
    hub = constants.ENDPOINT
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # of an upload, which has its reason
        error = error.__cause__
    if isinstance(error, GatedRepoError):
        return f"The repository {repository!r} is gated: ask for access on its page at {hub}, and log in."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"There is no repository {repository!r} at {hub} that this token may read. Check the name; for a private "
            "repository log in with `hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"The repository {repository!r} has no such revision. Give a branch, a tag or a commit of it."
    if isinstance(error, LocalTokenNotFoundError):
        return "There is no token of the hub. Log in with `hf auth login`, or set HF_TOKEN."
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return (
            f"The hub at {hub} refused this token for {repository!r} (status {error.response.status_code}). Log in "
            "with `hf auth login` and a token that may do this."
        )
    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        why = unreachable(cause if isinstance(cause, Exception) else OfflineModeIsEnabled())
        return f"{repository!r} is not in the local cache, and {why}. Try again when it can be reached."
    of_network = isinstance(error, HfHubHTTPError | ConnectionError | TimeoutError)
    if of_network or type(error).__module__.startswith(("httpx", "httpcore")):
        why = unreachable(error)
        return f"{why[0].upper()}{why[1:]} for {repository!r}. Try again later, or check the network and HF_ENDPOINT."
    return None
