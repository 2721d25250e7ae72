"""Language models that read text alone: Llama, Mistral, and every other causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from ...samples import Question
from ..backbone import Backbone
from .parts import Parts


class TextBackbone(Backbone):
    """A causal language model. Prompts go through its chat template if it has one, and are unchanged otherwise."""

    reads_images = False

    @classmethod
    def load_processor(cls, source: str, gguf_file: str | None = None) -> Any:
        """The tokenizer alone. gguf_file: the absolute path of the GGUF file in the folder `source` that has it."""
        options = {} if gguf_file is None else {"gguf_file": gguf_file}
        return Parts(AutoTokenizer.from_pretrained(source, **options), None, None)

    def prompt_text(self, question: Question) -> str:
        """The prompt in the chat format, or unchanged if the model has no chat template."""
        if not self.tokenizer.chat_template:
            return question.prompt
        messages = [{"role": "user", "content": question.prompt}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def process(self, texts: list[str], images: Sequence[Any]) -> tuple[list[list[int]], dict[str, Tensor]]:
        """Token ids."""
        return self.tokenize(texts), {}
