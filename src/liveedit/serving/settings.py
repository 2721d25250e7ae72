"""The limits of a service. `liveedit serve` has one option for each of them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ServingSettings(BaseModel):
    """The limits of a service. A request above a limit is refused, and the message names the limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes: int = Field(8 * 2**20, ge=1024, description="Largest request body, in bytes.")
    body_seconds: float = Field(30.0, gt=0, description="Longest time for a body to arrive, in seconds.")
    image_pixels: int = Field(16_000_000, ge=1, description="Largest image, in pixels.")
    prompt_tokens: int = Field(1024, ge=1, description="Longest prompt, in tokens of text; image tokens do not count.")
    new_tokens: int = Field(
        256, ge=1, description="Longest answer, in tokens; also the default of requests without max_tokens."
    )
    rephrasings: int = Field(16, ge=0, description="Most rephrasings that an edit is tried on.")
    locality: int = Field(16, ge=0, description="Most locality questions that an edit is tried on.")
    probe_edits: int = Field(8, ge=0, description="Most active edits that are asked again when an edit is made.")
    batch: int = Field(64, ge=1, description="Most questions answered at once, by all workers together.")
    workers: int | None = Field(
        None,
        ge=1,
        description="Worker threads, each with its own batch; by default 1, more for a small model on a CPU. "
        "Always 1 for an editor that is not thread-safe.",
    )
    queue: int = Field(256, ge=1, description="Most requests waiting for the model.")
    queue_pixels: int = Field(
        128_000_000, ge=1, description="Most pixels of all waiting images; a single image may always wait."
    )
    queue_seconds: float = Field(30.0, gt=0, description="Longest wait for the model, in seconds.")
    answer_seconds: float = Field(60.0, gt=0, description="Longest time for generating an answer, in seconds.")
    requests: int = Field(512, ge=1, description="Most requests in progress, including those whose body is arriving.")
    kept_idempotency_keys: int = Field(
        10_000, ge=1, description="Number of later changes for which an Idempotency-Key is remembered."
    )
    allow_images_from: tuple[str, ...] = Field(
        (), description="Fetch images of requests from below this URL; may be given several times."
    )
    fetch_seconds: float = Field(10.0, gt=0, description="Longest time for fetching an image, in seconds.")

    @property
    def prompt_characters(self) -> int:
        """Prompts with more characters are refused without tokenizing: far more than `prompt_tokens` tokens need."""
        return 32 * self.prompt_tokens
