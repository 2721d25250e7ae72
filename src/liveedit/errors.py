"""Every error that LiveEdit raises on purpose.

    LiveEditError
    ├── InvalidInputError  (ValueError)         an argument that cannot be used
    │   ├── ImageError                          an image that cannot be opened
    │   ├── DatasetError                        an annotation file or one of its rows
    │   └── ConfigError                         a configuration with unknown or impossible values
    ├── NotFoundError      (LookupError)        an edit, editor, backbone or data set that is not there
    │   └── EditStateError                      an edit that was undone already, or is in force (a ConflictError too)
    │       └── EditPurgedError                 an edit that is gone for good
    ├── BackboneError      (RuntimeError)       a model that cannot be loaded or edited
    ├── StoreError         (RuntimeError)       an edits file that cannot be read or does not belong here
    ├── CheckpointError    (RuntimeError)       a saved editor or training state that cannot be used
    ├── EditDidNotTakeError (RuntimeError)      an edit that had to take, and did not
    ├── ConflictError      (RuntimeError)       a request that contradicts what is already there
    │   └── OvertakenError                      another process was faster, and changed what a change builds on
    └── ServiceError       (RuntimeError)       a service that cannot take or finish a request now
        ├── QueueFullError                      too many requests wait already
        ├── WaitedTooLongError                  a request's time was over before its turn or its end
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


class BackboneError(LiveEditError, RuntimeError):
    """A model that cannot be loaded, or cannot be edited."""


class StoreError(LiveEditError, RuntimeError):
    """An edits file that cannot be read, or belongs to another model."""


class CheckpointError(LiveEditError, RuntimeError):
    """A saved editor or training state that cannot be used."""


class EditDidNotTakeError(LiveEditError, RuntimeError):
    """An edit that had to take: the model, tried with it, does not answer as was asked for. It was not made."""


class ConflictError(LiveEditError, RuntimeError):
    """A request that contradicts what is already there, such as undoing an edit twice."""


class OvertakenError(ConflictError):
    """Another process was faster, and changed what a change builds on; the same may succeed when tried again."""


class EditStateError(NotFoundError, ConflictError):
    """An edit that is there, but not in the state that is needed: undone already, or in force."""


class EditPurgedError(EditStateError):
    """An edit of which no more is left than its id and its times."""


class ServiceError(LiveEditError, RuntimeError):
    """A service that cannot take or finish a request now; the same request may do later."""


class QueueFullError(ServiceError):
    """Too many requests wait already."""


class WaitedTooLongError(ServiceError):
    """A request's time was over before its turn came, or before it was done."""


class ServiceStoppingError(ServiceError):
    """The service is shutting down and takes nothing new."""


def issues_of(error: ValidationError) -> str:
    """What pydantic found wrong, in one line."""
    return "; ".join(f"{'.'.join(map(str, issue['loc']))}: {issue['msg']}" for issue in error.errors())
