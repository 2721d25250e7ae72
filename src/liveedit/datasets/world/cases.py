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
PART_SEEDS: dict[Part, int] = {"train": 11, "eval": 12}

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
    follows: str | None = None
    """The id of the earlier case that this one belongs with: see `EditCase.follows`."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What an edit changes: the answer to a topic in a scene.

    not_asked: topics that the probe about the same image leaves out. varied: the relation in which the near-duplicate
    differs, by default that of the topic.
    """

    scene: Scene
    topic: Topic
    not_asked: tuple[Topic, ...] = ()
    varied: str | None = None

    @property
    def scope(self) -> tuple[str, str]:
        """(subject, relation) of its questions."""
        return _subject(self.scene, self.topic), self.topic.key

    @property
    def is_of_stranger(self) -> bool:
        """Whether it is a property of a creature that pretraining never showed."""
        return self.topic.is_entity and "stranger" in self.scene.creature.key


def strangers_for(count: int) -> int:
    """How many unknown creatures the world has for this many edits."""
    return max(8, count * 2 // 5)


def world_cases(part: Part, seed: int, count: int) -> Iterator[WorldCase]:
    """`count` edits with different scopes. Case i depends on part, seed and the cases before it."""
    return CaseMaker(part, seed, count).cases()


class CaseMaker:
    """Makes the cases of one part of a world. strangers: how many unknown creatures its edits are about."""

    def __init__(self, part: Part, seed: int, count: int, strangers: int | None = None):
        self.part, self.seed, self.count = part, seed, count
        self.rng = np.random.default_rng([seed, PART_SEEDS[part]])
        self.mint = EmblemMint(tuple(creature.emblem for creature in catalog.known_creatures()))
        self.strangers = [self._stranger(index) for index in range(strangers or strangers_for(count))]
        training = part == "train"
        self.known = catalog.training_creatures() if training else catalog.held_out_creatures()
        self.others = catalog.training_creatures() if training else catalog.known_creatures()
        self.taken: set[tuple[str, str]] = set()

    def cases(self) -> Iterator[WorldCase]:
        """All cases, one after the other."""
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
        fact = self._fact(case_id)
        target, kind = self._target(fact)
        return self._finished(case_id, self._edit(case_id, fact, target), fact, kind, self._truth(fact))

    def _edit(self, case_id: str, fact: Fact, target: str) -> WorldProbe:
        wording = self._edited_wording()
        image = self._image(f"{case_id}.png", fact.scene)
        return self._probe("reliability", questions.ask(fact.topic, wording, self.rng), target, image, fact)

    def _finished(
        self, case_id: str, edit: WorldProbe, fact: Fact, answer_type: str, before: str, further: tuple[str, ...] = ()
    ) -> WorldCase:
        """The case of an edit, with its probes. further: its tags besides the usual ones."""
        unseen = edit.answer in catalog.HELD_OUT_HOMES | catalog.HELD_OUT_FOODS
        tags = ("entity" if fact.topic.is_entity else "attribute",) + (("unseen answer",) if unseen else ())
        probes = tuple(self._probes(case_id, edit, fact))
        return WorldCase(case_id, edit, before, answer_type, (*tags, *further), probes)

    @staticmethod
    def _truth(fact: Fact) -> str:
        """What is right before the edit; nothing is known of an unknown creature."""
        return "" if fact.is_of_stranger else questions.answer(fact.scene, fact.topic)

    # -- the edit ----------------------------------------------------------------------------------------

    def _fact(self, case_id: str) -> Fact:
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
            fact = Fact(scene, Topic(relation, thing))
            if fact.scope not in self.taken:
                self.taken.add(fact.scope)
                return fact

    def _target(self, fact: Fact) -> tuple[str, str]:
        """The new answer and its kind. It differs from what the scene shows."""
        topic = fact.topic
        truth = questions.answer(fact.scene, topic)
        if self.part == "train" and self.rng.random() < FREE_ANSWER_SHARE:
            return self._free_answer(), "free"
        if fact.is_of_stranger:
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

    def _probes(self, case_id: str, edit: WorldProbe, fact: Fact) -> Iterator[WorldProbe]:
        scene, topic = fact.scene, fact.topic
        rephrased = self._rephrase(edit.prompt, topic)
        yield replace(edit, name="text_generality", prompt=rephrased)
        yield replace(edit, name="modal_generality", image=self._redrawn(f"{case_id}-again", scene, topic))
        yield self._text_probe()
        other = draw_scene(f"{case_id}-other", self._pick(self.others), self.rng)
        other_fact = Fact(other, self._pick(questions.topics(other)))
        yield self._locality("modal_locality", f"{case_id}-other.png", other_fact)
        yield self._same_image(edit, fact)
        yield self._same_question(case_id, topic)
        near = Fact(self._near(fact), topic)
        yield self._locality("near_duplicate_locality", f"{case_id}-near.png", near)

    def _redrawn(self, key: str, scene: Scene, topic: Topic) -> DrawnImage:
        """Another image of the same thing: of a creature in another scene, otherwise of the scene in another pose."""
        if topic.is_entity:
            scene = draw_scene(key, scene.creature, self.rng)
        return self._image(f"{key}.png", scene)

    def _near(self, fact: Fact) -> Scene:
        scene = fact.scene
        return vary(scene, fact.varied or fact.topic.key, self.rng, self.mint.near(scene.creature.emblem, self.rng))

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

    def _same_image(self, edit: WorldProbe, fact: Fact) -> WorldProbe:
        other = Fact(fact.scene, self._pick(self._same_image_options(fact)))
        prompt = questions.ask(other.topic, self._edited_wording(), self.rng)
        truth = questions.answer(other.scene, other.topic)
        return self._probe("same_image_locality", prompt, truth, edit.image, other)

    def _same_image_options(self, fact: Fact) -> list[Topic]:
        """What else can be asked about the image of an edit."""
        stranger = "stranger" in fact.scene.creature.key
        not_asked = (fact.topic, *fact.not_asked)
        others = [other for other in questions.topics(fact.scene) if other not in not_asked]
        return [other for other in others if not (stranger and other.is_entity)]

    def _same_question(self, case_id: str, topic: Topic) -> WorldProbe:
        while True:
            things = 2 if topic.thing else None
            scene = draw_scene(f"{case_id}-else", self._pick(self.others), self.rng, things)
            if questions.can_ask(topic, scene):
                return self._locality("same_question_locality", f"{case_id}-else.png", Fact(scene, topic))

    def _locality(self, name: str, file: str, fact: Fact) -> WorldProbe:
        prompt = questions.ask(fact.topic, self._edited_wording(), self.rng)
        truth = questions.answer(fact.scene, fact.topic)
        return self._probe(name, prompt, truth, self._image(file, fact.scene), fact)

    def _probe(self, name: str, prompt: str, answer: str, image: DrawnImage | None, fact: Fact) -> WorldProbe:
        return WorldProbe(name, prompt, answer, image, *fact.scope)

    def _image(self, name: str, scene: Scene) -> DrawnImage:
        return DrawnImage(name, scene, draw_pose(self.rng))

    def _pick(self, options):
        return options[self.rng.integers(len(options))]


def _subject(scene: Scene, topic: Topic) -> str:
    """The subject of a topic: the creature in any scene, or this one scene."""
    return scene.creature.key if topic.is_entity else f"scene {scene.key}"
