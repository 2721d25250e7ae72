"""The worker side of the plugin without vLLM: steps, chunks, ids, changes of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.samples import EditCase
from liveedit.vllm.repositories import opened
from liveedit.vllm.settings import Settings
from liveedit.vllm.worker import EditingWorker


class Working(NamedTuple):
    """An edited model, and a worker on the same edits."""

    model: EditedModel
    worker: EditingWorker
    case: EditCase

    @property
    def layer(self) -> int:
        return self.worker.layers[-1]

    def prompt(self) -> tuple[list[int], Tensor]:
        """Token ids of the edit's question, and its hidden states at the edit layer."""
        inputs = self.model.backbone.encode([self.case.edit.question])
        with self.model.editor.paused(), torch.no_grad():
            return inputs.input_ids[0].tolist(), self.model.backbone.hidden_states(inputs, self.layer)[0]

    def run(self, request_id: str, states: Tensor, ids: list[int], done: int = 0, **params: Any) -> Tensor:
        """One step of one request: what the worker adds to its hidden states."""
        given = SimpleNamespace(extra_args=params or None)
        state = SimpleNamespace(sampling_params=given, prompt_token_ids=ids, num_computed_tokens=done)
        changed = states.clone()
        self.worker.begin([(request_id, len(states), state)])
        self.worker.after_layer(changed, None, self.layer)
        self.worker.end()
        return changed - states


@pytest.fixture
def working(tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path) -> Iterator[Working]:
    edits, case = tmp_path / "edits.db", eval_cases[0]
    with EditedModel.load(tiny_llava, edits=edits, editor="liveedit") as model:
        model.edit(case.edit.question.image, case.edit.question.prompt, case.edit.answer)
        settings = Settings.of({"liveedit": {"edits": str(edits)}})
        assert settings is not None
        repositories = opened(settings, "tiny-llava", torch.device("cpu"))
        yield Working(model, EditingWorker(settings, repositories, torch.device("cpu")), case)
        for repository in repositories.values():
            repository.store.close()


def test_a_request_is_routed_at_the_end_of_its_prompt_and_keeps_its_experts(working: Working) -> None:
    ids, states = working.prompt()
    whole = working.run("chatcmpl-1-ab12", states, ids)
    image = torch.tensor(ids) == working.model.backbone.image_token_id
    assert whole[image].abs().max() == 0, "the shipped editor changes the text after the image"
    assert whole[-1].abs().max() > 0
    (edit,) = working.model.edits()
    named = working.worker.fired("chatcmpl-1")
    assert named is not None and [one["id"] for one in named["edits"]] == [edit.id]
    working.model.undo(edit.id)
    working.worker.before_step({"default": working.model.revision}, [])
    assert working.run("chatcmpl-1-ab12", states[-1:], ids, done=len(ids)).abs().max() > 0
    assert working.run("chatcmpl-2-ab12", states, ids).abs().max() == 0
    working.worker.before_step({}, ["chatcmpl-1-ab12"])
    assert working.worker.fired("chatcmpl-1") == named, "ended requests can still be asked for"


def test_requests_that_end_in_one_step_get_what_each_would_get_alone(working: Working) -> None:
    """Three prompts of different lengths in one step; the one in the middle was never read from its beginning."""
    ids, states = working.prompt()
    wanted = working.run("alone-1", states, ids)
    padded, more = [*ids, ids[-1]], torch.cat([states, states[-1:]])
    wanted_more = working.run("alone-2", more, padded)
    given = SimpleNamespace(extra_args=None)
    states_of = [
        SimpleNamespace(sampling_params=given, prompt_token_ids=tokens, num_computed_tokens=done)
        for tokens, done in ((ids, 0), (ids, 5), (padded, 0))
    ]
    parts = (states, states[5:], more)
    whole = torch.cat(parts)
    changed = whole.clone()
    worker = working.worker
    worker.begin([(f"r{place}-1", len(part), states_of[place]) for place, part in enumerate(parts)])
    worker.after_layer(changed, None, working.layer)
    worker.end()
    first, middle, last = (changed - whole).split([len(part) for part in parts])
    torch.testing.assert_close(first, wanted)
    torch.testing.assert_close(last, wanted_more)
    assert first[-1].abs().max() > 0 and middle.abs().max() == 0
    first_fired, alone = worker.fired("r0"), worker.fired("alone-1")
    assert first_fired is not None and first_fired == alone
    assert worker.fired("r1") == {"edits": [], "revision": working.model.revision}


def test_a_preempted_request_gets_the_same_experts_again(working: Working) -> None:
    ids, states = working.prompt()
    first = working.run("a-1", states, ids)
    generated = working.run("a-1", states[-1:], ids, done=len(ids))
    working.model.undo(working.model.edits()[0].id)
    working.worker.before_step({"default": working.model.revision}, [])
    again = working.run("a-1", torch.cat([states, states[-1:]]), ids)
    torch.testing.assert_close(again[: len(ids)], first)
    torch.testing.assert_close(again[len(ids) :], generated)


def test_what_is_read_in_two_steps_is_read_as_one(working: Working) -> None:
    ids, states = working.prompt()
    working.run("a-1", states[:5], ids)
    working.run("a-1", states[:5], ids)  # Preempted: the beginning once more.
    working.run("a-1", states[5:], ids, done=5)
    named = working.worker.fired("a")
    assert named is not None and len(named["edits"]) == 1


def test_a_prompt_whose_beginning_was_never_computed_is_left_unedited(
    working: Working, caplog: pytest.LogCaptureFixture
) -> None:
    ids, states = working.prompt()
    assert working.run("a-1", states[5:], ids, done=5).abs().max() == 0
    assert "answered by the unedited model" in caplog.text


def test_a_request_for_the_unedited_model_is_not_followed(working: Working) -> None:
    ids, states = working.prompt()
    assert working.run("a-1", states, ids, liveedit="none").abs().max() == 0
    assert working.worker.fired("a") is None


@pytest.mark.parametrize("name", ["chatcmpl-1", "chatcmpl-1-ab12", "cmpl-1-0-ab12", "1_chatcmpl-1-ab12"])
def test_a_client_finds_its_answer_by_the_id_it_knows(working: Working, name: str) -> None:
    ids, states = working.prompt()
    working.run(name, states, ids)
    known = "cmpl-1" if name.startswith("cmpl") else "chatcmpl-1"
    assert working.worker.fired(known) is not None
    assert working.worker.fired("chatcmpl-11") is None
