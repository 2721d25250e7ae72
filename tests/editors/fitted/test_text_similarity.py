"""When two texts count as similar: their main tokens, and their numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.fitted import FittedExperts
from liveedit.editors.fitted.text_similarity import (
    NUMBER_SLOTS,
    TOKENS,
    has_numbers_of,
    main_tokens,
    number_slots,
    token_similarity,
)
from liveedit.editors.fitted.whitening import Whitening, content_of

NAME, OTHER, COMMON = torch.eye(16)[:3]


def similarity(first: list[Tensor], second: list[Tensor]) -> float:
    (rows, weights), (others, other_weights) = (main_tokens(torch.stack(text)) for text in (first, second))
    found = token_similarity(rows @ others.T, weights, other_weights)
    assert float(found) == pytest.approx(float(token_similarity(others @ rows.T, other_weights, weights)), abs=1e-6)
    return float(found)


# -- tokens ----------------------------------------------------------------------------------------------


def test_unusual_tokens_are_most_of_a_texts_content() -> None:
    """Tokens that vary little over all questions hardly count."""
    generator = torch.Generator().manual_seed(0)
    common = torch.tensor([1.0, 0.0, 0.0, 0.0])
    samples = torch.cat([common + 0.1 * torch.randn(90, 4, generator=generator), torch.randn(10, 4) * 3])
    whitening = Whitening.of(samples)
    unusual = torch.tensor([0.0, 4.0, 0.0, 0.0])
    texts = ([unusual], [common, unusual, common])
    alone, among = (content_of(whitening(torch.stack(rows))) for rows in texts)
    assert float(alone @ among) > 0.99
    assert float(among.norm()) == pytest.approx(1.0, abs=1e-5)


def test_the_longest_tokens_are_kept_and_weigh_one_together() -> None:
    lengths = torch.arange(1.0, TOKENS + 4)
    rows, weights = main_tokens(torch.diag(lengths))
    assert weights.tolist() == sorted(weights.tolist(), reverse=True)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert torch.equal(rows.argmax(-1), torch.arange(len(lengths) - 1, len(lengths) - 1 - TOKENS, -1))
    assert torch.equal(rows.norm(dim=-1), torch.ones(TOKENS))


def test_a_short_text_is_filled_up_with_tokens_that_do_not_count() -> None:
    rows, weights = main_tokens(NAME[None])
    assert weights.tolist() == [1.0] + [0.0] * (TOKENS - 1) and not rows[1:].any()
    assert similarity([NAME], [NAME]) == pytest.approx(1.0)


def test_a_text_without_any_length_is_similar_to_none() -> None:
    nothing = torch.zeros(16)
    assert similarity([nothing], [nothing]) == similarity([nothing], [NAME]) == 0.0


def test_the_order_of_the_words_does_not_count() -> None:
    text = [3 * NAME, 2 * OTHER, COMMON]
    assert similarity(text, text[::-1]) == pytest.approx(1.0)


def test_short_tokens_hardly_count_and_opposite_ones_not_at_all() -> None:
    assert similarity([4 * NAME], [4 * NAME, COMMON]) > 0.99
    assert similarity([4 * NAME, COMMON], [4 * OTHER, COMMON]) < 0.01
    assert similarity([NAME], [-NAME]) == 0.0


def test_a_name_that_is_part_of_a_longer_one_is_half_similar() -> None:
    """All of the first text is in the second, and half of the second in the first."""
    assert similarity([NAME], [NAME, OTHER]) == pytest.approx(0.75)


# -- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "edit", "matches"),
    [
        ("Who makes the Renault 5?", "The Renault 5 is made by", True),
        ("Who makes the Renault 12?", "The Renault 5 is made by", False),
        ("Who makes the Renault?", "The Renault 5 is made by", False),
        ("Who makes the Renault 5?", "The Renault is made by", True),
        ("In 1999 he was there. The Renault 5 is made by", "The Renault 5 is made by", True),
        ("Bundesautobahn 952 is in", "Bundesautobahn 5 is in", False),
        ("Python 3.11 or 3.13?", "Python 3.13?", True),
        ("Python 3.11?", "Python 3.13?", False),
        ("What happened in 007?", "What happened in 7?", True),
        ("Are there 1,000 of them?", "Are there 1000 of them?", True),
        ("Are there 1'000'000 of them?", "Are there 1 of them?", False),
        ("\uff15 cats", "5 cats", True),
        ("none", "none", True),
    ],
)
def test_every_number_of_the_edit_must_be_in_the_query(query: str, edit: str, matches: bool) -> None:
    assert bool(has_numbers_of(number_slots(query), number_slots(edit))) == matches


def test_numbers_of_any_length_have_a_slot() -> None:
    found = number_slots("9" * 10_000)
    assert found.shape == (NUMBER_SLOTS,) and found.sum() <= 2


def test_different_numbers_are_rarely_taken_for_each_other() -> None:
    slots = torch.stack([number_slots(str(number)) for number in range(300)])
    confused = has_numbers_of(slots[:, None], slots[None]).sum() - 300
    assert int(confused) < 0.003 * 300 * 299


def test_an_edit_does_not_fire_for_another_number(text_backbone: Backbone, text_editor: FittedExperts) -> None:
    """The model's own tokens of the question are read, without its chat template."""
    with EditedModel(text_backbone, text_editor) as model:
        receipt = model.edit(None, "Who wrote book 17?", "red")
        fired = {number: model.ask(None, f"Who wrote book {number}?").fired for number in (17, 18)}
    assert [one.edit_id for one in fired[17]] == [receipt.id] and fired[18] == ()
