"""Harder cases of the world: captions, long names, conflicting and combined edits, one of several things."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from . import captions, catalog, questions
from .cases import PART_SEEDS, CaseMaker, Fact, Part, WorldCase, strangers_for
from .harder import HarderShares, Kind, plan
from .questions import CAPTION, Topic
from .scene import Scene, draw_scene, exchange, vary

LATER_EDIT = "later edit"
SAME_QUESTION = "same question"
REWORDED = "other words and image"
COMBINED = "combined"
LONG_NAME = "long name"
RECOLORED = "near: other color"
EXCHANGED = "near: colors exchanged"
"""Tags of harder cases, by which results are reported."""

_EXCHANGED = "exchanged"
"""In place of a relation: the near-duplicate differs by the colours of two things, which are exchanged."""


def harder_cases(part: Part, seed: int, count: int, shares: HarderShares) -> Iterator[WorldCase]:
    """`count` edits, of which these shares are harder. Case i depends on all arguments and the cases before it."""
    return HarderCaseMaker(part, seed, count, shares).cases()


@dataclass(frozen=True)
class _Made:
    """A case that a later one may conflict with, and what it was made from."""

    case: WorldCase
    fact: Fact
    further: tuple[str, ...]
    form: int | None = None
    """The form of its caption, if its answer is one."""

    @property
    def is_long_name(self) -> bool:
        return LONG_NAME in self.further


class HarderCaseMaker(CaseMaker):
    """Makes the cases of a world in which some are harder."""

    def __init__(self, part: Part, seed: int, count: int, shares: HarderShares):
        self.kinds = plan(shares, count, [seed, PART_SEEDS[part]])
        long_names = self.kinds.count("long_names")
        super().__init__(part, seed, count, strangers_for(count - long_names) + long_names)
        # Each long name is that of a creature of its own.
        self.strangers, self.unnamed = self.strangers[long_names:], self.strangers[:long_names]
        self.open: list[_Made] = []
        self.first_of_pair: tuple[WorldCase, Fact] | None = None

    def cases(self) -> Iterator[WorldCase]:
        """All cases, one after the other."""
        for index, kind in enumerate(self.kinds):
            yield self._of_kind(kind, f"{self.part}-{self.seed}-{index:06d}")

    def _of_kind(self, kind: Kind, case_id: str) -> WorldCase:
        match kind:
            case "captions":
                made = self._caption(case_id)
            case "long_names":
                made = self._long_name(case_id)
            case "things":
                made = self._thing(case_id)
            case "conflicts":
                return self._conflict(case_id)
            case "combined":
                return self._combined(case_id)
            case _:
                made = self._plain(case_id)
        self.open.append(made)
        return made.case

    def _plain(self, case_id: str) -> _Made:
        fact = self._fact(case_id)
        target, answer_type = self._target(fact)
        return self._made(case_id, fact, target, answer_type)

    def _made(
        self, case_id: str, fact: Fact, target: str, answer_type: str, *further: str, form: int | None = None
    ) -> _Made:
        before = self._truth(fact) if form is None else captions.describe(fact.scene, form)
        case = self._finished(case_id, self._edit(case_id, fact, target), fact, answer_type, before, further)
        return _Made(case, fact, further, form)

    # -- captions and long names ----------------------------------------------------------------------------

    def _caption(self, case_id: str) -> _Made:
        scene = draw_scene(case_id, self._pick([*self.strangers, *self.known]), self.rng)
        form = self._pick(captions.forms_for(scene))
        fact, target = self._changed_caption(Fact(scene, CAPTION), form)
        return self._made(case_id, fact, target, "caption", form=form)

    def _changed_caption(self, fact: Fact, form: int, unlike: str | None = None) -> tuple[Fact, str]:
        """A caption that states one fact wrongly. The near-duplicate differs from the scene in the same fact."""
        while True:
            relation = self._pick(captions.stated(fact.scene, form))
            target = captions.describe(vary(fact.scene, relation, self.rng, fact.scene.creature.emblem), form)
            if target != unlike:
                break
        name, _, thing = relation.partition(":")
        return replace(fact, not_asked=(Topic(name, thing or None),), varied=relation), target

    def _long_name(self, case_id: str) -> _Made:
        creature = replace(self.unnamed.pop(), name=catalog.draw_long_name(self.rng))
        fact = Fact(draw_scene(case_id, creature, self.rng), Topic("name"))
        return self._made(case_id, fact, creature.name, "name", LONG_NAME)

    # -- one of several things ------------------------------------------------------------------------------

    def _thing(self, case_id: str) -> _Made:
        count = int(self.rng.integers(2, 5))
        scene = draw_scene(case_id, self._pick([*self.strangers, *self.known]), self.rng, count)
        near = self._pick((RECOLORED, EXCHANGED))
        fact = Fact(
            scene,
            Topic("thing_color", self._pick(scene.things).shape),
            varied=_EXCHANGED if near == EXCHANGED else None,
        )
        target, answer_type = self._target(fact)
        return self._made(case_id, fact, target, answer_type, f"{count} things", near)

    def _near(self, fact: Fact) -> Scene:
        if fact.varied == _EXCHANGED and fact.topic.thing is not None:
            return exchange(fact.scene, fact.topic.thing, self.rng)
        return super()._near(fact)

    def _same_image_options(self, fact: Fact) -> list[Topic]:
        others = super()._same_image_options(fact)
        about_things = [topic for topic in others if topic.thing]
        return about_things if fact.topic.thing and about_things else others

    # -- two edits of one fact, two facts of one image -------------------------------------------------------

    def _conflict(self, case_id: str) -> WorldCase:
        """A case that changes the fact of an earlier one once more: by the same question, or by another one."""
        earlier = self.open.pop(self.rng.integers(len(self.open)))
        fact, target = self._other_target(earlier)
        edit, words = replace(earlier.case.edit, answer=target), SAME_QUESTION
        if self.rng.random() < 0.5:
            image = self._redrawn(case_id, fact.scene, fact.topic)
            edit = replace(edit, prompt=self._rephrase(edit.prompt, fact.topic), image=image)
            fact, words = replace(fact, scene=image.scene), REWORDED
        further = (*earlier.further, LATER_EDIT, words)
        made = self._finished(case_id, edit, fact, fact.topic.relation, earlier.case.edit.answer, further)
        return replace(made, follows=earlier.case.id)

    def _other_target(self, earlier: _Made) -> tuple[Fact, str]:
        """An answer that is neither the earlier edit's nor what the scene shows, unless there are only these two."""
        fact, taken = earlier.fact, earlier.case.edit.answer
        if earlier.form is not None:
            return self._changed_caption(fact, earlier.form, taken)
        if fact.topic.relation == "name":
            while (name := self._name(earlier.is_long_name)) == taken:
                pass
            return fact, name
        options = [one for one in questions.answers(fact.topic.relation, self.part == "eval") if one != taken]
        truth = questions.answer(fact.scene, fact.topic)
        return fact, self._pick([one for one in options if one != truth] or options)

    def _name(self, long: bool) -> str:
        return catalog.draw_long_name(self.rng) if long else catalog.draw_name(self.rng)

    def _combined(self, case_id: str) -> WorldCase:
        """The first case of a pair; or the second one, about another fact of the first one's image."""
        if self.first_of_pair is None:
            first = self._fact(case_id)
            other = self._pick([topic for topic in questions.topics(first.scene) if self._is_free(first, topic)])
            second = Fact(first.scene, other, (first.topic,))
            self.taken.add(second.scope)
            first = replace(first, not_asked=(other,))
            target, kind = self._target(first)
            edit = self._edit(case_id, first, target)
            case = self._finished(case_id, edit, first, kind, self._truth(first), (COMBINED,))
            self.first_of_pair = case, second
            return case
        (first_case, fact), self.first_of_pair = self.first_of_pair, None
        target, kind = self._target(fact)
        prompt = questions.ask(fact.topic, self._edited_wording(), self.rng)
        edit = self._probe("reliability", prompt, target, first_case.edit.image, fact)
        case = self._finished(case_id, edit, fact, kind, self._truth(fact), (COMBINED,))
        return replace(case, follows=first_case.id)

    def _is_free(self, first: Fact, topic: Topic) -> bool:
        return topic != first.topic and replace(first, topic=topic).scope not in self.taken
