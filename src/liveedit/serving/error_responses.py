"""Error responses, all in OpenAI's shape: `{"error": {"message", "type", "code", "param"}}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ..errors import (
    ConflictError,
    EditDidNotTakeError,
    EditPurgedError,
    EditStateError,
    ImageError,
    InvalidInputError,
    LiveEditError,
    NotFoundError,
    QueueFullError,
    ServiceStoppingError,
    StoreError,
    WaitedTooLongError,
)

RETRY_AFTER_SECONDS = 1

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    410: "gone_error",
    429: "rate_limit_error",
}
_KINDS: tuple[tuple[type[Exception], int, str], ...] = (
    (ImageError, 400, "invalid_image"),
    (InvalidInputError, 400, "invalid_value"),
    (EditDidNotTakeError, 422, "edit_did_not_take"),
    (EditPurgedError, 410, "purged"),
    (EditStateError, 409, "edit_state"),
    (NotFoundError, 404, "not_found"),
    (ConflictError, 409, "conflict"),
    (QueueFullError, 429, "queue_full"),
    (WaitedTooLongError, 503, "timeout"),
    (ServiceStoppingError, 503, "stopping"),
)
_NO_STORE = "The stored edits are unreachable, and nothing was changed. See the server's log."
_NO_FIELD = re.compile(r"[\[(]")
"""Pydantic's names for the members of a union contain brackets."""

_STATUS_CODES = {404: "unknown_route", 405: "method_not_allowed"}


class ErrorDetail(BaseModel):
    """An error."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


@dataclass(eq=False)
class RefusalError(LiveEditError):
    """An error with an HTTP status. `param`: the field of the request that it is about."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {
            "error": {"message": _valid_unicode(self.message), "type": kind, "code": self.code, "param": self.param}
        }

    @property
    def response(self) -> JSONResponse:
        """The response."""
        return JSONResponse(self.body, self.status, self.headers)


def refusal_of(error: Exception) -> RefusalError:
    """The response for any error. Unexpected errors and errors of the store do not reveal their cause."""
    if isinstance(error, RefusalError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_issues(error.errors())
    if isinstance(error, HTTPException):
        code = _STATUS_CODES.get(error.status_code, "invalid_request")
        headers = error.headers or {}
        message = {
            404: "There is nothing at this address. GET /openapi.json lists what there is.",
            405: f"This method is not allowed here. Allowed: {headers.get('Allow', 'see GET /openapi.json')}.",
        }.get(error.status_code, str(error.detail))
        return RefusalError(error.status_code, message, code, headers=headers)
    if isinstance(error, StoreError):
        # The message of the error names paths and hosts.
        return RefusalError(503, _NO_STORE, "store_unavailable", headers={"Retry-After": str(RETRY_AFTER_SECONDS)})
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else {}
            return RefusalError(status, str(error), code, "image" if kind is ImageError else None, headers)
    return RefusalError(500, "The server failed. See its log.", "internal_error")


def _of_issues(issues: Sequence[Any]) -> RefusalError:
    """The error of invalid fields. `param` is the first of them."""
    messages = dict.fromkeys(f"{_place(issue) or 'The body'}: {_wording(issue)}" for issue in issues[:5])
    return RefusalError(400, "; ".join(messages), str(issues[0]["type"]), _place(issues[0]) or None)


def _place(issue: Any) -> str:
    """The field, without pydantic's names for the members of a union."""
    if issue["type"] == "json_invalid":
        return ""
    inside = [part for part in issue["loc"] if part not in ("body", "query", "path", "header")]
    fields = takewhile(lambda part: isinstance(part, int) or _NO_FIELD.search(part) is None, inside)
    return _valid_unicode(".".join(map(str, fields)))[:200]


def _wording(issue: Any) -> str:
    if issue["type"] == "extra_forbidden":
        return "this field is not supported. Leave it out"
    if issue["type"] == "missing":
        return "this field is required"
    if issue["type"] == "json_invalid":
        return f"it is not JSON ({issue.get('ctx', {}).get('error', 'it cannot be decoded')})"
    return str(issue["msg"]).removeprefix("Value error, ")


def _valid_unicode(text: str) -> str:
    """The text in valid Unicode: a request may contain half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()
