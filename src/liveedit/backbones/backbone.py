"""A frozen model seen as: inputs -> hidden states at a layer -> logits. The rule that holds for most families."""

from __future__ import annotations

import hashlib
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
from ..images import open_image
from ..samples import Question
from .prompt_transforms import PreparedQuestion, PromptTransform, prefixes_embedded, substitutes, unchanged
from .split_forward import decoder_of, execution_device, resumed_at, states_after
from .tokens import ForwardContext, Inputs, Layout, pad

_NOT_OF_IMAGES = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}
_IMAGE_WORDS = ("image", "img", "vision", "video", "<row_")
_SAMPLE_IMAGE = (448, 448)
_PREFIX = 3
"""The kind of a token that stands for a soft prompt, beside 0 (prompt), 1 (image) and 2 (answer)."""


class Backbone:
    """A model that is read and steered, but whose weights are never changed by this class.

    Layers are counted from 0; "the states at layer l" are the output of decoder layer l, (batch, length, width).
    Families that differ from the rule subclass this and override the one method that differs (`families/`).
    """

    reads_images = True
    token_type_name: str | None = None
    """Name of a per-token model input that is 1 at image tokens, in families that want one."""
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
        self._now = ForwardContext()
        self._tokenizing = threading.RLock()
        """Tokenizers change their padding from call to call: two threads at once would get each other's, or fail."""
        self._transform: PromptTransform | None = None

    @property
    def current_inputs(self) -> Inputs | None:
        """What this thread asks the model at the moment."""
        return self._now.inputs

    @classmethod
    def load_processor(cls, source: str) -> Any:
        """What prepares images and text, from a folder or hub name: an object with a `tokenizer`."""
        return AutoProcessor.from_pretrained(source)

    # -- what it is --------------------------------------------------------------------------------------

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers of the language model."""
        return self.decoder.layers  # type: ignore[return-value]

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.decoder.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device on which the word embeddings are computed."""
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
            raise BackboneError(f"{self.name} has no output embeddings: it is no model that generates text.")
        return head

    @cached_property
    def image_tokens(self) -> int:
        """How many tokens an image of 448 x 448 pixels takes; other sizes may take others. 0 for text-only models."""
        if not self.reads_images:
            return 0
        return int(self.encode([Question("?", Image.new("RGB", _SAMPLE_IMAGE))]).image_mask.sum())

    @cached_property
    def end_token_id(self) -> int:
        """The token that ends an answer: of those at which generate() stops, the one that ends a turn of the chat."""
        stops = getattr(self.model.generation_config, "eos_token_id", None)
        stops = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
        template = str(getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template or "")
        end = int(self.tokenizer.eos_token_id)
        # The tokenizer's own first: Llama 3.1's template also has <|eom_id|>, behind which a tool answers.
        for stop in sorted(stops, key=lambda stop: stop != end):
            if stop < len(self.tokenizer) and self.tokenizer.convert_ids_to_tokens(stop) in template:
                return int(stop)
        return end if not stops or end in stops else int(stops[0])

    @property
    def first_edit_layer(self) -> int:
        """The first layer from whose states the rest of the model can be run."""
        return 0

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every weight and buffer of a checkpoint, offloaded ones read from where they lie."""
        modules = dict(self.model.named_modules())
        for name, value in self.model.state_dict().items():
            if value.is_meta:
                module, _, part = name.rpartition(".")
                offloaded: Any = modules[module]._hf_hook
                value = offloaded.weights_map[part]
            yield name, value

    def digest(self) -> str:
        """SHA-256 of the configuration and of a sample of each weight: what tells two models apart quickly."""
        digest = hashlib.sha256(self.model.config.to_json_string().encode())
        for name, weight in self.weights():
            sample = weight.detach().flatten()[:: max(1, weight.numel() // 64)].float().cpu()
            digest.update(name.encode() + sample.numpy().tobytes())
        return digest.hexdigest()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What two models must share for an editor of one to fit the other; fine-tuned weights may differ."""
        decoder = self.decoder.config
        return {
            "model_type": self.model.config.model_type,
            "text_model_type": decoder.model_type,
            "width": self.width,
            "layers": len(self.layers),
            "vocabulary": self.word_embeddings.num_embeddings,
        }

    def layer_device(self, layer: int) -> torch.device:
        """Where a layer is computed."""
        return execution_device(self.layers[layer])

    def default_edit_layer(self) -> int:
        """Two thirds of the depth: layer 21 of 32 in the paper (section 7.4), counted from 1 there."""
        return max(self.first_edit_layer, round(len(self.layers) * 21 / 32) - 1)

    # -- questions to tensors ----------------------------------------------------------------------------

    def encode(
        self, questions: Sequence[Question], answers: Sequence[str] | None = None, padding: str = "right"
    ) -> Inputs:
        """Questions, and their answers behind them, as one padded batch.

        Raises `InvalidInputError` for an empty batch, a prompt without text, a text with the model's image marker, a
        text that is too long, or an image for a text-only model; `ImageError` for a bad image.
        """
        if not questions:
            raise InvalidInputError("No question was given. Give at least one.")
        if padding not in ("left", "right"):
            raise InvalidInputError(f"padding={padding!r} was given. Give 'left' or 'right'.")
        self.check_texts([question.prompt for question in questions], answers or ())
        if not self.reads_images and any(question.image is not None for question in questions):
            raise InvalidInputError(f"{self.name} reads text alone, but an image was given. Ask without one.")
        asked = [] if self._transform is None else list(self._transform(questions))
        if asked:
            questions = [item.question for item in asked]
        images = [open_image(question.image) for question in questions if question.image is not None]
        texts = [self.prompt_text(question) for question in questions]
        with self._tokenizing:
            prompts, extras = self.process(texts, images)
        endings = [[] for _ in texts] if answers is None else self._answer_ids(texts, answers)
        heads = [_prefix_tokens(item) for item in asked or unchanged(questions)]
        parts = list(zip(heads, prompts, endings, strict=True))
        rows = [[self.pad_token_id] * head + prompt + ending for head, prompt, ending in parts]
        kinds = [[_PREFIX] * head + self._kinds(prompt, ending) for head, prompt, ending in parts]
        self._check_length(max(len(row) for row in rows))
        kind = pad(kinds, -1, padding)
        inputs = Inputs(
            input_ids=pad(rows, self.pad_token_id, padding),
            attention_mask=(kind >= 0).long(),
            image_mask=kind == 1,
            prompt_mask=kind == 0,
            answer_mask=kind == 2,
            asked=tuple(asked),
            extras={
                name: value.to(self.dtype) if value.is_floating_point() else value for name, value in extras.items()
            },
        )
        return self.complete(inputs).to(self.device)

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
        """Token ids of each text, its image's tokens among them, and what the model takes of the images."""
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
        """Token ids of texts, with a start token where the chat template has not written one."""
        return self._token_ids(texts, add_special_tokens=self._starts_are_missing(texts))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens, special ones left out."""
        with self._tokenizing:
            return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _token_ids(self, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
        with self._tokenizing:
            return self.tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]

    def _starts_are_missing(self, texts: Sequence[str]) -> bool:
        start = self.tokenizer.bos_token
        return not (start and texts[0].startswith(start))

    def complete(self, inputs: Inputs) -> Inputs:
        """Add what the family's model wants for each token."""
        if self.token_type_name is None or not inputs.extras:
            return inputs
        return replace(inputs, extras={**inputs.extras, self.token_type_name: inputs.image_mask.long()})

    def expected_image_tokens(self, extras: Mapping[str, Tensor]) -> int | None:
        """How many image tokens these images take; None where the model itself refuses other counts."""
        return None

    @cached_property
    def markers(self) -> frozenset[str]:
        """Special tokens that have to do with images; no text may contain them."""
        special = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        found = {token for token in special if any(part in token.lower() for part in _IMAGE_WORDS)}
        if self.image_token_id is not None and self.image_token_id < len(self.tokenizer):
            found.add(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        return frozenset(found)

    def check_texts(self, prompts: Sequence[str], answers: Sequence[str] = ()) -> None:
        """Raise `InvalidInputError` for a prompt without text, or any text with the model's image marker."""
        if not all(prompt.strip() for prompt in prompts):
            raise InvalidInputError("The prompt is empty. Give the text of a question.")
        for text in (*prompts, *answers):
            for marker in self.markers:
                if marker in text:
                    raise InvalidInputError(
                        f"The text {text!r} contains {marker}, which stands for an image in {self.name}. Take it "
                        "out; a question's image is placed by itself."
                    )

    def _check_length(self, tokens: int) -> None:
        limit = getattr(self.decoder.config, "max_position_embeddings", None)
        if limit is not None and tokens > limit:
            raise InvalidInputError(
                f"Question and answer take {tokens} tokens, and {self.name} takes {limit} at most. Shorten them."
            )

    def _answer_ids(self, texts: list[str], answers: Sequence[str]) -> list[list[int]]:
        """Tokens of each answer as they follow the prompt, and the token that ends it."""
        found = []
        for text, answer in zip(texts, answers, strict=True):
            if not answer.strip():  # A model may say nothing: its answer then is the end of the sequence.
                found.append([self.end_token_id])
                continue
            gap = "" if text[-1:].isspace() else " "
            alone, joined = self.tokenize([text, f"{text}{gap}{answer.strip()}"])
            if joined[: len(alone)] == alone:
                ids = joined[len(alone) :]
            else:  # The tokenizer merged across the border: what is generated starts behind the prompt.
                (ids,) = self._token_ids([f"{gap}{answer.strip()}"], add_special_tokens=False)
            found.append([*ids, self.end_token_id])
        return found

    def answer_tokens(self, questions: Sequence[Question], answers: Sequence[str]) -> list[list[int]]:
        """Tokens of each answer as `encode` puts them behind its question, the one that ends it included."""
        return self._answer_ids([self.prompt_text(question) for question in questions], answers)

    def _kinds(self, prompt: list[int], ending: list[int]) -> list[int]:
        return [int(token == self.image_token_id) for token in prompt] + [2] * len(ending)

    def is_image(self, ids: Tensor) -> Tensor:
        """Which token ids stand for an image, as booleans of the same shape."""
        return torch.zeros_like(ids, dtype=torch.bool) if self.image_token_id is None else ids == self.image_token_id

    @contextmanager
    def transformed(self, transform: PromptTransform | None) -> Iterator[None]:
        """Questions reach the model through `transform` inside, or as they are where it is None."""
        before, self._transform = self._transform, transform
        try:
            yield
        finally:
            self._transform = before

    def set_transform(self, transform: PromptTransform) -> None:
        """Questions reach the model through `transform` from now on, until `remove_transform`.

        Only what goes through `encode` is intercepted. Raises `BackboneError` where another interceptor is in place.
        """
        if self._transform is not None and self._transform != transform:
            raise BackboneError(
                f"Another editor stands between the questions and {self.name} already. Detach it before the next."
            )
        self._transform = transform

    def remove_transform(self, transform: PromptTransform) -> None:
        """Take an interceptor away; nothing happens where it is not in place."""
        if self._transform == transform:
            self._transform = None

    # -- running -----------------------------------------------------------------------------------------

    def embeddings(self, inputs: Inputs) -> Tensor:
        """Word embeddings of the input ids, (batch, length, width); image tokens hold a placeholder."""
        ids = inputs.input_ids
        if self.image_token_id is not None and self.image_token_id >= self.word_embeddings.num_embeddings:
            ids = ids.masked_fill(inputs.image_mask, self.pad_token_id)
        return self.word_embeddings(ids)

    def logits(self, inputs: Inputs) -> Tensor:
        """Logits of every position, (batch, length, vocabulary), where the inputs are."""
        with self._reading(inputs):
            logits = self.model_for(inputs)(**inputs.model_inputs(), use_cache=False).logits
        logits = logits.to(inputs.input_ids.device)  # A part of a model that is spread leaves them where its head is.
        for substitute, rows in substitutes(inputs.asked):
            logits[rows] = substitute.logits([inputs.asked[row].question for row in rows], inputs, rows).to(logits)
        return logits

    def states(self, inputs: Inputs, layer: int) -> Tensor:
        """States at a layer; the layers behind it do not run."""
        with self._reading(inputs):
            model = self.model_for(inputs)
            states = states_after(self.layers[layer], lambda: model(**inputs.model_inputs(), use_cache=False))
        if states is None:
            raise BackboneError(f"Layer {layer} of {self.name} did not run.")
        return states

    def logits_from(self, states: Tensor, layout: Layout, layer: int, wanted: Tensor) -> Tensor:
        """Logits from the states at a layer: only the layers behind it run.

        states: (batch, length, width), right-padded as `layout` says; wanted: (batch, length) booleans, the positions
        whose logits are wanted. Returns (wanted, vocabulary), row by row. Gradients flow into `states`. Not for two
        threads at once: the earlier layers are stood in for during the call.
        """
        if layer < self.first_edit_layer:
            raise BackboneError(
                f"{self.name} cannot be run from the states at layer {layer}: the first layers take the image in "
                f"once more. Choose an edit layer from {self.first_edit_layer} on."
            )
        with resumed_at(self.decoder, layer, states):
            arguments = self.decoder_arguments(layout, states)
            hidden = self.decoder(inputs_embeds=states, use_cache=False, **arguments).last_hidden_state
        return self.head(hidden[wanted.to(hidden.device)])

    def decoder_arguments(self, layout: Layout, states: Tensor) -> dict[str, Any]:
        """What the decoder takes besides embeddings."""
        arguments: dict[str, Any] = {"attention_mask": layout.attention_mask.to(states.device)}
        if layout.positions is not None:
            arguments["position_ids"] = layout.positions.to(states.device)
        return arguments

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of final hidden states."""
        return self.output_embeddings(hidden)

    def generate(
        self, inputs: Inputs, max_new_tokens: int = 32, *, beams: int = 1, sequences: int = 1, use_cache: bool = True
    ) -> list[str]:
        """Answers without sampling, until the model stops by itself or `max_new_tokens` are spent.

        Expects a left-padded batch without answers; raises `InvalidInputError` for one that has any. With `beams`,
        the `sequences` best of each question, question by question.
        """
        found = self.generate_tokens(inputs, max_new_tokens, beams=beams, sequences=sequences, use_cache=use_cache)
        return [text for text, _ in found]

    @torch.inference_mode()
    def generate_tokens(
        self,
        inputs: Inputs,
        max_new_tokens: int = 32,
        *,
        beams: int = 1,
        sequences: int = 1,
        use_cache: bool = True,
        **further: Any,
    ) -> list[tuple[str, tuple[int, ...] | None]]:
        """As `generate`, each answer with its tokens, those behind its end included; None where another answered.

        further: of the model's own generate(), such as logits_processor and stopping_criteria.
        """
        if bool(inputs.answer_mask.any()):
            raise InvalidInputError("Questions with answers were given to generate(). Encode them without.")
        with self._reading(inputs):
            output = self.model_for(inputs).generate(
                **inputs.model_inputs(),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=beams,
                num_return_sequences=sequences,
                use_cache=use_cache,
                # Some checkpoints ask for a penalty by default; greedy is the likeliest token, as in teacher forcing.
                repetition_penalty=1.0,
                pad_token_id=self.pad_token_id,
                # An image's token means nothing in an answer, and the model would want an image for it.
                suppress_tokens=None if self.image_token_id is None else [self.image_token_id],
                **further,
            )
        answers = output[:, inputs.input_ids.shape[1] :]
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        rows: list[tuple[str, tuple[int, ...] | None]] = [
            (self.spoken(text), tuple(tokens)) for text, tokens in zip(texts, answers.tolist(), strict=True)
        ]
        for substitute, places in substitutes(inputs.asked):
            answered = substitute.generate([inputs.asked[place].question for place in places], max_new_tokens)
            for place, text in zip(places, answered, strict=True):
                rows[place * sequences : (place + 1) * sequences] = [(text, None)] * sequences
        return rows

    @property
    def next_turn(self) -> str | None:
        """What the family's models write where the next turn would begin, if anything: an answer ends before it."""
        return None

    def spoken(self, text: str) -> str:
        """What of the generated text is the answer."""
        return (text.split(self.next_turn)[0] if self.next_turn else text).strip()

    def model_for(self, inputs: Inputs) -> Any:
        """The module that runs these inputs: the model itself, or the part of it that takes text alone."""
        return self.model

    @contextmanager
    def _reading(self, inputs: Inputs) -> Iterator[None]:
        """Lets editors know during a call which tokens are image, prompt and answer."""
        expected, found = self.expected_image_tokens(inputs.extras), int(inputs.image_mask.sum())
        if expected is not None and expected != found:
            raise InvalidInputError(
                f"The batch has {found} image tokens, but its images take {expected} in {self.name}. Make inputs "
                "with encode(), which places them."
            )
        before, self._now.inputs = self._now.inputs, inputs
        try:
            with prefixes_embedded(self.word_embeddings, inputs):
                yield
        finally:
            self._now.inputs = before


def _prefix_tokens(asked: PreparedQuestion) -> int:
    return 0 if asked.prefix is None else len(asked.prefix)
