"""Images of any size and mode have all their tokens: they are taken whole or refused in a sentence, never cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
)

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.errors import ImageError, InvalidInputError
from liveedit.samples import Question
from liveedit.testing.family_tokenizers import TOKENS

PROMPT, ANSWER = "What is this?", "red"
SIZES = [(768, 767), (767, 768), (1, 1), (3, 100), (100, 3), (1, 200), (200, 1)]
LINES = [(1, 1_000), (1_000, 1)]


def tokens_and_logits(backbone: Backbone, *images: Image.Image) -> tuple[list[int], torch.Tensor]:
    """The number of image tokens of each question, and the logits of its answer."""
    inputs = backbone.encode([Question(PROMPT, image) for image in images], [ANSWER] * len(images))
    with torch.no_grad():
        return inputs.image_mask.sum(1).tolist(), backbone.logits(inputs)[inputs.predicting]


def drawn(picture: Callable[[int], Image.Image], *size: int) -> Image.Image:
    return picture(5).resize(size)


# -- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_images_of_odd_sizes_are_whole_alone_and_beside_each_other(
    reader: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    """The model itself, or `expected_image_tokens`, refuses another number of tokens than the pixels have."""
    images = [drawn(picture, *size) for size in SIZES]
    alone = [tokens_and_logits(reader, image) for image in images]
    counts, logits = tokens_and_logits(reader, *images)
    assert counts == [count for (count,), _ in alone] and min(counts) > 0
    torch.testing.assert_close(logits, torch.cat([one for _, one in alone]), atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("size", LINES)
def test_a_line_of_pixels_is_refused_by_every_model(reader: Backbone, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=f"{size[0]:,} x {size[1]:,} pixels; its longer side may be at most 200 times"):
        reader.encode([Question(PROMPT, Image.new("RGB", size))])


def test_what_an_image_processor_refuses_is_an_image_error(
    reader: Backbone, picture: Callable[[int], Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has limits of its own; with the sizes, so that the image can be found."""

    def refuse(*given: Any, **named: Any) -> None:
        raise ValueError("sides must be a multiple of 28.")

    monkeypatch.setattr(type(reader.processor.image_processor), "__call__", refuse)
    with pytest.raises(ImageError, match=r"cannot read the image \(64 x 48 pixels\): sides must be .*28\. Crop it"):
        reader.encode([Question(PROMPT, drawn(picture, 64, 48))])


def test_a_refused_image_changes_nothing(tiny_llava: Backbone) -> None:
    with EditedModel.load(tiny_llava) as model:
        for use in (lambda image: model.edit(image, PROMPT, ANSWER), lambda image: model.ask(image, PROMPT)):
            with pytest.raises(ImageError, match="200 times the shorter one"):
                use(Image.new("RGB", (1, 1_000)))
        assert len(model) == 0 and model.edits() == ()


# -- modes -------------------------------------------------------------------------------------------------------


def in_mode(kind: str, shown: Image.Image) -> tuple[Image.Image, Image.Image]:
    """An image in another mode, and the upright RGB image on white that it must be read as."""
    if kind == "rotated":
        turned = shown.transpose(Image.Transpose.ROTATE_90)  # A camera held upright; 6: turn it right by 90 degrees.
        turned.getexif()[ExifTags.Base.Orientation] = 6
        return turned, shown
    if kind == "RGBA":
        half = shown.copy()
        half.putalpha(Image.linear_gradient("L").resize(shown.size))
        white = Image.new("RGBA", shown.size, "white")
        return half, Image.alpha_composite(white, half).convert("RGB")
    given = shown.quantize(16) if kind == "P" else shown.convert(kind)
    return given, given.convert("RGB")


@pytest.mark.parametrize("kind", ["L", "P", "RGBA", "rotated"])
def test_images_in_any_mode_are_read_as_upright_rgb(
    reader: Backbone, picture: Callable[[int], Image.Image], kind: str
) -> None:
    given, wanted = in_mode(kind, drawn(picture, 76, 48))
    counts, logits = tokens_and_logits(reader, given)
    expected_counts, expected = tokens_and_logits(reader, wanted)
    assert counts == expected_counts and torch.equal(logits, expected)


# -- tiles -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiled() -> Backbone:
    """LLaVA-NeXT, which no class of `families` is for: tiles by the image's shape, and its padding cut off again."""
    tokenizer = TOKENS["llava"].build()
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    sizes: dict[str, Any] = {"num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            image_size=32, patch_size=8, projection_dim=32, **{**sizes, "hidden_size": 32, "num_hidden_layers": 2}
        ),
        text_config=LlamaConfig(hidden_size=64, vocab_size=len(tokenizer), max_position_embeddings=1024, **sizes),
        image_token_index=image_token,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )
    torch.manual_seed(0)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=config.image_grid_pinpoints,
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return Backbone("tiny-llava-next", LlavaNextForConditionalGeneration(config).eval(), processor)


def test_tiles_of_images_of_any_shape_have_all_their_tokens(
    tiled: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    images = [drawn(picture, *size) for size in [*SIZES, (96, 48)]]
    alone = [tokens_and_logits(tiled, image) for image in images]
    assert len({count for (count,), _ in alone}) > 2, "images of other shapes have other numbers of tokens"
    counts, logits = tokens_and_logits(tiled, *images)
    assert counts == [count for (count,), _ in alone]
    torch.testing.assert_close(logits, torch.cat([one for _, one in alone]), atol=3e-4, rtol=1e-3)


# -- long prompts ------------------------------------------------------------------------------------------------


def test_a_prompt_that_is_too_long_is_refused_and_no_image_token_is_cut(
    reader: Backbone, picture: Callable[[int], Image.Image]
) -> None:
    (count,), _ = tokens_and_logits(reader, picture(1))
    reader.tokenizer.backend_tokenizer.enable_truncation(64)  # As some released tokenizer.json are saved.
    shorter, longer = (Question(f"What is{' the' * words} hat?", picture(1)) for words in (900, 1_100))
    inputs = reader.encode([shorter])
    assert int(inputs.image_mask.sum()) == count
    assert (inputs.input_ids[0] == reader.tokenizer.convert_tokens_to_ids("Ġthe")).sum() == 900
    with pytest.raises(InvalidInputError, match=r"take 1\d\d\d tokens, and .* takes 1024 at most\. Shorten them"):
        reader.encode([longer])
