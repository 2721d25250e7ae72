"""10,000 edits of the built-in model: opened, restarted, moved, and read as of 100 revisions, bit by bit.

Real edits of the drawn world (images, questions and answers from a seed), made by the built-in editor of tiny-llava
and stored one after the other; about every tenth is undone, redone or superseded by another. Which edits are active
after each revision is recorded here, and never read from the store.

`opening_s`: an `EditedModel` on the file, with backbone and editor loaded; baseline `reading_s`, the file's bytes.
Logits of `--questions` questions (about images that were edited, and about others; some edits' own, some in other
words) are compared to the bit: of the model that made the edits with one restarted from the file (`restart`), from a
file that a bundle was imported into (`bundle`), with experts in mapped files on the host (`host`), and, given `--url`,
from a PostgreSQL database (`database`). `time_travel`: at each of `--revisions` sampled revisions,
`EditedModel(at=...)` against a model without a store that only those edits' experts were added to, in another order.

Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liveedit.backbones import Backbone, TokenBatch, load_backbone
from liveedit.datasets.world import WorldCase, world_cases
from liveedit.datasets.world.drawing import draw
from liveedit.edited.model import EditedModel
from liveedit.editors.liveedit import LiveEdit
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.experts import LowRankExpert
from liveedit.experts.expert import expert_to_bytes
from liveedit.samples import Edit, Question
from liveedit.store.store import EditStore, NewEdit

AT_ONCE = 64


@dataclass
class Ledger:
    """Which edits are active after each revision, recorded independently of the store."""

    active: set[str] = field(default_factory=set)
    undone: set[str] = field(default_factory=set)
    supersedes: dict[str, str] = field(default_factory=dict)
    """The superseded edit, by the id of the edit that superseded it."""
    left_for: dict[str, str] = field(default_factory=dict)
    """The edit that superseded an inactive edit, by the id of the inactive one."""
    changes: list[dict[str, bool]] = field(default_factory=list)
    """By revision, from 1 on: which edits were activated (True) or deactivated (False)."""

    def added(self, edit_id: str, instead_of: str | None = None) -> None:
        self._note(edit_id, True)
        if instead_of is not None:
            self.supersedes[edit_id] = instead_of
            self._leave(instead_of, edit_id)

    def undo(self, edit_id: str) -> None:
        self._note(edit_id, False)
        other = self.supersedes.get(edit_id)
        if other is not None and self.left_for.get(other) == edit_id:
            self._set(other, True)

    def redo(self, edit_id: str) -> None:
        self._note(edit_id, True)
        other = self.supersedes.get(edit_id)
        if other is not None and other in self.active:
            self._leave(other, edit_id)

    def at(self, revision: int) -> set[str]:
        """Ids of the edits that are active after a revision."""
        found: dict[str, bool] = {}
        for change in self.changes[:revision]:
            found |= change
        return {edit_id for edit_id, is_in in found.items() if is_in}

    def _note(self, edit_id: str, comes: bool) -> None:
        self.changes.append({})
        self._set(edit_id, comes)

    def _leave(self, edit_id: str, other: str) -> None:
        self._set(edit_id, False)
        self.left_for[edit_id] = other

    def _set(self, edit_id: str, comes: bool) -> None:
        self.changes[-1][edit_id] = comes
        self.left_for.pop(edit_id, None)
        to, away = (self.active, self.undone) if comes else (self.undone, self.active)
        to.add(edit_id)
        away.discard(edit_id)


@dataclass
class Edited:
    """A store that was filled, the model that did it, and all that is known of both."""

    backbone: Backbone
    modules: LiveEditModules
    path: Path
    ledger: Ledger
    experts: dict[str, LowRankExpert]
    asked: TokenBatch
    logits: Tensor

    def model(self, store: EditStore | None, **options: Any) -> EditedModel:
        return EditedModel(self.backbone, LiveEdit(self.backbone, self.modules), store, **options)


def made(backbone: Backbone, editor: LiveEdit, cases: Sequence[WorldCase]) -> Iterator[tuple[WorldCase, LowRankExpert]]:
    """Each case with its expert, made a batch at a time."""
    for start in range(0, len(cases), AT_ONCE):
        some = cases[start : start + AT_ONCE]
        edits = [Edit(question_of(case), case.edit.answer) for case in some]
        yield from zip(some, editor.make_experts(edits), strict=True)


def question_of(case: WorldCase, prompt: str | None = None) -> Question:
    image = case.edit.image
    assert image is not None
    return Question(prompt or case.edit.prompt, draw(image.scene, image.pose))


def questions(cases: Sequence[WorldCase], count: int, seed: int) -> list[Question]:
    """Edits' own questions, their rewordings, and questions about images that no edit is about."""
    chosen = random.Random(seed).sample(cases, (count + 1) // 2)
    found = [question_of(case) for case in chosen[: count // 4]]
    for case in chosen[count // 4 :]:
        rewordings = [probe.prompt for probe in case.probes if "text" in probe.name] or [case.edit.prompt]
        found.append(question_of(case, rewordings[0]))
    others = world_cases("eval", seed + 1, count - len(found))
    return [*found, *(question_of(case) for case in others)]


@torch.no_grad()
def logits(edited: Edited) -> Tensor:
    return edited.backbone.logits(edited.asked)


def fill(backbone: Backbone, path: Path, count: int, asked: int, seed: int) -> tuple[Edited, dict[str, Any]]:
    """Make the edits, store them, and undo, redo and supersede some on the way."""
    cases = list(world_cases("train", seed, count))
    editor = LiveEdit.load(backbone)
    inputs = backbone.encode(questions(cases, asked, seed), padding="left")
    ledger, choice, add_s, done = Ledger(), random.Random(seed), [], 0
    experts: dict[str, LowRankExpert] = {}
    edited = Edited(backbone, editor.modules, path, ledger, experts, inputs, torch.empty(0))
    with torch.no_grad():
        unedited = backbone.logits(inputs)
    store = EditStore(path)
    with EditedModel(backbone, editor, store):
        for case, expert in made(backbone, editor, cases):
            rival = choice.choice(sorted(ledger.active)) if ledger.active and choice.random() < 0.04 else None
            said = NewEdit(prompt=case.edit.prompt, answer=case.edit.answer, editor=editor.name, author="benchmark")
            started = time.perf_counter()
            edit_id = store.add(said, expert_to_bytes(expert), supersedes=() if rival is None else (rival,)).id
            add_s.append(time.perf_counter() - started)
            experts[edit_id] = expert
            ledger.added(edit_id, rival)
            if choice.random() < 0.06:
                undone = choice.choice(sorted(ledger.active))
                store.undo(undone)
                ledger.undo(undone)
            if ledger.undone and choice.random() < 0.03:
                redone = choice.choice(sorted(ledger.undone))
                store.redo(redone)
                ledger.redo(redone)
            while done < len(ledger.changes):
                follow(editor, ledger.changes[done], experts)
                done += 1
        edited.logits = logits(edited)
        fired = [len(row) for row in editor.fired()]
    figures = {
        "edits": len(experts),
        "active": len(ledger.active),
        "revisions": len(ledger.changes),
        "add_ms": round(1000 * statistics.median(add_s), 2),
        "questions": asked,
        "questions_that_edits_fire_for": sum(count > 0 for count in fired),
        "experts_fired_per_question": round(statistics.mean(fired), 1),
        "questions_with_other_logits_than_unedited": int((edited.logits != unedited).flatten(1).any(1).sum()),
    }
    return edited, figures


def follow(editor: LiveEdit, change: Mapping[str, bool], experts: Mapping[str, LowRankExpert]) -> None:
    """Put in and take out what a change did."""
    for edit_id, comes in change.items():
        if comes:
            editor.add(edit_id, experts[edit_id])
        else:
            editor.undo(edit_id)


def opened(edited: Edited, location: Path | str, **options: Any) -> tuple[bool, float]:
    """Whether a model on this store answers as the one that made the edits, and how long it took to open, in s."""
    started = time.perf_counter()
    with edited.model(EditStore(location), **options) as model:
        seconds = time.perf_counter() - started
        return len(model) == len(edited.ledger.active) and torch.equal(logits(edited), edited.logits), seconds


def seconds_to_read(path: Path) -> float:
    started = time.perf_counter()
    path.read_bytes()
    return time.perf_counter() - started


def time_travel(edited: Edited, revisions: int, seed: int) -> dict[str, Any]:
    """Each sampled revision, read from the store, against a fresh model with only those edits in another order."""
    last = len(edited.ledger.changes)
    choice = random.Random(seed)
    sampled = sorted(choice.sample(range(last + 1), min(revisions, last + 1)))
    differing, seconds, seen = [], [], set[bytes]()
    for revision in sampled:
        started = time.perf_counter()
        with edited.model(EditStore(edited.path), at=revision):
            found = logits(edited)
        seconds.append(time.perf_counter() - started)
        with edited.model(None) as fresh:
            ids = sorted(edited.ledger.at(revision))
            choice.shuffle(ids)
            for edit_id in ids:
                fresh.editor.add(edit_id, edited.experts[edit_id])
            if not torch.equal(logits(edited), found):
                differing.append(revision)
        seen.add(found.numpy().tobytes())
    return {
        "revisions": len(sampled),
        "differing": differing,
        "different_logits_among_them": len(seen),
        "load_and_ask_s": round(statistics.median(seconds), 2),
    }


def measure(backbone: Backbone, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    path = folder / "edits.db"
    edited, figures = fill(backbone, path, given.edits, given.questions, given.seed)
    times = [opened(edited, path) for _ in range(3)]
    reading = statistics.median(seconds_to_read(path) for _ in range(3))
    opening = statistics.median(seconds for _, seconds in times)
    equal = {
        "restart": all(same for same, _ in times),
        "host": opened(edited, path, experts_on="host", experts_folder=folder)[0],
    }
    with EditStore(path) as store:
        started = time.perf_counter()
        store.export_bundle(folder / "bundle.safetensors")
        exporting = time.perf_counter() - started
        problems = store.verify()
    for name, location in {"bundle": folder / "other.db", "database": given.url}.items():
        if location is not None:
            with EditStore(location) as store:
                store.import_bundle(folder / "bundle.safetensors", on_conflict="keep")
            equal[name] = opened(edited, location)[0]
    return {
        **figures,
        "file_bytes": path.stat().st_size,
        "bundle_bytes": (folder / "bundle.safetensors").stat().st_size,
        "opening_s": round(opening, 3),
        "reading_s": round(reading, 3),
        "opening_beyond_reading_s": round(opening - reading, 3),
        "exporting_s": round(exporting, 2),
        "bit_equal": equal,
        "time_travel": time_travel(edited, given.revisions, given.seed),
        "problems_found_by_verify": len(problems),
    }


def all_well(figures: Mapping[str, Any]) -> bool:
    """Whether nothing differs."""
    same = all(figures["bit_equal"].values()) and not figures["time_travel"]["differing"]
    return same and not figures["problems_found_by_verify"]


def settings(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--revisions", type=int, default=100, help="revisions to travel to")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--folder", type=Path, default=None, help="where files are made; a temporary one by default")
    parser.add_argument("--url", default=None, help="an empty PostgreSQL database, to import the bundle into as well")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure and report."""
    given = settings()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        figures = measure(load_backbone("tiny-llava", device="cpu"), Path(name), given)
    print(json.dumps(figures, indent=2))
    sys.exit(not all_well(figures))


if __name__ == "__main__":
    main()
