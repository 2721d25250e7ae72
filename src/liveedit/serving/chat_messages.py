"""OpenAI's chat requests, as far as a model can take them that answers one question about one picture."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from ..errors import InvalidInputError
from .problems import RefusalError
from .settings import ServingSettings
from .writing import Style

_LONGEST_STOP = 256
_MOST_STOPS = 4


def _writable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("Holds half of a surrogate pair, which is no valid Unicode") from error
    return text


Text = Annotated[str, AfterValidator(_writable)]
"""Text that can be written as UTF-8."""

_Stop = Annotated[Text, StringConstraints(min_length=1, max_length=_LONGEST_STOP)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageUrl(_Model):
    """A picture as a data URI."""

    url: Text
    detail: Literal["auto"] | None = None


class Part(_Model):
    """A piece of a message: text, or a picture."""

    type: str
    text: Text | None = None
    image_url: ImageUrl | None = None


class ChatMessage(_Model):
    """A message of the user."""

    role: str
    content: Text | list[Part] | None = None


class StreamOptions(_Model):
    """How a streamed answer is sent. `include_obfuscation` pads chunks at OpenAI; here there is nothing to hide."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ChatRequest(_Model):
    """A chat completion's request. Fields that this model cannot honour are refused, unless they ask for nothing."""

    model: Text
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=_MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Taken where they ask for nothing:
    n: Literal[1] | None = None
    top_p: Literal[1] | Annotated[float, Field(ge=1, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    response_format: PlainText | None = None
    # Of no consequence for the answer:
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    metadata: dict[str, Any] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None

    def question(self) -> tuple[str, str | None]:
        """The prompt, and the picture's URI if there is one. Raises `RefusalError` for what the model cannot take."""
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


class PlainText(_Model):
    """The only format: text."""

    type: Literal["text"]


def _split(message: ChatMessage) -> tuple[str, str | None]:
    content = message.content
    if content is None or isinstance(content, str):
        return _full(content or ""), None
    texts: list[str] = []
    pictures: list[str] = []
    for place, part in enumerate(content):
        field = _FIELDS.get(part.type)
        given = {"text": part.text, "image_url": part.image_url}
        param = f"messages.0.content.{place}"
        if field is None:
            raise _refused(param, f"A part of the type {part.type!r} was given. Give text and image_url parts.")
        if given.pop(field) is None or any(value is not None for value in given.values()):
            raise _refused(param, f"A part of the type {part.type!r} takes the field {field!r}, and that alone.")
        if part.image_url is not None:
            pictures.append(part.image_url.url)
        elif part.text is not None:
            texts.append(part.text)
    if len(pictures) > 1:
        raise _refused("messages.0.content", f"{len(pictures)} pictures were given; this model looks at one at most.")
    return _full("\n".join(texts)), pictures[0] if pictures else None


def _full(prompt: str) -> str:
    if not prompt.strip():
        raise _refused("messages.0.content", "The message has no text. Give a question.")
    return prompt


def _refused(param: str, message: str) -> RefusalError:
    return RefusalError(400, message, "not_supported", param)


_FIELDS: Final = {"text": "text", "image_url": "image_url"}

ChatRequest.model_rebuild()
