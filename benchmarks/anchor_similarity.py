"""LEMoE's similarity threshold: which share of questions its anchors alone route correctly, by image weight.

A question in an edit's scope counts as right if the most similar anchor belongs to that edit and its similarity reaches
the threshold; a locality question counts as right if no anchor reaches it. No expert is trained and no answer is
generated. The world is one on which no table is measured.

    python benchmarks/anchor_similarity.py --backbone tiny-llava --edits 1000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

import torch

from liveedit.backbones import load_backbone
from liveedit.datasets.sources import open_data
from liveedit.editors.lemoe import Lemoe, LemoeConfig
from liveedit.samples import EditCase, ProbeName, Question

PROBES: Final[tuple[ProbeName, ...]] = (
    *("text_generality", "modal_generality"),
    *("modal_locality", "same_image_locality", "near_duplicate_locality"),
)


def main() -> None:
    """Print a line for each image weight and threshold, percent right by probe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny-llava")
    parser.add_argument("--data", default="world:4242")
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--image-weight", type=float, nargs="+", default=[0.7, 0.8, 0.9, 1.0])
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.84, 0.85, 0.86, 0.87])
    given = parser.parse_args()
    backbone = load_backbone(given.backbone)
    cases = open_data(given.data, given.edits, _drawing).cases[: given.edits]
    print("image weight, threshold: " + ", ".join(name.replace("_", " ") for name in PROBES), flush=True)
    for image_weight in given.image_weight:
        with Lemoe(backbone, LemoeConfig(image_weight=image_weight)) as editor:
            edits = editor.anchors_of([case.edit.question for case in cases])
            similarity = {name: _nearest(editor, edits, cases, name) for name in PROBES}
        for threshold in given.threshold:
            right = [100 * _right(*similarity[name], threshold, "locality" in name) for name in PROBES]
            print(f"{image_weight}, {threshold}: " + ", ".join(f"{value:.1f}" for value in right), flush=True)


def _drawing(done: int, total: int) -> None:
    """Drawing the world takes longest, once; later runs find it in the cache."""
    if done % 2_000 == 0 or done == total:
        print(f"drawing: {done} of {total}", file=sys.stderr, flush=True)


def _nearest(
    editor: Lemoe, edits: torch.Tensor, cases: Sequence[EditCase], name: ProbeName
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each question of a probe the largest similarity to an edit, and whether that edit is its own, (questions,)."""
    edited = {case.edit.scope for case in cases}
    asked: list[tuple[int, Question]] = [
        (number, probe.question)
        for number, case in enumerate(cases)
        for probe in case.probes
        if probe.name == name and not ("locality" in name and probe.question.scope in edited)
    ]
    best, found = (editor.anchors_of([question for _, question in asked]) @ edits.T).max(1)
    pairs = zip(found.tolist(), asked, strict=True)
    return best, torch.tensor([cases[edit].edit.scope == cases[number].edit.scope for edit, (number, _) in pairs])


def _right(best: torch.Tensor, own: torch.Tensor, threshold: float, stays: bool) -> float:
    admitted = best >= threshold
    return (~admitted if stays else admitted & own).float().mean().item()


if __name__ == "__main__":
    main()
