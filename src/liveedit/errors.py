"""Every error that LiveEdit raises on purpose.

    LiveEditError
    ├── InvalidInputError  (ValueError)         an argument that cannot be used
    │   ├── ImageError                          an image that cannot be opened
    │   ├── DatasetError                        an annotation file or one of its rows
    │   └── ConfigError                         a configuration with unknown or impossible values
    ├── NotFoundError      (LookupError)        an edit, editor, backbone or data set that is not there
    │   └── EditStateError                      an edit that is undone or active already (a ConflictError too)
    │       └── EditPurgedError                 an edit whose content was deleted
    ├── ExtensionError     (RuntimeError)       an editor, backbone family or reader of a package that cannot be used
    ├── BackboneError      (RuntimeError)       a model that cannot be loaded or edited
    ├── StoreError         (RuntimeError)       an edits file that cannot be read or does not belong here
    ├── CheckpointError    (RuntimeError)       a saved editor or training state that cannot be used
    ├── EditDidNotTakeError (RuntimeError)      an edit that had to take and did not
    ├── HubError           (RuntimeError)       a hub that cannot be reached, or does not give or take what was asked
    ├── ConflictError      (RuntimeError)       a request that contradicts what is already there
    │   └── OvertakenError                      another process changed the same edits first
    └── ServiceError       (RuntimeError)       a service that cannot take or finish a request now
        ├── QueueFullError                      too many requests are waiting
        ├── WaitedTooLongError                  a request that timed out before its turn or its end
        └── ServiceStoppingError                the service is shutting down

A message says what was received, what is allowed, and what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class LiveEditError(Exception):
    """Base of every error that LiveEdit raises on purpose."""


class InvalidInputError(LiveEditError, ValueError):
    """An argument that cannot be used."""


class ImageError(InvalidInputError):
    """An image that is missing, truncated, too large, or no image at all."""


class DatasetError(InvalidInputError):
    """An annotation file, or one row of it, that cannot be read."""


class ConfigError(InvalidInputError):
    """A configuration with unknown keys or impossible values."""


class NotFoundError(LiveEditError, LookupError):
    """An edit, editor, backbone or data set that does not exist."""


class ExtensionError(LiveEditError, RuntimeError):
    """An editor, backbone family or dataset reader that a package registers and that cannot be used."""


class BackboneError(LiveEditError, RuntimeError):
    """A model that cannot be loaded, or cannot be edited."""


class StoreError(LiveEditError, RuntimeError):
    """An edits file that cannot be read, or belongs to another model."""


class CheckpointError(LiveEditError, RuntimeError):
    """A saved editor or training state that cannot be used."""


class EditDidNotTakeError(LiveEditError, RuntimeError):
    """An edit that had to take: with it, the model does not give the requested answer. Nothing was stored."""


class HubError(LiveEditError, RuntimeError):
    """A hub that cannot be reached, a repository that it does not have, or a push that it does not accept."""


class ConflictError(LiveEditError, RuntimeError):
    """A request that contradicts what is already there, such as undoing an edit twice."""


class OvertakenError(ConflictError):
    """Another process changed the same edits first; a retry may succeed."""


class EditStateError(NotFoundError, ConflictError):
    """An edit that exists, but not in the state that is needed: undone already, or active already."""


class EditPurgedError(EditStateError):
    """An edit whose content was deleted; only its id and timestamps remain."""


class ServiceError(LiveEditError, RuntimeError):
    """A service that cannot take or finish a request now; a later retry may succeed."""


class QueueFullError(ServiceError):
    """Too many requests are waiting."""


class WaitedTooLongError(ServiceError):
    """A request that timed out before its turn, or before it was done."""


class ServiceStoppingError(ServiceError):
    """The service is shutting down and accepts no new requests."""


def issues_of(error: ValidationError) -> str:
    """The issues of a pydantic validation error, in one line."""
    found = ((".".join(map(str, issue["loc"])), issue["msg"]) for issue in error.errors())
    return "; ".join(f"{place}: {message}" if place else message for place, message in found)


def first_line(error: Exception) -> str:
    """The first line of an error's message, without its final mark; the name of its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")
