"""Images of the drawn world that the page offers to whoever has none at hand."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

from ..datasets.world.catalog import Creature, known_creatures
from ..datasets.world.drawing import Pose, draw
from ..datasets.world.scene import Scene, Thing

_STRANGER: Final = Creature("page-stranger", 0b11011_10101_11111_01110_11011, name="", home="", food="")
"""A creature that is in no catalogue, so that no model was taught its name."""


@dataclass(frozen=True)
class Example:
    """An image: the name of its file, what it is for, and what it shows for those who cannot see it."""

    name: str
    title: str
    shows: str
    scene: Scene
    pose: Pose


EXAMPLES: Final = (
    Example(
        "creature.png",
        "A creature",
        "a pink creature with a yellow hat, on light blue with dots",
        Scene(
            "page-1", _STRANGER, "pink", "bucket", "yellow", 5, "left", "sky", "dotted", (Thing("cross", "purple", 3),)
        ),
        Pose(),
    ),
    Example(
        "creature-again.png",
        "The same, elsewhere",
        "the same creature in purple with a green hat, on light green with waves",
        Scene(
            "page-2",
            _STRANGER,
            "purple",
            "cone",
            "green",
            4,
            "right",
            "mint",
            "wavy",
            (Thing("heart", "teal", 0), Thing("ball", "blue", 2)),
        ),
        Pose(shift=(1.0, -0.5), scale=0.95),
    ),
    Example(
        "another-creature.png",
        "Another creature",
        "another creature, brown with an orange hat, on a checked cream background",
        Scene(
            "page-3",
            known_creatures()[1],
            "brown",
            "crown",
            "orange",
            3,
            "left",
            "cream",
            "checked",
            (Thing("star", "red", 1),),
        ),
        Pose(),
    ),
)
"""One creature twice, which a correction is to reach both times, and one that it is to leave alone."""

QUESTIONS: Final = (
    ("What is this creature called?", "What name does the creature have?", "Can you say what this creature is called?"),
    ("What color is the hat?", "Which color does the hat have?"),
)
"""What may be asked about them: each question with other wordings of it."""


def example_png(example: Example) -> bytes:
    """The image as PNG, large enough to look at."""
    stream = io.BytesIO()
    draw(example.scene, example.pose, enlarged=True).save(stream, format="PNG", optimize=True)
    return stream.getvalue()
