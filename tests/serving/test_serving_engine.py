"""The engine: batching, order, limits, and that no answer ever sees half an edit."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import pytest
from PIL import Image
from serving_fakes import FakeModel

from liveedit.errors import InvalidInputError, QueueFullError, ServiceStoppingError, StoreError, WaitedTooLongError
from liveedit.serving.decoding import SamplingParams
from liveedit.serving.engine import Engine
from liveedit.serving.served_model import GenerationRequest, GenerationResult
from liveedit.serving.settings import ServingSettings


@contextmanager
def engine_of(model: FakeModel, workers: int = 1, **limits: Any) -> Iterator[Engine[FakeModel]]:
    model.workers = workers
    engine = Engine(model, ServingSettings.model_validate(limits))
    try:
        yield engine
    finally:
        model.gate.set()
        engine.close()


def query(prompt: str, side: int = 0, **further: Any) -> GenerationRequest:
    return GenerationRequest(prompt, Image.new("RGB", (side, side)) if side else None, SamplingParams(8), **further)


async def while_held(
    model: FakeModel, engine: Engine[FakeModel], queue: Callable[[], list[Coroutine[Any, Any, Any]]]
) -> list[Any]:
    """Results, or errors, of what is queued while the model is busy with a first question."""
    model.gate.clear()
    model.entered.clear()
    first = asyncio.ensure_future(engine.ask(query("first")))
    await asyncio.to_thread(model.entered.wait, 10)
    waiting = [asyncio.ensure_future(work) for work in queue()]
    await asyncio.sleep(0.05)
    model.gate.set()
    await first
    return await asyncio.gather(*waiting, return_exceptions=True)


def test_questions_that_wait_together_are_answered_together() -> None:
    model = FakeModel()
    with engine_of(model, batch=8) as engine:
        replies = asyncio.run(while_held(model, engine, lambda: [engine.ask(query(f"q{n}")) for n in range(11)]))
    assert [reply.text for reply in replies] == [f"q{n}: /" for n in range(11)]
    assert model.calls == [1, 8, 3]


def test_an_action_runs_between_batches_and_is_not_starved() -> None:
    model = FakeModel()

    def queue(engine: Engine[FakeModel]) -> list[Coroutine[Any, Any, Any]]:
        asked = [engine.ask(query(f"q{n}")) for n in range(6)]
        return [*asked[:1], engine.act(lambda model: model.change("new")), *asked[1:]]

    with engine_of(model, batch=4) as engine:
        asyncio.run(while_held(model, engine, lambda: queue(engine)))
    assert model.calls == [1, 4, "new", 2]


@pytest.mark.parametrize("workers", [1, 3])
def test_no_answer_sees_half_an_edit(workers: int) -> None:
    model = FakeModel(pause_s=0.0005)

    async def clients(engine: Engine[FakeModel]) -> list[str]:
        seen: list[str] = []

        async def ask(number: int) -> None:
            for turn in range(10):
                seen.append((await engine.ask(query(f"{number}.{turn}"))).text)

        async def edit(number: int) -> None:
            for turn in range(10):
                value = f"{number}-{turn}"
                await engine.act(lambda model, value=value: model.change(value))

        await asyncio.gather(*(ask(number) for number in range(16)), *(edit(number) for number in range(4)))
        return seen

    found: list[str] = []
    with engine_of(model, workers) as engine:
        threads = [threading.Thread(target=lambda: found.extend(asyncio.run(clients(engine)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(found) == 3 * 16 * 10
    halves = [text.split(": ")[1].split("/") for text in found]
    assert all(left == right for left, right in halves)
    assert len({left for left, _ in halves}) > 1


@pytest.mark.parametrize("workers", [1, 3])
def test_who_was_told_of_an_edit_sees_it(workers: int) -> None:
    model = FakeModel()

    async def edit_then_ask(engine: Engine[FakeModel], number: int) -> bool:
        await engine.act(lambda model: model.calls.append(f"edit {number}"))
        before = len([call for call in model.calls if isinstance(call, int)])
        await engine.ask(query("after"))
        after = [place for place, call in enumerate(model.calls) if isinstance(call, int)][before:]
        return model.calls.index(f"edit {number}") < after[0]

    async def many(engine: Engine[FakeModel]) -> list[bool]:
        return await asyncio.gather(*(edit_then_ask(engine, number) for number in range(20)))

    with engine_of(model, workers) as engine:
        assert all(asyncio.run(many(engine)))


def test_workers_answer_beside_each_other_and_an_action_waits_for_all_of_them() -> None:
    model = FakeModel()
    inside: list[int] = []
    most = 0

    def answer(
        model: FakeModel, queries: Sequence[GenerationRequest], deadline: float
    ) -> list[GenerationResult | Exception]:
        nonlocal most
        inside.append(len(queries))
        most = max(most, len(inside))
        replies = FakeModel.answer(model, queries, deadline)  # Where the gate holds it.
        time.sleep(0.02)
        inside.remove(len(queries))
        return replies

    model.answer = MethodType(answer, model)  # type: ignore[method-assign]

    def queue(engine: Engine[FakeModel]) -> list[Coroutine[Any, Any, Any]]:
        return [*(engine.ask(query(f"q{n}")) for n in range(8)), engine.act(lambda model: list(inside))]

    with engine_of(model, workers=2) as engine:
        *replies, seen_by_action = asyncio.run(while_held(model, engine, lambda: queue(engine)))
    assert [reply.text for reply in replies] == [f"q{n}: /" for n in range(8)]
    assert most == 2 and seen_by_action == []
    assert len(set(model.workers_entered)) == 2


def test_few_questions_wait_for_the_worker_that_is_at_work() -> None:
    model = FakeModel()
    with engine_of(model, workers=2) as engine:
        few = asyncio.run(while_held(model, engine, lambda: [engine.ask(query(f"q{n}")) for n in range(5)]))
        many = asyncio.run(while_held(model, engine, lambda: [engine.ask(query(f"q{n}")) for n in range(9)]))
    assert len(few) == 5 and len(many) == 9
    assert model.calls[:2] == [1, 5] and sorted(model.calls[2:], key=str) == [1, 1, 8]


def test_what_others_changed_is_taken_in_before_the_next_answer() -> None:
    model = FakeModel()
    model.news = 2
    with engine_of(model, workers=2) as engine:
        assert asyncio.run(engine.ask(query("q"))).text == "q: news 0/news 0"
    assert model.calls == ["news 1", "news 0", 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_questions_fail_where_what_others_changed_cannot_be_taken_in(workers: int) -> None:
    model = FakeModel()
    model.news, model.refresh_problem = 1, StoreError("An expert is damaged.")

    async def ask(engine: Engine[FakeModel]) -> list[Any]:
        asked = (engine.ask(query(f"q{n}")) for n in range(20))
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)

    with engine_of(model, workers) as engine:
        assert [str(error) for error in asyncio.run(ask(engine))] == ["An expert is damaged."] * 20
        model.refresh_problem = None
        assert [reply.text for reply in asyncio.run(ask(engine))] == [f"q{n}: news 0/news 0" for n in range(20)]


def test_questions_fail_while_the_store_is_away_and_are_answered_again_afterwards() -> None:
    model = FakeModel()
    with engine_of(model) as engine:
        model.store_problem = StoreError("The store is away.")
        with pytest.raises(StoreError, match="is away"):
            asyncio.run(engine.ask(query("q")))
        model.store_problem = None
        assert asyncio.run(engine.ask(query("q"))).text == "q: /"
    assert model.calls == [1]


def test_a_full_queue_refuses_and_finishes_what_it_took() -> None:
    model = FakeModel()
    with engine_of(model, queue=3) as engine:
        found = asyncio.run(while_held(model, engine, lambda: [engine.ask(query(f"q{n}")) for n in range(5)]))
    assert [type(result) for result in found[3:]] == [QueueFullError, QueueFullError]
    assert [result.text for result in found[:3]] == ["q0: /", "q1: /", "q2: /"]


def test_waiting_images_are_bounded_together() -> None:
    model = FakeModel()
    with engine_of(model, queue_pixels=250) as engine:
        asked = lambda: [engine.ask(query("p", side)) for side in (20, 1, 10)]  # noqa: E731
        found = asyncio.run(while_held(model, engine, asked))
        alone = asyncio.run(engine.ask(query("one may always wait", 20)))
    assert isinstance(found[1], QueueFullError) and isinstance(found[2], QueueFullError)
    assert found[0].text == "p: /" and alone.text == "one may always wait: /"


def test_what_waits_too_long_is_dropped_and_never_done() -> None:
    model = FakeModel()

    async def held(engine: Engine[FakeModel]) -> None:
        model.gate.clear()
        model.entered.clear()
        first = asyncio.ensure_future(engine.ask(query("first")))
        await asyncio.to_thread(model.entered.wait, 10)
        with pytest.raises(WaitedTooLongError, match=r"0\.1 s"):
            await engine.act(lambda model: model.change("late"))
        model.gate.set()
        assert (await first).text == "first: /"

    with engine_of(model, queue_seconds=0.1) as engine:
        asyncio.run(held(engine))
    assert model.calls == [1]


def test_a_question_whose_asker_left_is_dropped() -> None:
    model = FakeModel()

    async def leave(engine: Engine[FakeModel]) -> None:
        asked = asyncio.ensure_future(engine.ask(query("gone")))
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.sleep(0)

    with engine_of(model) as engine:
        asyncio.run(while_held(model, engine, lambda: [leave(engine), engine.ask(query("stays"))]))
    assert model.calls == [1, 1]


def test_a_bad_question_does_not_spoil_its_neighbours() -> None:
    model = FakeModel()
    prompts = ["a", "bad", "unfit", "b"]
    with engine_of(model) as engine:
        found = asyncio.run(while_held(model, engine, lambda: [engine.ask(query(prompt)) for prompt in prompts]))
    assert [found[0].text, found[3].text] == ["a: /", "b: /"]
    assert [str(error) for error in found[1:3]] == ["A bad question.", "Unfit."]
    assert all(isinstance(error, InvalidInputError) for error in found[1:3])


def test_what_fails_reaches_its_asker_and_the_engine_goes_on() -> None:
    model = FakeModel()

    def fail(model: FakeModel) -> None:
        raise KeyError("gone")

    with engine_of(model) as engine:
        with pytest.raises(RuntimeError, match="secret details"):
            asyncio.run(engine.ask(query("broken")))
        with pytest.raises(KeyError):
            asyncio.run(engine.act(fail))
        assert asyncio.run(engine.ask(query("next"))).text == "next: /"


def test_a_listener_never_hears_a_part_twice() -> None:
    model = FakeModel()
    heard: list[str] = []
    with engine_of(model) as engine:
        asked = lambda: [engine.ask(query("broken")), engine.ask(query("s", on_text=heard.append))]  # noqa: E731
        found = asyncio.run(while_held(model, engine, asked))
    assert isinstance(found[1], RuntimeError) and heard == []


def test_closing_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    model = FakeModel()
    engine = Engine(model, ServingSettings.model_validate({}))

    async def stop() -> list[Any]:
        def queue() -> list[Coroutine[Any, Any, Any]]:
            return [engine.ask(query("accepted")), engine.act(lambda model: model.change("done")), late()]

        async def late() -> Any:
            await asyncio.sleep(0.02)
            engine.stop_accepting()
            return await engine.ask(query("late"))

        found = await while_held(model, engine, queue)
        await asyncio.to_thread(engine.close)
        return found

    found = asyncio.run(stop())
    assert found[0].text == "accepted: /"
    assert model.calls == [1, 1, "done"]
    assert isinstance(found[2], ServiceStoppingError)
    assert not engine.is_ready and not engine.is_alive
    engine.close()
