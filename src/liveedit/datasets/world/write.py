"""`liveedit data draw`: the world as PNG files and JSON in the MMEdit schema, the same bytes for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError
from ...files import write_json
from ...progress import Progress, no_progress
from .cases import DrawnImage, Part, WorldCase, WorldProbe, world_cases
from .drawing import draw
from .harder import HarderShares
from .harder_cases import harder_cases

_CHUNK = 200


def write_world(
    folder: Path,
    seed: int,
    train: int,
    eval: int,
    progress: Progress = no_progress,
    harder: HarderShares | None = None,
) -> dict[Part, Path]:
    """Write `train.json` and `eval.json` with their images under `images/`; returns the files written.

    progress: images drawn, and their total. harder: the shares of harder cases, by default none. Raises
    `InvalidInputError` for negative counts.
    """
    if train < 0 or eval < 0 or train + eval == 0 or seed < 0:
        raise InvalidInputError(
            f"train = {train}, eval = {eval}, seed = {seed} were given. Give a seed of 0 or more and at least one case."
        )
    parts: dict[Part, int] = {"train": train, "eval": eval}
    cases: dict[Part, list[WorldCase]] = {
        part: list(harder_cases(part, seed, count, harder) if harder else world_cases(part, seed, count))
        for part, count in parts.items()
        if count
    }
    # An image that several cases have is drawn once.
    images = list({image.name: image for part in cases.values() for case in part for image in _images(case)}.values())
    image_folder = folder / "images"
    image_folder.mkdir(parents=True, exist_ok=True)
    _draw_all(images, image_folder, progress)
    files: dict[Part, Path] = {}
    for part, found in cases.items():
        files[part] = folder / f"{part}.json"
        # The annotations are written after all images, so a world with its annotation files is complete.
        write_json(files[part], [_row(case) for case in found])
    return files


def _draw_all(images: Sequence[DrawnImage], image_folder: Path, progress: Progress) -> None:
    chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    if len(chunks) < 3:  # Starting processes costs more than it saves.
        for chunk in chunks:
            _draw_chunk(chunk, image_folder)
        progress(len(images), len(images))
        return
    with ProcessPoolExecutor() as pool:
        done = 0
        for count in pool.map(_draw_chunk, chunks, [image_folder] * len(chunks)):
            done += count
            progress(done, len(images))


def _draw_chunk(images: Sequence[DrawnImage], image_folder: Path) -> int:
    for image in images:
        draw(image.scene, image.pose).save(image_folder / image.name, format="PNG")
    return len(images)


def _images(case: WorldCase) -> list[DrawnImage]:
    return [probe.image for probe in (case.edit, *case.probes) if probe.image is not None]


def _row(case: WorldCase) -> dict[str, Any]:
    """One case in the MMEdit schema; `probes` and further keys hold what that schema has no key for."""
    by_name = {probe.name: probe for probe in case.probes}
    text, modal = by_name["text_locality"], by_name["modal_locality"]
    further = ("same_image_locality", "same_question_locality", "near_duplicate_locality")
    return {
        "id": case.id,
        "src": case.edit.prompt,
        "pred": case.answer_before,
        "alt": case.edit.answer,
        "rephrase": by_name["text_generality"].prompt,
        "image": _file(case.edit),
        "image_rephrase": _file(by_name["modal_generality"]),
        "loc": text.prompt,
        "loc_ans": text.answer,
        "loc_subject": text.subject,
        "loc_relation": text.relation,
        "m_loc": _file(modal),
        "m_loc_q": modal.prompt,
        "m_loc_a": modal.answer,
        "m_loc_subject": modal.subject,
        "m_loc_relation": modal.relation,
        "answer_type": case.answer_type,
        "tags": list(case.tags),
        "subject": case.edit.subject,
        "relation": case.edit.relation,
        "probes": [_probe(by_name[name]) for name in further],
        **({} if case.follows is None else {"follows": case.follows}),
    }


def _probe(probe: WorldProbe) -> dict[str, str | None]:
    return {
        "name": probe.name,
        "prompt": probe.prompt,
        "image": _file(probe),
        "answer": probe.answer,
        "subject": probe.subject,
        "relation": probe.relation,
    }


def _file(probe: WorldProbe) -> str | None:
    return probe.image and f"images/{probe.image.name}"
