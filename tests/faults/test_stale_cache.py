"""KV caches and edits: what a cache holds of a prompt is not used with other edits than those it was filled with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from serving_fakes import data_uri
from transformers import DynamicCache

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.base import Editor
from liveedit.editors.lemoe import Lemoe, LemoeConfig
from liveedit.editors.reference import forced_expert, small_editor
from liveedit.errors import InvalidInputError
from liveedit.images import open_image
from liveedit.samples import Edit, EditCase, Question
from liveedit.serving.app import create_app
from liveedit.serving.engine import Engine
from liveedit.serving.served_model import ServedModel
from liveedit.serving.settings import ServingSettings

QUESTIONS = (Question("What is this called?"), Question("How many of those are there over here?"))
TOKENS = 5
STALE = "KV cache .* filled while other edits were active"


@dataclass(frozen=True)
class Edited:
    """An editor, and how each question is edited."""

    editor: Editor
    edit: Callable[[int], None]

    @property
    def backbone(self) -> Backbone:
        return self.editor.backbone

    def ids(self, place: int) -> torch.Tensor:
        return self.backbone.encode([QUESTIONS[place]]).input_ids

    def call(self, ids: torch.Tensor, cache: DynamicCache | None = None) -> Any:
        with torch.no_grad():
            return self.backbone.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def answer(self, place: int, cache: DynamicCache | None = None) -> list[int]:
        """The model's own generate(), with a cache of the caller; a filled one has the prompt, and then the answer is
        what follows its first token."""
        ids, model = self.ids(place), self.backbone.model
        if cache is not None and cache.get_seq_length():
            ids = torch.cat([ids, torch.tensor([[self.first_token(place)]])], 1)
        with torch.no_grad():
            output = model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=TOKENS,
                min_new_tokens=TOKENS,
                do_sample=False,
            )
        return output[0, self.ids(place).shape[1] :].tolist()[:TOKENS]

    def first_token(self, place: int) -> int:
        return int(self.call(self.ids(place)).logits[0, -1].argmax())

    def filled(self, place: int) -> DynamicCache:
        """A cache with a prompt."""
        cache = DynamicCache()
        self.call(self.ids(place), cache)
        return cache


@pytest.fixture(params=["routed", "lemoe"])
def edited(request: pytest.FixtureRequest, language_model: Backbone) -> Iterator[Edited]:
    """The editors whose hooks decide at prefill which experts answer."""
    if request.param == "routed":
        with small_editor(language_model, scope="text+image") as routed:
            experts = [forced_expert(routed, question, seed=place) for place, question in enumerate(QUESTIONS)]
            yield Edited(routed, lambda place: routed.add(f"edit {place}", experts[place]))
        return
    small: dict[str, Any] = {"hidden": 32, "rate": 1e-2, "steps": 20, "batch_edits": 1, "calibrated": False}
    with Lemoe(language_model, LemoeConfig.model_validate(small)) as lemoe:
        answers = ("a red one", "forty")
        yield Edited(
            lemoe, lambda place: lemoe.edit([(f"edit {place}", Edit(QUESTIONS[place], answers[place]))]) and None
        )


def test_an_empty_cache_of_the_caller_answers_as_a_fresh_model(edited: Edited) -> None:
    before = edited.answer(0)
    edited.edit(0)
    after = edited.answer(0)
    assert after != before
    assert edited.answer(0, DynamicCache()) == after
    edited.editor.undo("edit 0")
    assert edited.answer(0, DynamicCache()) == before == edited.answer(0)


def test_a_cache_that_was_filled_before_an_edit_is_refused(edited: Edited) -> None:
    cache = edited.filled(0)
    assert edited.answer(0, copy.deepcopy(cache)) == edited.answer(0), "without an edit it is of use"
    edited.edit(0)
    for stale in (cache, copy.deepcopy(cache)):
        with pytest.raises(InvalidInputError, match=STALE):
            edited.answer(0, stale)


@pytest.mark.parametrize("end", ["undo", "reset", "another edit"])
def test_a_cache_that_was_filled_with_an_edit_is_refused_without_it(edited: Edited, end: str) -> None:
    edited.edit(0)
    cache = edited.filled(0)
    assert edited.answer(0, copy.deepcopy(cache)) == edited.answer(0), "while the edit is active it is of use"
    ends = {
        "undo": lambda: edited.editor.undo("edit 0"),
        "reset": edited.editor.reset,
        "another edit": lambda: edited.edit(1),
    }
    ends[end]()
    for stale in (cache, copy.deepcopy(cache)):
        with pytest.raises(InvalidInputError, match=STALE):
            edited.answer(0, stale)


def test_a_cache_of_the_unedited_model_is_not_answered_with_an_earlier_edit(edited: Edited) -> None:
    """The last prompt was read with an edit that is undone."""
    cache, plain = edited.filled(0), edited.answer(0)
    edited.edit(0)
    assert edited.answer(0) != plain
    edited.editor.undo("edit 0")
    assert edited.answer(0, cache) == plain


def test_a_cache_that_the_model_made_is_known_as_well(edited: Edited) -> None:
    edited.edit(0)
    made = edited.call(edited.ids(0)).past_key_values
    assert edited.answer(0, copy.deepcopy(made)) == edited.answer(0)
    edited.editor.undo("edit 0")
    with pytest.raises(InvalidInputError, match=STALE):
        edited.answer(0, made)


def test_paused_and_edited_do_not_share_a_cache(edited: Edited) -> None:
    plain = edited.answer(0)
    edited.edit(0)
    with edited.editor._hook.paused():  # type: ignore[attr-defined]
        cache = edited.filled(0)
        assert edited.answer(0, copy.deepcopy(cache)) == plain
    with pytest.raises(InvalidInputError, match=STALE):
        edited.answer(0, cache)


def decoded(edited: Edited, outputs: dict[int, Any], places: list[int]) -> dict[int, list[int]]:
    """Greedy tokens after each prompt: one for each time that its place is in `places`."""
    found: dict[int, list[int]] = {place: [] for place in outputs}
    for place in places:
        token = int(outputs[place].logits[0, -1].argmax())
        found[place].append(token)
        outputs[place] = edited.call(torch.tensor([[token]]), outputs[place].past_key_values)
    return found


def test_conversations_in_turns_have_each_its_own_edits(edited: Edited) -> None:
    edited.edit(0)
    edited.edit(1)
    alone = {place: decoded(edited, {place: edited.call(edited.ids(place))}, [place] * TOKENS) for place in (0, 1)}
    first, second = (edited.call(edited.ids(place)) for place in (0, 1))
    assert decoded(edited, {0: first, 1: second}, [0, 1] * TOKENS) == {0: alone[0][0], 1: alone[1][1]}


def test_another_thread_may_go_on_with_a_cache(edited: Edited) -> None:
    edited.edit(0)
    wanted, cache = edited.answer(0), edited.filled(0)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(edited.answer, 0, cache).result() == wanted


def test_a_second_turn_onto_the_cache_of_the_first_is_refused(edited: Edited) -> None:
    """Its question would be answered with the edits of the first question."""
    cache = DynamicCache()
    edited.call(edited.ids(1), cache)
    edited.call(edited.ids(0), copy.deepcopy(cache))
    edited.edit(0)
    cache = DynamicCache()
    edited.call(edited.ids(1), cache)
    with pytest.raises(InvalidInputError, match="came in pieces"):
        edited.call(edited.ids(0), cache)


def test_candidates_of_assisted_generation_follow_the_cache(edited: Edited) -> None:
    """Several tokens at once follow a filled cache, and are no piece of a prompt."""
    for place in range(len(QUESTIONS)):
        edited.edit(place)
        ids, model = edited.ids(place), edited.backbone.model
        options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
        with torch.no_grad():
            plain = model.generate(input_ids=ids, **options)
            assisted = model.generate(input_ids=ids, prompt_lookup_num_tokens=3, max_matching_ngram_size=1, **options)
        assert torch.equal(plain, assisted)


def test_two_turns_over_the_service_are_those_of_a_fresh_model(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    image = open_image(eval_cases[0].edit.question.image or "")
    prompt, answer = "What is this creature called?", "Bruvak"
    parts = [{"type": "image_url", "image_url": {"url": data_uri(image)}}, {"type": "text", "text": prompt}]
    with EditedModel.load(tiny_llava) as fresh:
        unedited = fresh.ask(image, prompt).text
    settings = ServingSettings.model_validate({})
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db") as model:
        served = ServedModel(model, settings)
        app = create_app(Engine(served, settings), "mine", served, None)
        with TestClient(app, base_url="http://127.0.0.1") as client:

            def asked() -> str:
                body = {"model": "mine", "messages": [{"role": "user", "content": parts}], "prompt_cache_key": "one"}
                return client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]

            assert asked() == unedited
            edit = {"image": data_uri(image), "prompt": prompt, "answer": answer}
            made = client.post("/v1/edits", json=edit).json()["id"]
            assert asked() == answer != unedited
            client.post(f"/v1/edits/{made}/undo")
            assert asked() == unedited
            client.post(f"/v1/edits/{made}/redo")
            assert asked() == answer
    with EditedModel.load(tiny_llava, edits=tmp_path / "edits.db") as reloaded:
        assert reloaded.ask(image, prompt).text == answer
