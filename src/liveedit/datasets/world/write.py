"""`liveedit data draw`: the world as PNG files and JSON in the MMEdit schema, the same bytes for the same seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError
from .cases import Part, Picture, WorldCase, WorldProbe, world_cases
from .drawing import draw

_CHUNK = 200


def write_world(
    folder: Path,
    seed: int,
    train: int,
    eval: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Part, Path]:
    """Write `train.json` and `eval.json` with their pictures under `images/`; returns the files written.

    `progress` is called with pictures drawn and pictures in all. Raises `InvalidInputError` for negative counts.
    """
    if train < 0 or eval < 0 or train + eval == 0 or seed < 0:
        raise InvalidInputError(
            f"train = {train}, eval = {eval}, seed = {seed} were given. Give a seed of 0 or more and at least one case."
        )
    parts: dict[Part, int] = {"train": train, "eval": eval}
    cases: dict[Part, list[WorldCase]] = {
        part: list(world_cases(part, seed, count)) for part, count in parts.items() if count
    }
    pictures = [picture for part in cases.values() for case in part for picture in _pictures(case)]
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    _draw_all(pictures, images, progress)
    files: dict[Part, Path] = {}
    for part, found in cases.items():
        files[part] = folder / f"{part}.json"
        text = json.dumps([_row(case) for case in found], indent=1, ensure_ascii=False) + "\n"
        beside = files[part].with_suffix(".tmp")
        beside.write_text(text, encoding="utf-8")
        beside.replace(files[part])  # The annotations appear last and whole: a complete file is a complete world.
    return files


def _draw_all(pictures: Sequence[Picture], images: Path, progress: Callable[[int, int], None]) -> None:
    chunks = [pictures[start : start + _CHUNK] for start in range(0, len(pictures), _CHUNK)]
    if len(chunks) < 3:  # Starting processes costs more than it saves.
        for chunk in chunks:
            _draw_chunk(chunk, images)
        progress(len(pictures), len(pictures))
        return
    with ProcessPoolExecutor() as pool:
        done = 0
        for count in pool.map(_draw_chunk, chunks, [images] * len(chunks)):
            done += count
            progress(done, len(pictures))


def _draw_chunk(pictures: Sequence[Picture], images: Path) -> int:
    for picture in pictures:
        draw(picture.scene, picture.pose).save(images / picture.name, format="PNG")
    return len(pictures)


def _pictures(case: WorldCase) -> list[Picture]:
    pictures = [probe.picture for probe in (case.edit, *case.probes) if probe.picture is not None]
    return list({picture.name: picture for picture in pictures}.values())


def _row(case: WorldCase) -> dict[str, Any]:
    """One case in the MMEdit schema; what the schema has no key for goes into `probes` and further keys."""
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
    return probe.picture and f"images/{probe.picture.name}"
