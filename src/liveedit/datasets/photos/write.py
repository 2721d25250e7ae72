"""`liveedit data photos`: cases in VLKEB's schema for three uses, the same bytes for the same folder and seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ...errors import InvalidInputError
from ...files import write_json
from ...progress import Progress, no_progress
from ...samples import Probe
from .cases import Album, PhotoCase, evaluation_cases, plan_of, training_cases
from .catalog import PhotoClass, photo_classes
from .folder import PARTS, PhotoFolder, PhotoPart, read_folder
from .nearness import Features, Nearness, compute_features
from .new_answers import Part
from .plan import EvaluationPlan

FORM: Final = 3
"""Counted up whenever the same folder and seed give other cases than before."""
ABOUT: Final = "about.json"
LISTED: Final[tuple[PhotoPart, ...]] = ("pretraining", "editors")
"""Parts whose photographs are listed in a text file of this name, a path in the folder of images per line."""

_PHOTOS_OF: Final[dict[Part, PhotoPart]] = {"train": "editors", "validation": "validation", "eval": "evaluation"}
_PLANNED: Final[tuple[Part, ...]] = ("validation", "eval")
_FURTHER: Final = ("same_image_locality", "same_question_locality", "near_duplicate_locality", "cross_modal")


@dataclass(frozen=True, slots=True)
class WrittenPhotos:
    """What was written: the annotation files by part, and the content of about.json."""

    files: dict[Part, Path]
    about: dict[str, Any]


def write_photos(
    images: Path,
    out: Path,
    seed: int,
    train: int,
    eval: int,
    features: Features,
    classes: Mapping[str, PhotoClass] | None = None,
    progress: Progress = no_progress,
    *,
    validation: int = 0,
) -> WrittenPhotos:
    """Write `about.json`, `pretraining.txt`, `editors.txt`, and a file of cases for each part that is to have some.

    images: a folder of class folders; the paths in the files are relative to it. train, validation, eval: numbers of
    cases. features: what decides which photographs look alike, such as `pixel_features`. classes: entries besides
    `catalog.KNOWN`, by folder. progress: photographs whose features are computed, and their total.

    about.json has the seed, the counts, the division of the folder with a digest of its file names, the name of the
    function `features`, and the classes that evaluation never edits. It is written last, so that a folder with it is
    complete.

    Raises `InvalidInputError` for negative counts, a folder without class folders, and more cases of validation or
    evaluation than the classes allow; `ImageError` if a photograph cannot be opened.
    """
    counts: dict[Part, int] = {"train": train, "validation": validation, "eval": eval}
    if min(*counts.values(), seed) < 0 or not any(counts.values()):
        given = ", ".join(f"{name} = {value}" for name, value in {**counts, "seed": seed}.items())
        raise InvalidInputError(f"{given} were given. Give a seed of 0 or more and at least one case.")
    folder = read_folder(images)
    named = {found.key: found for found in photo_classes([each.key for each in folder.classes], classes)}
    albums = _albums(folder, named, [part for part, count in counts.items() if count], features, progress)
    plans: dict[Part, EvaluationPlan] = {
        part: plan_of(part, albums[part], seed, counts[part]) for part in _PLANNED if counts[part]
    }
    cases: dict[Part, Iterable[PhotoCase]] = {
        part: evaluation_cases(part, albums[part], seed, plan) for part, plan in plans.items()
    }
    if train:
        cases["train"] = training_cases(albums["train"], seed, train)
    about_file = out / ABOUT
    about_file.unlink(missing_ok=True)
    files: dict[Part, Path] = {part: out / f"{part}.json" for part in cases}
    for part, found in cases.items():
        write_json(files[part], [_row(case) for case in found])
    for listed in LISTED:
        photos = [photo for each in folder.classes for photo in each.part(listed)]
        (out / f"{listed}.txt").write_text("".join(f"{photo}\n" for photo in photos), encoding="utf-8")
    unedited = list(plans["eval"].unedited) if eval else []
    by = getattr(features, "__name__", type(features).__name__)
    about = {"form": FORM, "seed": seed, **counts, **_described(folder), "features": by, "unedited": unedited}
    write_json(about_file, about)
    return WrittenPhotos(files, about)


def _albums(
    folder: PhotoFolder,
    named: Mapping[str, PhotoClass],
    parts: Iterable[Part],
    features: Features,
    progress: Progress,
) -> dict[Part, Album]:
    photos: dict[Part, dict[str, tuple[str, ...]]] = {
        part: {each.key: each.part(_PHOTOS_OF[part]) for each in folder.classes} for part in parts
    }
    wanted = [photo for of_class in photos.values() for found in of_class.values() for photo in found]
    vectors = compute_features(features, folder.path, wanted, progress)
    return {part: Album(folder.path, named, of_class, Nearness(of_class, vectors)) for part, of_class in photos.items()}


def _described(folder: PhotoFolder) -> dict[str, Any]:
    names = [photo for each in folder.classes for part in PARTS for photo in each.part(part)]
    return {
        "classes": len(folder.classes),
        "photographs": {part: sum(len(each.part(part)) for each in folder.classes) for part in PARTS},
        "names_sha256": hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest(),
        "left_out": folder.left_out,
        "copies": list(folder.copies),
    }


def _row(made: PhotoCase) -> dict[str, Any]:
    """One case in VLKEB's schema; `probes` and further keys hold what that schema has no key for."""
    case = made.case
    by_name = {probe.name: probe for probe in case.probes}
    text, modal = by_name["text_locality"], by_name["modal_locality"]
    question = case.edit.question
    return {
        "id": case.id,
        "src": question.prompt,
        "pred": case.answer_before,
        "alt": case.edit.answer,
        "rephrase": by_name["text_generality"].question.prompt,
        "image": question.image,
        "image_rephrase": by_name["modal_generality"].question.image,
        "loc": text.question.prompt,
        "loc_ans": text.answer,
        "m_loc": modal.question.image,
        "m_loc_q": modal.question.prompt,
        "m_loc_a": modal.answer,
        "m_loc_subject": modal.question.subject,
        "m_loc_relation": modal.question.relation,
        "answer_type": case.answer_type,
        "tags": list(case.tags),
        "subject": question.subject,
        "relation": question.relation,
        "probes": [_probe(by_name[name]) for name in _FURTHER],
        **_port_new(made, by_name.get("portability")),
    }


def _probe(probe: Probe) -> dict[str, Any]:
    question = probe.question
    return {
        "name": probe.name,
        "prompt": question.prompt,
        "image": question.image,
        "answer": probe.answer,
        "subject": question.subject,
        "relation": question.relation,
    }


def _port_new(made: PhotoCase, probe: Probe | None) -> dict[str, Any]:
    if probe is None:
        return {}
    hop = {
        "port_q": probe.question.prompt,
        "port_a": probe.answer,
        "port_edit_q": made.hop_without_image,
        "port_edit_a": probe.answer,
    }
    return {"port_new": [hop]}
