"""Cases from the value of `--data`: world, world:SEED:HARDER, facts:SEED, a drawn folder, or FORMAT:FILE:IMAGES."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import DatasetError, InvalidInputError, NotFoundError
from ..files import cache_folder
from ..progress import Progress, no_progress
from ..samples import EditCase
from . import format_names, read
from .facts import write_facts
from .world.harder import HarderShares
from .world.kept import kept_world

HELD_OUT_SEED = 0
"""Default seed of the cases to measure on."""

FEWEST_DRAWN = 6_000
"""Fewest cases that are drawn: runs of up to 5,000 edits share one world, and their seeds choose different edits."""

FEWEST_HARDER = 1_200
"""Fewest cases that are drawn of a world with harder cases."""

FEWEST_FACTS = 3_000
"""Fewest cases of facts. In larger sets, fewer than a third of the edits would change what the models know."""


DISTINCT_SUBJECTS = "distinct subjects"
"""The selection of one case for each subject."""


@dataclass(frozen=True)
class NamedData:
    """Cases, their name in results, and the annotation files they come from.

    left_out: number of rows left out because their answer is blank (ZsRE has some): there is nothing to edit to.
    selection: how these cases were selected from the file; empty for all of them.
    """

    name: str
    cases: tuple[EditCase, ...]
    files: tuple[Path, ...]
    left_out: int = 0
    selection: str = ""

    def with_distinct_subjects(self) -> NamedData:
        """The first case of each subject; cases without a subject all stay.

        Rows about one subject often contradict each other in ZsRE: of two of them, at most one can hold.
        """
        first = {_subject(case): case for case in reversed(self.cases)}
        kept = tuple(case for case in self.cases if not _subject(case) or first[_subject(case)] is case)
        if not any(map(_subject, self.cases)):
            raise InvalidInputError(
                f"{self.name} names no subjects, so that distinct ones cannot be selected. Measure all of its cases."
            )
        return replace(self, name=f"{self.name}, {DISTINCT_SUBJECTS}", cases=kept, selection=DISTINCT_SUBJECTS)


def _subject(case: EditCase) -> str | None:
    return case.edit.question.subject


def world_seed(source: str) -> int | None:
    """The seed of "world" or "world:SEED"; None for any other source.

    Raises `InvalidInputError` for a world with harder cases: those are for measuring alone.
    """
    found = _world(source)
    if found is not None and found[1]:
        raise InvalidInputError(
            f"{source!r} has harder cases, which are drawn to measure on. To train on them, draw a folder with "
            "`liveedit data draw` and give that."
        )
    return None if found is None else found[0]


def _world(source: str) -> tuple[int, HarderShares] | None:
    """Seed and harder cases of "world", "world:SEED", "world:HARDER" or "world:SEED:HARDER"; None for others."""
    name, _, rest = source.partition(":")
    if name != "world":
        return None
    seed, _, harder = rest.partition(":") if rest[:1].isdecimal() else ("", "", rest)
    found = _seed("world", f"world:{seed}")
    try:
        return found or HELD_OUT_SEED, HarderShares.parse(harder) if harder else HarderShares()
    except InvalidInputError as error:
        raise InvalidInputError(f"{source!r} cannot be drawn: {error}") from error


def facts_seed(source: str) -> int | None:
    """The seed of "facts" or "facts:SEED"; None for any other source."""
    return _seed("facts", source)


def _seed(kind: str, source: str) -> int | None:
    name, _, seed = source.partition(":")
    if name != kind:
        return None
    if seed and not seed.isdecimal():
        raise InvalidInputError(f"{source!r} has the seed {seed!r}. Give {kind} or {kind}:SEED, as in {kind}:7777.")
    return int(seed or HELD_OUT_SEED)


def open_data(
    source: str,
    at_least: int = 0,
    progress: Progress = no_progress,
    fewest: int | None = None,
    distinct_subjects: bool = False,
) -> NamedData:
    """The cases to measure on.

    source: "world" or "world:SEED" (evaluation cases, drawn into `cache_folder`: a fifth more than `at_least`, but at
    least `fewest`, by default `FEWEST_DRAWN`), "world:HARDER" or "world:SEED:HARDER" (with harder cases, as
    `HarderShares.parse` reads them; `FEWEST_HARDER`), "facts" or "facts:SEED" (invented facts for language models;
    `FEWEST_FACTS`), a folder with eval.json, or FORMAT:FILE[:IMAGES]. Raises `NotFoundError` for others.
    distinct_subjects: only the first case of each subject, see `NamedData.with_distinct_subjects`.
    """
    found = _opened(source, at_least, progress, fewest)
    return found.with_distinct_subjects() if distinct_subjects else found


def _opened(source: str, at_least: int, progress: Progress, fewest: int | None) -> NamedData:
    world = _world(source)
    if world is not None:
        seed, harder = world
        least = FEWEST_HARDER if harder else FEWEST_DRAWN
        count = max(least if fewest is None else fewest, at_least + at_least // 5)
        folder = cache_folder() / "-".join(["world", str(seed), str(count), *([str(harder)] if harder else [])])
        file = kept_world(folder, seed, 0, count, progress, harder)["eval"]
        seeded = "world" if seed == HELD_OUT_SEED else f"world:{seed}"
        return NamedData(f"{seeded}:{harder}" if harder else seeded, read("mmedit", file), (file,))
    seed = facts_seed(source)
    if seed is not None:
        count = max(FEWEST_FACTS if fewest is None else fewest, at_least + at_least // 5)
        file = write_facts(cache_folder() / f"facts-{seed}-{count}.json", "eval", seed, count)
        return NamedData("facts" if seed == HELD_OUT_SEED else f"facts:{seed}", read("zsre", file), (file,))
    if Path(source).is_dir():
        file = Path(source) / "eval.json"
        if not file.is_file():
            raise DatasetError(f"The folder {source!r} has no eval.json. Draw one with `liveedit data draw`.")
        return NamedData(Path(source).resolve().name, read("mmedit", file), (file,))
    return _annotated(source)


def _annotated(source: str) -> NamedData:
    format, _, rest = source.partition(":")
    if format.lower() not in format_names() or not rest:
        raise NotFoundError(
            f"There is no data {source!r}. Give world, world:SEED, world:HARDER, facts, facts:SEED, a folder with "
            f"eval.json, or FORMAT:FILE[:IMAGES] with one of the formats {', '.join(format_names())}."
        )
    name, _, images = rest.partition(":")
    file = Path(name)
    found = read(format, file, images or None)
    cases = tuple(case for case in found if case.edit.answer.strip())
    return NamedData(f"{format}:{file.name}", cases, (file,), len(found) - len(cases))
