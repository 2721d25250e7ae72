"""BLIP-2 and MiniGPT-4: a Q-Former's queries are the image tokens. Text alone goes to the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ...errors import BackboneError
from ...samples import Question
from ..backbone import Backbone
from ..tokens import TokenBatch

BLIP2_PROMPT = "Question: {} Answer:"
"""BLIP-2's prompt for questions: https://arxiv.org/abs/2301.12597, section 4.1."""

MINIGPT4_CHAT_TEMPLATE = (
    "{% for message in messages %}###Human:"
    "{% for part in message.content %}{% if part.type == 'image' %} <Img><image></Img>{% endif %}{% endfor %}"
    "{% for part in message.content %}{% if part.type == 'text' %} {{ part.text }}{% endif %}{% endfor %}"
    "###Assistant:{% endfor %}"
)
"""MiniGPT-4's prompt: https://arxiv.org/abs/2304.10592, section 3.2."""
_NEXT_TURN = "###"


class Blip2Backbone(Backbone):
    """BLIP-2 with OPT, and MiniGPT-4: the same class with a Llama and a chat template."""

    marker = "<image>"

    def __init__(self, name: str, model: PreTrainedModel, processor: Any):
        super().__init__(name, model, processor)
        if self.image_token_id is None:
            raise BackboneError(
                f"The config.json of {name} has no image_token_index, as in BLIP-2's first revisions. Use a newer "
                f"revision, or set it to the tokenizer's id of {self.marker}."
            )

    def prompt_text(self, question: Question) -> str:
        """By the tokenizer's chat template (MiniGPT-4), or BLIP-2's own prompt after the image."""
        parts = [{"type": "image"}] if question.image is not None else []
        if not self.tokenizer.chat_template:
            return self.marker * len(parts) + BLIP2_PROMPT.format(question.prompt)
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question.prompt}]}]
        return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def process(self, texts: list[str], images: Sequence[Any]) -> tuple[list[list[int]], dict[str, Tensor]]:
        """Query tokens in place of the marker. At the beginning they precede the start token, as BLIP-2 was trained."""
        ids = []
        for text in texts:
            before = [self.image_token_id] * self._queries if text.startswith(self.marker) else []
            text = text.removeprefix(self.marker).replace(self.marker, self.marker * self._queries)
            ids.append(before + self.tokenize([text])[0])
        if not images:
            return ids, {}
        return ids, {"pixel_values": self.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]}

    @property
    def next_turn(self) -> str | None:
        """MiniGPT-4's Vicuna goes on to write the marker of the next turn."""
        return _NEXT_TURN if self.tokenizer.chat_template else None

    def expected_image_tokens(self, extras: Mapping[str, Tensor]) -> int | None:
        """The number of the Q-Former's queries. The model itself would silently ignore an image that does not fit."""
        return len(extras["pixel_values"]) * self._queries if "pixel_values" in extras else 0

    def model_for(self, inputs: TokenBatch) -> Any:
        """The language model for text alone: BLIP-2's own forward needs an image."""
        return self.model if inputs.extras else self.model.language_model

    @property
    def _queries(self) -> int:
        return int(self.model.config.num_query_tokens)
