import contextlib
import gc
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liveedit import images
from liveedit.errors import ImageError
from liveedit.images import image_digest, open_image

ORIENTATION = 0x0112
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixels(image: Image.Image) -> list[list[tuple[int, ...]]]:
    return [[tuple(map(int, pixel)) for pixel in row] for row in np.asarray(image)]


def two_by_three() -> Image.Image:
    """Red and green above, blue and white in the middle, black and black below."""
    rows = [[RED, GREEN], [BLUE, WHITE], [(0, 0, 0), (0, 0, 0)]]
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def noise(height: int = 24, width: int = 32) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("orientation", "top_left_of_the_upright", "size"),
    # EXIF 2.32, tag 274: where the stored 0th row and 0th column lie in the upright picture.
    [
        (1, "RG", (2, 3)),
        (2, "GR", (2, 3)),  # row: top, column: right
        (3, "kk", (2, 3)),  # bottom, right
        (4, "kk", (2, 3)),  # bottom, left
        (5, "RBk", (3, 2)),  # left, top
        (6, "kBR", (3, 2)),  # right, top
        (7, "kWG", (3, 2)),  # right, bottom
        (8, "GWk", (3, 2)),  # left, bottom
    ],
)
def test_exif_orientation_is_applied_once(orientation, top_left_of_the_upright, size):
    names = {"R": RED, "G": GREEN, "B": BLUE, "W": WHITE, "k": (0, 0, 0)}
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    upright = open_image(encoded(two_by_three(), "PNG", exif=exif))
    assert upright.size == size
    assert pixels(upright)[0] == [names[letter] for letter in top_left_of_the_upright]
    assert pixels(open_image(upright)) == pixels(upright)


def test_orientation_of_a_pillow_image_and_of_a_jpeg_file(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    (tmp_path / "phone.jpg").write_bytes(encoded(noise(24, 32), "JPEG", exif=exif))
    assert open_image(tmp_path / "phone.jpg").size == (24, 32)
    with Image.open(tmp_path / "phone.jpg") as image:
        assert open_image(image).size == (24, 32)


def test_damaged_exif_does_not_spoil_whole_pixels():
    clean = encoded(noise(), "JPEG")
    spoilt = encoded(noise(), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x09garbage")
    assert pixels(open_image(spoilt)) == pixels(open_image(clean))


@pytest.mark.parametrize("as_path", [True, False])
def test_file_bytes_and_text_path_agree(tmp_path, as_path):
    file = tmp_path / "Schildkröte 1.png"
    noise().save(file)
    source = file if as_path else str(file)
    assert image_digest(open_image(source)) == image_digest(open_image(file.read_bytes()))
    assert open_image(source).mode == "RGB"


def test_grey_one_bit_and_palette_become_rgb():
    grey = Image.new("L", (2, 1))
    grey.putpixel((1, 0), 130)
    assert pixels(open_image(encoded(grey, "PNG"))) == [[(0, 0, 0), (130, 130, 130)]]
    one_bit = Image.new("1", (1, 1), 1)
    assert pixels(open_image(encoded(one_bit, "PNG"))) == [[WHITE]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([*BLUE, *RED])
    palette.putpixel((1, 0), 1)
    assert pixels(open_image(encoded(palette, "PNG"))) == [[BLUE, RED]]
    assert pixels(open_image(encoded(palette, "GIF"))) == [[BLUE, RED]]
    assert pixels(open_image(encoded(palette, "PNG", transparency=b"\xff\x00"))) == [[BLUE, WHITE]]


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 51, 255)):
        image.putpixel((x, 0), (*RED, alpha))
    # 255 * (1 - alpha) + value * alpha, with alpha = 0, 0.2, 1.
    assert pixels(open_image(encoded(image, "PNG"))) == [[WHITE, (255, 204, 204), RED]]
    grey = Image.new("LA", (1, 1), (0, 51))
    assert pixels(open_image(encoded(grey, "PNG"))) == [[(204, 204, 204)]]
    assert pixels(open_image(Image.new("La", (1, 1), (0, 51)))) == [[(204, 204, 204)]]
    keyed = encoded(Image.new("RGB", (1, 1), GREEN), "PNG", transparency=GREEN)
    assert pixels(open_image(keyed)) == [[WHITE]]


def test_cmyk_becomes_rgb():
    cyan = open_image(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "TIFF"))
    assert pixels(cyan)[0][0] == (0, 255, 255)
    jpeg = open_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(np.asarray(jpeg, dtype=int)[8, 8] - RED).max() <= 4


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_divided_by_257_whatever_else_is_there(format):
    values = np.array([[0, 257, 0x8080, 0x0FFF]], dtype=np.uint16)
    dim = open_image(encoded(Image.fromarray(values), format))
    assert np.asarray(dim)[0, :, 0].tolist() == [0, 1, 128, 16]  # 4095 / 257 = 15.93


def test_sixteen_bits_of_either_byte_order():
    big_endian = Image.frombytes("I;16B", (2, 1), b"\x80\x80\xff\xff")
    assert np.asarray(open_image(big_endian))[0, :, 0].tolist() == [128, 255]


def test_thirty_two_bits_and_floating_point():
    def grey(values: list[float], kind: type) -> list[int]:
        return np.asarray(open_image(Image.fromarray(np.array([values], dtype=kind))))[0, :, 0].tolist()

    assert grey([0, 7, 255], np.int32) == [0, 7, 255]
    assert grey([0, 500, 1000], np.int32) == [0, 128, 255]
    assert grey([-100, 0, 100], np.int32) == [0, 128, 255]
    assert grey([0.0, 0.2, 1.0], np.float32) == [0, 51, 255]
    assert grey([0.0, 51.0, 255.0], np.float32) == [0, 51, 255]
    assert grey([0.0, float("nan"), 1.0], np.float32) == [0, 0, 255]


def test_first_frame_of_an_animation_and_no_file_left_open(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (BLUE, RED)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert pixels(open_image(tmp_path / "moving.gif"))[0][0] == BLUE
    (tmp_path / "cut.png").write_bytes(encoded(noise(), "PNG")[:300])
    with pytest.raises(ImageError):
        open_image(tmp_path / "cut.png")
    gc.collect()  # An open file would warn here, and warnings are errors.


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_pictures_are_refused_at_every_length(tmp_path, format):
    whole = encoded(noise(), format)
    for length in (8, 20, 40, len(whole) // 2, len(whole) * 9 // 10):
        with pytest.raises(ImageError, match=r"damaged|not an image"):
            open_image(whole[:length])
    file = tmp_path / "half"
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="half"):
        open_image(file)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "AVIF", "ICO"])
def test_damaged_bytes_open_or_raise_image_error_and_nothing_else(format):
    if format == "AVIF" and not Image.registered_extensions().get(".avif"):
        pytest.skip("this Pillow has no AVIF")
    whole, generator = encoded(noise(), format), np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(0, min(len(whole), 200), 3):
            damaged[place] = generator.integers(0, 256)
        with contextlib.suppress(ImageError):
            assert open_image(bytes(damaged)).mode == "RGB"


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("this is no image")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    cases: list[tuple[str | Path | bytes, str]] = [
        (tmp_path / "absent.png", r"absent\.png' does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty.png", r"empty\.png' is empty"),
        (tmp_path / "text.jpg", r"text\.jpg' is not an image"),
        (tmp_path / "drawing.eps", r"drawing\.eps' is a drawing \(EPS\)"),
        (tmp_path / "text.jpg" / "inside.png", "cannot be opened"),
        (tmp_path / ("x" * 300), "cannot be opened"),
        ("a\0b", "cannot be opened"),
        ("", "is a folder"),
        (b"", "given as 0 bytes is empty"),
        (b"no image", "given as 8 bytes is not an image"),
    ]
    for source, message in cases:
        with pytest.raises(ImageError, match=message):
            open_image(source)


@pytest.mark.parametrize("source", [None, 3, bytearray(b"x"), io.BytesIO(b"x")])
def test_a_source_of_another_type_is_refused(source):
    with pytest.raises(ImageError, match=f"given as {type(source).__name__}. Give a path, bytes"):
        open_image(source)


def test_too_large_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 24 * 32)
    noise(24, 32).save(tmp_path / "fits.png")
    noise(25, 32).save(tmp_path / "large.png")
    assert open_image(tmp_path / "fits.png").size == (32, 24)
    with pytest.raises(ImageError, match=r"large\.png' is too large \(32 x 25 pixels\); at most 768 pixels"):
        open_image(tmp_path / "large.png")


def test_a_decompression_bomb_is_refused():
    header = encoded(Image.new("1", (1, 1)), "BMP")
    side = (30_000).to_bytes(4, "little")
    with pytest.raises(ImageError, match="is too large"):
        open_image(header[:18] + side + side + header[26:])


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ImageError, match="0 x 5 pixels"):
        open_image(Image.new("RGB", (0, 5)))


def test_the_source_image_is_not_changed():
    source = noise()
    opened = open_image(source)
    opened.putpixel((0, 0), (1, 2, 3))
    assert pixels(source) == pixels(noise())


def test_digest_is_of_pixels_and_shape_not_of_files():
    png, bmp = open_image(encoded(noise(), "PNG")), open_image(encoded(noise(), "BMP"))
    assert image_digest(png) == image_digest(bmp)
    assert image_digest(png) != image_digest(open_image(noise(32, 24)))
    flat, tall = Image.new("RGB", (4, 1)), Image.new("RGB", (1, 4))
    assert image_digest(flat) != image_digest(tall)


def test_a_caller_may_allow_less_in_size_and_formats():
    assert open_image(encoded(noise(24, 32), "PNG"), max_pixels=768, formats=("PNG",)).size == (32, 24)
    with pytest.raises(ImageError, match="at most 767 pixels"):
        open_image(encoded(noise(24, 32), "PNG"), max_pixels=767)
    with pytest.raises(ImageError, match=r"\(PNG, JPEG\)"):
        open_image(encoded(noise(24, 32), "BMP"), formats=("PNG", "JPEG"))
