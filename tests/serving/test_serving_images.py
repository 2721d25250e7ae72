"""Damaged and strange images: an `ImageError`, whatever is wrong with them."""

from __future__ import annotations

import base64
import io
import random

import numpy as np
import pytest
from PIL import Image

from liveedit.errors import ImageError
from liveedit.serving.images import FORMATS, bytes_of, image_of, is_long, is_small

LIMIT = 10_000


def uri_of(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


@pytest.mark.parametrize("size", [(1, 33), (9_900, 1)])
def test_lines_of_pixels_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="32 times"):
        image_of(uri_of(Image.new("RGB", size)), LIMIT)
    assert image_of(uri_of(Image.new("RGB", (32, 1))), LIMIT).size == (32, 1)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_images_are_refused_or_read_but_break_nothing(kind: str) -> None:
    random = np.random.default_rng(5)
    stream = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(stream, kind)
    whole = stream.getvalue()
    refused = 0
    for _ in range(150):
        data = bytearray(whole[: random.integers(1, len(whole) + 1)])
        for place in random.integers(0, len(data), random.integers(0, 8)):
            data[place] = random.integers(0, 256)
        uri = f"data:image/{kind.lower()};base64,{base64.b64encode(bytes(data)).decode()}"
        try:
            picture = image_of(uri, LIMIT)
        except ImageError:
            refused += 1
        else:
            assert picture.mode == "RGB" and picture.width * picture.height <= LIMIT
    assert refused > 0
    assert image_of(f"data:image/png;base64,{base64.b64encode(whole).decode()}", LIMIT).size == (24, 24)


def test_only_small_images_are_decoded_without_another_thread() -> None:
    def flat(side: int) -> bytes:
        return bytes_of(uri_of(Image.new("RGB", (side, side), "red")))

    assert is_small(flat(256)) and not is_small(flat(257))
    assert not is_small(flat(3000)), "few bytes, many pixels"
    noise = Image.frombytes("RGB", (250, 250), random.Random(0).randbytes(250 * 250 * 3))
    assert is_long(uri_of(noise)) and not is_long(uri_of(Image.new("RGB", (257, 257), "red")))
    assert not is_small(b"") and not is_small(b"\0\0\0"), "damaged"
    for uri in ("/etc/passwd", "data:image/png;base64,?"):
        with pytest.raises(ImageError):
            bytes_of(uri)
