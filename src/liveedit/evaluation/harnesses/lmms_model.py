"""An edited model as a model of lmms-eval, found by its entry point group `lmms_eval.models`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lmms_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from PIL import Image
from tqdm import tqdm

from ...answering import NEW_TOKENS
from ...answers import Answer, above_threshold
from ...edited.model import EditedModel
from ...errors import InvalidInputError
from ...samples import Question
from ..perplexity import AnswerLikelihood, answer_likelihoods, greedy_tokens
from .requests import RequestCounts

_MARKERS: Final = ("<image>",)
"""What tasks write into a prompt where an image belongs. The backbone places the image itself."""


class EditedLmms(lmms):
    """An edited model, as lmms-eval's `simple_evaluate` takes it. lmms-eval's tasks run on it unchanged.

    Questions go through `EditedModel`'s own way of asking, with the model's chat template and at most one image: edits
    are found as in every other call. Answers are greedy.

    backbone: the edited model, which this object does not close, or the arguments of `EditedModel.load`, as
    lmms-eval's own command gives them. batch_size: questions per forward pass.
    """

    is_simple = True

    def __init__(
        self, backbone: EditedModel | str, batch_size: int | str = 1, device: str | None = None, **loading: Any
    ):
        super().__init__()
        known = {name: value for name, value in loading.items() if name != "max_batch_size"}
        if isinstance(backbone, EditedModel):
            self.edited = backbone
        else:
            self.edited = EditedModel.load(backbone, device=device, **known)
        self.batch_size, self.counts = int(batch_size), RequestCounts()

    # -- what lmms-eval calls ------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Greedy answers, cut before the first of a request's stop strings."""
        found: dict[int, str] = {}
        asked = [request.args for request in requests]
        for limit, places in _grouped([_new_tokens(one[1]) for one in asked]):
            for part in _parts(places, self.batch_size):
                questions = [self._question(asked[place][0], *asked[place][2:]) for place in part]
                for place, answer in zip(part, self._asked(questions, limit), strict=True):
                    found[place] = _cut(answer.text, asked[place][1])
                    self.cache_hook.add_partial("generate_until", asked[place][:2], found[place])
        return [found[place] for place in range(len(asked))]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation the mean of -ln P over its tokens, and whether it is the greedy one.

        A mean, and the smaller the likelier: lmms-eval's tasks take the loss of a model, as its own models give it.
        """
        questions, answers = [], []
        for context, target, *rest in (request.args for request in requests):
            questions.append(self._question(context, *rest))
            answers.append(target if isinstance(target, str) else str(target(self._document(*rest[1:]))))
        found: list[tuple[float, bool]] = []
        for part in _parts(range(len(questions)), self.batch_size):
            found += self._scored([questions[place] for place in part], [answers[place] for place in part])
        return found

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Raises `InvalidInputError`: a question of several turns has no one question that an edit is found by."""
        raise InvalidInputError(
            "A task with several rounds was given. Edits are found by one question: choose a task with one round."
        )

    # -- asking ------------------------------------------------------------------------------------------

    def _asked(self, questions: Sequence[Question], limit: int) -> list[Answer]:
        with self.edited.asking():
            answers = self.edited.answering.ask(questions, limit)
        for answer in answers:
            self.counts.add("generate_until", 1, bool(above_threshold(answer.fired)), bool(answer.withheld))
        return answers

    def _scored(self, questions: Sequence[Question], answers: Sequence[str]) -> list[tuple[float, bool]]:
        backbone = self.edited.backbone
        with self.edited.asking():
            likelihoods = answer_likelihoods(backbone, questions, answers, len(questions))
            fired = self.edited.editor.fired() or [()] * len(questions)
            chosen = greedy_tokens(backbone, questions, answers, len(questions))
        for edits in fired:
            self.counts.add("loglikelihood", 1, bool(above_threshold(edits)))
        wanted = [tokens[:-1] or tokens for tokens in backbone.answer_tokens(questions, answers)]
        return [
            (_mean(likelihood), list(tokens) == expected)
            for likelihood, tokens, expected in zip(likelihoods, chosen, wanted, strict=True)
        ]

    def _question(self, context: str, doc_to_visual: Any, *document: Any) -> Question:
        """The question of a request: its text without markers of images, and its image."""
        visuals = list(doc_to_visual(self._document(*document)) or ())
        if len(visuals) > 1 or not all(isinstance(one, str | Path | Image.Image) for one in visuals):
            raise InvalidInputError(
                f"A question of task {document[1]!r} has {len(visuals)} images or other media; one image is allowed. "
                "Choose a task with one image for each question."
            )
        for marker in _MARKERS:
            context = context.replace(marker, "")
        return Question(context.strip(), visuals[0] if visuals else None)

    def _document(self, doc_id: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]


def _new_tokens(options: Mapping[str, Any]) -> int:
    """The length limit of an answer. Raises `InvalidInputError` for a task that samples."""
    if options.get("do_sample") or (options.get("temperature") or 0) > 0:
        raise InvalidInputError(
            "The task samples its answers (do_sample or a temperature). Here answers are greedy: give "
            "generation_kwargs with temperature 0."
        )
    return int(options.get("max_new_tokens") or NEW_TOKENS)


def _cut(text: str, options: Mapping[str, Any]) -> str:
    until = options.get("until") or []
    for stop in [until] if isinstance(until, str) else until:
        text = text.split(stop)[0] if stop else text
    return text


def _mean(likelihood: AnswerLikelihood) -> float:
    return likelihood.nats / likelihood.tokens


def _grouped(limits: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Places of requests by their length limit."""
    groups: dict[int, list[int]] = {}
    for place, limit in enumerate(limits):
        groups.setdefault(limit, []).append(place)
    return list(groups.items())


def _parts(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Places in groups of `size`, with a bar."""
    starts = range(0, len(places), size)
    for start in tqdm(starts, desc="requests", disable=len(starts) < 2):
        yield places[start : start + size]
