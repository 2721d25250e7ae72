"""Asking vLLM's engine: prompts, greedy answers, the edits that fired."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from liveedit.backbones import Backbone
from liveedit.images import open_image
from liveedit.samples import Question

EngineMaker = Callable[..., Any]


def prompts(backbone: Backbone, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Questions as vLLM takes them, in the words of the backbone."""
    found: list[dict[str, Any]] = []
    for question in questions:
        prompt: dict[str, Any] = {"prompt": backbone.prompt_text(question)}
        if question.image is not None:
            prompt["multi_modal_data"] = {"image": open_image(question.image)}
        found.append(prompt)
    return found


def generate(engine: Any, asked: Sequence[dict[str, Any]], *, tokens: int = 16, **further: Any) -> list[Any]:
    """Greedy answers of vLLM."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=tokens, repetition_penalty=1.0, **further)
    return engine.generate(list(asked), how, use_tqdm=False)


def texts(outputs: Sequence[Any]) -> list[str]:
    return [output.outputs[0].text.strip() for output in outputs]


def numbers(outputs: Sequence[Any]) -> list[list[tuple[int, float]]]:
    """Tokens of each answer with their log-probabilities."""
    return [
        [
            (token, found[token].logprob)
            for token, found in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
        ]
        for output in outputs
    ]


def fired(engine: Any, outputs: Sequence[Any]) -> list[list[str]]:
    """Ids of the edits that fired for each answer."""
    found = engine.collective_rpc("liveedit_fired", args=([output.request_id for output in outputs],))[0]
    return [[edit["id"] for edit in one["edits"]] for one in found]


@contextmanager
def shut_down(engine: Any) -> Iterator[Any]:
    try:
        yield engine
    finally:
        engine.llm_engine.engine_core.shutdown()
