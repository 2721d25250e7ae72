"""OpenAI's chat requests, as far as a model can take them that answers one question about one image."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from ..errors import InvalidInputError
from .decoding import Style
from .error_responses import RefusalError
from .settings import ServingSettings

SEEDS = (-(2**63), 2**63 - 1)
_LONGEST_STOP = 256
_MOST_STOPS = 4


def _writable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("Holds half of a surrogate pair, which is no valid Unicode") from error
    return text


WITH_TEXT: Final = r"[^\s\x00-\x1f\x85]"
"""What a prompt has somewhere: a character that is no space. Read alike by Python and by JSON schemas."""


def is_empty(text: str) -> bool:
    """Whether nothing is written there."""
    return re.search(WITH_TEXT, text) is None


def _whole(number: object) -> object:
    """JSON does not tell 5.0 from 5."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _no(given: bool) -> bool:
    if given:
        raise ValueError("Only false is taken here")
    return given


_No = Annotated[bool, AfterValidator(_no), WithJsonSchema({"type": "boolean", "const": False})]
"""Literal[False] would take 0 as well."""

Whole = BeforeValidator(_whole)
"""For whole numbers of requests."""

_Tokens = Annotated[int, Field(ge=1), Whole]

Text = Annotated[str, AfterValidator(_writable)]
"""Text that can be written as UTF-8."""

_Stop = Annotated[Text, StringConstraints(min_length=1, max_length=_LONGEST_STOP)]


class RequestModel(BaseModel):
    """What a request holds: nothing is guessed at, no text is read as a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ImageUrl(RequestModel):
    """An image as a data URI."""

    url: Text
    detail: Literal["auto"] | None = None


class Part(RequestModel):
    """A piece of a message: text, or an image."""

    type: str
    text: Text | None = None
    image_url: ImageUrl | None = None


class ChatMessage(RequestModel):
    """A message of the user."""

    role: str
    content: Text | list[Part] | None = None


class StreamOptions(RequestModel):
    """How a streamed answer is sent. `include_obfuscation` pads chunks at OpenAI; here there is nothing to hide."""

    include_usage: bool = False
    include_obfuscation: _No | None = None


class ChatRequest(RequestModel):
    """A chat completion's request. Fields that this model cannot honour are refused, unless they ask for nothing."""

    model: Text
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    seed: Annotated[int, Field(ge=SEEDS[0], le=SEEDS[1]), Whole] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=_MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Taken where they ask for nothing:
    n: Annotated[int, Field(ge=1, le=1), Whole] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: _No | None = None
    response_format: PlainText | None = None
    # Of no consequence for the answer:
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    metadata: dict[str, Any] | None = None
    store: _No | None = None
    service_tier: Literal["auto", "default"] | None = None

    def question(self) -> tuple[str, str | None]:
        """The prompt, and the image's URI if there is one. Raises `RefusalError` for what the model cannot take."""
        for place, message in enumerate(self.messages):
            if message.role != "user":
                raise _refused(
                    f"messages.{place}.role",
                    f"A message of the role {message.role!r} was given. This model answers single questions: it was "
                    "trained without system messages and earlier turns, and would ignore them. Send one user message.",
                )
        if len(self.messages) > 1:
            raise _refused(
                "messages", f"{len(self.messages)} messages were given. This model answers single questions: send one."
            )
        return _split(self.messages[0])

    def style(self, settings: ServingSettings) -> Style:
        """How the answer is to be written. Raises `InvalidInputError` for more tokens than are written here."""
        asked = [given for given in (self.max_tokens, self.max_completion_tokens) if given is not None]
        if len(set(asked)) > 1:
            raise InvalidInputError("max_tokens and max_completion_tokens differ. Give one of them.")
        tokens = asked[0] if asked else settings.new_tokens
        if tokens > settings.new_tokens:
            raise InvalidInputError(f"max_tokens is {tokens:,}; at most {settings.new_tokens:,} are written here.")
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return Style(tokens, self.temperature or 0.0, seed, stop)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class PlainText(RequestModel):
    """The only format: text."""

    type: Literal["text"]


def _split(message: ChatMessage) -> tuple[str, str | None]:
    content = message.content
    if content is None or isinstance(content, str):
        return _full(content or ""), None
    texts: list[str] = []
    images: list[str] = []
    for place, part in enumerate(content):
        field = _FIELDS.get(part.type)
        given = {"text": part.text, "image_url": part.image_url}
        param = f"messages.0.content.{place}"
        if field is None:
            raise _refused(param, f"A part of the type {part.type!r} was given. Give text and image_url parts.")
        if given.pop(field) is None or any(value is not None for value in given.values()):
            raise _refused(param, f"A part of the type {part.type!r} takes the field {field!r}, and that alone.")
        if part.image_url is not None:
            images.append(part.image_url.url)
        elif part.text is not None:
            texts.append(part.text)
    if len(images) > 1:
        raise _refused("messages.0.content", f"{len(images)} images were given; this model looks at one at most.")
    return _full("\n".join(texts)), images[0] if images else None


def _full(prompt: str) -> str:
    if is_empty(prompt):
        raise _refused("messages.0.content", "The message has no text. Give a question.")
    return prompt


def _refused(param: str, message: str) -> RefusalError:
    return RefusalError(400, message, "not_supported", param)


_FIELDS: Final = {"text": "text", "image_url": "image_url"}

ChatRequest.model_rebuild()
