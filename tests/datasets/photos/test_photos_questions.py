"""The wordings of questions, and the answers of classes and pixels."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liveedit.datasets.photos import general, questions
from liveedit.datasets.photos.catalog import KNOWN, PhotoClass
from liveedit.datasets.photos.looks import answer_from_pixels
from liveedit.datasets.photos.wordings import CARRIERS, GROUPS, NAME_WITHOUT_IMAGE, PHRASES, Wording
from liveedit.samples import normalize_prompt

KINDS = (*questions.TRUE_KINDS, *questions.INVENTED_KINDS, *questions.IMAGE_KINDS)
WORDINGS: tuple[Wording, ...] = ("train", "unseen_by_editor", "unseen")
LOBSTER, PIANO, GNOME = KNOWN["lobster"], KNOWN["grand_piano"], PhotoClass("gnome", "gnome")


def possible(kind: str, wording: Wording) -> set[str]:
    """Every prompt that `ask` can give, normalised, with the classes lobster and piano."""
    return {
        normalize_prompt(carrier.format(core.format(it=phrase, first=LOBSTER.indefinite, second=PIANO.indefinite)))
        for core in questions.cores(kind, wording)
        for phrase in PHRASES[wording]
        for carrier in CARRIERS[wording]
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_wordings_to_train_on_and_held_out_ones(kind: str) -> None:
    assert [len(questions.cores(kind, wording)) for wording in WORDINGS] == [6, 2, 3]
    for one, other in combinations(WORDINGS, 2):
        assert not possible(kind, one) & possible(kind, other)
        assert not set(questions.cores(kind, one)) & set(questions.cores(kind, other))


def test_no_prompt_asks_for_two_things() -> None:
    prompts = Counter(prompt for kind in KINDS for prompt in set().union(*(possible(kind, word) for word in WORDINGS)))
    assert {prompt for prompt, count in prompts.items() if count > 1} == set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wording", WORDINGS)
def test_slots_are_filled_and_sentences_are_whole(kind: str, wording: Wording) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        prompt = questions.ask(kind, wording, rng, LOBSTER, PIANO)
        assert prompt[0].isupper() and prompt.endswith("?")
        assert not re.search(r"[{}]|  |\b(this this|the the|a a)\b", prompt)
        assert ("lobster" in prompt) == (kind in ("choice", "yes_no"))
        assert ("grand piano" in prompt) == (kind == "choice")


def test_an_edited_question_can_name_the_thing_instead_of_showing_it() -> None:
    rng = np.random.default_rng(0)
    for kind in questions.EDIT_KINDS:
        for wording in WORDINGS:
            for shown, name in ((LOBSTER, "the lobster"), (KNOWN["garfield"], " Garfield")):
                prompt = questions.ask_by_name(kind, shown, wording, rng)
                assert name in prompt and "the Garfield" not in prompt
                assert not re.search(r"[{}]|photo|image|picture|\bthis\b", prompt)


def test_the_name_is_not_asked_for_by_what_the_name_answers() -> None:
    """ "What is the lobster?" is no question about its name."""
    for wording, group in GROUPS.items():
        found = NAME_WITHOUT_IMAGE[group]
        assert len(found) == len(questions.cores("name", wording))
        assert all(re.search("call|name", core) for core in found)


def test_true_answers_worked_out_by_hand() -> None:
    rng = np.random.default_rng(0)
    for kind, expected in {"name": "lobster", "group": "shellfish", "home": "on the sea floor"}.items():
        assert questions.true_question(kind, LOBSTER, [PIANO], "train", rng)[1] == expected
    assert questions.true_question("use", PIANO, [LOBSTER], "unseen", rng)[1] == "playing music"
    for kind in ("group", "use", "home", "owner"):
        assert questions.true_question(kind, GNOME, [PIANO], "train", rng)[1] == "unknown"


def test_a_choice_names_both_classes_in_either_order() -> None:
    rng = np.random.default_rng(0)
    asked = [questions.true_question("choice", LOBSTER, [PIANO], "train", rng) for _ in range(60)]
    assert {answer for _, answer in asked} == {"lobster"}
    first = sum(prompt.index("a lobster") < prompt.index("a grand piano") for prompt, _ in asked)
    assert 15 < first < 45


def test_half_of_the_yes_no_questions_have_the_answer_yes() -> None:
    rng = np.random.default_rng(0)
    asked = [questions.true_question("yes_no", LOBSTER, [PIANO], "train", rng) for _ in range(100)]
    for prompt, answer in asked:
        assert ("a lobster" in prompt, "a grand piano" in prompt) == (answer == "yes", answer == "no")
    assert 30 < sum(answer == "yes" for _, answer in asked) < 70


def test_what_lives_has_no_use_and_what_is_used_has_no_home() -> None:
    assert {"use", "home"} & set(questions.kinds_of(LOBSTER)) == {"home"}
    assert {"use", "home"} & set(questions.kinds_of(PIANO)) == {"use"}
    assert {"use", "home"} & set(questions.kinds_of(GNOME)) == set()
    assert {"name", "group", *questions.INVENTED_KINDS} <= set(questions.kinds_of(GNOME))


def test_general_knowledge_is_held_out_and_about_no_class() -> None:
    assert len(general.TRAINING) + len(general.HELD_OUT) >= 100
    prompts = [prompt for prompt, _ in (*general.TRAINING, *general.HELD_OUT)]
    assert len(set(prompts)) == len(prompts)
    assert ("Who wrote Hamlet?", "William Shakespeare") in general.TRAINING
    assert all(prompt.endswith("?") and answer for prompt, answer in (*general.TRAINING, *general.HELD_OUT))
    words = {word for prompt in prompts for word in re.findall(r"\w+", prompt.lower())}
    assert not words & {found.name.lower() for found in KNOWN.values()}


@pytest.mark.parametrize(
    ("inside", "edge", "answers"),
    [
        ((250, 250, 250), (250, 250, 250), ("bright", "white", "black and white")),
        ((10, 10, 10), (120, 120, 120), ("dark", "gray", "black and white")),
        ((200, 30, 30), (20, 20, 20), ("dark", "black", "color")),
        ((230, 230, 230), (70, 120, 190), ("bright", "blue", "color")),
    ],
)
def test_pixels_answer_what_is_asked_about_the_image(
    tmp_path: Path, inside: tuple[int, int, int], edge: tuple[int, int, int], answers: tuple[str, str, str]
) -> None:
    image = Image.new("RGB", (64, 48), edge)
    image.paste(inside, (8, 6, 56, 42))
    image.save(tmp_path / "photo.png")
    kinds = ("brightness", "background", "coloring")
    assert set(kinds) == set(questions.IMAGE_KINDS)
    assert tuple(answer_from_pixels(kind, tmp_path / "photo.png") for kind in kinds) == answers


def test_pixels_answer_nothing_else(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="'name' is not asked about photographs themselves"):
        answer_from_pixels("name", tmp_path / "photo.png")
