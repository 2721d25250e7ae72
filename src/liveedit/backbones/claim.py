"""The claim of an edited model on its backbone: two at once would answer with each other's edits."""

from __future__ import annotations

import threading

from ..errors import InvalidInputError


class Claim:
    """Held by up to one owner at a time. Any thread may take or release it."""

    def __init__(self, name: str):
        self._name = name
        self._owner: object | None = None
        self._changing = threading.Lock()

    def check_free(self) -> None:
        """Raise `InvalidInputError` if the claim is held."""
        if self._owner is not None:
            raise InvalidInputError(
                f"This backbone ({self._name}) already has an edited model, and would answer with its edits. Close the "
                "first one, or load the backbone a second time."
            )

    def take(self, owner: object) -> None:
        """Hold the claim for this owner. Raises `InvalidInputError` if it is held, also by the same owner."""
        with self._changing:
            self.check_free()
            self._owner = owner

    def release(self, owner: object) -> None:
        """Give the claim back. Nothing happens if this owner does not hold it."""
        with self._changing:
            if self._owner is owner:
                self._owner = None

    def is_held_by(self, owner: object) -> bool:
        """Whether this owner holds the claim."""
        return self._owner is owner
