"""The cases of `liveedit train`: the world, facts, a folder, or an annotation file with images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..progress import TaskProgress
    from ..samples import EditCase


@dataclass(frozen=True)
class TrainingData:
    """The options `--data`, `--annotations`, `--images` and `--cases`.

    generated: number of cases of the world and of facts if `--cases` is not given.
    """

    data: str
    annotations: Path | None
    images: Path | None
    count: int | None
    generated: int

    def read(self, world: Path, report: TaskProgress) -> Sequence[EditCase]:
        """All cases; the world is generated into the folder `world`. Raises `DatasetError` if an image is missing."""
        from ..datasets.sources import facts_seed, world_seed

        if (seed := world_seed(self.data)) is not None:
            return _drawn(world, seed, self._generated, report)
        if (seed := facts_seed(self.data)) is not None:
            return _facts(seed, self._generated)
        found = self._annotated()
        _require_images(found)
        return found

    @property
    def name(self) -> str:
        """What the data is called in an editor's card: without folders, which mean nothing elsewhere."""
        data = Path(self.data).resolve().name if Path(self.data).is_dir() else self.data
        return data if self.annotations is None else f"{data}:{self.annotations.name}"

    @contextmanager
    def sampled(self, report: TaskProgress) -> Iterator[tuple[Sequence[EditCase], int]]:
        """Yield cases for an estimate, and the number of cases of the training.

        Of the world only a few cases are generated, and removed afterwards.
        """
        from ..datasets.sources import world_seed

        seed, planned = world_seed(self.data), self._generated
        if seed is None:
            found = self.read(Path(), report)
            yield found, len(found)
            return
        from ..editors.training_estimate import SAMPLE

        with TemporaryDirectory(prefix="liveedit-dry-run-") as folder:
            yield _drawn(Path(folder), seed, min(planned, 2 * SAMPLE), report), planned

    @property
    def _generated(self) -> int:
        return self.count or self.generated

    def _annotated(self) -> Sequence[EditCase]:
        from ..datasets import read
        from ..errors import DatasetError, InvalidInputError

        data, count = self.data, self.count
        if Path(data).is_dir():
            if not (Path(data) / "train.json").is_file():
                raise DatasetError(f"The folder {data!r} has no train.json. Draw one with `liveedit data draw`.")
            found = read("mmedit", Path(data) / "train.json", self.images)
        elif self.annotations is None:
            raise InvalidInputError(
                f"--data {data!r} was given without --annotations. Give the annotation file, or --data world."
            )
        else:
            found = read(data, self.annotations, self.images)
        if count is not None and count > len(found):
            raise InvalidInputError(f"{count} cases were asked for and the data holds {len(found)}. Ask for fewer.")
        return found[:count]


def _drawn(folder: Path, seed: int, count: int, report: TaskProgress) -> Sequence[EditCase]:
    from ..datasets import read
    from ..datasets.world.kept import kept_world
    from ..progress import progress_of

    files = kept_world(folder, seed, count, 0, progress_of(report, "drawing"))
    return read("mmedit", files["train"])


def _facts(seed: int, count: int) -> Sequence[EditCase]:
    from ..datasets import read
    from ..datasets.facts import write_facts
    from ..files import cache_folder

    return read("zsre", write_facts(cache_folder() / f"facts-train-{seed}-{count}.json", "train", seed, count))


def _require_images(cases: Sequence[EditCase]) -> None:
    """Report missing images before anything is computed, not hours later."""
    from ..errors import DatasetError

    named = {
        probe.question.image: case.id
        for case in reversed(cases)
        for probe in (*reversed(case.probes), case.reliability)
        if isinstance(probe.question.image, str | Path)
    }
    missing = [(image, case) for image, case in named.items() if not Path(image).is_file()]
    if missing:
        image, case = missing[-1]
        raise DatasetError(
            f"{len(missing)} of {len(named)} images do not exist, the first is {image} ({case}). Give their folder "
            "with --images; `liveedit data check FORMAT FILE --images DIR` lists what is missing."
        )
