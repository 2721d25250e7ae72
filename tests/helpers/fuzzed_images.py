"""Images of every kind, whole and broken, from a seed."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from functools import cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image

KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_MODES = {
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "L", "P", "1"),
}
_ORIENTATION = 0x0112
_SIZES = ((1, 1), (7, 5), (64, 64), (33, 200), (1, 3000), (500, 400))


def fuzzed_uri(chance: Random) -> str:
    """A data URI, mostly of something like an image."""
    data = fuzzed_image(chance)
    kind = chance.choice([*map(str.lower, KINDS), "svg+xml", "tiff", "x"])
    encoded = base64.b64encode(data).decode()
    if chance.random() < 0.05:
        place = chance.randrange(len(encoded) + 1)
        encoded = encoded[:place] + chance.choice(["=", "$", " ", "\n", "é", "-_", "\x00"]) + encoded[place:]
    return f"data:image/{kind};base64,{encoded}"


def fuzzed_image(chance: Random) -> bytes:
    """An image's file, which may be broken in several ways."""
    if chance.random() < 0.15:
        return chance.choice(BOMBS)(chance)
    data = bytearray(whole_image(chance))
    for _ in range(chance.choice([0, 1, 1, 2])):
        chance.choice([_flip, _flip, _cut, _insert, _repeat, _resize])(data, chance)
    return bytes(data)


def whole_image(chance: Random) -> bytes:
    """An image that is as it should be, however odd."""
    kind = chance.choice(KINDS)
    mode = chance.choice(_MODES[kind])
    size = chance.choice(_SIZES)
    options: dict[str, Any] = {}
    if kind in ("JPEG", "PNG", "WEBP") and chance.random() < 0.3:
        exif = Image.Exif()
        exif[_ORIENTATION] = chance.choice([*range(1, 9), 0, 9, 65535])
        options["exif"] = exif
    if kind in ("GIF", "PNG", "WEBP") and mode != "I;16" and chance.random() < 0.2:
        options |= {"save_all": True, "append_images": [_random_image(mode, size, chance) for _ in range(3)]}
    stream = io.BytesIO()
    _random_image(mode, size, chance).save(stream, kind, **options)
    return stream.getvalue()


def _random_image(mode: str, size: tuple[int, int], chance: Random) -> Image.Image:
    random = np.random.default_rng(chance.randrange(2**32))
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 2**16, (size[1], size[0]), dtype=np.uint16))
    blocks = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(blocks).convert(mode)


# -- how a file is broken --------------------------------------------------------------------------------


def _flip(data: bytearray, chance: Random) -> None:
    for _ in range(chance.choice([1, 1, 3, 20])):
        if data:
            # Often in the head, where most of the meaning is.
            place = chance.randrange(min(len(data), chance.choice([32, 200, len(data)])))
            data[place] ^= 1 << chance.randrange(8)


def _cut(data: bytearray, chance: Random) -> None:
    del data[chance.randrange(len(data) + 1) :]


def _insert(data: bytearray, chance: Random) -> None:
    place = chance.randrange(len(data) + 1)
    data[place:place] = chance.randbytes(chance.choice([1, 4, 100]))


def _repeat(data: bytearray, chance: Random) -> None:
    place = chance.randrange(len(data) + 1)
    data[place:place] = data[place : place + chance.choice([4, 50, 500])]


def _resize(data: bytearray, chance: Random) -> None:
    """Another size in the head, with a right checksum where there is one."""
    width, height = (chance.choice([0, 1, 255, 3000, 50_000, 2**31 - 1, 2**32 - 1]) for _ in range(2))
    if data.startswith(b"\x89PNG") and len(data) > 33:
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif data.startswith(b"BM") and len(data) > 26:
        data[18:26] = struct.pack("<II", width, height)
    elif data.startswith(b"GIF") and len(data) > 10:
        data[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)


# -- small files that say or hold much -------------------------------------------------------------------


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (header, *chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _large_png(chance: Random) -> bytes:
    side = chance.choice([3_900, 4_100, 20_000, 65_535, 2**31 - 1])
    return _png(side, side, (b"IDAT", zlib.compress(bytes(chance.choice([1_000, 10_000_000])))))


def _png_of_much_text(chance: Random) -> bytes:
    """Text and colour profiles are compressed, too."""
    much = _much()
    chunk = chance.choice([(b"zTXt", b"k\0\0" + much), (b"iTXt", b"k\0\1\0\0\0" + much), (b"iCCP", b"k\0\0" + much)])
    return _png(2, 2, chunk, (b"IDAT", zlib.compress(b"\0" * 14)))


@cache
def _much() -> bytes:
    return zlib.compress(bytes(40_000_000))


def _large_gif(chance: Random) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02\x44\x01\x00;"


def _large_bmp(chance: Random) -> bytes:
    side = chance.choice([4_100, 30_000, 2**31 - 1])
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, -side, 1, 24, *[0] * 6)


def _many_frames(chance: Random) -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("P", (300, 300), number % 256) for number in range(200)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


BOMBS = (_large_png, _png_of_much_text, _large_gif, _large_bmp, _many_frames)
