"""Images of requests: data URIs, and nothing else."""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import Final

from PIL import Image

from ..errors import ImageError
from ..images import open_image

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is decoded: Pillow reads dozens of others, some of them rarely looked at."""

LONGEST: Final = 32
"""Processors of images enlarge the shorter side to their own size: a line of pixels would take all memory."""

_QUICK_CHARACTERS, _QUICK_PIXELS = 2**17, 2**16
"""What is decoded sooner than it is handed to another thread."""

_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)


def image_pattern() -> str:
    """What the URI of an image looks like, for a JSON schema."""
    digit = "[A-Za-z0-9+/]"
    base64 = f"({digit}{{4}})*({digit}{{4}}|{digit}{{3}}=|{digit}{{2}}==)"
    return f"^data:image/({'|'.join(kind.lower() for kind in FORMATS)});base64,{base64}$"


def is_quick(uri: str) -> bool:
    """Whether this is a small image, or none at all: `image_of` takes no longer for it than a change of threads."""
    start = _DATA_URI.match(uri)
    if start is None:
        return True
    if len(uri) > _QUICK_CHARACTERS:
        return False
    try:
        with Image.open(io.BytesIO(base64.b64decode(uri[start.end() :], validate=True)), formats=FORMATS) as image:
            return image.width * image.height <= _QUICK_PIXELS
    except Exception:  # Pillow's plugins raise a dozen types for damaged bytes; `image_of` says what is wrong.
        return False


def image_of(uri: str, max_pixels: int) -> Image.Image:
    """The image of a data URI, upright RGB on white.

    Raises `ImageError` for any other kind of URI (nothing is fetched, no file is opened), for what is no base64, and
    for what is no image, damaged, larger than `max_pixels`, or no more than a line.
    """
    start = _DATA_URI.match(uri)
    if start is None:
        raise ImageError(
            f"The image was given as {_shown(uri)!r}. Give it as a data URI, data:image/png;base64,...; this server "
            "fetches no URLs and opens no files."
        )
    try:
        data = base64.b64decode(uri[start.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"The image's data URI is not base64 ({error}). Encode its bytes as base64.") from error
    return image_from(data, max_pixels)


def image_from(data: bytes, max_pixels: int) -> Image.Image:
    """The image of a file's bytes. Raises as `image_of` does."""
    image = open_image(data, max_pixels=max_pixels, formats=FORMATS)
    if max(image.size) > LONGEST * min(image.size):
        raise ImageError(
            f"The image is {image.width:,} x {image.height:,} pixels; its longer side may be {LONGEST} times the "
            "shorter one at most. Cut it."
        )
    return image


def _shown(uri: str) -> str:
    return uri if len(uri) <= 40 else uri[:40] + "..."
