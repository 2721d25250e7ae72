"""The tests that an editor with one expert per edit must pass besides those of `EditorContract`."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from ..backbones import Backbone
from ..edited.model import EditedModel
from ..editors import Editor, ExpertEditor
from ..errors import InvalidInputError, NotFoundError
from ..experts import Expert
from ..experts.expert import expert_from_bytes, expert_to_bytes
from ..samples import Edit, Question
from ..store.store import EditStore
from .editor_contract import EditorContract, Edits, model_bits
from .tiny_backbones import random_image


class ExpertEditorContract(EditorContract):
    """For subclasses of `ExpertEditor`: experts are independent, storable, and undone exactly in any order."""

    def make_editor(self, backbone: Backbone) -> ExpertEditor[Any]:
        """A new editor, attached to the backbone. Every call must give an editor that edits alike, bit for bit."""
        raise NotImplementedError("Give make_editor(backbone) in your subclass of the contract.")

    @pytest.fixture
    def three(self, edits: Edits) -> Edits:
        """A third edit besides `edits`."""
        return [*edits, ("third", Edit(Question("How many legs does it have?", random_image(3)), "four"))]

    @pytest.fixture
    def experts(self, editor: ExpertEditor[Any], three: Edits) -> dict[str, Expert]:
        """An expert for each of the three edits; none is active."""
        return {edit_id: editor.make_expert(edit)[0] for edit_id, edit in three}

    def test_it_is_an_expert_editor(self, editor: Editor) -> None:
        """`EditedModel`, the service and the commands accept it."""
        assert isinstance(editor, ExpertEditor)
        assert issubclass(editor.expert_class, Expert)

    def test_it_has_a_digest(self, editor: ExpertEditor[Any]) -> None:
        """A store is bound to the digest of the editor, so that experts are not read by another one."""
        assert editor.digest(), "override digest(): the same for the same trained parts and settings, otherwise another"

    def test_making_an_expert_activates_nothing(self, editor: ExpertEditor[Any], three: Edits) -> None:
        """Logits and weights stay as they are; the number of gradient steps is reported."""
        before = model_bits(editor.backbone, three)
        expert, steps = editor.make_expert(three[0][1])
        assert isinstance(expert, editor.expert_class) and steps >= 0
        assert list(editor.ids) == [] and len(editor) == 0
        assert model_bits(editor.backbone, three) == before

    def test_an_expert_does_not_depend_on_active_edits(
        self, editor: ExpertEditor[Any], experts: dict[str, Expert], three: Edits
    ) -> None:
        """The same edit gives the same expert, whatever else is active."""
        editor.add("first", experts["first"])
        again, _ = editor.make_expert(three[1][1])
        assert expert_to_bytes(again) == expert_to_bytes(experts["second"])

    def test_add_get_and_undo(self, editor: ExpertEditor[Any], experts: dict[str, Expert]) -> None:
        """Ids are unique; unknown ones are refused."""
        editor.add("first", experts["first"])
        assert list(editor.ids) == ["first"] and "first" in editor and len(editor) == 1
        assert expert_to_bytes(editor.get("first")) == expert_to_bytes(experts["first"])
        with pytest.raises(InvalidInputError, match="first"):
            editor.add("first", experts["second"])
        for refused in (editor.get, editor.undo):
            with pytest.raises(NotFoundError, match="second"):
                refused("second")
        editor.undo("first")
        assert list(editor.ids) == [] and "first" not in editor

    def test_experts_survive_storage_as_bytes(
        self, editor: ExpertEditor[Any], experts: dict[str, Expert], three: Edits
    ) -> None:
        """An expert that was written and read again has the same bytes, digest and effect."""
        for edit_id, expert in experts.items():
            editor.add(edit_id, expert)
        before = model_bits(editor.backbone, three)
        editor.reset()
        for edit_id, expert in experts.items():
            read = expert_from_bytes(expert_to_bytes(expert), editor.expert_class)
            assert (read.digest, read.store_bytes) == (expert.digest, expert.store_bytes)
            assert expert_to_bytes(read) == expert_to_bytes(expert)
            editor.add(edit_id, read)
        assert model_bits(editor.backbone, three) == before

    def test_the_order_of_adding_and_undoing_does_not_matter(
        self, editor: ExpertEditor[Any], experts: dict[str, Expert], three: Edits
    ) -> None:
        """What is left is, bit for bit, what these edits give alone."""
        untouched = model_bits(editor.backbone, three)
        alone = {}
        for edit_id, expert in experts.items():
            editor.add(edit_id, expert)
            alone[edit_id] = model_bits(editor.backbone, three)
            editor.undo(edit_id)
        together = set()
        for order in permutations(experts):
            for edit_id in order:
                editor.add(edit_id, experts[edit_id])
            together.add(model_bits(editor.backbone, three)[0])
            for edit_id in order[1:]:
                editor.undo(edit_id)
            assert model_bits(editor.backbone, three) == alone[order[0]]
            editor.undo(order[0])
        assert len(together) == 1
        assert model_bits(editor.backbone, three) == untouched

    def test_neighbours_are_active_edits(self, editor: ExpertEditor[Any], experts: dict[str, Expert]) -> None:
        """At most as many as asked for, most similar first."""
        for edit_id in ("first", "second"):
            editor.add(edit_id, experts[edit_id])
        found = editor.neighbours(experts["third"], 1)
        assert len(found) <= 1 and {one.edit_id for one in found} <= {"first", "second"}
        both = [one.similarity for one in editor.neighbours(experts["third"], 9)]
        assert both == sorted(both, reverse=True)
        assert set(editor.estimated_weights(experts["third"], 1.0)) <= {"first", "second"}

    def test_an_edited_model_keeps_edits_in_a_store(self, backbone: Backbone, edits: Edits, tmp_path: Path) -> None:
        """A model that is opened again answers alike; undone edits leave no trace."""
        questions = [(edit.question.image, edit.question.prompt) for _, edit in edits]
        untouched = model_bits(backbone, edits)
        file = tmp_path / "edits.db"
        with EditedModel(backbone, self.make_editor(backbone), EditStore(file)) as model:
            receipts = [
                model.edit(edit.question.image, edit.question.prompt, edit.answer, must_take=False) for _, edit in edits
            ]
            answers, edited = model.ask_batch(questions), model_bits(backbone, edits)
            known = {receipt.id for receipt in receipts}
            assert all(fired.edit_id in known for answer in answers for fired in answer.fired or ())
        assert model_bits(backbone, edits) == untouched
        with EditedModel(backbone, self.make_editor(backbone), EditStore(file)) as model:
            assert {edit.id for edit in model.edits()} == known
            assert model_bits(backbone, edits) == edited
            assert [answer.text for answer in model.ask_batch(questions)] == [answer.text for answer in answers]
            model.undo(receipts[0].id)
            assert len(model) == 1
            model.redo(receipts[0].id)
            assert model_bits(backbone, edits) == edited
            for receipt in receipts:
                model.undo(receipt.id)
            assert model_bits(backbone, edits) == untouched
