"""Opening pictures: any source, any mode, upright, within a stated size."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ImageError
from .samples import ImageSource

MAX_PIXELS = 100_000_000
"""The largest picture that is opened, in pixels (about 10,000 x 10,000)."""


def open_image(source: ImageSource) -> Image.Image:
    """Open a picture as upright RGB on white.

    The EXIF orientation is applied, grey and palette pictures become RGB, transparency is laid on white,
    16-bit greys are scaled to 8 bits. Raises `ImageError` where the picture is missing, empty, truncated,
    no picture at all, or larger than `MAX_PIXELS`.
    """
    name = describe(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = source if isinstance(source, Image.Image) else Image.open(_stream(source, name))
            _check_size(image, name)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(name, str(error))) from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture that Pillow can read. Give a PNG, JPEG or WebP.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name} is damaged and could not be read to its end ({error}).") from error


def describe(source: ImageSource) -> str:
    """A short name of a picture for messages."""
    if isinstance(source, str | Path):
        return f"The picture {str(source)!r}"
    if isinstance(source, bytes):
        return f"The picture given as {len(source)} bytes"
    return "The picture given as a Pillow image"


def image_digest(image: Image.Image) -> str:
    """SHA-256 of the size and the RGB pixels, so that equal pictures in different files agree."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _stream(source: str | Path | bytes, name: str) -> Path | io.BytesIO:
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"{name}: there is nothing in it.")
        return io.BytesIO(source)
    if not isinstance(source, str | Path):
        raise ImageError(
            f"A picture was given as {type(source).__name__}. Give a path, bytes, or a Pillow image."
        )
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ImageError(f"{name} {what}. Give the path of an image file.")
    return path


def _check_size(image: Image.Image, name: str) -> None:
    pixels = image.width * image.height
    if pixels == 0:
        raise ImageError(f"{name} is {image.width} x {image.height} pixels: there is nothing in it.")
    if pixels > MAX_PIXELS:
        raise ImageError(_too_large(name, f"{image.width} x {image.height} pixels"))


def _too_large(name: str, size: str) -> str:
    return f"{name} is too large ({size}); at most {MAX_PIXELS:,} pixels are opened. Scale it down first."


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        low, high = (float(bound) for bound in image.getextrema())  # type: ignore[misc]
        if high > 255 or low < 0:
            span = max(high, 1.0) if low >= 0 else max(high - low, 1.0)
            shift = min(low, 0.0)
            image = image.convert("F").point(lambda value: value * (255.0 / span) - shift * 255.0 / span)
        return image.convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
