"""The tests that every editor must pass, whatever its method."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from hashlib import sha256

import pytest
import torch
from torch import Tensor

from ..backbones import Backbone
from ..editors import Editor, editor_class
from ..errors import InvalidInputError, NotFoundError
from ..samples import Edit, Question
from .model_traces import left_unchanged
from .tiny_backbones import random_image, tiny_backbone

Edits = list[tuple[str, Edit]]

_shared_backbone = cache(tiny_backbone)


def model_bits(backbone: Backbone, edits: Edits) -> tuple[str, dict[str, str]]:
    """Checksums of the logits of the edits' questions and of one without an image, and of every weight.

    Checksums, because pytest explains an assertion that fails by comparing both sides, which takes minutes for the
    bytes themselves.
    """
    questions = [edit.question for _, edit in edits] + [Question("What is the capital of Coraland?")]
    with torch.no_grad():
        logits = backbone.logits(backbone.encode(questions))
    return _checksum(logits), {name: _checksum(value) for name, value in backbone.model.state_dict().items()}


def _checksum(values: Tensor) -> str:
    return sha256(values.numpy().tobytes()).hexdigest()


class EditorContract:
    """Subclass this as `Test...` and give `make_editor`. Override the fixtures for another backbone or other edits."""

    registered: bool = True
    """Whether the class is registered under its name as an entry point."""

    undo_is_exact: bool = True
    """Whether undoing one edit leaves the others as if it had never been made. False for a method whose later edits
    depend on earlier ones. A method that cannot undo single edits raises `NotFoundError` and leaves this as it is."""

    edits_change_answers: bool = True
    """Whether the two `edits` change the logits of their questions. False for an editor that does nothing."""

    def make_editor(self, backbone: Backbone) -> Editor:
        """A new editor, attached to the backbone. Every call must give an editor that edits alike, bit for bit."""
        raise NotImplementedError("Give make_editor(backbone) in your subclass of the contract.")

    # -- fixtures ----------------------------------------------------------------------------------------

    @pytest.fixture
    def backbone(self) -> Iterator[Backbone]:
        """A tiny random LLaVA, checked to be left unchanged."""
        yield from left_unchanged(_shared_backbone("llava"))

    @pytest.fixture
    def edits(self) -> Edits:
        """Two edits about images, with their ids: "first" and "second"."""
        return [
            ("first", Edit(Question("What color is the hat?", random_image(1)), "red")),
            ("second", Edit(Question("Where does this creature live?", random_image(2)), "deep well")),
        ]

    @pytest.fixture
    def editor(self, backbone: Backbone) -> Iterator[Editor]:
        """The editor under test."""
        made = self.make_editor(backbone)
        yield made
        made.detach()

    # -- tests -------------------------------------------------------------------------------------------

    def test_the_name_leads_to_the_class(self, editor: Editor) -> None:
        """The entry point of the editor's name is its class, and the class has a summary."""
        assert editor.name and editor.summary
        if self.registered:
            assert editor_class(editor.name) is type(editor)

    def test_reset_restores_weights_and_logits(self, editor: Editor, edits: Edits) -> None:
        """Also a second time."""
        before = model_bits(editor.backbone, edits)
        editor.edit(edits)
        editor.reset()
        assert model_bits(editor.backbone, edits) == before
        editor.edit(edits[:1])
        editor.reset()
        assert model_bits(editor.backbone, edits) == before

    def test_detach_restores_everything_and_may_be_called_twice(self, editor: Editor, edits: Edits) -> None:
        """Hooks are checked by the `backbone` fixture."""
        editor.reset()
        before = model_bits(editor.backbone, edits)
        editor.edit(edits)
        editor.detach()
        editor.detach()
        assert model_bits(editor.backbone, edits) == before

    def test_records_have_ids_and_costs(self, editor: Editor, edits: Edits) -> None:
        """One record per edit, in order, and progress after each."""
        seen: list[tuple[int, int]] = []
        records = editor.edit(edits, lambda done, total: seen.append((done, total)))
        assert [record.edit_id for record in records] == ["first", "second"]
        assert all(record.milliseconds >= 0 and record.refine_steps >= 0 for record in records)
        assert seen == [(1, 2), (2, 2)]

    @pytest.mark.parametrize("answer", ["", " \n"])
    def test_an_empty_answer_is_refused_before_anything_changes(
        self, editor: Editor, edits: Edits, answer: str
    ) -> None:
        """Valid edits before it in the same call are not made either."""
        before = model_bits(editor.backbone, edits)
        with pytest.raises(InvalidInputError, match="'third' is empty"):
            editor.edit([*edits, ("third", Edit(edits[0][1].question, answer))])
        assert model_bits(editor.backbone, edits) == before

    def test_an_exception_inside_with_restores_everything(self, editor: Editor, edits: Edits) -> None:
        """The editor as a context manager detaches itself."""
        editor.reset()
        before = model_bits(editor.backbone, edits)
        with pytest.raises(ZeroDivisionError), editor:
            editor.edit(edits)
            raise ZeroDivisionError
        assert model_bits(editor.backbone, edits) == before

    def test_paused_is_unedited_inside_and_edited_after(self, editor: Editor, edits: Edits) -> None:
        """Bit for bit, also after an exception inside the block."""
        untouched = model_bits(editor.backbone, edits)
        editor.edit(edits)
        edited = model_bits(editor.backbone, edits)
        assert (edited != untouched) == self.edits_change_answers
        with editor.paused():
            assert model_bits(editor.backbone, edits) == untouched
        assert model_bits(editor.backbone, edits) == edited
        with pytest.raises(ZeroDivisionError), editor.paused():
            raise ZeroDivisionError
        assert model_bits(editor.backbone, edits) == edited

    def test_undo_restores_or_is_refused(self, editor: Editor, edits: Edits) -> None:
        """An editor that cannot undo single edits says to reset it."""
        before = model_bits(editor.backbone, edits)
        editor.edit(edits[:1])
        try:
            editor.undo("first")
        except NotFoundError as error:
            assert "reset it" in str(error)
            editor.reset()
        assert model_bits(editor.backbone, edits) == before

    def test_undo_leaves_the_other_edit_as_if_alone(self, editor: Editor, edits: Edits) -> None:
        """A refused undo changes nothing; an unknown id is always refused."""
        editor.edit(edits[1:])
        alone = model_bits(editor.backbone, edits)
        editor.reset()
        editor.edit(edits)
        both = model_bits(editor.backbone, edits)
        try:
            editor.undo("first")
        except NotFoundError as error:
            assert "'first'" in str(error)
            assert model_bits(editor.backbone, edits) == both, "a refused undo changed something"
        else:
            if self.undo_is_exact:
                assert model_bits(editor.backbone, edits) == alone
        with pytest.raises(NotFoundError):
            editor.undo("unknown")

    def test_the_same_edits_give_the_same_bits(self, editor: Editor, backbone: Backbone, edits: Edits) -> None:
        """In two editors, which have the same digest."""
        editor.edit(edits)
        first = model_bits(backbone, edits)
        editor.detach()
        with self.make_editor(backbone) as again:
            assert again.digest() == editor.digest()
            again.edit(edits)
            assert model_bits(backbone, edits) == first

    def test_restored_edits_answer_as_before(self, editor: Editor, backbone: Backbone, edits: Edits) -> None:
        """`restore` replaces the active edits by those of `edited_state`; reset then restores the unedited model."""
        untouched = model_bits(backbone, edits)
        editor.edit(edits)
        before = model_bits(backbone, edits)
        state = editor.edited_state()
        editor.detach()
        with self.make_editor(backbone) as again:
            again.edit(edits[:1])
            again.restore(*state)
            assert model_bits(backbone, edits) == before
            again.reset()
            assert model_bits(backbone, edits) == untouched

    def test_editing_goes_on_after_a_restore(self, editor: Editor, backbone: Backbone, edits: Edits) -> None:
        """An interrupted run continues with the bits of one that was not, unless edits are made in groups."""
        editor.edit(edits)
        whole = model_bits(backbone, edits)
        editor.reset()
        editor.edit(edits[:1])
        state = editor.edited_state()
        editor.detach()
        with self.make_editor(backbone) as again:
            again.restore(*state)
            again.edit(edits[1:])
            together = len(again.groups([edit for _, edit in edits])) < len(edits)
            assert together or model_bits(backbone, edits) == whole

    def test_no_edits_change_nothing(self, editor: Editor, edits: Edits) -> None:
        """And give no records."""
        before = model_bits(editor.backbone, edits)
        assert editor.edit([]) == []
        assert model_bits(editor.backbone, edits) == before

    def test_fired_has_one_entry_per_question(self, editor: Editor, edits: Edits) -> None:
        """Or is None or empty; weights are shares of known edits."""
        editor.edit(edits)
        backbone = editor.backbone
        backbone.generate(backbone.encode([edit.question for _, edit in edits], padding="left"), 2)
        fired = editor.fired()
        assert fired is None or len(fired) in (0, 2)
        for one in (one for row in fired or () for one in row):
            assert one.edit_id in {"first", "second"}
            assert 0 <= one.weight <= 1.0001

    def test_the_length_of_an_answer_is_its_tokens_or_unknown(self, editor: Editor, edits: Edits) -> None:
        """`answer_length` counts the end; None for an edit that is not active."""
        editor.edit(edits)
        for edit_id, edit in edits:
            tokens = int(editor.backbone.encode([edit.question], [edit.answer]).answer_mask.sum())
            assert editor.answer_length(edit_id) in (None, tokens)
        assert editor.answer_length("never made") is None
        editor.reset()
        assert editor.answer_length(edits[0][0]) is None

    def test_edits_answer_in_mixed_precision(self, editor: Editor, edits: Edits) -> None:
        """Under bfloat16 autocast logits are finite and generation works."""
        editor.edit(edits)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            asked = editor.backbone.encode([edit.question for _, edit in edits], padding="left")
            assert torch.isfinite(editor.backbone.logits(asked)).all()
            assert len(editor.backbone.generate(asked, max_new_tokens=3)) == len(edits)
