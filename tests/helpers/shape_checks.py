"""Checks types and shapes of arguments and results while the tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import beartype
from beartype.roar import BeartypeDecorHintPep673Exception


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with beartype's checks. Methods annotated with `Self` are not checked: it needs the whole class."""
    try:
        return beartype(function)
    except BeartypeDecorHintPep673Exception:
        return function
