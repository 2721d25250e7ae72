"""Images of requests, given as data URIs."""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import Final

from PIL import Image

from ..errors import ImageError
from ..images import check_sides, open_image

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""The formats that are decoded. Pillow reads dozens of others, some of them rarely reviewed."""

MOST_ELONGATED: Final = 32
"""Greatest ratio of the sides, lower than elsewhere: several long images may wait at once."""

_SMALL_CHARACTERS, _SMALL_PIXELS = 2**17, 2**16
"""Below both limits, decoding takes less time than switching to another thread."""

_DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)


def image_pattern() -> str:
    """A regular expression for data URIs of images, for a JSON schema."""
    digit = "[A-Za-z0-9+/]"
    base64 = f"({digit}{{4}})*({digit}{{4}}|{digit}{{3}}=|{digit}{{2}}==)"
    return f"^data:image/({'|'.join(kind.lower() for kind in FORMATS)});base64,{base64}$"


def is_long(uri: str) -> bool:
    """Whether decoding this URI takes longer than switching to another thread."""
    return len(uri) > _SMALL_CHARACTERS


def is_small(data: bytes) -> bool:
    """Whether these bytes are a valid header of an image with few pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height <= _SMALL_PIXELS
    except Exception:  # For damaged bytes Pillow raises many types; `image_from` says what is wrong.
        return False


def image_of(uri: str, max_pixels: int) -> Image.Image:
    """The image of a data URI. Raises `ImageError` as `bytes_of` and `image_from` do."""
    return image_from(bytes_of(uri), max_pixels)


def bytes_of(uri: str) -> bytes:
    """The bytes of a data URI. Raises `ImageError` for any other URI, and for invalid base64."""
    start = _DATA_URI.match(uri)
    if start is None:
        raise ImageError(
            f"The image was given as {_shown(uri)!r}. Give it as a data URI, data:image/png;base64,...; this server "
            "fetches no URLs and opens no files."
        )
    try:
        return base64.b64decode(uri[start.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"The image's data URI is not base64 ({error}). Encode its bytes as base64.") from error


def image_from(data: bytes, max_pixels: int) -> Image.Image:
    """The image in these bytes, upright RGB on white.

    Raises `ImageError` if they are no image of `FORMATS` or are damaged, and if the image has more than `max_pixels`
    or is longer than 32 times its shorter side.
    """
    image = open_image(data, max_pixels=max_pixels, formats=FORMATS)
    check_sides(image, MOST_ELONGATED)
    return image


def _shown(uri: str) -> str:
    return uri if len(uri) <= 40 else uri[:40] + "..."
