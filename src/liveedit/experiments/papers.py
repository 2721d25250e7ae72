"""What the papers compare: the only place outside the methods' own folders where experiments name editors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OWN: Final = "liveedit"
"""The editor whose paper is reproduced; editors derived from it are judged apart and are not its rivals."""

UNEDITED: Final = "none"
"""The unedited model."""


LEMOE_RIVALS: Final = ("none", "ft-l", "t-patcher", "lemoe", "ike", "fitted-experts")
"""What LEMoE is compared with, in the order of its tables: editors of language models that need no training."""


@dataclass(frozen=True)
class PaperTable:
    """A comparison of the LiveEdit paper: what it is measured on here, and which published values are shown."""

    name: str
    title: str
    backbones: tuple[str, ...]
    published_backbones: tuple[str, ...]
    published_data: tuple[str, ...]
    edits: tuple[int, ...] = (1, 10, 100, 1000)
    seeds: tuple[int, ...] = (0, 1, 2)


_LLAVA, _BLIP2, _MINIGPT4 = "LLaVA-V1.5 (7B)", "BLIP2-OPT (2.7B)", "MiniGPT-4 (7B)"
_DATA = ("E-VQA", "VLKEB", "E-IC")

TABLE_1: Final = PaperTable(
    "table1",
    "Lifelong editing: all editors on three backbones (LiveEdit paper, table 1)",
    ("tiny-llava", "tiny-blip2", "tiny-minigpt4"),
    (_LLAVA, _BLIP2),
    ("E-VQA", "VLKEB"),
)
TABLE_5: Final = PaperTable(
    "table5",
    "Lifelong editing on BLIP-2 and LLaVA, in full (LiveEdit paper, table 5)",
    ("tiny-blip2", "tiny-llava"),
    (_BLIP2, _LLAVA),
    _DATA,
)
TABLE_6: Final = PaperTable(
    "table6",
    "Lifelong editing on MiniGPT-4, in full (LiveEdit paper, table 6)",
    ("tiny-minigpt4",),
    (_MINIGPT4,),
    _DATA,
)

TABLES: Final = {table.name: table for table in (TABLE_1, TABLE_5, TABLE_6)}
