"""Open images from any source and in any mode, as upright RGB of limited size."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import ImageError
from .samples import ImageSource

MAX_PIXELS = 100_000_000
"""The largest image that is opened, in pixels (about 10,000 x 10,000)."""

MOST_ELONGATED: Final = 200
"""The greatest ratio of the sides of an image that a model is asked about. Image processors enlarge the shorter side
to their own size, so a line of pixels would take all memory."""

_VECTOR_FORMATS: Final = ("EPS", "WMF", "EMF")
"""Vector formats, which Pillow renders by running another program: unsafe for files from outside."""

_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that turns an image upright, by its EXIF orientation."""


def open_image(
    source: ImageSource, *, max_pixels: int | None = None, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """Open an image as upright RGB on white.

    The EXIF orientation is applied. Grey, palette and CMYK images become RGB. Transparent pixels are blended with
    white. Of an animation the first frame is used. 16-bit grey values are divided by 257, so equal values look equal
    in every image. 32-bit grey values, which have no fixed range, are stretched to 0..255 only if they exceed it.
    Floating-point grey values within 0..1 are fractions of white. Damaged metadata are ignored if the pixels are whole.

    max_pixels: the largest image that is decoded, `MAX_PIXELS` by default. formats: the Pillow formats that are
    accepted, all by default.

    Raises `ImageError` if the image is missing, empty, truncated, not an image, or larger than `max_pixels`.
    """
    name = describe(source)
    with warnings.catch_warnings(), _stream(source, name) as stream:
        # Pillow warns about large sizes, which are checked below, and about odd metadata, which do not matter.
        warnings.simplefilter("ignore")
        decoded = _decoded(stream, name, MAX_PIXELS if max_pixels is None else max_pixels, formats)
        image = _to_rgb(_upright(decoded))
    # The orientation is applied already. If it stayed here, the next call would apply it again.
    image.info = {}
    return image


def check_sides(image: Image.Image, most: int = MOST_ELONGATED) -> None:
    """Raise `ImageError` if the longer side of an image has more than `most` times the length of the shorter one."""
    if max(image.size) > most * min(image.size):
        raise ImageError(
            f"The image is {image.width:,} x {image.height:,} pixels; its longer side may be at most "
            f"{most} times the shorter one. Crop it."
        )


def describe(source: ImageSource) -> str:
    """A short name of an image for messages."""
    if isinstance(source, str | Path):
        return f"The image {str(source)!r}"
    if isinstance(source, bytes):
        return f"The image given as {len(source)} bytes"
    return "The image given as a Pillow image"


def image_digest(image: Image.Image) -> str:
    """SHA-256 of the size and the RGB pixels: equal images in different files have the same digest."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _stream(source: ImageSource, name: str) -> AbstractContextManager[BinaryIO | Image.Image]:
    if isinstance(source, Image.Image):
        return nullcontext(source)
    if isinstance(source, str | Path):
        return _opened(Path(source), name)
    if isinstance(source, list | tuple):
        raise ImageError(f"{len(source)} images were given for one question, which takes one or none. Give one.")
    if not isinstance(source, bytes):
        raise ImageError(f"An image was given as {type(source).__name__}. Give a path, bytes, or a Pillow image.")
    if not source:
        raise ImageError(f"{name} is empty. Give the bytes of an image file.")
    return io.BytesIO(source)


def _opened(path: Path, name: str) -> BinaryIO:
    advice = "Give the path of an image file."
    try:
        stream = path.open("rb")
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist. {advice}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder. {advice}") from error
    except (OSError, ValueError) as error:
        # ValueError: a path with a zero byte.
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} cannot be opened ({reason}). {advice}") from error
    if os.fstat(stream.fileno()).st_size == 0:
        stream.close()
        raise ImageError(f"{name} is empty. {advice}")
    return stream


def _decoded(
    stream: BinaryIO | Image.Image, name: str, max_pixels: int, formats: tuple[str, ...] | None
) -> Image.Image:
    try:
        image = stream if isinstance(stream, Image.Image) else Image.open(stream, formats=formats)
        if image.format in _VECTOR_FORMATS:
            raise ImageError(f"{name} is a drawing ({image.format}). Give a PNG, JPEG or WebP.")
        _check_size(image, name, max_pixels)
        image.load()
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, str(error), max_pixels)) from error
    except UnidentifiedImageError as error:
        readable = "Pillow can read" if formats is None else f"is read here ({', '.join(formats)})"
        raise ImageError(f"{name} is not an image that {readable}. Give a PNG, JPEG or WebP.") from error
    except Exception as error:
        # Pillow's plugins raise a dozen types for damaged bytes (OSError, SyntaxError, RuntimeError, ...).
        raise ImageError(f"{name} is damaged and could not be read to its end ({error}).") from error
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # Unreadable metadata: assume that the image is upright.
        turn = None
    return image if turn is None else image.transpose(turn)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels == 0:
        raise ImageError(f"{name} is {image.width} x {image.height} pixels: there is nothing in it.")
    if pixels > max_pixels:
        raise ImageError(_too_large(name, f"{image.width} x {image.height} pixels", max_pixels))


def _too_large(name: str, size: str, max_pixels: int) -> str:
    return f"{name} is too large ({size}); at most {max_pixels:,} pixels are opened. Scale it down first."


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _grey_to_rgb(image)
    if image.mode == "La":
        image = image.convert("LA")  # Pillow cannot convert premultiplied grey to RGBA directly.
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    """Convert 16-bit, 32-bit or floating-point grey; `open_image` describes the ranges."""
    # Pillow opens a 16-bit PGM as 32 bits, scaled to 0..65535.
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    values = np.asarray(image.convert("I") if sixteen_bits else image, dtype=np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = min(float(values.min()), 0.0), float(values.max())
    if sixteen_bits:
        values = values / 257.0
    elif image.mode == "F" and low == 0.0 and high <= 1.0:
        values = values * 255.0
    elif low < 0.0 or high > 255.0:
        values = (values - low) * 255.0 / (high - low)
    return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")
