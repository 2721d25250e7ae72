"""vLLM with the plugin answers as an edited model does, and is vLLM alone where no expert fires."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from vllm_engines import EngineMaker, fired, generate, numbers, prompts, shut_down, texts

from liveedit.backbones import Backbone, load_backbone
from liveedit.edited.model import EditedModel
from liveedit.samples import EditCase, Question

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

UNEDITED = {"extra_args": {"liveedit": "none"}}
WITH_LOGITS = {"logprobs": 0}


class Both(NamedTuple):
    """The same edits in an edited model and in vLLM."""

    model: EditedModel
    engine: Any
    questions: list[Question]

    def ask(self, questions: list[Question]) -> tuple[list[str], list[list[str]]]:
        """Answers of the edited model, and the edits that fired."""
        found = [self.model.ask_batch([(question.image, question.prompt)])[0] for question in questions]
        return [answer.text for answer in found], [[one.edit_id for one in answer.fired] for answer in found]


@pytest.fixture(scope="module")
def both(new_engine: EngineMaker, many_cases: tuple[EditCase, ...], tmp_path_factory: Any) -> Iterator[Both]:
    """Thirty edits, made by the editor that ships with tiny-llava."""
    edits = tmp_path_factory.mktemp("edits") / "edits.db"
    with EditedModel.load("tiny-llava", edits=edits, editor="liveedit") as model:
        for case in many_cases:
            model.edit(case.edit.question.image, case.edit.question.prompt, case.edit.answer, must_take=False)
        questions = [case.edit.question for case in many_cases]
        questions += [probe.question for case in many_cases for probe in case.probes]
        with shut_down(new_engine("tiny-llava", {"edits": str(edits)})) as engine:
            yield Both(model, engine, questions)


def test_answers_are_those_of_the_edited_model(both: Both) -> None:
    assert len(both.questions) >= 200
    wanted, wanted_edits = both.ask(both.questions)
    outputs = generate(both.engine, prompts(both.model.backbone, both.questions))
    assert texts(outputs) == wanted
    assert fired(both.engine, outputs) == wanted_edits
    assert sum(bool(edits) for edits in wanted_edits) > 60


def test_unedited_requests_are_those_of_the_unedited_model(both: Both) -> None:
    asked = prompts(both.model.backbone, both.questions)
    with both.model.editor.paused():
        wanted, _ = both.ask(both.questions)
    assert texts(generate(both.engine, asked, **UNEDITED)) == wanted


def test_unedited_requests_are_bit_for_bit_those_of_vllm_alone(both: Both, new_engine: EngineMaker) -> None:
    asked = prompts(both.model.backbone, both.questions[:60])
    unedited = numbers(generate(both.engine, asked, **UNEDITED, **WITH_LOGITS))
    through_edits = generate(both.engine, asked, **WITH_LOGITS)
    untouched = [place for place, edits in enumerate(fired(both.engine, through_edits)) if not edits]
    with shut_down(new_engine("tiny-llava")) as alone:
        wanted = numbers(generate(alone, asked, **WITH_LOGITS))
    assert unedited == wanted
    assert untouched
    assert [numbers(through_edits)[place] for place in untouched] == [wanted[place] for place in untouched]


def test_an_undone_edit_is_gone_from_the_next_request_on(both: Both) -> None:
    edit = both.model.edits()[0]
    question = both.questions[0]
    asked = prompts(both.model.backbone, [question])
    edited = numbers(generate(both.engine, asked, **WITH_LOGITS))
    unedited = numbers(generate(both.engine, asked, **UNEDITED, **WITH_LOGITS))
    assert edited != unedited
    both.model.undo(edit.id)
    undone = generate(both.engine, asked, **WITH_LOGITS)
    wanted, wanted_edits = both.ask([question])
    assert (texts(undone), fired(both.engine, undone)) == (wanted, wanted_edits)
    assert wanted_edits != [[edit.id]]
    if not wanted_edits[0]:
        assert numbers(undone) == unedited
    both.model.redo(edit.id)
    assert numbers(generate(both.engine, asked, **WITH_LOGITS)) == edited


def test_an_unknown_repository_is_refused(both: Both) -> None:
    with pytest.raises(ValueError, match=r"'elsewhere'.*There are default"):
        generate(both.engine, prompts(both.model.backbone, both.questions[:1]), extra_args={"liveedit": "elsewhere"})


def test_chunked_prefill_is_refused_where_prompt_tokens_change(
    new_engine: EngineMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # So that the error is raised here.
    with pytest.raises(Exception, match="--no-enable-chunked-prefill"):
        new_engine("tiny-llava", {"edits": str(tmp_path / "edits.db")}, enable_chunked_prefill=True)


# -- long prompts: prefix caching, chunks, preemption -----------------------------------------------------------

BLOCK = 32
PADDING = "Here are some words that say nothing and are only there to make the prompt long. " * 3


class LongPrompts(NamedTuple):
    """Questions about facts, after many words without meaning."""

    backbone: Backbone
    model: EditedModel
    edits: Path
    cases: list[Question]

    def model_texts(self, count: int = 1) -> list[str]:
        """Answers of the edited model to the first questions."""
        return [self.model.ask(None, question.prompt).text for question in self.cases[:count]]


@pytest.fixture(scope="module")
def long_prompts(tmp_path_factory: Any) -> Iterator[LongPrompts]:
    """Edits of a language model by fitted experts, which change the end of a prompt and the answer alone."""
    folder = tmp_path_factory.mktemp("long")
    backbone = load_backbone("tiny-llama-lm", device="cpu")
    questions = [Question(f"{PADDING}{asked}") for asked in ("What is the capital of Laquilland?", "Who is it?")]
    with EditedModel.load(backbone, edits=folder / "edits.db", editor="fitted-experts") as model:
        model.editor.calibration.save(folder / "calibration", backbone, model.editor.config)
        model.edit(None, questions[0].prompt, "Bruvak", must_take=False)
        yield LongPrompts(backbone, model, folder / "edits.db", questions)


def settings_of(long: LongPrompts) -> dict[str, Any]:
    return {"edits": str(long.edits), "editor_path": str(long.edits.parent / "calibration")}


def test_no_cached_prefix_outlives_a_change(new_engine: EngineMaker, long_prompts: LongPrompts) -> None:
    long = long_prompts
    asked = prompts(long.backbone, long.cases[:1])
    with shut_down(new_engine("tiny-llama-lm", settings_of(long), block_size=BLOCK)) as engine:
        unedited = generate(engine, asked, **UNEDITED, **WITH_LOGITS)
        again = generate(engine, asked, **UNEDITED, **WITH_LOGITS)
        assert again[0].num_cached_tokens >= BLOCK, "the prefix of unedited requests is cached"
        edited = generate(engine, asked, **WITH_LOGITS)
        assert len(fired(engine, edited)[0]) == 1
        assert texts(edited) == long.model_texts()
        edit = long.model.edits()[0]
        long.model.undo(edit.id)
        undone = generate(engine, asked, **WITH_LOGITS)
        assert numbers(undone) == numbers(unedited) and fired(engine, undone) == [[]]
        long.model.redo(edit.id)
        redone = generate(engine, asked, **WITH_LOGITS)
        assert numbers(redone) == numbers(edited)
        assert numbers(generate(engine, asked, **UNEDITED, **WITH_LOGITS)) == numbers(again)


def test_prompts_in_chunks_are_right(new_engine: EngineMaker, long_prompts: LongPrompts) -> None:
    long = long_prompts
    chunks = {"enable_chunked_prefill": True, "max_num_batched_tokens": 24, "max_num_seqs": 4}
    with shut_down(new_engine("tiny-llama-lm", settings_of(long), **chunks)) as engine:
        outputs = generate(engine, prompts(long.backbone, long.cases))
        assert texts(outputs) == long.model_texts(2)
        assert [len(edits) for edits in fired(engine, outputs)] == [1, 0]


def test_preempted_requests_are_right(new_engine: EngineMaker, long_prompts: LongPrompts) -> None:
    long = long_prompts
    blocks = -(-len(long.backbone.tokenize([long.cases[0].prompt])[0]) // BLOCK)
    few = {"block_size": BLOCK, "num_gpu_blocks_override": 2 * blocks + 4, "max_num_seqs": 8}
    with shut_down(new_engine("tiny-llama-lm", settings_of(long), **few)) as engine:
        outputs = generate(engine, prompts(long.backbone, long.cases * 4), tokens=64, ignore_eos=True)
        alone = generate(engine, prompts(long.backbone, long.cases), tokens=64, ignore_eos=True)
        assert texts(outputs) == texts(alone) * 4
        assert [len(edits) for edits in fired(engine, outputs)] == [1, 0] * 4


def test_two_ranks_come_to_the_same_decisions(both: Both, new_engine: EngineMaker, monkeypatch: Any) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|0")
    questions = both.questions[:60]
    settings = {"edits": str(both.model.store.location)}
    with shut_down(new_engine("tiny-llava", settings, tensor_parallel_size=2)) as engine:
        outputs = generate(engine, prompts(both.model.backbone, questions))
        wanted, wanted_edits = both.ask(questions)
        assert (texts(outputs), fired(engine, outputs)) == (wanted, wanted_edits)
        first, second = engine.collective_rpc("liveedit_fired", args=([output.request_id for output in outputs],))
        assert first == second and None not in first
