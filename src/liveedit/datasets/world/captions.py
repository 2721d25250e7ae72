"""Sentences that describe a scene, and the facts of the scene that each of them states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import catalog
from .scene import Scene


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a caption, of 15 to 18 words. states: the relations that it states."""

    text: Callable[[Scene], str]
    states: tuple[str, ...]
    needs_thing: bool = False


def describe(scene: Scene, form: int = 0) -> str:
    """The scene in one sentence, in one of the forms that `forms_for` allows."""
    return FORMS[form].text(scene)


def forms_for(scene: Scene) -> tuple[int, ...]:
    """The numbers of the forms that this scene has everything for."""
    return tuple(number for number, form in enumerate(FORMS) if scene.things or not form.needs_thing)


def stated(scene: Scene, form: int) -> tuple[str, ...]:
    """The relations that a form states of a scene, in the words of `scene.vary`."""
    found = FORMS[form]
    return (*found.states, f"thing_color:{scene.things[0].shape}") if found.needs_thing else found.states


def _with_legs(scene: Scene) -> str:
    return f"{_creature(scene)} has {_legs(scene)} legs and {_hat(scene)} on {_background(scene)}"


def _background_first(scene: Scene) -> str:
    return f"on {_background(scene)} there is {_creature(scene)} which has {_legs(scene)} legs and {_hat(scene)}"


def _hat_first(scene: Scene) -> str:
    return f"{_hat(scene)} is the hat of {_creature(scene)} on {_background(scene)}"


def _with_thing(scene: Scene) -> str:
    thing = scene.things[0]
    listed = f"{_legs(scene)} legs, {_hat(scene)} and {_a(thing.color)} {thing.shape}"
    return f"{_creature(scene)} has {listed} on {_background(scene)}"


_WITHOUT_LEGS = ("body_color", "hat", "hat_color", "background", "pattern")
_ALL = (*_WITHOUT_LEGS, "legs")

FORMS = (
    Form(_with_legs, _ALL),
    Form(_background_first, _ALL),
    Form(_hat_first, _WITHOUT_LEGS),
    Form(_with_thing, _ALL, needs_thing=True),
)


def _creature(scene: Scene) -> str:
    return f"{_a(scene.color)} creature"


def _legs(scene: Scene) -> str:
    return catalog.LEGS[scene.legs - 2]


def _hat(scene: Scene) -> str:
    return f"{_a(scene.hat_color)} {scene.hat}"


def _background(scene: Scene) -> str:
    return f"a {scene.pattern} {scene.background} background"


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
