"""Worlds with harder cases: a dozen or a few of each kind, and the usual world as it always was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from liveedit.backbones import Backbone
from liveedit.datasets import read, sources
from liveedit.datasets.world import HarderShares, WorldCase, captions, harder_cases, questions, write_world
from liveedit.datasets.world.cases import WorldProbe
from liveedit.datasets.world.harder import plan
from liveedit.datasets.world.scene import Scene
from liveedit.errors import DatasetError, InvalidInputError
from liveedit.samples import GENERALITY, LOCALITY, EditCase

COUNT = 60
KINDS = ("captions", "long-names", "conflicts", "combined", "things")

USUAL_JSON = "b232320ca80429a3b036d960bb73e4d0b17e9e2210509fb5e042f7d9b585ed6b"
USUAL_PIXELS = "a70e1aa61b4683edf34b74c55f3aa04168cdb51561b253f7d1ef636e077fa4f6"
"""Digests of eval.json and of all pixels of a world of 6 and 6 cases, seed 7, before there were harder cases."""


def drawn(harder: str, count: int = COUNT, seed: int = 3) -> list[WorldCase]:
    return list(harder_cases("eval", seed, count, HarderShares.parse(harder)))


def probe_of(case: WorldCase, name: str) -> WorldProbe:
    (found,) = [probe for probe in case.probes if probe.name == name]
    return found


def scene_of(probe: WorldProbe) -> Scene:
    assert probe.image is not None
    return probe.image.scene


def differences(one: str, other: str) -> list[tuple[str, str]]:
    """The words that differ, without the article before them."""
    pairs = list(zip(one.split(), other.split(), strict=True))
    return [pair for pair in pairs if pair[0] != pair[1] and set(pair) != {"a", "an"}]


# -- the usual world, and the same bytes -------------------------------------------------------------------


def test_the_usual_world_is_bit_for_bit_as_before(tmp_path: Path) -> None:
    write_world(tmp_path, seed=7, train=6, eval=6, harder=HarderShares())
    pixels = hashlib.sha256()
    for file in sorted((tmp_path / "images").iterdir()):
        pixels.update(file.name.encode() + Image.open(file).tobytes())
    assert hashlib.sha256((tmp_path / "eval.json").read_bytes()).hexdigest() == USUAL_JSON
    assert pixels.hexdigest() == USUAL_PIXELS


@pytest.mark.parametrize("kind", KINDS)
def test_a_harder_world_has_the_same_bytes_again_and_is_read_back(tmp_path: Path, kind: str) -> None:
    harder = HarderShares.parse(kind)
    for name in ("first", "second"):
        write_world(tmp_path / name, seed=5, train=0, eval=12, harder=harder)
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).rglob("*.*")} for name in ("first", "second")
    )
    assert first == second
    cases = read("mmedit", tmp_path / "first" / "eval.json")
    made = drawn(kind, 12, seed=5)
    assert [(case.id, case.edit.answer, case.follows) for case in cases] == [
        (case.id, case.edit.answer, case.follows) for case in made
    ]
    for case in cases:
        for probe in (case.reliability, *case.probes):
            assert probe.question.image is None or Path(str(probe.question.image)).is_file()


# -- what each kind is -------------------------------------------------------------------------------------


def test_captions_are_sentences_with_one_changed_fact() -> None:
    forms = set()
    for case in drawn("captions"):
        assert 10 <= len(case.edit.answer.split()) <= 20
        assert case.answer_type == "caption"
        scene = scene_of(case.edit)
        (form,) = [
            number for number in captions.forms_for(scene) if captions.describe(scene, number) == case.answer_before
        ]
        forms.add(form)
        assert len(differences(case.answer_before, case.edit.answer)) == 1
        assert all(probe_of(case, name).answer == case.edit.answer for name in ("text_generality", "modal_generality"))
    assert forms == set(range(len(captions.FORMS)))


def test_captions_say_what_the_scene_shows() -> None:
    for case in drawn("captions"):
        scene = scene_of(case.edit)
        words = set(case.answer_before.replace(",", "").split())
        assert {scene.color, scene.hat, scene.hat_color, scene.background, scene.pattern} <= words


FIELDS = {"color": "body_color", "hat": "hat", "hat_color": "hat_color", "legs": "legs"}
FIELDS |= {"background": "background", "pattern": "pattern"}


def test_the_near_duplicate_of_a_caption_differs_in_the_changed_fact_and_nothing_asks_for_it() -> None:
    for case in drawn("captions"):
        scene, near = scene_of(case.edit), scene_of(probe_of(case, "near_duplicate_locality"))
        changed = {relation for field, relation in FIELDS.items() if getattr(scene, field) != getattr(near, field)}
        if scene.things != near.things:
            changed.add(f"thing_color:{scene.things[0].shape}")
        (relation,) = changed
        ((old, _),) = differences(str(case.answer_before), case.edit.answer)
        assert questions.answer(scene, questions.Topic(*relation.split(":"))) == old
        assert probe_of(case, "same_image_locality").relation != relation


def test_long_names_have_four_and_more_tokens(tiny_llava: Backbone) -> None:
    cases = drawn("long-names")
    lengths = [len(tiny_llava.tokenize([case.edit.answer])[0]) for case in cases]
    assert min(lengths) >= 4
    assert all(2 <= len(case.edit.answer.split()) <= 3 for case in cases)
    assert len({case.edit.subject for case in cases}) == len({case.edit.answer for case in cases}) == COUNT
    assert all(case.edit.relation == "name" and "long name" in case.tags for case in cases)


def test_conflicts_edit_the_fact_of_an_earlier_case_once_more() -> None:
    cases = drawn("conflicts=0.4")
    places = {case.id: place for place, case in enumerate(cases)}
    later = [case for case in cases if case.follows is not None]
    assert len(later) == 24
    assert len({case.follows for case in later}) == 24
    for case in later:
        earlier = cases[places[str(case.follows)]]
        assert places[earlier.id] < places[case.id]
        assert (case.edit.subject, case.edit.relation) == (earlier.edit.subject, earlier.edit.relation)
        assert case.edit.answer != earlier.edit.answer == case.answer_before
        same = (case.edit.prompt, case.edit.image) == (earlier.edit.prompt, earlier.edit.image)
        assert same == ("same question" in case.tags) != ("other words and image" in case.tags)
        if not same:
            assert case.edit.prompt != earlier.edit.prompt and case.edit.image != earlier.edit.image
    assert len({"same question" in case.tags for case in later}) == 2


def test_conflicts_are_of_every_kind_that_can_have_them() -> None:
    cases = drawn("conflicts=0.4,captions=0.2,long-names=0.2,things=0.2")
    later = [case for case in cases if case.follows is not None]
    assert {"caption", "name", "thing_color"} <= {case.answer_type for case in later}
    long_names = [case for case in later if case.answer_type == "name" and "long name" in case.tags]
    assert long_names and all(len(case.edit.answer.split()) > 1 for case in long_names)
    assert all(len(case.edit.answer.split()) >= 15 for case in later if case.answer_type == "caption")


def test_combined_edits_change_two_facts_of_one_image() -> None:
    cases = drawn("combined")
    for first, second in zip(cases[::2], cases[1::2], strict=True):
        assert second.follows == first.id and first.follows is None
        assert second.edit.image == first.edit.image
        assert second.edit.relation != first.edit.relation
        asked = {first.edit.relation, second.edit.relation}
        assert not {probe_of(case, "same_image_locality").relation for case in (first, second)} & asked


def test_one_of_several_things_is_asked_and_its_near_duplicate_differs_in_colors_alone() -> None:
    cases = drawn("things")
    for case in cases:
        scene, near = scene_of(case.edit), scene_of(probe_of(case, "near_duplicate_locality"))
        shape = case.edit.relation.partition(":")[2]
        assert len(scene.things) in (2, 3, 4) and f"{len(scene.things)} things" in case.tags
        same = probe_of(case, "same_image_locality").relation
        assert same.startswith("thing_color:") and same != case.edit.relation
        before, after = ({thing.shape: thing.color for thing in one.things} for one in (scene, near))
        assert [(one.shape, one.slot) for one in scene.things] == [(one.shape, one.slot) for one in near.things]
        assert before[shape] != after[shape] == questions.answer(near, questions.Topic("thing_color", shape))
        exchanged = "near: colors exchanged" in case.tags
        assert (sorted(before.values()) == sorted(after.values())) == exchanged
        assert sum(before[one] != after[one] for one in before) == (2 if exchanged else 1)
    assert len({"near: colors exchanged" in case.tags for case in cases}) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_probes_stay_inside_and_outside_of_the_scope(kind: str) -> None:
    for case in drawn(kind):
        for probe in case.probes:
            inside = (probe.subject, probe.relation) == (case.edit.subject, case.edit.relation)
            assert inside == (probe.name in GENERALITY), (case.id, probe.name)
        assert {probe.name for probe in case.probes} >= set(LOCALITY)
        assert probe_of(case, "text_generality").prompt != case.edit.prompt


def test_training_cases_can_be_harder_too_without_wordings_held_out() -> None:
    shares = HarderShares.parse("captions=0.3,long-names=0.2,conflicts=0.2,combined=0.1,things=0.2")
    cases = list(harder_cases("train", 3, COUNT, shares))
    asked = " ".join(probe.prompt for case in cases for probe in (case.edit, *case.probes))
    assert "Can you say what this is?" in asked or "What is there?" in asked
    assert not any(core in asked for core in questions.CAPTION_CORES[4:])


# -- shares ------------------------------------------------------------------------------------------------


def test_the_plan_has_as_many_of_each_kind_as_asked_and_earlier_cases_for_conflicts() -> None:
    shares = HarderShares(captions=0.1, conflicts=0.4, combined=0.2)
    for seed in range(20):
        kinds = plan(shares, 50, [seed])
        assert [kinds.count(kind) for kind in ("captions", "conflicts", "combined", "plain")] == [5, 20, 10, 15]
        for end in range(len(kinds)):
            part = kinds[: end + 1]
            assert part.count("conflicts") <= part.count("plain") + part.count("captions")
    assert plan(shares, 50, [0]) != plan(shares, 50, [1])
    assert all(len(plan(shares, count, [0])) == count for count in range(1, 30))
    thirds = HarderShares(0.25, 0.25, 0.25, 0.0, 0.25)
    assert all(len(plan(thirds, count, [0])) == count for count in range(1, 30))


@pytest.mark.parametrize(
    "text", ["other", "captions=x", "captions=1.5", "captions=0.7,things=0.7", "conflicts=0.6", ""]
)
def test_shares_that_do_not_fit_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        HarderShares.parse(text)


def test_shares_are_written_as_they_are_read() -> None:
    shares = HarderShares.parse("long-names=0.25,conflicts")
    assert shares == HarderShares(long_names=0.25, conflicts=0.5)
    assert HarderShares.parse(str(shares)) == shares
    assert not HarderShares()


# -- by name, and by command -------------------------------------------------------------------------------


def test_harder_worlds_are_opened_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEEDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(sources, "FEWEST_HARDER", 4)
    found = sources.open_data("world:9:conflicts", 2)
    assert found.name == "world:9:conflicts=0.5"
    assert sum(case.follows is not None for case in found.cases) == 2
    assert sources.open_data("world:captions", 2).name == "world:captions=1"
    assert sources.open_data("world:9:captions=1", 2).cases != sources.open_data("world:9:things=1", 2).cases
    with pytest.raises(InvalidInputError, match=r"world:captions.*liveedit data draw"):
        sources.world_seed("world:captions")


def test_the_command_draws_harder_cases(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    size = ("--seed", 5, "--train", 0, "--eval", 4, "--json")
    code, out, _ = run("data", "draw", "--out", tmp_path / "w", *size, "--conflicts", 0.5)
    assert code == 0 and json.loads(out)["harder"]["conflicts"] == 0.5
    rows = json.loads((tmp_path / "w" / "eval.json").read_text(encoding="utf-8"))
    assert sum("follows" in row for row in rows) == 2
    code, _, err = run("data", "draw", "--out", tmp_path / "x", *size, "--conflicts", 0.6)
    assert code == 1 and "conflicts" in err and not (tmp_path / "x").exists()


def test_a_case_can_follow_only_an_earlier_one(tmp_path: Path) -> None:
    write_world(tmp_path, seed=5, train=0, eval=2, harder=HarderShares(conflicts=0.5))
    rows: list[dict[str, Any]] = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    (tmp_path / "turned.json").write_text(json.dumps(rows[::-1]), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"follows.*earlier row"):
        read("mmedit", tmp_path / "turned.json")
    cases: tuple[EditCase, ...] = read("mmedit", tmp_path / "eval.json")
    assert [case.follows for case in cases] == [None, cases[0].id]
