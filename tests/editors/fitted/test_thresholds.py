"""Thresholds: exceeded by the wanted share of what should not match, and by nothing else that they should let pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from liveedit.editors.fitted.thresholds import least_image_similarity, least_reading
from liveedit.editors.fitted.whitening import Whitening, content_of


def images_of(things: Tensor, noise: float = 0.0) -> list[Tensor]:
    """One image of each thing: its tokens are the same every time but for the noise."""
    generator = torch.Generator().manual_seed(1)
    return [tokens + noise * torch.randn(tokens.shape, generator=generator) for tokens in things]


def things(count: int, width: int = 12) -> Tensor:
    return torch.randn(count, 4, width, generator=torch.Generator().manual_seed(0))


# -- contents --------------------------------------------------------------------------------------------


def test_the_threshold_of_images_is_exceeded_by_the_wanted_share_of_pairs() -> None:
    shown = images_of(things(80, width=40))
    least = least_image_similarity(shown, 0.05)
    pairs = []
    for known, tested in ((shown[:40], shown[40:]), (shown[40:], shown[:40])):
        whitening = Whitening.of(torch.cat(known))
        contents = torch.stack([content_of(whitening(tokens)) for tokens in tested])
        similar = contents @ contents.T
        pairs += [float(similar[one, other]) for one in range(40) for other in range(one)]
    assert max(pairs) < 0.7, "no two of them show the same thing"
    assert sum(similar > least for similar in pairs) / len(pairs) == pytest.approx(0.05, abs=0.002)


def test_several_images_of_the_same_thing_do_not_raise_the_threshold() -> None:
    """Every thing has four images, whose contents are hardly different: a share of 0.025 of the pairs."""
    once = things(40, width=40)
    alone = least_image_similarity(images_of(once), 0.01)
    several = least_image_similarity(images_of(once[torch.arange(160) % 40], noise=0.05), 0.01)
    assert 0.2 < several <= alone < 0.5


# -- readings --------------------------------------------------------------------------------------------


def readings_of(question: float, wording: float, images: int = 6, width: int = 24) -> Tensor:
    """(images, questions, wordings, width): how much readings depend on the question, and on its wording."""
    generator = torch.Generator().manual_seed(0)
    asked = question * torch.randn(1, 14, 1, width, generator=generator)
    return asked + wording * torch.randn(images, 14, 3, width, generator=generator)


def test_the_threshold_of_readings_is_exceeded_by_the_wanted_share_of_other_questions() -> None:
    readings = readings_of(2.0, 1.0)
    least = least_reading(readings, 0.1)
    above = total = 0
    for known, tested in ((0, 1), (1, 0)):
        whitened = F.normalize(Whitening.of_wordings(readings[:, known::2])(readings[:, tested::2]), dim=-1)
        for image in whitened:
            for one in range(7):
                for other in range(7):
                    if one != other:
                        found = image[one] @ image[other].T
                        above, total = above + int((found > least).sum()), total + found.numel()
    assert above / total == pytest.approx(0.1, abs=0.002)
    assert least_reading(readings, 0.01) > least


def test_a_model_that_does_not_know_the_questions_gets_the_default() -> None:
    assert least_reading(readings_of(0.1, 1.0), 0.1) == 0.75
    assert least_reading(readings_of(3.0, 1.0), 0.1) < 0.7


def test_what_wordings_change_does_not_count() -> None:
    """Readings that differ between questions in one direction, and between wordings in all others."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(5, 40, 3, 8, generator=generator) * torch.tensor([0.3, *[1.0] * 7])
    question = torch.randn(1, 40, 1, 1, generator=generator) * torch.eye(8)[0]
    readings = noise + question
    by_wordings, by_all = Whitening.of_wordings(readings), Whitening.of(readings.flatten(0, 2))
    first, second = (
        [F.normalize(whitening(readings[0, :, wording]), dim=-1) for wording in (0, 1)]
        for whitening in (by_wordings, by_all)
    )
    assert float((first[0] * first[1]).sum(-1).mean()) > float((second[0] * second[1]).sum(-1).mean()) + 0.1
