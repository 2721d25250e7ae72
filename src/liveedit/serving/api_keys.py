"""Who may do what: API keys with roles, kept as digests in a JSON file."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError, NotFoundError, issues_of

Role = Literal["ask", "edit", "admin"]
ROLES: Final[tuple[Role, ...]] = ("ask", "edit", "admin")
"""Each may do what those before it may."""

_PREFIX = "le-"
_KEY_BYTES = 32

_log = logging.getLogger(__name__)


class Key(BaseModel):
    """One key. `sha256` is its digest.

    A plain digest is enough, and no salt or slow function is needed: keys are 256 random bits, which nobody guesses.
    A slow function would let strangers keep the processor busy with wrong keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    role: Role
    name: str | None = None
    created_at: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    def allows(self, role: Role) -> bool:
        """Whether it may do what takes this role."""
        return ROLES.index(self.role) >= ROLES.index(role)


class _KeysOfFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    keys: tuple[Key, ...] = ()


class KeyFile:
    """The keys of a file; it is read again when it has changed."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._stamp: tuple[int, ...] | None = None
        self._keys: tuple[Key, ...] = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys. Raises `ConfigError` where the file is damaged; a file that is not there has none."""
        stamp = self._stamp_now()
        if stamp != self._stamp:
            self._keys = () if stamp is None else self._read()
            self._stamp = stamp
        return self._keys

    def holder(self, presented: str) -> Key | None:
        """The key that this is, if any; all are compared, each in constant time.

        Where the file has been damaged while the server runs, the keys from before hold on.
        """
        try:
            keys = self.keys
        except ConfigError as error:
            _log.error("%s The keys read before are used.", error)
            keys = self._keys
        digest = _digest(presented)
        found = [key for key in keys if hmac.compare_digest(key.sha256, digest)]
        return found[0] if found else None

    def add(self, role: Role, name: str | None = None) -> tuple[Key, str]:
        """A new key, and its text, which is kept nowhere."""
        text = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
        key = Key(
            id=secrets.token_hex(4),
            role=role,
            name=name,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            sha256=_digest(text),
        )
        self._write((*self.keys, key))
        return key, text

    def remove(self, key_id: str) -> Key:
        """Take a key away by its id. Raises `NotFoundError`."""
        for key in self.keys:
            if key.id == key_id:
                self._write(tuple(other for other in self.keys if other.id != key_id))
                return key
        raise NotFoundError(f"There is no key {key_id!r} in {str(self.path)!r}. `liveedit keys list` shows them.")

    def _stamp_now(self) -> tuple[int, ...] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> tuple[Key, ...]:
        try:
            return _KeysOfFile.model_validate_json(self.path.read_bytes()).keys
        except ValidationError as error:
            raise ConfigError(f"{str(self.path)!r} is no file of keys: {issues_of(error)}.") from error

    def _write(self, keys: tuple[Key, ...]) -> None:
        """Whole or not at all, readable by its owner alone."""
        text = json.dumps(_KeysOfFile(keys=keys).model_dump(mode="json"), indent=2) + "\n"
        handle, temporary = tempfile.mkstemp(dir=self.path.parent or Path(), prefix=self.path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(self.path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
