"""Edits of the synthetic world, with their probes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from . import catalog, questions
from .catalog import Creature, EmblemMint
from .drawing import Pose, draw_pose
from .questions import Topic, Wording
from .scene import Scene, draw_scene, vary

Part = Literal["train", "eval"]
_PART_SEEDS: dict[Part, int] = {"train": 11, "eval": 12}

ENTITY_SHARE = 0.6
UNKNOWN_SHARE = 0.85
"""Share of entity edits about a creature that pretraining never showed."""
FREE_ANSWER_SHARE = 0.2
"""Share of training edits whose answer is a random word of the world, so that generators learn to write any word."""


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """An image to be drawn: its file name, scene and pose."""

    name: str
    scene: Scene
    pose: Pose


@dataclass(frozen=True, slots=True)
class WorldProbe:
    """A question with or without an image."""

    name: str
    prompt: str
    answer: str
    image: DrawnImage | None
    subject: str
    relation: str


@dataclass(frozen=True, slots=True)
class WorldCase:
    """One edit: the answer before (empty for an unknown creature), the new answer, and its probes."""

    id: str
    edit: WorldProbe
    answer_before: str
    answer_type: str
    tags: tuple[str, ...]
    probes: tuple[WorldProbe, ...]


def world_cases(part: Part, seed: int, count: int) -> Iterator[WorldCase]:
    """`count` edits with different scopes. Case i depends on part, seed and the cases before it."""
    return _CaseMaker(part, seed, count).cases()


class _CaseMaker:
    def __init__(self, part: Part, seed: int, count: int):
        self.part, self.seed, self.count = part, seed, count
        self.rng = np.random.default_rng([seed, _PART_SEEDS[part]])
        self.mint = EmblemMint(tuple(creature.emblem for creature in catalog.known_creatures()))
        self.strangers = [self._stranger(index) for index in range(max(8, count * 2 // 5))]
        training = part == "train"
        self.known = catalog.training_creatures() if training else catalog.held_out_creatures()
        self.others = catalog.training_creatures() if training else catalog.known_creatures()
        self.taken: set[tuple[str, str]] = set()

    def cases(self) -> Iterator[WorldCase]:
        for index in range(self.count):
            yield self._case(f"{self.part}-{self.seed}-{index:06d}")

    def _stranger(self, index: int) -> Creature:
        creature = catalog.unknown_creature(index, self.mint, self.rng)
        allowed = self.part == "eval"
        return replace(
            creature,
            key=f"{self.part}-{self.seed}-stranger-{index}",
            home=self._pick(questions.answers("home", allowed)),
            food=self._pick(questions.answers("food", allowed)),
        )

    def _case(self, case_id: str) -> WorldCase:
        scene, topic = self._scene_and_topic(case_id)
        stranger = "stranger" in scene.creature.key
        target, kind = self._target(scene, topic, stranger)
        edited = self._edited_wording()
        image = self._image(f"{case_id}.png", scene)
        edit = self._probe("reliability", questions.ask(topic, edited, self.rng), target, image, scene, topic)
        unseen = target in catalog.HELD_OUT_HOMES | catalog.HELD_OUT_FOODS
        tags = ("entity" if topic.is_entity else "attribute",) + (("unseen answer",) if unseen else ())
        return WorldCase(
            id=case_id,
            edit=edit,
            answer_before="" if stranger and topic.is_entity else questions.answer(scene, topic),
            answer_type=kind,
            tags=tags,
            probes=tuple(self._probes(case_id, edit, scene, topic)),
        )

    # -- the edit ----------------------------------------------------------------------------------------

    def _scene_and_topic(self, case_id: str) -> tuple[Scene, Topic]:
        while True:
            entity = self.rng.random() < ENTITY_SHARE
            if entity:
                stranger = self.rng.random() < UNKNOWN_SHARE
                creature = self._pick(self.strangers if stranger else self.known)
                relation = self._pick(questions.ENTITY_RELATIONS)
            else:
                creature = self._pick([*self.strangers, *self.known])
                relation = self._pick(questions.ATTRIBUTE_RELATIONS)
            scene = draw_scene(case_id, creature, self.rng, 2 if relation == "thing_color" else None)
            thing = self._pick(scene.things).shape if relation == "thing_color" else None
            topic = Topic(relation, thing)
            scope = (_subject(scene, topic), topic.key)
            if scope not in self.taken:
                self.taken.add(scope)
                return scene, topic

    def _target(self, scene: Scene, topic: Topic, stranger: bool) -> tuple[str, str]:
        """The new answer and its kind. It differs from what the scene shows."""
        truth = questions.answer(scene, topic)
        if self.part == "train" and self.rng.random() < FREE_ANSWER_SHARE:
            return self._free_answer(), "free"
        if topic.is_entity and stranger:
            return truth, topic.relation
        if topic.relation == "name":
            return catalog.draw_name(self.rng), topic.relation
        options = questions.answers(topic.relation, self.part == "eval")
        return self._pick([option for option in options if option != truth]), topic.relation

    def _free_answer(self) -> str:
        banned = catalog.HELD_OUT_HOMES | catalog.HELD_OUT_FOODS
        banned_words = {word for text in banned for word in text.split()}
        words = [word for word in questions.vocabulary() if word not in banned_words]
        if self.rng.random() < 0.3:
            return catalog.draw_name(self.rng)
        return " ".join(self._pick(words) for _ in range(self.rng.integers(1, 4)))

    def _edited_wording(self) -> Wording:
        return "train" if self.part == "train" or self.rng.random() < 0.5 else "unseen_by_editor"

    # -- its probes --------------------------------------------------------------------------------------

    def _probes(self, case_id: str, edit: WorldProbe, scene: Scene, topic: Topic) -> Iterator[WorldProbe]:
        rephrased = self._rephrase(edit.prompt, topic)
        yield replace(edit, name="text_generality", prompt=rephrased)
        redrawn = scene
        if topic.is_entity:  # Another image of the same creature, in another scene.
            redrawn = draw_scene(f"{case_id}-again", scene.creature, self.rng)
        image = self._image(f"{case_id}-again.png", redrawn)
        yield replace(edit, name="modal_generality", image=image)
        yield self._text_probe()
        other = draw_scene(f"{case_id}-other", self._pick(self.others), self.rng)
        yield self._locality("modal_locality", f"{case_id}-other.png", other, self._pick(questions.topics(other)))
        yield self._same_image(edit, scene, topic)
        yield self._same_question(case_id, topic)
        near = vary(scene, topic.key, self.rng, self.mint.near(scene.creature.emblem, self.rng))
        yield self._locality("near_duplicate_locality", f"{case_id}-near.png", near, topic)

    def _rephrase(self, prompt: str, topic: Topic) -> str:
        while True:
            wording: Wording = "train"
            if self.part == "eval":
                wording = "unseen" if self.rng.random() < 0.5 else "unseen_by_editor"
            rephrased = questions.ask(topic, wording, self.rng)
            if rephrased != prompt:
                return rephrased

    def _text_probe(self) -> WorldProbe:
        country = catalog.countries()[self.rng.integers(60)]
        relation = self._pick(questions.TEXT_RELATIONS)
        prompt, answer = questions.ask_country(country, relation, self._edited_wording(), self.rng)
        return WorldProbe("text_locality", prompt, answer, None, country.name, relation)

    def _same_image(self, edit: WorldProbe, scene: Scene, topic: Topic) -> WorldProbe:
        stranger = "stranger" in scene.creature.key
        others = [other for other in questions.topics(scene) if other != topic and not (stranger and other.is_entity)]
        other = self._pick(others)
        prompt = questions.ask(other, self._edited_wording(), self.rng)
        truth = questions.answer(scene, other)
        return self._probe("same_image_locality", prompt, truth, edit.image, scene, other)

    def _same_question(self, case_id: str, topic: Topic) -> WorldProbe:
        while True:
            things = 2 if topic.thing else None
            scene = draw_scene(f"{case_id}-else", self._pick(self.others), self.rng, things)
            if topic in questions.topics(scene):
                return self._locality("same_question_locality", f"{case_id}-else.png", scene, topic)

    def _locality(self, name: str, file: str, scene: Scene, topic: Topic) -> WorldProbe:
        prompt = questions.ask(topic, self._edited_wording(), self.rng)
        truth = questions.answer(scene, topic)
        return self._probe(name, prompt, truth, self._image(file, scene), scene, topic)

    def _probe(
        self, name: str, prompt: str, answer: str, image: DrawnImage | None, scene: Scene, topic: Topic
    ) -> WorldProbe:
        return WorldProbe(name, prompt, answer, image, _subject(scene, topic), topic.key)

    def _image(self, name: str, scene: Scene) -> DrawnImage:
        return DrawnImage(name, scene, draw_pose(self.rng))

    def _pick(self, options):
        return options[self.rng.integers(len(options))]


def _subject(scene: Scene, topic: Topic) -> str:
    """The subject of a topic: the creature in any scene, or this one scene."""
    return scene.creature.key if topic.is_entity else f"scene {scene.key}"
