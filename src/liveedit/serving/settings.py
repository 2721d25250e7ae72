"""What a service allows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ServingSettings(BaseModel):
    """The limits of a service. Whatever is over one is refused, with the limit in the message."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    body_bytes: int = Field(8 * 2**20, ge=1024, description="Largest request body, in bytes.")
    body_seconds: float = Field(30.0, gt=0, description="Longest time for a body to arrive, in seconds.")
    image_pixels: int = Field(16_000_000, ge=1, description="Largest image, in pixels.")
    prompt_tokens: int = Field(
        1024, ge=1, description="Longest prompt, in tokens of text; those of the image are free."
    )
    new_tokens: int = Field(256, ge=1, description="Longest answer, in tokens; also where a request names none.")
    rephrasings: int = Field(16, ge=0, description="Most rephrasings that an edit is checked on.")
    locality: int = Field(16, ge=0, description="Most questions that an edit should leave alone and is checked on.")
    probe_edits: int = Field(8, ge=0, description="Most edits in force that are asked again when one is made.")
    batch: int = Field(64, ge=1, description="Most questions that are answered at once.")
    workers: int | None = Field(
        None, ge=1, description="Batches that are answered side by side; one by default but for small models."
    )
    queue: int = Field(256, ge=1, description="Most requests that wait for the model.")
    queue_pixels: int = Field(
        128_000_000, ge=1, description="Most pixels of all waiting images (three bytes each); one may always wait."
    )
    queue_seconds: float = Field(30.0, gt=0, description="Longest wait for the model, in seconds.")
    answer_seconds: float = Field(60.0, gt=0, description="Longest time for an answer once begun, in seconds.")
    requests: int = Field(512, ge=1, description="Most requests in progress, those whose body still arrives included.")
    kept_idempotency_keys: int = Field(
        10_000, ge=1, description="For how many further changes of the edits an idempotency key is remembered."
    )

    allow_images_from: tuple[str, ...] = Field(
        (), description="Beginnings of URLs that images may be fetched from; none are by default."
    )
    fetch_seconds: float = Field(10.0, gt=0, description="Longest time for fetching an image, in seconds.")

    @property
    def prompt_characters(self) -> int:
        """The longest prompt that is looked at: far above any that has `prompt_tokens`, so that counting is cheap."""
        return 32 * self.prompt_tokens
