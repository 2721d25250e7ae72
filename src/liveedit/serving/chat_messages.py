"""OpenAI's chat requests, restricted to what the model supports: one question about at most one image."""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from ..errors import InvalidInputError
from .decoding import SamplingParams
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


NONEMPTY_PATTERN: Final = r"[^\s\x00-\x1f\x85]"
"""Matches any text that is not blank. Python and JSON schemas read this pattern alike."""


def checked_prompt(text: str, settings: ServingSettings, param: str, *, empty_code: str = "invalid_value") -> str:
    """The text, after the checks that need no tokenizer; `ServedModel.check` counts its tokens later.

    param: the field of the request, for the message. Raises `RefusalError` if the text is blank, or longer than any
    text of `prompt_tokens` tokens.
    """
    if re.search(NONEMPTY_PATTERN, text) is None:
        raise RefusalError(400, f"{param}: this text is empty. Give some text.", empty_code, param)
    if len(text) > settings.prompt_characters:
        raise RefusalError(
            400,
            f"{param}: this text has {len(text):,} characters; at most {settings.prompt_tokens:,} tokens are accepted. "
            "Shorten it.",
            "prompt_too_long",
            param,
        )
    return text


def _whole(number: object) -> object:
    """5.0 and 5 are the same number in JSON."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _check_false(given: bool) -> bool:
    if given:
        raise ValueError("Only false is supported here")
    return given


_OnlyFalse = Annotated[bool, AfterValidator(_check_false), WithJsonSchema({"type": "boolean", "const": False})]
"""Unlike this, Literal[False] also accepts 0."""

WholeNumber = BeforeValidator(_whole)
"""For integers in requests: accepts 5.0 as 5."""

_Tokens = Annotated[int, Field(ge=1), WholeNumber]

Text = Annotated[str, AfterValidator(_writable)]
"""Text that can be written as UTF-8."""

_Stop = Annotated[Text, StringConstraints(min_length=1, max_length=_LONGEST_STOP)]


class RequestModel(BaseModel):
    """The base of request bodies: unknown fields are refused, and types are not converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ImageUrl(RequestModel):
    """An image as a data URI."""

    url: Text
    detail: Literal["auto"] | None = None


class Part(RequestModel):
    """A part of a message: text, or an image."""

    type: str
    text: Text | None = None
    image_url: ImageUrl | None = None


class ChatMessage(RequestModel):
    """A message of the user."""

    role: str
    content: Text | list[Part] | None = None


class StreamOptions(RequestModel):
    """How an answer is streamed. `include_obfuscation`, which pads chunks at OpenAI, is not supported."""

    include_usage: bool = False
    include_obfuscation: _OnlyFalse | None = None


class PlainText(RequestModel):
    """The only supported format: text."""

    type: Literal["text"]


class ChatRequest(RequestModel):
    """A request for a chat completion. Unsupported fields are accepted only with a value that has no effect."""

    model: Text
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    seed: Annotated[int, Field(ge=SEEDS[0], le=SEEDS[1]), WholeNumber] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=_MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Accepted only with values that have no effect:
    n: Annotated[int, Field(ge=1, le=1), WholeNumber] | None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: _OnlyFalse | None = None
    response_format: PlainText | None = None
    # These have no effect on the answer:
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    metadata: dict[str, Any] | None = None
    store: _OnlyFalse | None = None
    service_tier: Literal["auto", "default"] | None = None

    def question(self) -> tuple[str, str | None]:
        """The prompt, and the image's URI or None. Raises `RefusalError` for unsupported messages."""
        for place, message in enumerate(self.messages):
            if message.role != "user":
                raise _refused(
                    f"messages.{place}.role",
                    f"A message with the role {message.role!r} was given. This model answers single questions: it was "
                    "trained without system messages and earlier turns. Send one user message.",
                )
        if len(self.messages) > 1:
            raise _refused(
                "messages", f"{len(self.messages)} messages were given. This model answers single questions: send one."
            )
        return _split(self.messages[0])

    def sampling_params(self, settings: ServingSettings) -> SamplingParams:
        """How the answer is decoded. Raises `InvalidInputError` for more tokens than the settings allow."""
        asked = [given for given in (self.max_tokens, self.max_completion_tokens) if given is not None]
        if len(set(asked)) > 1:
            raise InvalidInputError("max_tokens and max_completion_tokens differ. Give one of them.")
        tokens = asked[0] if asked else settings.new_tokens
        if tokens > settings.new_tokens:
            raise InvalidInputError(
                f"max_tokens is {tokens:,}; at most {settings.new_tokens:,} are allowed. Ask for fewer."
            )
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return SamplingParams(tokens, self.temperature or 0.0, seed, stop)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


def _split(message: ChatMessage) -> tuple[str, str | None]:
    content = message.content
    if content is None or isinstance(content, str):
        return content or "", None
    texts: list[str] = []
    images: list[str] = []
    for place, part in enumerate(content):
        field = _FIELDS.get(part.type)
        given = {"text": part.text, "image_url": part.image_url}
        param = f"messages.0.content.{place}"
        if field is None:
            raise _refused(
                param, f"A part of the type {part.type!r} was given. Give parts of the types text and image_url."
            )
        if given.pop(field) is None or any(value is not None for value in given.values()):
            raise _refused(param, f"A part of the type {part.type!r} has the field {field!r} and no other. Give that.")
        if part.image_url is not None:
            images.append(part.image_url.url)
        elif part.text is not None:
            texts.append(part.text)
    if len(images) > 1:
        raise _refused(
            "messages.0.content", f"{len(images)} images were given; this model takes at most one. Send one."
        )
    return "\n".join(texts), images[0] if images else None


def _refused(param: str, message: str) -> RefusalError:
    return RefusalError(400, message, "not_supported", param)


_FIELDS: Final = {"text": "text", "image_url": "image_url"}
