"""Several threads on one `EditedModel`: every answer is that of the edits before or after a change, never between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from shift_editor import ShiftEditor

from liveedit.answers import Answer
from liveedit.backbones import Backbone
from liveedit.backbones.split_forward import StoppedError
from liveedit.edited.model import EditedModel
from liveedit.editors.liveedit import LiveEditRefine
from liveedit.errors import InvalidInputError
from liveedit.experts import LowRankExpert
from liveedit.samples import Edit, EditCase, Question
from liveedit.serving.served_model import ServedModel
from liveedit.serving.settings import ServingSettings

PATIENCE_S = 60.0
SECONDS = 2.0
ASKING = 8


@pytest.fixture
def cases(eval_cases: tuple[EditCase, ...]) -> tuple[EditCase, ...]:
    return eval_cases[:2]


def asked_about(case: EditCase) -> tuple[Any, str]:
    return case.edit.question.image, case.edit.question.prompt


def seen(answer: Answer) -> tuple[str, tuple[str, ...]]:
    """What an answer says, and the edits that took part in it."""
    return answer.text, tuple(sorted(fired.edit_id for fired in answer.fired or ()))


def test_eight_threads_ask_while_one_edits(tiny_llava: Backbone, cases: tuple[EditCase, ...]) -> None:
    with EditedModel.load(tiny_llava) as model:
        names = {None: model.ask(*asked_about(cases[0])).text}
        still = model.ask(*asked_about(cases[1])).text
        made: dict[str, str] = {}
        found: set[tuple[str, tuple[str, ...]]] = set()
        others: set[str] = set()
        ended = threading.Event()

        def ask(number: int) -> int:
            count = 0
            while not ended.is_set():
                if number % 4 == 3:
                    others.add(model.ask(*asked_about(cases[1])).text)
                else:
                    found.add(seen(model.ask(*asked_about(cases[0]))))
                count += 1
            return count

        def edit() -> None:
            try:
                end, number = time.monotonic() + SECONDS, 0
                while time.monotonic() < end or number < 3:
                    answer = ("Bruvak", "Zorpel", "Ultis")[number % 3]
                    receipt = model.edit(*asked_about(cases[0]), answer)
                    made[receipt.id] = answer
                    assert model.ask(*asked_about(cases[0])).text == answer
                    if number % 2:
                        model.undo(receipt.id)
                    number += 1
            finally:
                ended.set()

        with ThreadPoolExecutor(ASKING + 1) as pool:
            editing = pool.submit(edit)
            counts = [one.result(PATIENCE_S) for one in [pool.submit(ask, number) for number in range(ASKING)]]
            editing.result(PATIENCE_S)
    assert all(counts), "nobody starved"
    assert others == {still}
    assert len(found) > 1
    for text, fired in found:
        # One edit of the question is active at a time, and its trial is never seen.
        assert len(fired) <= 1 and text == (made[fired[0]] if fired else names[None])


class Slow(LiveEditRefine):
    """Waits, once it has made an expert, until it may go on."""

    waiting: threading.Event
    go_on: threading.Event

    def make_expert(self, edit: Edit) -> tuple[LowRankExpert, int]:
        made = super().make_expert(edit)
        self.waiting.set()
        assert self.go_on.wait(PATIENCE_S)
        return made


def test_making_an_expert_does_not_hold_up_questions(tiny_llava: Backbone, cases: tuple[EditCase, ...]) -> None:
    editor = Slow.load(tiny_llava)
    editor.waiting, editor.go_on = threading.Event(), threading.Event()
    with EditedModel(tiny_llava, editor) as model, ThreadPoolExecutor(1) as pool:
        before = model.ask(*asked_about(cases[0])).text
        editing = pool.submit(model.edit, *asked_about(cases[0]), "Bruvak")
        try:
            assert editor.waiting.wait(PATIENCE_S)
            assert model.ask(*asked_about(cases[0])).text == before
        finally:
            editor.go_on.set()
        assert editing.result(PATIENCE_S).took
        assert model.ask(*asked_about(cases[0])).text == "Bruvak"


@pytest.mark.parametrize("change", ["edit", "undo", "redo", "refresh", "close"])
def test_changes_wait_for_the_questions_in_progress(
    tiny_llava: Backbone, cases: tuple[EditCase, ...], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EditedModel.load(tiny_llava) as model, ThreadPoolExecutor(2) as pool:
        active = model.edit(*asked_about(cases[0]), "Bruvak").id
        undone = model.edit(*asked_about(cases[1]), "Zorpel").id
        model.undo(undone)
        changes: dict[str, Callable[[], object]] = {
            "edit": lambda: model.edit(*asked_about(cases[1]), "Ultis"),
            "undo": lambda: model.undo(active),
            "redo": lambda: model.redo(undone),
            "refresh": model.refresh,
            "close": model.close,
        }
        asking, go_on = threading.Event(), threading.Event()
        generate = model.answering.generate

        def slow(*arguments: Any, **options: Any) -> list[Answer]:
            asking.set()
            assert go_on.wait(PATIENCE_S)
            return generate(*arguments, **options)

        monkeypatch.setattr(model.answering, "generate", slow)
        question = pool.submit(model.ask, *asked_about(cases[0]))
        assert asking.wait(PATIENCE_S)
        changing = pool.submit(changes[change])
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not model._lock._waiting and not changing.done() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not changing.done() and len(model) == 1
        finally:
            go_on.set()
        assert question.result(PATIENCE_S).text == "Bruvak"
        changing.result(PATIENCE_S)


def test_an_editor_that_is_not_thread_safe_is_used_by_one_thread_at_a_time(
    tiny_llava: Backbone, cases: tuple[EditCase, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EditedModel(tiny_llava, ShiftEditor(tiny_llava)) as model:
        assert not model.editor.thread_safe
        inside, most = [0], [0]
        generate = model.answering.generate

        def counted(*arguments: Any, **options: Any) -> list[Answer]:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            answers = generate(*arguments, **options)
            inside[0] -= 1
            return answers

        monkeypatch.setattr(model.answering, "generate", counted)
        with ThreadPoolExecutor(4) as pool:
            for one in [pool.submit(model.ask, *asked_about(cases[0])) for _ in range(8)]:
                one.result(PATIENCE_S)
        assert most == [1]
        assert ServedModel(model, ServingSettings(workers=4)).workers == 1


def test_a_closed_model_refuses_the_edit_that_was_being_made(tiny_llava: Backbone, cases: tuple[EditCase, ...]) -> None:
    editor = Slow.load(tiny_llava)
    editor.waiting, editor.go_on = threading.Event(), threading.Event()
    with EditedModel(tiny_llava, editor) as model, ThreadPoolExecutor(1) as pool:
        editing = pool.submit(model.edit, *asked_about(cases[0]), "Bruvak")
        try:
            assert editor.waiting.wait(PATIENCE_S)
            model.close()
        finally:
            editor.go_on.set()
        with pytest.raises(InvalidInputError, match="was closed"):
            editing.result(PATIENCE_S)
    assert len(editor) == 0


# -- the backbone under it -----------------------------------------------------------------------------------


def meanwhile(work: Callable[[], object], other: Callable[[], object]) -> None:
    """`work` again and again on one thread, while `other` runs on this one."""
    ended, rounds = threading.Event(), [0]

    def repeat() -> None:
        while not ended.is_set():
            work()
            rounds[0] += 1

    with ThreadPoolExecutor(1) as pool:
        repeating = pool.submit(repeat)
        try:
            while not rounds[0] and not repeating.done():
                time.sleep(0.001)
            for _ in range(30):
                other()
        finally:
            ended.set()
        repeating.result(PATIENCE_S)


@pytest.mark.parametrize("half", ["prefix", "suffix"])
def test_half_a_forward_pass_does_not_disturb_other_threads(random_backbone: Backbone, half: str, image: Path) -> None:
    inputs = random_backbone.encode([Question("What is this?", image)], ["red"])
    other = random_backbone.encode([Question("How many?", image)], ["six"])
    with torch.no_grad():
        expected, states = random_backbone.logits(other), random_backbone.hidden_states(inputs, 2)
        resumed = random_backbone.logits(inputs)[inputs.predicting]

    @torch.no_grad()
    def run_half() -> None:
        if half == "prefix":
            assert torch.equal(random_backbone.hidden_states(inputs, 2), states)
        else:
            found = random_backbone.logits_from(states, inputs, 2, inputs.predicting)
            torch.testing.assert_close(found, resumed)

    @torch.no_grad()
    def run_whole() -> None:
        assert torch.equal(random_backbone.logits(other), expected)

    meanwhile(run_half, run_whole)
    meanwhile(run_half, run_half)


def test_the_error_that_ends_a_pass_early_says_what_it_is() -> None:
    assert "stopped after a decoder layer" in str(StoppedError(torch.zeros(1, 1, 1)))


@pytest.fixture
def image(cases: tuple[EditCase, ...]) -> Path:
    return Path(str(cases[0].edit.question.image))
