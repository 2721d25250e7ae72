"""API keys with roles. A JSON file keeps their digests."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError, NotFoundError, issues_of
from ..files import written_atomically

Role = Literal["ask", "edit", "admin"]
ROLES: Final[tuple[Role, ...]] = ("ask", "edit", "admin")
"""Each role includes the ones before it."""

_PREFIX = "le-"
_KEY_BYTES = 32

_log = logging.getLogger(__name__)


class Key(BaseModel):
    """One key. `sha256` is its digest.

    A plain digest without salt is enough, because a key has 256 random bits. A slow hash function would let anybody
    keep the processor busy with wrong keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    role: Role
    name: str | None = None
    created_at: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    def allows(self, role: Role) -> bool:
        """Whether this key has the rights of a role."""
        return ROLES.index(self.role) >= ROLES.index(role)


class _KeysOfFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    keys: tuple[Key, ...] = ()


class KeyFile:
    """The keys of a file, which is read again when it has changed."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._stamp: tuple[int, ...] | None = None
        self._keys: tuple[Key, ...] = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys; none if the file does not exist. Raises `ConfigError` if it is damaged."""
        stamp = self._stamp_now()
        if stamp != self._stamp:
            self._keys = () if stamp is None else self._read()
            self._stamp = stamp
        return self._keys

    def holder(self, presented: str) -> Key | None:
        """The key with this text, or None. Compares all keys, each in constant time.

        If the file is damaged while the server runs, the keys that were read before stay valid.
        """
        try:
            keys = self.keys
        except ConfigError as error:
            _log.error("%s The keys that were read before stay valid.", error)
            keys = self._keys
        digest = _digest(presented)
        found = [key for key in keys if hmac.compare_digest(key.sha256, digest)]
        return found[0] if found else None

    def add(self, role: Role, name: str | None = None) -> tuple[Key, str]:
        """Add a key. Returns it with its text, which is not stored."""
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
        """Remove a key by its id. Raises `NotFoundError`."""
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
            raise ConfigError(
                f"{str(self.path)!r} is not a file of keys: {issues_of(error)}. Restore it, or make new keys."
            ) from error

    def _write(self, keys: tuple[Key, ...]) -> None:
        """Replace the file. Only its owner can read it, and it is on disk when this returns."""
        text = json.dumps(_KeysOfFile(keys=keys).model_dump(mode="json"), indent=2) + "\n"
        with written_atomically(self.path, durable=True, mode=0o600) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
