"""The drawn world: the same bytes for the same seed, and probes that measure what they say."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from liveedit.datasets.world import WorldCase, catalog, questions, world_cases, write_world
from liveedit.datasets.world.cases import WorldProbe
from liveedit.datasets.world.drawing import SIZE, Pose, draw, draw_pose
from liveedit.datasets.world.questions import Topic
from liveedit.datasets.world.scene import Scene
from liveedit.errors import InvalidInputError
from liveedit.samples import LOCALITY, EditCase

COUNT = 150


@pytest.fixture(scope="module")
def training() -> list[WorldCase]:
    return list(world_cases("train", 3, COUNT))


@pytest.fixture(scope="module")
def evaluation() -> list[WorldCase]:
    return list(world_cases("eval", 3, COUNT))


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def topic_of(relation: str) -> Topic:
    name, _, thing = relation.partition(":")
    return Topic(name, thing or None)


def probe_of(case: WorldCase, name: str) -> WorldProbe:
    (found,) = [probe for probe in case.probes if probe.name == name]
    return found


def differences(a: Scene, b: Scene) -> set[str]:
    names = ("creature", "color", "hat", "hat_color", "legs", "side", "background", "pattern", "things")
    return {name for name in names if getattr(a, name) != getattr(b, name)}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("first", 5), ("second", 5), ("other", 6)):
        write_world(tmp_path / name, seed=seed, train=3, eval=3)
    first, second, other = (digests(tmp_path / name) for name in ("first", "second", "other"))
    assert first == second
    assert first["train.json"] != other["train.json"]
    assert first["eval.json"] != other["eval.json"]
    assert not set(first.values()) & set(other.values())


def test_a_case_does_not_depend_on_the_part_drawn_with_it(tmp_path: Path) -> None:
    write_world(tmp_path / "both", seed=5, train=3, eval=3)
    write_world(tmp_path / "alone", seed=5, train=0, eval=3)
    assert not (tmp_path / "alone" / "train.json").exists()
    both, alone = digests(tmp_path / "both"), digests(tmp_path / "alone")
    assert alone == {name: both[name] for name in alone}


@pytest.mark.parametrize("counts", [{"train": -1, "eval": 1}, {"train": 0, "eval": 0}])
def test_impossible_sizes_are_refused(tmp_path: Path, counts: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError):
        write_world(tmp_path, seed=0, **counts)
    with pytest.raises(InvalidInputError):
        write_world(tmp_path, seed=-1, train=1, eval=1)


def test_the_reader_reads_back_what_was_drawn(world: Path, eval_cases: tuple[EditCase, ...]) -> None:
    drawn = list(world_cases("eval", 7, 12))
    assert [case.id for case in eval_cases] == [case.id for case in drawn]
    for read, made in zip(eval_cases, drawn, strict=True):
        assert read.edit.question.prompt == made.edit.prompt
        assert read.edit.answer == made.edit.answer
        assert read.edit.scope == (made.edit.subject, made.edit.relation)
        assert read.answer_type == made.answer_type
        assert set(made.tags) <= set(read.tags)
        for name in ("text_generality", "modal_generality", *LOCALITY):
            (probe,) = read.named(name)
            wanted = probe_of(made, name)
            assert probe.question.prompt == wanted.prompt
            assert probe.question.scope == (wanted.subject, wanted.relation)
            assert probe.answer == wanted.answer or (name == "same_image_locality" and not wanted.answer)
            if wanted.image is None:
                assert probe.question.image is None
            else:
                assert Path(str(probe.question.image)) == world / "images" / wanted.image.name
                assert Path(str(probe.question.image)).is_file()


def test_annotations_are_json_with_every_picture_beside_them(world: Path) -> None:
    rows = json.loads((world / "train.json").read_text(encoding="utf-8"))
    assert len(rows) == 12
    assert all((world / row[key]).is_file() for row in rows for key in ("image", "image_rephrase", "m_loc"))


def test_no_two_edits_have_one_scope(training: list[WorldCase], evaluation: list[WorldCase]) -> None:
    for cases in (training, evaluation):
        scopes = [(case.edit.subject, case.edit.relation) for case in cases]
        assert len(set(scopes)) == COUNT
        assert len({case.id for case in cases}) == COUNT


def test_generality_stays_in_the_scope_and_locality_outside(
    training: list[WorldCase], evaluation: list[WorldCase]
) -> None:
    for case in (*training, *evaluation):
        scope = (case.edit.subject, case.edit.relation)
        for probe in case.probes:
            inside = (probe.subject, probe.relation) == scope
            assert inside == (probe.name in ("text_generality", "modal_generality")), (case.id, probe.name)
            if inside:
                assert probe.answer == case.edit.answer


def test_rephrased_prompts_differ(training: list[WorldCase], evaluation: list[WorldCase]) -> None:
    assert all(probe_of(case, "text_generality").prompt != case.edit.prompt for case in (*training, *evaluation))


def test_locality_answers_are_what_the_picture_shows(evaluation: list[WorldCase]) -> None:
    read_off = {
        "body_color": lambda scene: scene.color,
        "hat": lambda scene: scene.hat,
        "hat_color": lambda scene: scene.hat_color,
        "legs": lambda scene: ["two", "three", "four", "five", "six"][scene.legs - 2],
        "background": lambda scene: scene.background,
        "pattern": lambda scene: scene.pattern,
        "side": lambda scene: scene.side,
        "name": lambda scene: scene.creature.name,
        "home": lambda scene: scene.creature.home,
        "food": lambda scene: scene.creature.food,
    }
    seen = set()
    for case in evaluation:
        for name in ("modal_locality", "same_image_locality", "same_question_locality"):
            probe = probe_of(case, name)
            assert probe.image is not None
            scene, topic = probe.image.scene, topic_of(probe.relation)
            if topic.thing:
                (thing,) = [thing for thing in scene.things if thing.shape == topic.thing]
                assert probe.answer == thing.color
            else:
                assert probe.answer == read_off[topic.relation](scene)
            seen.add(topic.relation)
    assert len(seen) > 8


def test_text_facts_are_those_of_the_catalogue(evaluation: list[WorldCase]) -> None:
    facts = {(country.name, "capital"): country.capital for country in catalog.countries()}
    facts |= {(country.name, "language"): country.language for country in catalog.countries()}
    for case in evaluation:
        probe = probe_of(case, "text_locality")
        assert probe.image is None
        assert probe.subject in probe.prompt
        assert probe.answer == facts[probe.subject, probe.relation]


def test_an_edit_never_asks_for_what_is_so_already(evaluation: list[WorldCase]) -> None:
    assert all(case.edit.answer != case.answer_before for case in evaluation)
    assert all(case.edit.answer for case in evaluation)


def test_strangers_are_taught_the_truth(evaluation: list[WorldCase]) -> None:
    taught = 0
    for case in evaluation:
        assert case.edit.image is not None
        scene, topic = case.edit.image.scene, topic_of(case.edit.relation)
        if "stranger" in scene.creature.key and topic.is_entity:
            assert case.answer_before == ""
            assert case.edit.answer == getattr(scene.creature, topic.relation)
            taught += 1
    assert taught > COUNT / 4


def test_near_duplicates_differ_in_what_is_asked_and_in_nothing_else(evaluation: list[WorldCase]) -> None:
    asked_for = {"body_color": "color", "name": "creature", "home": "creature", "food": "creature"}
    for case in evaluation:
        near = probe_of(case, "near_duplicate_locality")
        assert case.edit.image is not None and near.image is not None
        scene, other, topic = case.edit.image.scene, near.image.scene, topic_of(case.edit.relation)
        wanted = "things" if topic.thing else asked_for.get(topic.relation, topic.relation)
        assert differences(scene, other) == {wanted}
        if topic.is_entity:
            assert (scene.creature.emblem ^ other.creature.emblem).bit_count() == catalog.EMBLEM_DISTANCE
        if topic.thing:
            pairs = zip(scene.things, other.things, strict=True)
            changed = [(one, two) for one, two in pairs if one != two]
            assert [one.shape for one, _ in changed] == [topic.thing]
            assert all((one.shape, one.slot) == (two.shape, two.slot) for one, two in changed)


def test_the_same_picture_is_asked_something_else(evaluation: list[WorldCase]) -> None:
    for case in evaluation:
        same = probe_of(case, "same_image_locality")
        assert same.image == case.edit.image
        assert same.relation != case.edit.relation


def test_redrawn_pictures_show_the_same_thing(evaluation: list[WorldCase]) -> None:
    for case in evaluation:
        again = probe_of(case, "modal_generality").image
        assert again is not None and case.edit.image is not None
        assert again.name != case.edit.image.name
        if topic_of(case.edit.relation).is_entity:
            assert again.scene.creature == case.edit.image.scene.creature
        else:
            assert differences(again.scene, case.edit.image.scene) == set()
            assert again.pose != case.edit.image.pose


def test_emblems_are_far_apart(evaluation: list[WorldCase]) -> None:
    strangers = {
        case.edit.image.scene.creature.emblem
        for case in evaluation
        if case.edit.image is not None and "stranger" in case.edit.image.scene.creature.key
    }
    emblems = [*strangers, *(creature.emblem for creature in catalog.known_creatures())]
    assert len(strangers) > 10
    nearest = min((a ^ b).bit_count() for a, b in itertools.combinations(emblems, 2))
    assert nearest >= catalog.EMBLEM_DISTANCE


def test_held_out_answers_are_never_taught(training: list[WorldCase]) -> None:
    held_out = catalog.HELD_OUT_HOMES | catalog.HELD_OUT_FOODS
    assert len(held_out) == 14
    assert not {case.edit.answer for case in training} & held_out


def test_held_out_answers_are_asked_for_and_tagged_in_evaluation(evaluation: list[WorldCase]) -> None:
    held_out = catalog.HELD_OUT_HOMES | catalog.HELD_OUT_FOODS
    tagged = {case.id for case in evaluation if "unseen answer" in case.tags}
    assert tagged
    assert tagged == {case.id for case in evaluation if case.edit.answer in held_out}


def test_held_out_creatures_are_never_shown_in_training(training: list[WorldCase]) -> None:
    held_out = {creature.key for creature in catalog.held_out_creatures()}
    shown = {
        probe.image.scene.creature.key
        for case in training
        for probe in (case.edit, *case.probes)
        if probe.image is not None
    }
    assert len(held_out) == catalog.HELD_OUT_CREATURES
    assert not shown & held_out


def test_unseen_wordings_are_never_asked_in_training(training: list[WorldCase]) -> None:
    asked = {probe.prompt for case in training for probe in (case.edit, *case.probes)}
    for relation in (*questions.ENTITY_RELATIONS, *questions.ATTRIBUTE_RELATIONS):
        for wording in ("unseen_by_editor", "unseen"):
            for core in questions.wordings(relation, wording):  # type: ignore[arg-type]
                stem = core.split("{")[0]
                assert not any(stem in prompt for prompt in asked if len(stem) > 20), core


def test_a_picture_is_its_scene_and_pose() -> None:
    (case,) = world_cases("train", 0, 1)
    assert case.edit.image is not None
    scene = case.edit.image.scene
    pose = draw_pose(np.random.default_rng(0))
    assert draw(scene, pose).tobytes() == draw(scene, pose).tobytes()
    assert draw(scene, pose).tobytes() != draw(scene, Pose()).tobytes()
    assert draw(scene, pose).size == (SIZE, SIZE)
