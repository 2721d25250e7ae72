"""Other wordings of a prompt, on which an edit is fitted so that it does not depend on one of them."""

from __future__ import annotations

import random
from typing import Final

TEMPLATES: Final = (
    "{}",
    "Please answer: {}",
    "{} Answer briefly.",
    "Question: {}",
    "Tell me: {}",
    "Look at the image. {}",
    "{} Give the answer.",
    "I want to know: {}",
)
"""Phrases around a prompt; the first leaves it as it is."""

NEUTRAL_PROMPTS: Final = (
    "What time is it?",
    "Who made this?",
    "Why is that so?",
    "How many are there?",
    "Describe the background.",
    "Is this a photograph?",
)
"""Questions about the same image that an edit should not answer."""


def wordings(prompt: str, count: int, seed: int = 0) -> list[str]:
    """`count` wordings of a prompt: first itself, then a phrase around it, in lower case, without its final mark; the
    rest at random, with words dropped or exchanged, a character dropped, and a phrase around it.
    """
    chooser = random.Random(seed)
    found = [prompt, TEMPLATES[1].format(prompt), prompt.lower(), prompt.rstrip(" ?!.") or prompt]
    while len(found) < count:
        found.append(_changed(prompt, chooser))
    return found[:count]


def _changed(prompt: str, chooser: random.Random) -> str:
    words = prompt.split()
    for _ in range(chooser.choice((0, 1, 1, 2))):
        if len(words) > 2:
            del words[chooser.randrange(len(words))]
    if len(words) > 2 and chooser.random() < 0.3:
        place = chooser.randrange(len(words) - 1)
        words[place : place + 2] = reversed(words[place : place + 2])
    changed = chooser.choice(TEMPLATES).format(" ".join(words))
    if chooser.random() < 0.2:
        changed = changed.lower()
    if chooser.random() < 0.3:
        place = chooser.randrange(len(changed))
        changed = changed[:place] + changed[place + 1 :]
    return changed
