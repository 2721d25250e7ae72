"""Asking: an edited answer in doubt is not given, the unedited model answers in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch

from liveedit.answering import Answering, ConfidenceProcessor, Generated
from liveedit.answers import Answer, Fired
from liveedit.samples import Question

END, VOCABULARY = 0, 50
OWN = Fired("own", 1.0, 2.0)
FAINT = Fired("faint", 0.001, 0.1)

Script = list[tuple[str, float]]
"""The words of an answer, each with the probability of its token."""

UNEDITED: dict[str, Script] = {
    "hat": [("red", 0.3), ("hat", 0.2)],
    "legs": [("four", 0.9)],
    "sky": [("unsure", 0.1)],
    "wing": [("grey", 0.9)],
}
EDITED: dict[str, Script] = {
    "hat": [("teal", 0.9), ("and", 0.4), ("gold", 0.9)],
    "legs": [("six", 0.6)],
    "wing": [("blue", 0.9), ("User:", 0.9), ("hm", 0.1)],
    "sky": UNEDITED["sky"],
}
WORDS = ["", *sorted({word for script in (*UNEDITED.values(), *EDITED.values()) for word, _ in script})]


class ScriptedEditor:
    """Fires for the questions that it edits, while it is not paused."""

    def __init__(self, answer_confidence: float, fires: dict[str, tuple[Fired, ...]]):
        self.answer_confidence, self.fires = answer_confidence, fires
        self.lengths: dict[str, int] = {}
        """Tokens of the answers of edits, the end included."""
        self.is_paused = False
        self.asked: Sequence[str] = ()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.is_paused = True
        yield
        self.is_paused = False

    def answer_length(self, edit_id: str) -> int | None:
        return self.lengths.get(edit_id)

    def fired(self) -> list[tuple[Fired, ...]]:
        found = [self.fires.get(prompt, ()) for prompt in self.asked]
        return found if any(found) else []


class ScriptedBackbone:
    """Speaks its scripts, all rows of a batch together, and lets the logits processors see every step."""

    end_token_ids = frozenset({END})
    next_turn: str | None = None
    """A word before which answers are cut."""

    def __init__(self, editor: ScriptedEditor):
        self.editor = editor
        self.batches: list[tuple[bool, list[str]]] = []
        """Of each batch: whether the editor was paused, and the prompts."""

    def encode(self, questions: Sequence[Question], padding: str) -> list[str]:
        assert padding == "left"
        return [question.prompt for question in questions]

    def answer_room(self, prompts: list[str], wanted: int) -> int:
        return wanted

    def generate_tokens(
        self, prompts: list[str], most: int, logits_processor: Any = ()
    ) -> list[tuple[str, tuple[int, ...]]]:
        self.batches.append((self.editor.is_paused, prompts))
        self.editor.asked = prompts
        scripts = [(UNEDITED if self.editor.is_paused else EDITED)[prompt] for prompt in prompts]
        ids = torch.full((len(prompts), 1), 1)
        for step in range(1 + max(map(len, scripts))):
            # After its end a row is unsure of everything, as a model is of padding.
            said = [
                (script[step] if step < len(script) else ("", 0.99 if step == len(script) else 0.02))
                for script in scripts
            ]
            for processor in logits_processor:
                processor(ids, torch.stack([scores_of(WORDS.index(word), chance) for word, chance in said]))
            ids = torch.cat([ids, torch.tensor([[WORDS.index(word)] for word, _ in said])], 1)
        rows = ids[:, 1 : 1 + most].tolist()
        return [(self._spoken([WORDS[token] for token in row if token]), tuple(row)) for row in rows]

    def _spoken(self, words: list[str]) -> str:
        end = words.index(self.next_turn) if self.next_turn in words else len(words)
        return " ".join(words[:end])

    def tokenize(self, texts: Sequence[str]) -> list[list[str]]:
        return [text.split() for text in texts]


def scores_of(token: int, chance: float) -> torch.Tensor:
    """Scores whose softmax is `chance` at one token and even elsewhere."""
    others = torch.full((VOCABULARY,), (1 - chance) / (VOCABULARY - 1))
    others[token] = chance
    return others.log() + 3.0


def asking(
    answer_confidence: float = 0.5, fires: dict[str, tuple[Fired, ...]] | None = None
) -> tuple[Answering, ScriptedBackbone]:
    editor = ScriptedEditor(answer_confidence, {"hat": (FAINT, OWN), "legs": (OWN,)} if fires is None else fires)
    backbone = ScriptedBackbone(editor)
    return Answering(cast(Any, backbone), cast(Any, editor)), backbone


def ask(answering: Answering, *prompts: str) -> list[Answer]:
    return answering.ask([Question(prompt) for prompt in prompts])


def test_an_answer_in_doubt_is_the_unedited_models() -> None:
    answering, backbone = asking()
    (answer,) = ask(answering, "hat")
    assert (answer.text, answer.fired, answer.withheld) == ("red hat", (), (OWN,)), "one below the threshold is none"
    assert backbone.batches == [(False, ["hat"]), (True, ["hat"])]
    assert not backbone.editor.is_paused
    assert answer.to_dict()["withheld"] == [{"edit_id": "own", "weight": 1.0, "margin": 2.0}]


@pytest.mark.parametrize(("next_turn", "text"), [("User:", "blue"), (None, "grey")])
def test_what_follows_the_next_turn_of_the_chat_is_not_judged(next_turn: str | None, text: str) -> None:
    answering, backbone = asking(fires={"wing": (OWN,)})
    backbone.next_turn = next_turn
    assert ask(answering, "wing")[0].text == text


def test_a_sure_answer_is_given_and_the_model_is_asked_once() -> None:
    answering, backbone = asking()
    (answer,) = ask(answering, "legs")
    assert (answer.text, answer.fired, answer.withheld) == ("six", (OWN,), ())
    assert backbone.batches == [(False, ["legs"])]


@pytest.mark.parametrize(("confidence", "text"), [(0.0, "teal and gold"), (0.39, "teal and gold"), (0.41, "red hat")])
def test_how_sure_an_answer_must_be(confidence: float, text: str) -> None:
    answering, backbone = asking(confidence)
    (answer,) = ask(answering, "hat")
    assert answer.text == text
    assert len(backbone.batches) == (1 if text == "teal and gold" else 2)
    assert answer.withheld == (() if text == "teal and gold" else (OWN,))


@pytest.mark.parametrize("fires", [{}, {"hat": (FAINT,)}])
def test_without_an_edit_that_fired_nothing_is_asked_again(fires: dict[str, tuple[Fired, ...]]) -> None:
    answering, backbone = asking(fires=fires)
    assert [answer.text for answer in ask(answering, "hat", "sky")] == ["teal and gold", "unsure"]
    assert len(backbone.batches) == 1


def test_an_answer_that_has_ended_is_not_judged_by_what_follows() -> None:
    """The row of "legs" is padded while "hat" goes on."""
    answering, backbone = asking(0.35)
    assert [answer.text for answer in ask(answering, "legs", "hat")] == ["six", "teal and gold"]
    assert len(backbone.batches) == 1


def test_each_row_of_a_batch_is_judged_alone() -> None:
    answering, backbone = asking()
    hat, legs, sky, again = ask(answering, "hat", "legs", "sky", "hat")
    assert [answer.text for answer in (hat, legs, sky, again)] == ["red hat", "six", "unsure", "red hat"]
    assert [answer.withheld for answer in (hat, legs, sky, again)] == [(OWN,), (), (), (OWN,)]
    assert [answer.fired for answer in (hat, legs, sky, again)] == [(), (OWN,), (), ()]
    assert backbone.batches[1:] == [(True, ["hat", "hat"])], "the doubtful ones alone"


def test_the_first_token_in_doubt_is_known() -> None:
    watched = ConfidenceProcessor(0.5, frozenset({END}))
    assert watched.doubts() == []
    steps = [([1, 1, 1], [0.9, 0.9, 0.9]), ([2, 2, END], [0.4, 0.9, 0.1]), ([3, 3, 4], [0.3, 0.9, 0.1])]
    ids = torch.zeros(3, 0, dtype=torch.long)
    for last, chances in steps:
        ids = torch.cat([ids, torch.tensor(last)[:, None]], 1)
        scores = torch.stack([scores_of(5, chance) for chance in chances])
        assert watched(ids, scores) is scores
    assert watched.doubts() == [1, None, None]


def test_an_answer_that_was_cut_is_judged_by_what_is_left() -> None:
    one = Generated(Answer("teal and", (OWN,)), 1)
    assert one.is_in_doubt() and one.is_in_doubt(2) and not one.is_in_doubt(1)
    assert not Generated(Answer("teal", (OWN,)), None).is_in_doubt()


@pytest.mark.parametrize(
    ("length", "most", "given"),
    [(4, 32, True), (3, 32, False), (5, 32, False), (9, 32, False), (None, 32, True), (4, 3, True), (9, 3, True)],
)
def test_an_answer_of_another_length_than_the_edits_is_in_doubt(length: int | None, most: int, given: bool) -> None:
    """Three words and the end. One that the limit has cut is not judged by what is missing."""
    answering, backbone = asking(0.3)
    backbone.editor.lengths = {} if length is None else {"own": length}
    (answer,) = answering.ask([Question("hat")], most)
    assert (answer.text, answer.withheld) == (("teal and gold", ()) if given else ("red hat", (OWN,)))


@pytest.mark.parametrize(("length", "place"), [(2, 2), (3, 3), (4, None), (6, 3)])
def test_the_place_is_known_at_which_a_length_differs(length: int, place: int | None) -> None:
    answering, backbone = asking(0.3)
    backbone.editor.lengths = {"own": length}
    (found,) = answering.generate(answering.encode([Question("hat")]))
    assert found.doubt == place


def test_a_length_is_not_asked_for_where_two_edits_fired_or_confidence_is_not() -> None:
    for confidence, fired in ((0.3, (OWN, Fired("other", 1.0, 2.0))), (0.0, (OWN,))):
        answering, backbone = asking(confidence, {"hat": fired})
        backbone.editor.lengths = {"own": 2, "other": 2}
        assert ask(answering, "hat")[0].text == "teal and gold"


def test_without_an_editor_nothing_is_watched() -> None:
    editor = ScriptedEditor(0.5, {})
    backbone = ScriptedBackbone(editor)
    plain = Answering(cast(Any, backbone))
    (answer,) = ask(plain, "hat")
    assert (answer.text, answer.fired, answer.withheld) == ("teal and gold", None, ())
    with asking()[0].unedited() as unedited:
        assert isinstance(unedited, Answering) and unedited.editor is None
