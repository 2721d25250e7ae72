"""A frozen model seen as: inputs -> hidden states at a layer -> logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from ..errors import BackboneError, InvalidInputError
from ..images import open_image
from ..samples import Question
from .inputs import Inputs, pad


class Backbone:
    """A vision-language model that is read and steered, but whose weights are never changed by this class.

    Layers are counted from 0; "the states at layer l" are the output of decoder layer l, (batch, length, width).
    """

    def __init__(self, name: str, model: PreTrainedModel, processor: ProcessorMixin):
        self.name, self.model, self.processor = name, model.eval().requires_grad_(False), processor
        self.tokenizer = processor.tokenizer  # type: ignore[attr-defined]
        self.decoder: Any = _find_decoder(model)
        self.image_token_id: int | None = getattr(model.config, "image_token_id", None)
        self.end_token_id = int(self.tokenizer.eos_token_id)
        self.pad_token_id = int(self.tokenizer.pad_token_id or 0)
        self.current_inputs: Inputs | None = None

    # -- what it is --------------------------------------------------------------------------------------

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers of the language model."""
        return self.decoder.layers  # type: ignore[return-value]

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.word_embeddings.weight.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the word embeddings are."""
        return self.word_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the word embeddings."""
        return self.word_embeddings.weight.dtype

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The input embeddings."""
        return cast(nn.Embedding, self.model.get_input_embeddings())

    @property
    def output_embeddings(self) -> nn.Module:
        """The head that turns final hidden states into logits."""
        head = self.model.get_output_embeddings()
        if head is None:
            raise BackboneError(f"{self.name} has no output embeddings: it is no model that generates text.")
        return head

    @property
    def image_tokens(self) -> int:
        """How many tokens a picture takes."""
        return int(getattr(self.model.config, "image_seq_length", 0))

    def default_edit_layer(self) -> int:
        """Two thirds of the depth: layer 21 of 32 in the paper (section 7.4), counted from 1 there."""
        return max(0, round(len(self.layers) * 21 / 32) - 1)

    # -- questions to tensors ----------------------------------------------------------------------------

    def encode(
        self, questions: Sequence[Question], answers: Sequence[str] | None = None, padding: str = "right"
    ) -> Inputs:
        """Questions, and their answers behind them, as one padded batch.

        Raises `InvalidInputError` for an empty batch, a prompt without text, or a text with the model's image marker;
        `ImageError` for a bad picture.
        """
        if not questions:
            raise InvalidInputError("No question was given. Give at least one.")
        self._check_markers([question.prompt for question in questions], answers or ())
        texts = [self._prompt_text(question) for question in questions]
        prompts, pixels = self._process(texts, [open_image(q.image) for q in questions if q.image is not None])
        endings = [[] for _ in texts] if answers is None else self._answer_ids(texts, answers)
        rows = [prompt + ending for prompt, ending in zip(prompts, endings, strict=True)]
        kinds = [self._kinds(prompt, ending) for prompt, ending in zip(prompts, endings, strict=True)]
        kind = pad(kinds, -1, padding)
        inputs = Inputs(
            input_ids=pad(rows, self.pad_token_id, padding),
            attention_mask=(kind >= 0).long(),
            image_mask=kind == 1,
            prompt_mask=kind == 0,
            answer_mask=kind == 2,
            pixel_values=pixels,
        )
        return inputs.to(self.device)

    def _prompt_text(self, question: Question) -> str:
        if not question.prompt.strip():
            raise InvalidInputError("The prompt is empty. Give the text of a question.")
        parts: list[dict[str, str]] = [{"type": "text", "text": question.prompt}]
        if question.image is not None:
            parts.insert(0, {"type": "image"})
        messages = [{"role": "user", "content": parts}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)  # type: ignore[return-value]

    def _check_markers(self, *texts: Sequence[str]) -> None:
        marker = getattr(self.processor, "image_token", None)
        for text in (text for group in texts for text in group):
            if marker and marker in text:
                raise InvalidInputError(
                    f"The text {text!r} contains {marker}, which stands for a picture in {self.name}. Take it out; a "
                    "question's picture is placed by itself."
                )

    def _process(self, texts: list[str], images: list[Any]) -> tuple[list[list[int]], Tensor | None]:
        encoded = self.processor(images=images or None, text=texts)  # type: ignore[operator]
        ids = [list(row) for row in encoded["input_ids"]]
        if not images:
            return ids, None
        pixels = torch.stack([torch.as_tensor(picture) for picture in encoded["pixel_values"]])
        return ids, pixels.to(self.dtype)

    def _answer_ids(self, texts: list[str], answers: Sequence[str]) -> list[list[int]]:
        """Tokens of each answer as they follow the prompt, and the end-of-sequence token."""
        found = []
        for text, answer in zip(texts, answers, strict=True):
            if not answer.strip():  # A model may say nothing: its answer then is the end of the sequence.
                found.append([self.end_token_id])
                continue
            alone = self.tokenizer(text)["input_ids"]
            joined = self.tokenizer(f"{text} {answer.strip()}")["input_ids"]
            if joined[: len(alone)] == alone:
                ids = joined[len(alone) :]
            else:  # The tokenizer merged across the border: what is generated starts behind the prompt.
                ids = self.tokenizer(f" {answer.strip()}", add_special_tokens=False)["input_ids"]
            found.append([*ids, self.end_token_id])
        return found

    def _kinds(self, prompt: list[int], ending: list[int]) -> list[int]:
        return [int(token == self.image_token_id) for token in prompt] + [2] * len(ending)

    # -- running -----------------------------------------------------------------------------------------

    def embeddings(self, inputs: Inputs) -> Tensor:
        """Word embeddings of the input ids, (batch, length, width); image tokens hold their placeholder."""
        return self.word_embeddings(inputs.input_ids)

    def logits(self, inputs: Inputs) -> Tensor:
        """Logits of every position, (batch, length, vocabulary)."""
        with self._reading(inputs):
            return self.model(**inputs.model_inputs(), use_cache=False).logits

    def states(self, inputs: Inputs, layer: int) -> Tensor:
        """States at a layer; the layers behind it do not run."""
        handle = self.layers[layer].register_forward_hook(_stop)
        try:
            with self._reading(inputs):
                self.model(**inputs.model_inputs(), use_cache=False)
        except _StoppedError as stop:
            return stop.states
        finally:
            handle.remove()
        raise BackboneError(f"Layer {layer} of {self.name} did not run.")

    def logits_from(self, states: Tensor, attention_mask: Tensor, layer: int, positions: Tensor) -> Tensor:
        """Logits from the states at a layer: only the layers behind it run.

        states: (batch, length, width); attention_mask: (batch, length), right-padded; positions: (batch, length)
        booleans, the positions whose logits are wanted. Returns (wanted, vocabulary), row by row. Gradients flow
        into `states`. Not for two threads at once: the earlier layers are stood in for during the call.
        """
        with self._resumed_at(layer, states):
            hidden = self.decoder(inputs_embeds=states, attention_mask=attention_mask, use_cache=False)
        return self.head(hidden.last_hidden_state[positions])

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of final hidden states."""
        return self.output_embeddings(hidden)

    @torch.inference_mode()
    def generate(self, inputs: Inputs, max_new_tokens: int = 32) -> list[str]:
        """Greedy answers, until the model stops by itself or `max_new_tokens` are spent.

        Expects a left-padded batch without answers; raises `InvalidInputError` for one that has any.
        """
        if bool(inputs.answer_mask.any()):
            raise InvalidInputError("Questions with answers were given to generate(). Encode them without.")
        with self._reading(inputs):
            output = self.model.generate(  # type: ignore[operator]
                **inputs.model_inputs(),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=self.pad_token_id,
            )
        answers = output[:, inputs.input_ids.shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    @contextmanager
    def _reading(self, inputs: Inputs) -> Iterator[None]:
        """Lets editors know during a call which tokens are picture, prompt and answer."""
        before, self.current_inputs = self.current_inputs, inputs
        try:
            yield
        finally:
            self.current_inputs = before

    @contextmanager
    def _resumed_at(self, layer: int, states: Tensor) -> Iterator[None]:
        """Stand-ins for the layers up to `layer`: the last of them gives the stored states."""
        originals = self.decoder.layers
        passed = [_StandIn(original, None) for original in originals[:layer]]
        stand_ins = [*passed, _StandIn(originals[layer], states), *originals[layer + 1 :]]
        self.decoder.layers = nn.ModuleList(stand_ins)
        try:
            yield
        finally:
            self.decoder.layers = originals


class _StoppedError(Exception):
    """Carries the states out of a forward pass that is not to go on."""

    def __init__(self, states: Tensor):
        super().__init__()
        self.states = states


def _stop(layer: nn.Module, arguments: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
    raise _StoppedError(output if isinstance(output, Tensor) else output[0])


class _StandIn(nn.Module):
    """Takes the place of a decoder layer: gives stored states, or what it receives. Looks like the original."""

    def __init__(self, original: nn.Module, states: Tensor | None):
        super().__init__()
        object.__setattr__(self, "_original", original)
        object.__setattr__(self, "_states", states)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_original"), name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """The stored states, or the hidden states unchanged."""
        states = object.__getattribute__(self, "_states")
        return hidden_states if states is None else states


def _find_decoder(model: PreTrainedModel) -> nn.Module:
    decoder: Any = model
    for _ in range(4):
        if isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            return decoder
        decoder = decoder.get_decoder()
    raise BackboneError(f"{type(model).__name__} has no list of decoder layers that LiveEdit can find.")
