"""Images of edits as they are stored: PNG without metadata, and small copies to show."""

from __future__ import annotations

import io
from typing import Final

from PIL import Image, UnidentifiedImageError

from ..errors import ImageError
from ..images import image_digest, open_image

THUMBNAIL_PIXELS: Final = 128
"""The longest side of a thumbnail, in pixels: enough to recognise the image, too little to reuse it."""


def thumbnail_png(image: Image.Image) -> bytes:
    """The image as PNG without metadata, scaled down to at most `THUMBNAIL_PIXELS` wide and high."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return image_png(small)


def image_png(image: Image.Image) -> bytes:
    """The image as PNG in full size, without metadata."""
    bare = image.convert("RGB")
    bare.info = {}
    stream = io.BytesIO()
    bare.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def check_thumbnail(thumbnail: bytes) -> None:
    """Raise `ImageError` unless this is a PNG of at most `THUMBNAIL_PIXELS` wide and high."""
    advice = "Make one with `thumbnail_png`."
    try:
        with Image.open(io.BytesIO(thumbnail), formats=("PNG",)) as image:
            size = image.size
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ImageError(f"The thumbnail of {len(thumbnail)} bytes is not a PNG. {advice}") from error
    if max(size) > THUMBNAIL_PIXELS:
        raise ImageError(
            f"The thumbnail is {size[0]} x {size[1]} pixels; at most {THUMBNAIL_PIXELS} x {THUMBNAIL_PIXELS} "
            f"are stored. {advice}"
        )


def check_image(image: bytes, image_sha256: str | None) -> None:
    """Raise `ImageError` unless this opens as the image with this digest."""
    if image_digest(open_image(image)) != image_sha256:
        raise ImageError(
            f"The image of {len(image)} bytes is not the one that the edit was made with: its digest differs. "
            "Give the image of the edit, and its digest as `image_sha256`."
        )
