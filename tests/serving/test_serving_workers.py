"""Threads that answer beside each other: fair shares, the same answers, and edits that all of them meet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.images import open_image
from liveedit.samples import EditCase
from liveedit.serving.decoding import SamplingParams
from liveedit.serving.engine import Engine, fair_share
from liveedit.serving.served_model import GenerationRequest, GenerationResult, ServedModel, default_workers
from liveedit.serving.settings import ServingSettings


@pytest.mark.parametrize(
    ("waiting", "in_progress", "workers", "batch", "taken"),
    [
        (5, 0, 1, 64, 5),  # One worker takes what there is, up to the batch.
        (90, 0, 1, 64, 64),
        (1, 0, 2, 64, 1),  # Nobody else is at work: even one question is worth it.
        (64, 0, 2, 64, 32),  # Half of all, for the other worker.
        (12, 0, 2, 64, 8),  # But no fewer than a worker is worth.
        (7, 20, 2, 64, 0),  # So few had better wait for the others.
        (8, 20, 2, 64, 8),
        (40, 20, 2, 64, 30),  # Half of all, those included that are being answered.
        (40, 60, 2, 64, 4),  # No more at once than a batch.
        (40, 64, 2, 64, 0),
    ],
)
def test_a_worker_takes_its_share(waiting: int, in_progress: int, workers: int, batch: int, taken: int) -> None:
    assert fair_share(waiting, in_progress, workers, batch) == taken


@pytest.mark.parametrize(
    ("device", "parameters", "threads", "workers"),
    [("cuda", 4_000_000, 16, 1), ("cpu", 7_000_000_000, 16, 1), ("cpu", 4_000_000, 16, 8), ("cpu", 4_000_000, 2, 2)],
)
def test_small_models_on_processors_get_a_worker_for_each_thread(
    device: str, parameters: int, threads: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert default_workers(torch.device(device), parameters) == workers


def test_each_worker_has_its_share_of_the_threads(tiny_llava: Backbone) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with EditedModel.load(tiny_llava) as model, ThreadPoolExecutor(1) as worker:
            for workers, threads in ((1, 2), (2, 1), (3, 1)):
                served = ServedModel(model, ServingSettings(workers=workers))
                worker.submit(served.start_worker).result()
                assert worker.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)


def asked(model: EditedModel, workers: int, cases: Sequence[EditCase]) -> list[GenerationResult]:
    """The answers of an engine to questions that came at once."""
    settings = ServingSettings(workers=workers)
    engine = Engine(ServedModel(model, settings), settings)

    async def ask_all() -> list[GenerationResult]:
        queries = [GenerationRequest(case.edit.question.prompt, _image(case), SamplingParams(12)) for case in cases]
        return await asyncio.gather(*(engine.ask(query) for query in queries))

    try:
        return asyncio.run(ask_all())
    finally:
        engine.close()


def _image(case: EditCase) -> Image.Image:
    assert case.edit.question.image is not None
    return open_image(case.edit.question.image)


@pytest.mark.parametrize("workers", [2, 4])
def test_answers_and_fired_edits_are_those_of_one_worker(
    workers: int, tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]
) -> None:
    cases = eval_cases[:40]
    with EditedModel.load(tiny_llava) as model:
        for case in cases[:4]:
            edit = case.edit
            model.edit(edit.question.image, edit.question.prompt, edit.answer)
        one, several = asked(model, 1, cases), asked(model, workers, cases)
    assert [reply.text for reply in several] == [reply.text for reply in one] and len(one) == len(cases)
    assert [[fired.edit_id for fired in reply.fired] for reply in several] == [
        [fired.edit_id for fired in reply.fired] for reply in one
    ]
    assert any(reply.fired for reply in one[:4]) and not all(reply.fired for reply in one)


def test_threads_that_tokenize_at_once_get_their_own(tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]) -> None:
    questions = [case.edit.question for case in eval_cases[:6]]
    padded = tiny_llava.encode(questions, padding="left").input_ids
    alone = [tiny_llava.tokenize([question.prompt]) for question in questions]
    texts = [tiny_llava.decode(ids) for (ids,) in alone]

    def work(number: int) -> bool:
        if number % 2:
            return torch.equal(tiny_llava.encode(questions, padding="left").input_ids, padded)
        found = [tiny_llava.tokenize([question.prompt]) for question in questions]
        return found == alone and [tiny_llava.decode(ids) for (ids,) in found] == texts

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(80)))


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
