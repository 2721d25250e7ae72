"""A frozen model: questions -> tokens -> hidden states at a layer -> logits. What most families have in common."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor, PreTrainedModel

from ..errors import BackboneError, InvalidInputError
from ..samples import Question
from .answer_tokens import following_tokens
from .claim import Claim
from .positions import answer_room, check_length
from .prompt_transforms import TransformedPrompts, prefixes_embedded, substitutes, unchanged
from .question_images import opened_images, refusals_named
from .split_forward import decoder_of, execution_device, finished_logits, layers_of, run_prefix, run_suffix
from .text_checks import check_control_tokens, check_is_text, check_markers, image_markers
from .tokens import PreparedQuestion, TokenBatch, TokenRole, batch_rows, pad
from .weights import digest_of, weights_of

_NOT_OF_IMAGES = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


class _CurrentInputs(threading.local):
    """The batch that this thread runs through the model."""

    inputs: TokenBatch | None = None


class Backbone(TransformedPrompts):
    """A frozen model. This class reads it and runs it, and never changes its weights.

    Layers are counted from 0. The hidden states at layer l are the output of decoder layer l, (batch, tokens, width).
    A family that differs subclasses this and overrides the method that differs (`families/`).
    """

    reads_images = True
    token_type_name: str | None = None
    """Name of a per-token model input that is 1 at image tokens, in families that take one."""
    has_positions = False
    """Whether the family has positions that are not a plain count."""

    def __init__(self, name: str, model: PreTrainedModel, processor: Any):
        self.name, self.model, self.processor = name, model.eval().requires_grad_(False), processor
        if getattr(processor, "tokenizer", None) is None:
            raise BackboneError(
                f"{name} has no processor with a tokenizer (found: {type(processor).__name__}): questions "
                "cannot be prepared for it. Subclass liveedit.backbones.Backbone for it."
            )
        self.tokenizer: Any = processor.tokenizer
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.decoder: Any = decoder_of(model)
        self.image_token_id: int | None = getattr(model.config, "image_token_id", None)
        self.pad_token_id: Any = self.tokenizer.pad_token_id
        self._current = _CurrentInputs()
        self._tokenizing = threading.RLock()
        """A tokenizer stores its padding between calls, so that only one thread may use it at a time."""
        self.claim = Claim(name)
        # bitsandbytes rearranges quantized weights in the first forward pass, so that they are read before it.
        self.known_digest = self.digest() if getattr(model, "is_quantized", False) else ""

    @property
    def current_inputs(self) -> TokenBatch | None:
        """The batch that this thread runs through the model, None outside of a call."""
        return self._current.inputs

    @classmethod
    def load_processor(cls, source: str) -> Any:
        """Load the processor of images and text from a folder or hub name: an object with a `tokenizer`."""
        return AutoProcessor.from_pretrained(source)

    # -- what it is --------------------------------------------------------------------------------------

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers of the language model."""
        return layers_of(self.decoder)

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.decoder.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of inputs: the one on which the word embeddings are computed."""
        return execution_device(self.word_embeddings)

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
            raise BackboneError(f"{self.name} has no output embeddings. Give a model that generates text.")
        return head

    @cached_property
    def image_tokens(self) -> int:
        """Tokens of an image of 448 x 448 pixels. Other sizes may take more or fewer. 0 for text-only models."""
        sample = Question("?", Image.new("RGB", (448, 448)))
        return int(self.encode([sample]).image_mask.sum()) if self.reads_images else 0

    @property
    def positions(self) -> int | None:
        """The most tokens of a question with its answer; None if the model states no limit."""
        return getattr(self.decoder.config, "max_position_embeddings", None)

    @property
    def _stops(self) -> list[int]:
        """The tokens after which generate() stops."""
        stops = getattr(self.model.generation_config, "eos_token_id", None)
        return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)

    @property
    def end_token_ids(self) -> frozenset[int]:
        """All tokens that end an answer or follow its end."""
        return frozenset((*self._stops, self.end_token_id, int(self.pad_token_id)))

    @cached_property
    def end_token_id(self) -> int:
        """The token that ends an answer: among those that stop generate(), the one that ends a turn of the chat."""
        stops = self._stops
        template = str(getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template or "")
        end = int(self.tokenizer.eos_token_id)
        # The tokenizer's own first: Llama 3.1's template also has <|eom_id|>, after which a tool answers.
        for stop in sorted(stops, key=lambda stop: stop != end):
            if stop < len(self.tokenizer) and self.tokenizer.convert_ids_to_tokens(stop) in template:
                return int(stop)
        return end if not stops or end in stops else int(stops[0])

    @property
    def first_edit_layer(self) -> int:
        """The first layer from whose hidden states the rest of the model can be run."""
        return 0

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every weight and buffer of a checkpoint. Offloaded ones are read where they are kept."""
        return weights_of(self.model)

    def digest(self) -> str:
        """SHA-256 of the configuration and of a sample of each weight: a quick way to distinguish two models."""
        return getattr(self, "known_digest", "") or digest_of(self.model.config.to_json_string(), self.weights())

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What two models must have in common for an editor of one to fit the other. Fine-tuned weights may differ."""
        decoder = self.decoder.config
        return {
            "model_type": self.model.config.model_type,
            "text_model_type": decoder.model_type,
            "width": self.width,
            "layers": len(self.layers),
            "vocabulary": self.word_embeddings.num_embeddings,
        }

    def layer_device(self, layer: int) -> torch.device:
        """The device on which a layer is computed."""
        return execution_device(self.layers[layer])

    def default_edit_layer(self) -> int:
        """Two thirds of the depth: layer 21 of 32 in the paper (section 7.4), which counts from 1."""
        return max(self.first_edit_layer, round(len(self.layers) * 21 / 32) - 1)

    # -- questions to tensors ----------------------------------------------------------------------------

    def encode(
        self, questions: Sequence[Question], answers: Sequence[str] | None = None, padding: str = "right"
    ) -> TokenBatch:
        """Questions, each followed by its answer if answers are given, as one padded batch.

        Raises `InvalidInputError` for an empty batch, a prompt without text, a text with the model's image marker, a
        text that is too long, or an image for a text-only model; `ImageError` for a bad image.
        """
        self._check_questions(questions, answers or (), padding)
        prepared = self.prepared(questions)
        sources = prepared or tuple(unchanged(questions))
        texts, prompts, extras = self._tokenized([source.question for source in sources])
        endings = [[] for _ in texts] if answers is None else self._answer_ids(texts, answers)
        return self.batch(prompts, endings, padding, prepared, extras)

    def batch(
        self,
        prompts: Sequence[list[int]],
        answers: Sequence[list[int]],
        padding: str = "right",
        prepared: tuple[PreparedQuestion, ...] = (),
        extras: Mapping[str, Tensor] | None = None,
    ) -> TokenBatch:
        """Token ids of prompts, each followed by those of its answer, as one padded batch. Raises as `encode` does."""
        rows = batch_rows(prompts, answers, self.image_token_id, self.pad_token_id, prepared)
        check_length(self.name, self.positions, max(len(ids) for ids, _ in rows))
        inputs = TokenBatch(
            roles=pad([roles for _, roles in rows], TokenRole.PADDING, padding),
            input_ids=pad([ids for ids, _ in rows], self.pad_token_id, padding),
            extras=extras or {},
            prepared=prepared,
        )
        return self.complete(inputs).to(self.device)

    def _check_questions(self, questions: Sequence[Question], answers: Sequence[str], padding: str) -> None:
        if not questions:
            raise InvalidInputError("No question was given. Give at least one.")
        if padding not in ("left", "right"):
            raise InvalidInputError(f"padding={padding!r} was given. Give 'left' or 'right'.")
        self.check_texts([question.prompt for question in questions], answers)
        if not self.reads_images and any(question.image is not None for question in questions):
            raise InvalidInputError(f"{self.name} reads text alone, but an image was given. Ask without one.")

    def _tokenized(self, questions: Sequence[Question]) -> tuple[list[str], list[list[int]], dict[str, Tensor]]:
        """Texts in the model's chat format, their token ids, and what the model takes of the images."""
        images = opened_images(questions)
        texts = [self.prompt_text(question) for question in questions]
        with self._tokenizing, refusals_named(self.name, images):
            prompts, extras = self.process(texts, images)
        precise = {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in extras.items()}
        return texts, prompts, precise

    def prompt_text(self, question: Question) -> str:
        """The question in the model's chat format, with the marker of its image."""
        parts: list[dict[str, str]] = [{"type": "text", "text": question.prompt}]
        if question.image is not None:
            parts.insert(0, {"type": "image"})
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        if not template:
            raise BackboneError(f"{self.name} has no chat template. Put its chat_template.jinja beside its weights.")
        messages = [{"role": "user", "content": parts}]
        return self.processor.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )

    def process(self, texts: list[str], images: Sequence[Any]) -> tuple[list[list[int]], dict[str, Tensor]]:
        """Token ids of each text, image tokens included, and what the model takes of the images."""
        encoded = self.processor(
            images=images or None,
            text=texts,
            padding=True,
            return_tensors="pt",
            add_special_tokens=self._starts_are_missing(texts),
        )
        present = encoded["attention_mask"].bool()
        ids = [row[mask].tolist() for row, mask in zip(encoded["input_ids"], present, strict=True)]
        return ids, {name: value for name, value in encoded.items() if name not in _NOT_OF_IMAGES}

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts, with a start token unless the chat template has written one."""
        return self._token_ids(texts, add_special_tokens=self._starts_are_missing(texts))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens, without special tokens."""
        with self._tokenizing:
            return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        return self._token_ids(texts, add_special_tokens=False)

    def _token_ids(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        with self._tokenizing:
            return self.tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]

    def _starts_are_missing(self, texts: Sequence[str]) -> bool:
        start = self.tokenizer.bos_token
        return not (start and texts[0].startswith(start))

    def complete(self, inputs: TokenBatch) -> TokenBatch:
        """Add what the family's model takes for each token."""
        if self.token_type_name is None or not inputs.extras:
            return inputs
        return replace(inputs, extras={**inputs.extras, self.token_type_name: inputs.image_mask.long()})

    def expected_image_tokens(self, extras: Mapping[str, Tensor]) -> int | None:
        """Number of image tokens of these images; None if the model itself refuses other numbers."""
        return None

    @cached_property
    def markers(self) -> frozenset[str]:
        """Special tokens for images. No text may contain them."""
        return image_markers(self.tokenizer, self.image_token_id)

    def check_texts(self, prompts: Sequence[str], answers: Sequence[str] = ()) -> None:
        """Raise `InvalidInputError` for what is no text, a prompt without text, or a text with the image marker."""
        for name, texts in (("prompt", prompts), ("answer", answers)):
            for text in texts:
                check_is_text(name, text)
        if not all(prompt.strip() for prompt in prompts):
            raise InvalidInputError("The prompt is empty. Give the text of a question.")
        check_markers([*prompts, *answers], self.markers, self.name)

    def check_edit(self, prompt: str, answer: str) -> None:
        """Raise `InvalidInputError` for an edit whose prompt or answer is empty, or is not read as text throughout.

        Neither may contain an image marker or another control token of the tokenizer, such as the end of a sequence.
        """
        check_is_text("answer", answer)
        if not answer.strip():
            raise InvalidInputError("The answer is empty. Give the text that the model should answer.")
        self.check_texts([prompt], [answer])
        for name, text in (("prompt", prompt), ("answer", answer.strip())):
            check_control_tokens(self.tokenizer, name, text, self._plain_ids([text])[0])

    def answer_room(self, inputs: TokenBatch, wanted: int) -> int:
        """How many of `wanted` answer tokens have a position after the longest of these questions.

        Raises `InvalidInputError` if none has.
        """
        return answer_room(self.positions, inputs.roles.shape[1], wanted)

    def _answer_ids(self, texts: list[str], answers: Sequence[str]) -> list[list[int]]:
        """Tokens of each answer as they follow the prompt, and the token that ends it."""
        return [
            [*following_tokens(text, answer, self.tokenize, self._plain_ids), self.end_token_id]
            for text, answer in zip(texts, answers, strict=True)
        ]

    def answer_tokens(self, questions: Sequence[Question], answers: Sequence[str]) -> list[list[int]]:
        """Tokens of each answer as `encode` puts them after its question, with the token that ends it."""
        return self._answer_ids([self.prompt_text(question) for question in questions], answers)

    def is_image(self, ids: Tensor) -> Tensor:
        """Which token ids stand for an image, as booleans of the same shape."""
        return torch.zeros_like(ids, dtype=torch.bool) if self.image_token_id is None else ids == self.image_token_id

    # -- running -----------------------------------------------------------------------------------------

    def embeddings(self, inputs: TokenBatch) -> Tensor:
        """Word embeddings of the input ids, (batch, tokens, width). Those of image tokens are placeholders."""
        ids = inputs.input_ids
        if self.image_token_id is not None and self.image_token_id >= self.word_embeddings.num_embeddings:
            ids = ids.masked_fill(inputs.image_mask, self.pad_token_id)
        return self.word_embeddings(ids)

    def logits(self, inputs: TokenBatch) -> Tensor:
        """Logits of every position, (batch, tokens, vocabulary), on the device of the inputs."""
        with self._reading(inputs):
            logits = self.model_for(inputs)(**inputs.model_inputs(), use_cache=False).logits
        logits = logits.to(inputs.input_ids.device)  # A model spread over devices returns them where its head is.
        for substitute, rows in substitutes(inputs.prepared):
            logits[rows] = substitute.logits([inputs.prepared[row].question for row in rows], inputs, rows).to(logits)
        return logits

    def hidden_states(self, inputs: TokenBatch, layer: int) -> Tensor:
        """Hidden states at a layer, (batch, tokens, width). Later layers do not run."""
        with self._reading(inputs):
            model = self.model_for(inputs)
            found = run_prefix(self.layers[layer], lambda: model(**inputs.model_inputs(), use_cache=False))
        if found is None:
            raise BackboneError(f"Layer {layer} of {self.name} did not run. Choose a layer that its forward uses.")
        return found

    def logits_from(self, hidden_states: Tensor, tokens: TokenBatch, layer: int, wanted: Tensor) -> Tensor:
        """Logits from the hidden states at a layer: only later layers run.

        hidden_states: (batch, tokens, width), right-padded as `tokens` says; wanted: (batch, tokens) booleans, the
        positions whose logits are returned, as (wanted, vocabulary), row by row. Gradients flow into `hidden_states`.
        Other threads may call the model meanwhile; two that call this take turns.
        """
        if layer < self.first_edit_layer:
            raise BackboneError(
                f"{self.name} cannot be run from the hidden states at layer {layer}: its first layers read the image "
                f"again. Choose an edit layer from {self.first_edit_layer} on."
            )
        arguments = self.decoder_arguments(tokens, hidden_states)
        final = run_suffix(self.decoder, layer, hidden_states, arguments)
        return self.head(final[wanted.to(final.device)])

    def decoder_arguments(self, tokens: TokenBatch, hidden_states: Tensor) -> dict[str, Any]:
        """What the decoder takes besides embeddings."""
        arguments: dict[str, Any] = {"attention_mask": tokens.attention_mask.to(hidden_states.device)}
        if tokens.positions is not None:
            arguments["position_ids"] = tokens.positions.to(hidden_states.device)
        return arguments

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of final hidden states."""
        return finished_logits(self.output_embeddings(hidden), self.model.config)

    def generate(
        self,
        inputs: TokenBatch,
        max_new_tokens: int = 32,
        *,
        beams: int = 1,
        sequences: int = 1,
        use_cache: bool = True,
    ) -> list[str]:
        """Answers without sampling, until the model stops, `max_new_tokens` are generated, or no position is left.

        inputs: a left-padded batch without answers. Raises `InvalidInputError` for another one, or if its longest
        question leaves no position. With `beams`, the `sequences` best answers of each question, question by question.
        """
        found = self.generate_tokens(inputs, max_new_tokens, beams=beams, sequences=sequences, use_cache=use_cache)
        return [text for text, _ in found]

    @torch.inference_mode()
    def generate_tokens(
        self,
        inputs: TokenBatch,
        max_new_tokens: int = 32,
        *,
        beams: int = 1,
        sequences: int = 1,
        use_cache: bool = True,
        **further: Any,
    ) -> list[tuple[str, tuple[int, ...] | None]]:
        """As `generate`, each answer with its tokens, padding after its end included; None if a substitute answered.

        further: options of the model's own generate(), such as logits_processor, stopping_criteria and do_sample.
        """
        inputs.check_generation()
        room = self.answer_room(inputs, max_new_tokens)
        with self._reading(inputs):
            output = self.model_for(inputs).generate(
                **inputs.model_inputs(),
                max_new_tokens=room,
                do_sample=bool(further.pop("do_sample", False)),
                num_beams=beams,
                num_return_sequences=sequences,
                use_cache=use_cache,
                # Some checkpoints set a penalty by default; greedy takes the most likely token, as in teacher forcing.
                repetition_penalty=1.0,
                pad_token_id=self.pad_token_id,
                # An image token means nothing in an answer, and the model would expect an image for it.
                suppress_tokens=None if self.image_token_id is None else [self.image_token_id],
                **further,
            )
        answers = output[:, inputs.input_ids.shape[1] :]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        rows: list[tuple[str, tuple[int, ...] | None]] = [
            (self.spoken(text), tuple(tokens)) for text, tokens in zip(texts, answers.tolist(), strict=True)
        ]
        for substitute, places in substitutes(inputs.prepared):
            answered = substitute.generate([inputs.prepared[place].question for place in places], max_new_tokens)
            for place, text in zip(places, answered, strict=True):
                rows[place * sequences : (place + 1) * sequences] = [(text, None)] * sequences
        return rows

    @property
    def next_turn(self) -> str | None:
        """The text with which the family's models begin another turn, if any. An answer ends before it."""
        return None

    def spoken(self, text: str) -> str:
        """The part of the generated text that is the answer."""
        return (text.split(self.next_turn)[0] if self.next_turn else text).strip()

    def model_for(self, inputs: TokenBatch) -> Any:
        """The module that runs these inputs: the model itself, or the part of it that takes text alone."""
        return self.model

    @contextmanager
    def _reading(self, inputs: TokenBatch) -> Iterator[None]:
        """Inside, `current_inputs` is this batch, so that editors know the role of each token."""
        expected, found = self.expected_image_tokens(inputs.extras), int(inputs.image_mask.sum())
        if expected is not None and expected != found:
            raise InvalidInputError(
                f"The batch has {found} image tokens, but its images take {expected} in {self.name}. Make batches "
                "with encode(), which places them."
            )
        before, self._current.inputs = self._current.inputs, inputs
        try:
            with prefixes_embedded(self.word_embeddings, inputs):
                yield
        finally:
            self._current.inputs = before
