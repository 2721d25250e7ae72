"""The shipped contracts: an outside editor passes them, and editors that break a promise fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from shift_editor import ShiftEditor

from liveedit.backbones import Backbone
from liveedit.datasets import Reader, Row
from liveedit.editors import Editor, ExpertEditor
from liveedit.editors.none import NoEditor
from liveedit.errors import NotFoundError
from liveedit.samples import Edit, EditCase, Question
from liveedit.testing import DatasetContract, EditorContract, ExpertEditorContract, tiny_backbone, tiny_families
from liveedit.testing.model_traces import hooks_of, left_unchanged


class TestShiftEditor(ExpertEditorContract):
    """An editor that has nothing in common with the built-in ones but the base class."""

    registered = False

    def make_editor(self, backbone: Backbone) -> ExpertEditor[Any]:
        return ShiftEditor(backbone)


# -- editors that break a promise ------------------------------------------------------------------------


class KeepsOrder(ShiftEditor):
    def _shifted(self, module: Any, given: Any, output: Any) -> Any:
        for place, expert in enumerate(self._experts.values()):
            output = (output + expert.shift) * (1 + place)
        return output


class LeavesWeights(NoEditor):
    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        with torch.no_grad():
            next(self.backbone.layers[-1].parameters()).mul_(2.0)
        return {}


class NeverPauses(ShiftEditor):
    def paused(self) -> Any:
        return nullcontext()


@pytest.fixture
def private_backbone() -> Backbone:
    """A model that a test may spoil."""
    return tiny_backbone("llava")


def edits_of(contract: EditorContract) -> list[tuple[str, Edit]]:
    return EditorContract.edits.__wrapped__(contract)  # type: ignore[attr-defined]


def test_weights_that_stay_changed_are_found(private_backbone: Backbone) -> None:
    contract = EditorContract()
    with pytest.raises(AssertionError):
        contract.test_reset_restores_weights_and_logits(LeavesWeights(private_backbone), edits_of(contract))


def test_paused_that_does_nothing_is_found(private_backbone: Backbone) -> None:
    contract = EditorContract()
    with pytest.raises(AssertionError):
        contract.test_paused_is_unedited_inside_and_edited_after(NeverPauses(private_backbone), edits_of(contract))


def test_experts_that_depend_on_their_order_are_found(private_backbone: Backbone) -> None:
    contract, editor = ExpertEditorContract(), KeepsOrder(private_backbone)
    edits = [*edits_of(contract), ("third", Edit(Question("Who?"), "four"))]
    experts = {edit_id: editor.make_expert(edit)[0] for edit_id, edit in edits}
    with pytest.raises(AssertionError):
        contract.test_the_order_of_adding_and_undoing_does_not_matter(editor, experts, edits)


def test_hooks_that_stay_are_found(private_backbone: Backbone) -> None:
    check: Iterator[Backbone] = left_unchanged(private_backbone)
    editor: Editor = ShiftEditor(next(check))
    with pytest.raises(AssertionError, match="left hooks"):
        next(check)
    editor.detach()
    assert hooks_of(private_backbone) == []


# -- readers ---------------------------------------------------------------------------------------------


def read_case(row: Row) -> EditCase:
    return EditCase(row.name, Edit(Question(row.prompt("question"), row.optional_image("photo")), row.answer("answer")))


class TestOwnFormat(DatasetContract):
    reader = Reader("own-format", "Questions and answers", read_case)
    registered = False

    def rows(self) -> list[dict[str, Any]]:
        return [{"question": "Who?", "answer": "Bruvak"}, {"question": "Where?", "answer": "here", "photo": "a/b.png"}]


def test_a_reader_that_fails_on_odd_values_is_found(tmp_path: Any) -> None:
    contract = TestOwnFormat()
    contract.reader = Reader(
        "careless", "", lambda row: EditCase(row.name, Edit(Question(row.values["question"]), "a"))
    )
    file = contract.write(tmp_path / "rows.json", contract.rows())
    with pytest.raises(KeyError):
        contract.test_a_missing_key_is_named_or_optional(file)


# -- tiny backbones --------------------------------------------------------------------------------------


def test_tiny_backbones_need_no_pytest_and_unknown_ones_are_refused() -> None:
    code = "import sys; from liveedit.testing import tiny_backbone; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"llava", "minigpt4", "mistral"} < set(tiny_families())
    with pytest.raises(NotFoundError, match="no tiny backbone 'gpt'"):
        tiny_backbone("gpt")


def test_tiny_backbones_are_the_same_every_time() -> None:
    one, other = tiny_backbone("llama"), tiny_backbone("llama")
    assert one.digest() == other.digest() and one.name == "tiny-random-llama"
