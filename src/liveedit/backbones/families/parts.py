"""For families whose own processor cannot be loaded without video libraries: its parts, and placeholders by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.utils import cached_file

from ...errors import BackboneError
from ..backbone import Backbone


@dataclass
class Parts:
    """Tokenizer, image processor and chat template, as a processor would hold them."""

    tokenizer: Any
    image_processor: Any
    chat_template: str | None

    def apply_chat_template(
        self, messages: list[dict[str, Any]], chat_template: str | None = None, **options: Any
    ) -> str:
        """The tokenizer's, with the processor's template where there is one and no other is given."""
        return self.tokenizer.apply_chat_template(
            messages, chat_template=chat_template or self.chat_template, **options
        )


def load_parts(source: str) -> Parts:
    """Load tokenizer, image processor and chat template from a folder or hub name."""
    template = _chat_template(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if template is None and not tokenizer.chat_template:
        raise BackboneError(f"{source} has no chat template, neither in chat_template.jinja nor with its tokenizer.")
    return Parts(tokenizer, AutoImageProcessor.from_pretrained(source), template)


def _chat_template(source: str) -> str | None:
    for name in ("chat_template.jinja", "chat_template.json"):
        file = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if file is not None:
            text = Path(file).read_text(encoding="utf-8")
            return text if name.endswith("jinja") else json.loads(text)["chat_template"]
    return None


class PlaceholderBackbone(Backbone):
    """A family whose images stand in the text as a marker, once for each image token."""

    marker: str
    """The text of one image token, as the chat template writes it."""

    @classmethod
    def load_processor(cls, source: str) -> Any:
        """Tokenizer, image processor and chat template, each by itself."""
        return load_parts(source)

    def process(self, texts: list[str], images: Sequence[Any]) -> tuple[list[list[int]], dict[str, Tensor]]:
        """Each marker becomes as many image tokens as its image takes."""
        extras: dict[str, Tensor] = {}
        if images:
            extras, counts = self.image_inputs(images)
            remaining = iter(counts)
            texts = [
                text.replace(self.marker, self.expanded(next(remaining))) if self.marker in text else text
                for text in texts
            ]
        return self.tokenize(texts), extras

    def image_inputs(self, images: Sequence[Any]) -> tuple[dict[str, Tensor], list[int]]:
        """What the model takes of the images, and how many image tokens each takes."""
        raise NotImplementedError

    def expanded(self, count: int) -> str:
        """The text that a marker becomes."""
        return self.marker * count
