"""An edited model as a model of lm-eval (EleutherAI's language model evaluation harness)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Self

import torch
from lm_eval import utils  # pyright: ignore[reportMissingImports]
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
from torch import Tensor
from tqdm import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList

from ...answering import Answering, Generated
from ...answers import above_threshold
from ...backbones import Backbone, TokenBatch
from ...edited.model import EditedModel
from ...errors import InvalidInputError
from ...samples import Question
from .requests import RequestCounts

NAME: Final = "liveedit"
"""The name of the model in lm-eval's registry."""

Tokens = list[int]
Scored = tuple[float, bool]
"""The log probability of a continuation in nats, and whether it is the greedy one."""
TokenRequest = tuple[Any, Tokens, Tokens]
"""What lm-eval caches the result under, the context, and the continuation that is scored."""


@register_model(NAME)
class EditedLM(HFLM):
    """An edited model, as `simple_evaluate` takes it. lm-eval's tasks run on it unchanged.

    Contexts are read as lm-eval's own `hf` model reads them: as plain text, or in the chat format if lm-eval applies
    the chat template. Edits are found by the context of a request and never by its continuation, which is scored
    teacher-forced while they are active. A whole text (`loglikelihood_rolling`) has no context but the token that
    starts it, so that no edit is found. Generated answers in doubt are given by the unedited model, as everywhere
    (`Answering.settled`). Without an edit, results are those of `hf` up to rounding.

    model: the edited model; this object does not close it. batch: texts per forward pass.
    """

    def __init__(self, model: EditedModel, batch: int = 1, **options: Any):
        """options: further arguments of lm-eval's `HFLM`."""
        backbone = model.backbone
        super().__init__(
            pretrained=backbone.model, tokenizer=backbone.tokenizer, backend="causal", batch_size=batch, **options
        )
        self.edited, self.counts = model, RequestCounts()

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """The model of lm-eval's own command: `arg_dict` has the arguments of `EditedModel.load`."""
        further = {name: value for name, value in (additional_config or {}).items() if value is not None}
        options = {"batch": int(further.get("batch_size", 1))}
        return cls(EditedModel.load(**{**arg_dict, "device": further.get("device")}), **options)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Self:
        """As `create_from_arg_obj`, of backbone=...,edits=... ."""
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @property
    def _answering(self) -> Answering:
        return self.edited.answering

    # -- scoring -----------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Scored]:
        """Scores in the order of the requests. Those whose inputs are the same share a forward pass."""
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for place, (_, context, continuation) in enumerate(requests):
            groups.setdefault((tuple(context), tuple(continuation[:-1])), []).append(place)
        ordered = sorted(groups.items(), key=lambda item: -sum(map(len, item[0])))
        found: dict[int, Scored] = {}
        size = override_bs or int(self.batch_size)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="loglikelihood requests") as bar:
            for start in range(0, len(ordered), size):
                part = [places for _, places in ordered[start : start + size]]
                for place, score in self._scored(requests, part):
                    found[place] = score
                    key = requests[place][0]
                    if key is not None:  # A window of a longer text: lm-eval caches the text as a whole.
                        self.cache_hook.add_partial("loglikelihood", key, score)
                    bar.update(1)
        return [found[place] for place in range(len(requests))]

    @torch.inference_mode()
    def _scored(self, requests: Sequence[TokenRequest], groups: Sequence[list[int]]) -> list[tuple[int, Scored]]:
        """Each request of the groups, by its place, and its score. groups: places of requests with the same input."""
        most = self.max_length
        rows: list[tuple[Tokens, Tokens]] = []
        for places in groups:
            _, context, continuation = requests[places[0]]
            # As in `hf`: what is too long is cut from the left, and the last token need not be read.
            context = context[max(0, len(context) + len(continuation) - most - 1) :]
            fits = len(context) + len(continuation) <= most
            rows.append((context, continuation if fits else continuation[:-1]))
        inputs, starts = self._batch([context for context, _ in rows], [given for _, given in rows], "right")
        with self.edited.asking():
            logits = self.edited.backbone.logits(inputs)
            fired = self._fired(len(groups))
        scores = []
        for row, places in enumerate(groups):
            length = len(requests[places[0]][2])
            first = starts[row] - 1
            predicted = logits[row, first : first + length].log_softmax(-1, dtype=self.softmax_dtype)
            self.counts.add("loglikelihood", len(places), fired[row])
            for place in places:
                wanted = torch.tensor(requests[place][2], device=predicted.device)
                own = predicted.gather(-1, wanted[:, None]).sum()
                scores.append((place, (float(own), bool((predicted.argmax(-1) == wanted).all()))))
        return scores

    def _fired(self, rows: int) -> list[bool]:
        """Whether an edit fired for each row of the last batch."""
        fired = self.edited.editor.fired() or [()] * rows
        return [bool(above_threshold(edits)) for edits in fired]

    def _batch(
        self, contexts: Sequence[Tokens], continuations: Sequence[Tokens], padding: str
    ) -> tuple[TokenBatch, list[int]]:
        """Contexts and continuations as the backbone takes them, and where each continuation starts, unpadded."""
        backbone = self.edited.backbone
        prompts, texts = list(contexts), [self._text(context) for context in contexts]
        prepared = backbone.prepared([Question(text) for text in texts])
        for row, item in enumerate(prepared):
            if item.question.prompt != texts[row]:
                prompts[row] = self.tok_encode(item.question.prompt)
        inputs = backbone.batch(prompts, continuations, padding, prepared)
        prefixes = [item.prefix_tokens for item in prepared] or [0] * len(prompts)
        return inputs, [prefix + len(prompt) for prefix, prompt in zip(prefixes, prompts, strict=True)]

    def _text(self, tokens: Tokens) -> str:
        """The text of a context, without the start token that encoding it again adds. Of a start alone, that."""
        starts = len(tokens) > 1 and tokens[0] == self.tokenizer.bos_token_id
        return self.tok_decode(tokens[1:] if starts else tokens, skip_special_tokens=False)

    # -- generating --------------------------------------------------------------------------------------

    def _model_generate(
        self, context: Tensor, max_length: int, stop: Sequence[str], **generation_kwargs: Any
    ) -> Tensor:
        """Contexts followed by their answers, (batch, tokens). context: left-padded token ids, (batch, tokens)."""
        present = generation_kwargs.pop("attention_mask").bool()
        prompts = [ids[mask].tolist() for ids, mask in zip(context, present, strict=True)]
        new_tokens = max_length - context.shape[1]
        options = _sampling(generation_kwargs)
        generated, lengths = self._generated(self._answering, prompts, new_tokens, stop, options)

        def ask_again(plain: Answering, places: list[int]) -> list[Any]:
            chosen = [prompts[place] for place in places]
            return [one.answer for one in self._generated(plain, chosen, new_tokens, stop, options)[0]]

        answers = self._answering.settled(generated, ask_again, lengths)
        for answer in answers:
            self.counts.add("generate_until", 1, bool(above_threshold(answer.fired)), bool(answer.withheld))
        pad_id = self.edited.backbone.pad_token_id
        rows = [list(self._answer_tokens(answer.text, answer.tokens)) for answer in answers]
        longest = max(map(len, rows))
        padded = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], dtype=context.dtype)
        return torch.cat([context, padded.to(context.device)], 1)

    def _generated(
        self,
        answering: Answering,
        prompts: Sequence[Tokens],
        new_tokens: int,
        stop: Sequence[str],
        options: Mapping[str, Any],
    ) -> tuple[list[Generated], list[int | None]]:
        """Answers to prompts, and how many tokens of each came before a stop string ended it; None for all."""
        inputs, _ = self._batch(prompts, [[] for _ in prompts], "left")
        stops = StopStrings(self.edited.backbone, stop, inputs.roles.shape[1], len(prompts))
        criteria = StoppingCriteriaList([stops])
        generated = answering.generate(inputs, new_tokens, stopping_criteria=criteria, **options)
        return generated, stops.lengths

    def _answer_tokens(self, text: str, tokens: Iterable[int] | None) -> Iterable[int]:
        return self.tok_encode(text, add_special_tokens=False) if tokens is None else tokens


class StopStrings(StoppingCriteria):
    """Ends each row of a batch at the first of some strings, whatever the other rows say.

    lengths: how many tokens each row had then; None while it has none of the strings.
    """

    def __init__(self, backbone: Backbone, stops: Sequence[str], prompt_tokens: int, rows: int):
        self._decode: Callable[[Tokens], str] = backbone.decode
        self._stops = [stop for stop in stops if stop]
        self._prompt_tokens = prompt_tokens
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """input_ids: (batch, length so far). Returns (batch,) booleans: which rows are done."""
        for row, tokens in enumerate(input_ids[:, self._prompt_tokens :].tolist()):
            if self.lengths[row] is None and any(stop in self._decode(tokens) for stop in self._stops):
                self.lengths[row] = len(tokens)
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """How a task wants answers to be decoded, as generate() takes it: greedily unless it samples."""
    if not options.get("do_sample"):
        sampled = {"do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p"}
        options = {name: value for name, value in options.items() if name not in sampled}
    if beams := {"num_beams", "num_return_sequences"} & options.keys():
        raise InvalidInputError(
            f"The task asks for {', '.join(sorted(beams))}. Answers of an edited model are greedy or sampled one by "
            "one: choose a task without it, or change its generation_kwargs."
        )
    return dict(options)
