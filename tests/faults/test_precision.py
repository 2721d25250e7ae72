"""Edits on models in half precision: they take, change nothing else, and are undone and loaded again bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from liveedit.answers import same_answer
from liveedit.backbones import load_backbone
from liveedit.edited.model import EditedModel
from liveedit.samples import EditCase, Question
from liveedit.testing.model_traces import weight_bits

PROMPT, ANSWER = "What is this creature called?", "Bruvak"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_edit_of_a_half_precision_model(
    dtype: torch.dtype, eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    image, other = (Path(str(case.edit.question.image)) for case in eval_cases[:2])
    backbone = load_backbone("tiny-llava", dtype, "cpu")

    def logits() -> torch.Tensor:
        with torch.no_grad():
            found = backbone.logits(backbone.encode([Question(PROMPT, image), Question(PROMPT, other)]))
        assert found.dtype == dtype and bool(found.isfinite().all())
        return found

    before, weights = logits(), weight_bits(backbone)
    with EditedModel.load(backbone, edits=tmp_path / "edits.db") as model:
        unedited = [model.ask(shown, PROMPT).text for shown in (image, other)]
        receipt = model.edit(image, PROMPT, ANSWER)
        assert receipt.took and not same_answer(unedited[0], ANSWER)
        assert [model.ask(shown, PROMPT).text for shown in (image, other)] == [ANSWER, unedited[1]]
        edited = logits()
        model.undo(receipt.id)
        assert torch.equal(logits(), before)
        model.redo(receipt.id)
        assert torch.equal(logits(), edited) and not torch.equal(edited, before)
    assert torch.equal(logits(), before) and weight_bits(backbone) == weights
    with EditedModel.load(backbone, edits=tmp_path / "edits.db") as model:
        assert torch.equal(logits(), edited) and model.ask(image, PROMPT).text == ANSWER
