"""The images of questions: opened, and given to a model's image processor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from PIL import Image

from ..errors import ImageError, LiveEditError
from ..images import check_sides, open_image
from ..samples import Question


def opened_images(questions: Sequence[Question]) -> list[Image.Image]:
    """The images of those questions that have one. Raises `ImageError` for a bad one, or one that is a line."""
    images = [open_image(question.image) for question in questions if question.image is not None]
    for image in images:
        check_sides(image)
    return images


@contextmanager
def refusals_named(model: str, images: Sequence[Image.Image]) -> Iterator[None]:
    """Inside, an image that the model's image processor refuses raises `ImageError` with its size and the reason."""
    try:
        yield
    except LiveEditError:
        raise
    except (ValueError, ArithmeticError) as error:
        if not images:
            raise
        sizes = ", ".join(dict.fromkeys(f"{image.width:,} x {image.height:,}" for image in images))
        reason = str(error).strip().rstrip(".")
        raise ImageError(
            f"{model} cannot read the image ({sizes} pixels): {reason}. Crop it or change its size."
        ) from error
