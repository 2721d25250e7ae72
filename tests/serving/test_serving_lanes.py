"""Parts of a batch side by side: every question once, the same answers, and edits that several threads meet at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from PIL import Image

from liveedit.backbones import Backbone
from liveedit.images import open_image
from liveedit.model import EditedModel
from liveedit.samples import EditCase
from liveedit.serving.lanes import Lanes, default_lanes
from liveedit.serving.served_model import Query, Reply, ServedModel
from liveedit.serving.settings import ServingSettings
from liveedit.serving.writing import Style


@pytest.mark.parametrize(("questions", "lanes"), [(1, 1), (15, 1), (16, 2), (33, 3), (64, 3)])
def test_small_batches_stay_whole_and_large_ones_are_cut_evenly(questions: int, lanes: int) -> None:
    lengths = [10.0 + (7 * place) % 10 for place in range(questions)]
    found = Lanes(3).split(lengths)
    assert len(found) == lanes
    assert sorted(place for lane in found for place in lane) == list(range(questions))
    ordered = [lengths[place] for lane in found for place in lane]
    assert ordered == sorted(lengths)
    loads = [sum(lengths[place] for place in lane) for lane in found]
    assert max(loads) - min(loads) <= 2 * max(lengths)
    assert [len(lane) for lane in found] == sorted((len(lane) for lane in found), reverse=True)


def test_parts_run_at_the_same_time_and_come_back_in_order() -> None:
    together = threading.Barrier(2, timeout=20)

    def work(part: str) -> str:
        together.wait()  # Nobody comes through alone.
        return part.upper()

    assert Lanes(2).run(work, ["a", "b"]) == ["A", "B"]


def test_an_error_waits_for_the_other_parts() -> None:
    ended = threading.Event()

    def work(part: int) -> None:
        if part == 0:
            raise ValueError("the first one fails")
        ended.wait(0.2)
        ended.set()

    with pytest.raises(ValueError, match="the first one fails"):
        Lanes(2).run(work, [0, 1])
    assert ended.is_set()


@pytest.mark.parametrize(
    ("device", "parameters", "threads", "lanes"),
    [("cuda", 4_000_000, 16, 1), ("cpu", 7_000_000_000, 16, 1), ("cpu", 4_000_000, 16, 8), ("cpu", 4_000_000, 2, 2)],
)
def test_small_models_on_processors_get_a_lane_for_each_thread(
    device: str, parameters: int, threads: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert default_lanes(torch.device(device), parameters) == lanes


def test_a_lane_has_its_share_of_the_threads_also_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert Lanes(2).run(lambda _: torch.get_num_threads(), ["one"]) == [1]
        assert Lanes(1).run(lambda _: torch.get_num_threads(), ["one"]) == [2]
    finally:
        torch.set_num_threads(before)


def asked(model: EditedModel, lanes: int, cases: Sequence[EditCase]) -> list[Reply]:
    served = ServedModel(model, ServingSettings.model_validate({"lanes": lanes}))
    queries = [Query(case.edit.question.prompt, _picture(case), Style(12)) for case in cases]
    replies = served.answer(queries)
    assert served.routing_seconds is not None and served.routing_seconds > 0
    return [reply for reply in replies if isinstance(reply, Reply)]


def _picture(case: EditCase) -> Image.Image:
    assert case.edit.question.image is not None
    return open_image(case.edit.question.image)


def test_answers_and_fired_edits_are_those_of_one_lane(tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]) -> None:
    cases = eval_cases[:20]
    with EditedModel.load(tiny_llava) as model:
        for case in cases[:4]:
            edit = case.edit
            model.edit(edit.question.image, edit.question.prompt, edit.answer)
        one, two = asked(model, 1, cases), asked(model, 2, cases)
    assert [reply.text for reply in two] == [reply.text for reply in one] and len(one) == len(cases)
    assert [[fired.edit_id for fired in reply.fired] for reply in two] == [
        [fired.edit_id for fired in reply.fired] for reply in one
    ]
    assert any(reply.fired for reply in one[:4]) and not all(reply.fired for reply in one)


def test_a_thread_that_looks_at_the_unedited_model_does_not_disturb_others(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]
) -> None:
    question, answer = eval_cases[0].edit.question, eval_cases[0].edit.answer
    with EditedModel.load(tiny_llava) as model:
        before = model.ask(question.image, question.prompt).text
        assert before != answer
        model.edit(question.image, question.prompt, answer)
        heard: list[str] = []
        with model.editor.paused():
            other = threading.Thread(target=lambda: heard.append(model.ask(question.image, question.prompt).text))
            other.start()
            other.join()
            here = model.ask(question.image, question.prompt).text
        assert (heard, here) == ([answer], before)
