"""The tests that every family of models must pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from PIL import Image

from ..backbones import Backbone
from ..backbones.hidden_states import HiddenStateCache
from ..errors import InvalidInputError
from ..samples import Question
from .backbone_checks import ANSWERS, BackboneChecks
from .model_traces import left_unchanged
from .tiny_backbones import random_image


class BackboneContract:
    """Subclass this as `Test...` and give `make_backbone`: a small random model, float32, on the CPU."""

    def make_backbone(self) -> Backbone:
        """The model under test. Keep it for all tests: it is checked to be left unchanged."""
        raise NotImplementedError("Give make_backbone() in your subclass of the contract.")

    # -- fixtures ----------------------------------------------------------------------------------------

    @pytest.fixture
    def backbone(self) -> Iterator[Backbone]:
        """The model, checked to be left unchanged."""
        yield from left_unchanged(self.make_backbone())

    @pytest.fixture
    def layer(self, backbone: Backbone) -> int:
        """The layer at which the forward is split."""
        return backbone.default_edit_layer()

    @pytest.fixture
    def questions(self, backbone: Backbone) -> list[Question]:
        """Two with images of different shapes and one without; all without if the model reads no images."""
        wide = random_image(2).resize((96, 48)) if backbone.reads_images else None
        square = random_image(1) if backbone.reads_images else None
        return [
            Question("What color is the hat?", square),
            Question("Can you say where this creature lives?", wide),
            Question("How many?"),
        ]

    @pytest.fixture
    def checks(self, backbone: Backbone, layer: int, questions: list[Question]) -> BackboneChecks:
        """Measurements on the model."""
        return BackboneChecks(backbone, layer, questions)

    # -- tests -------------------------------------------------------------------------------------------

    def test_every_token_has_one_role(self, backbone: Backbone, questions: list[Question]) -> None:
        """Image, prompt or answer; an answer ends with the end token, and the prompt is in the text."""
        inputs = backbone.encode(questions, ANSWERS)
        masks = torch.stack([inputs.image_mask, inputs.prompt_mask, inputs.answer_mask]).int()
        assert torch.equal(masks.sum(0), inputs.attention_mask.int())
        assert inputs.has_image.tolist() == [question.image is not None for question in questions]
        for row, answer in enumerate(ANSWERS):
            ids = inputs.input_ids[row][inputs.answer_mask[row]]
            assert ids[-1] == backbone.end_token_id
            assert backbone.tokenizer.decode(ids[:-1]).strip() == answer
            prompt = backbone.tokenizer.decode(inputs.input_ids[row][inputs.prompt_mask[row]])
            assert questions[row].prompt in prompt

    def test_an_answer_ends_where_generate_stops(self, backbone: Backbone) -> None:
        """The end token is one at which the model's own generate() stops."""
        stops = backbone.model.generation_config.eos_token_id  # type: ignore[union-attr]
        assert backbone.end_token_id in (stops if isinstance(stops, list) else [stops])

    def test_only_questions_with_images_have_image_tokens(
        self, checks: BackboneChecks, questions: list[Question]
    ) -> None:
        """Counted over a batch of both."""
        assert [count > 0 for count in checks.image_token_counts()] == [asked.image is not None for asked in questions]

    def test_prefix_and_suffix_are_the_whole(self, checks: BackboneChecks) -> None:
        """In logits, and in gradients with respect to a change of the hidden states."""
        torch.testing.assert_close(*checks.split_logits(), atol=1e-5, rtol=1e-5)
        found, expected = checks.split_gradients()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert found.abs().max() > 0

    def test_kept_hidden_states_give_the_same_logits_in_any_batch(
        self, backbone: Backbone, layer: int, questions: list[Question]
    ) -> None:
        """Hidden states are kept in bfloat16; the suffix continues from them in another order and another batch."""
        store = HiddenStateCache(backbone, layer)
        store.fill(list(zip(questions, ANSWERS, strict=True)), batch=2)
        batch = store.batch([2, 0, 1])
        with torch.no_grad():
            kept = backbone.logits_from(batch.hidden_states, batch, layer, batch.predicting)
            rows = []
            for row in (2, 0, 1):
                inputs = backbone.encode([questions[row]], [ANSWERS[row]])
                states = backbone.hidden_states(inputs, layer).bfloat16().float()
                rows.append(backbone.logits_from(states, inputs, layer, inputs.predicting))
        # The cache runs the prefix in bfloat16, which moves hidden states by a few thousandths.
        torch.testing.assert_close(kept, torch.cat(rows), atol=0.15, rtol=0.05)

    @pytest.mark.parametrize("padding", ["left", "right"])
    def test_a_batch_gives_the_logits_of_its_rows(self, checks: BackboneChecks, padding: str) -> None:
        """Whatever side is padded."""
        for together, alone in checks.rows_of_a_batch(padding):
            torch.testing.assert_close(together, alone, atol=3e-4, rtol=1e-3)

    def test_wrong_image_token_counts_are_refused(self, backbone: Backbone, questions: list[Question]) -> None:
        """A batch with an image token too few; an image for a model that reads none."""
        if not backbone.reads_images:
            with pytest.raises(InvalidInputError, match="reads text alone"):
                backbone.encode([Question("What is this?", Image.new("RGB", (8, 8)))])
            return
        inputs = backbone.encode(questions[:1])
        first = int(inputs.image_mask[0].nonzero()[0])
        kept = torch.arange(inputs.input_ids.shape[1]) != first
        fewer = replace(
            inputs,
            roles=inputs.roles[:, kept],
            input_ids=inputs.input_ids[:, kept],
            positions=None if inputs.positions is None else inputs.positions[..., kept],
            extras={
                name: value[:, kept] if name.endswith("type_ids") else value for name, value in inputs.extras.items()
            },
        )
        with pytest.raises((InvalidInputError, ValueError), match=r"image tokens|image features"):
            backbone.logits(fewer)

    def test_image_markers_in_a_text_are_refused(self, backbone: Backbone) -> None:
        """A prompt cannot smuggle image tokens in."""
        assert bool(backbone.markers) == backbone.reads_images
        for marker in backbone.markers:
            with pytest.raises(InvalidInputError, match="stands for an image"):
                backbone.encode([Question(f"What is {marker}?")])

    def test_control_tokens_in_an_edit_are_refused(self, backbone: Backbone) -> None:
        """Neither its prompt nor its answer may contain what the tokenizer reads as a control token."""
        backbone.check_edit("What is it?", "red <3, 漢字")
        for token in backbone.tokenizer.all_special_tokens:
            for prompt, answer in (("What is it?", f"red{token}"), (f"What is {token} it?", "red")):
                with pytest.raises(InvalidInputError, match=r"control token|stands for an image"):
                    backbone.check_edit(prompt, answer)

    def test_generation_is_the_same_with_and_without_the_cache(
        self, backbone: Backbone, checks: BackboneChecks, questions: list[Question]
    ) -> None:
        """And the same for each question alone."""
        cached, uncached = checks.generations()
        assert cached == uncached
        alone = [backbone.generate(backbone.encode([question], padding="left"), 6)[0] for question in questions]
        assert alone == cached

    def test_the_digest_identifies_the_weights(self, backbone: Backbone) -> None:
        """It changes with a weight and comes back with it."""
        before = backbone.digest()
        weight = next(backbone.layers[-1].parameters())
        with torch.no_grad():
            kept = weight.clone()
            weight.add_(1.0)
            try:
                assert backbone.digest() != before
            finally:
                weight.copy_(kept)
        assert backbone.digest() == before
