"""For families whose processor needs video libraries: its parts are loaded one by one, and place the image tokens."""

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
        """Apply the given template, or the processor's, or the tokenizer's."""
        return self.tokenizer.apply_chat_template(
            messages, chat_template=chat_template or self.chat_template, **options
        )


def load_parts(source: str) -> Parts:
    """Load tokenizer, image processor and chat template from a folder or hub name."""
    template = _chat_template(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if template is None and not tokenizer.chat_template:
        raise BackboneError(
            f"{source} has no chat template, neither in chat_template.jinja nor with its tokenizer. Put its "
            "chat_template.jinja beside its weights."
        )
    return Parts(tokenizer, AutoImageProcessor.from_pretrained(source), template)


def _chat_template(source: str) -> str | None:
    for name in ("chat_template.jinja", "chat_template.json"):
        file = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if file is not None:
            text = Path(file).read_text(encoding="utf-8")
            return text if name.endswith("jinja") else json.loads(text)["chat_template"]
    return None


class PlaceholderBackbone(Backbone):
    """A family whose texts contain a marker in place of an image, once for each image token."""

    marker: str
    """The text of one image token, as the chat template writes it."""

    @classmethod
    def load_processor(cls, source: str) -> Any:
        """Load tokenizer, image processor and chat template one by one."""
        return load_parts(source)

    def process(self, texts: list[str], images: Sequence[Any]) -> tuple[list[list[int]], dict[str, Tensor]]:
        """Replace each marker by the image tokens of its image."""
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
        """What the model takes of the images, and the number of image tokens of each."""
        raise NotImplementedError

    def expanded(self, count: int) -> str:
        """The text that replaces a marker."""
        return self.marker * count
