"""How an edit is found, and how it is put into the prompt."""

from __future__ import annotations

import string
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..shared.separation import Calibrated, FalseFiring

WHOLE_PROMPTS: Final = 0.95
"""`prompt_threshold` where whole prompts are compared."""

_FIELDS = {"prompt", "answer", "question"}


class InContextConfig(BaseModel):
    """How an edit is found, and how it is put into the prompt.

    With `calibrated`, at the layer that is taken, the tokens of the questions alone are compared, without the chat
    template, those of names above all. Otherwise whole prompts are compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: str = Field(
        default="New fact: {prompt} {answer}\nPrompt: {question}",
        description="What is asked instead: the edit's {prompt} and {answer} before the {question}.",
    )
    demonstrations: str = Field(
        default="",
        description="Text before that: worked examples of copying, following and ignoring a new fact (paper: 32, for "
        "models that learn from examples).",
    )
    layer: int | None = Field(
        default=None,
        ge=0,
        description="Layer whose states are compared, from 0; None: by `calibrated`, or two thirds of the depth.",
    )
    image_threshold: float = Field(
        default=0.7, ge=-1, le=1, description="Cosine that the pooled states of both images must exceed."
    )
    prompt_threshold: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="Cosine that the pooled states of both prompts must exceed; None: by `calibrated`, or 0.95.",
    )
    calibrated: Calibrated = True
    false_firing: FalseFiring = 0.01

    @field_validator("template")
    @classmethod
    def _has_its_fields(cls, template: str) -> str:
        found = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        if found != _FIELDS:
            raise ValueError(f"the template has the fields {sorted(found)} and needs {sorted(_FIELDS)}")
        return template
