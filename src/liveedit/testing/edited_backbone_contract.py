"""The tests that every family of models must pass with edits, besides those of `BackboneContract`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ..answers import Fired
from ..backbones import Backbone
from ..backbones.families.text_only import TextBackbone
from ..editors.reference import ReferenceEditor, fired_ids, forced_expert, small_editor
from ..errors import InvalidInputError
from ..samples import Edit, Question
from .backbone_checks import ANSWERS
from .backbone_contract import BackboneContract
from .model_traces import hooks_of

_COMPILED = (TextBackbone,)
"""Families whose compiled model is tested, because they compile fast. LIVEEDIT_COMPILE_ALL=1 compiles all families."""


class EditedBackboneContract(BackboneContract):
    """Subclass this as `Test...` and give `make_backbone`. Includes the tests of `BackboneContract`.

    An editor with forced experts is attached: what is tested is the model, not how well edits are made.
    """

    @pytest.fixture
    def editor(self, backbone: Backbone, layer: int) -> Iterator[ReferenceEditor]:
        """A small editor with its initial weights."""
        with _editor_for(backbone, layer) as attached:
            yield attached

    @pytest.mark.parametrize("padding", ["left", "right"])
    def test_an_edited_batch_gives_the_logits_of_its_rows(
        self, backbone: Backbone, editor: ReferenceEditor, questions: list[Question], padding: str
    ) -> None:
        """Whatever side is padded."""
        _add_forced(editor, questions)
        inputs = backbone.encode(questions, ANSWERS, padding)
        with torch.no_grad():
            together = backbone.logits(inputs)
            for row, (question, answer) in enumerate(zip(questions, ANSWERS, strict=True)):
                alone = backbone.logits(backbone.encode([question], [answer]))[0]
                present = inputs.attention_mask[row].bool()
                torch.testing.assert_close(together[row][present], alone, atol=3e-4, rtol=1e-3)

    def test_a_zero_expert_changes_no_bit(
        self, backbone: Backbone, editor: ReferenceEditor, questions: list[Question]
    ) -> None:
        """It fires all the same."""
        before = _logits_of(backbone, questions, ANSWERS)
        expert = forced_expert(editor, questions[0])
        editor.add("zero", replace(expert, v=torch.zeros_like(expert.v)))
        assert torch.equal(before, _logits_of(backbone, questions, ANSWERS))
        assert fired_ids(editor)[0] == ["zero"]

    def test_undo_restores_every_bit(
        self, backbone: Backbone, editor: ReferenceEditor, questions: list[Question]
    ) -> None:
        """Edits about images do not change answers to text alone."""
        before = _logits_of(backbone, questions, ANSWERS)
        _add_forced(editor, questions)
        edited = _logits_of(backbone, questions, ANSWERS)
        assert not torch.equal(before[0], edited[0])
        if backbone.reads_images:  # Text alone is out of reach of such edits.
            assert torch.equal(before[2], edited[2])
        for name in [f"edit-{index}" for index in range(len(editor.repository))]:
            editor.undo(name)
        assert torch.equal(before, _logits_of(backbone, questions, ANSWERS))

    def test_detach_removes_hooks_and_edits(self, backbone: Backbone, layer: int, questions: list[Question]) -> None:
        """Logits are the same, bit for bit."""
        before, hooks = _logits_of(backbone, questions, ANSWERS), hooks_of(backbone)
        with _editor_for(backbone, layer) as editor:
            _add_forced(editor, questions)
            assert not torch.equal(before, _logits_of(backbone, questions, ANSWERS))
        assert hooks_of(backbone) == hooks
        assert torch.equal(before, _logits_of(backbone, questions, ANSWERS))

    def test_edited_generation_is_the_same_with_and_without_the_cache(
        self, backbone: Backbone, editor: ReferenceEditor, questions: list[Question]
    ) -> None:
        """And the same for each question alone."""
        inputs = backbone.encode(questions, padding="left")
        plain = backbone.generate(inputs, 6)
        _add_forced(editor, questions)
        cached = backbone.generate(inputs, 6)
        routed = editor.fired()
        uncached = backbone.generate(inputs, 6, use_cache=False)
        assert cached == uncached
        assert cached != plain
        assert _strongest(editor) == [fired[0].edit_id if fired else None for fired in _sorted(routed)]
        alone = [backbone.generate(backbone.encode([question], padding="left"), 6)[0] for question in questions]
        assert alone == cached

    def test_beams_and_sequences_route_by_their_own_question(
        self, backbone: Backbone, editor: ReferenceEditor, questions: list[Question]
    ) -> None:
        """Every beam uses the edit of its question."""
        _add_forced(editor, questions)
        inputs = backbone.encode(questions, padding="left")
        own = ["edit-0", "edit-0", "edit-1", "edit-1", *([None] if backbone.reads_images else ["edit-2"]) * 2]
        texts = backbone.generate(inputs, 3, beams=2, sequences=2)
        assert len(texts) == 6
        assert _strongest(editor) == own
        alone = [
            backbone.generate(backbone.encode([question], padding="left"), 3, beams=2)[0] for question in questions
        ]
        assert texts[::2] == alone

    def test_direct_calls_of_the_model_are_edited(
        self, backbone: Backbone, editor: ReferenceEditor, questions: list[Question]
    ) -> None:
        """model(...), with a warning, and model.generate(...), also with beams."""
        asked = questions[:2]
        _add_forced(editor, asked)
        inputs = backbone.encode(asked, padding="left")
        through, texts = _logits_of(backbone, asked), backbone.generate(inputs, 4)
        model, length = backbone.model_for(inputs), inputs.input_ids.shape[1]
        with torch.no_grad():
            with pytest.warns(UserWarning, match="does not say where an answer begins"):
                direct = model(**backbone.encode(asked).model_inputs()).logits
            output = model.generate(**inputs.model_inputs(), max_new_tokens=4, do_sample=False)
            own = _strongest(editor)
            model.generate(**inputs.model_inputs(), max_new_tokens=2, do_sample=False, num_beams=2)
            beams = _strongest(editor)
        assert torch.equal(direct, through)
        assert [
            text.strip() for text in backbone.tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
        ] == texts
        assert own == ["edit-0", "edit-1"]
        assert beams == ["edit-0", "edit-0", "edit-1", "edit-1"]

    def test_labels_keep_the_answer_out_of_routing(
        self, backbone: Backbone, editor: ReferenceEditor, questions: list[Question]
    ) -> None:
        """A call with labels is that of `Backbone.logits`, bit for bit."""
        asked, answers = questions[:2], ANSWERS[:2]
        _add_forced(editor, asked)
        inputs = backbone.encode(asked, answers)
        through = _logits_of(backbone, asked, answers)
        routed = editor.fired()
        labels = inputs.input_ids.masked_fill(~inputs.answer_mask, -100)
        with torch.no_grad():
            direct = backbone.model(**inputs.model_inputs(), labels=labels).logits
        assert torch.equal(direct, through)
        assert editor.fired() == routed

    def test_other_hooks_survive(self, backbone: Backbone, layer: int, questions: list[Question]) -> None:
        """In their order, also after the editor is detached."""
        seen: list[str] = []
        module = backbone.layers[layer]
        earlier = module.register_forward_hook(lambda *_: seen.append("earlier"))
        with _editor_for(backbone, layer):
            later = module.register_forward_hook(lambda *_: seen.append("later"))
            _logits_of(backbone, questions[:1])
            assert seen == ["earlier", "later"]
        _logits_of(backbone, questions[:1])
        assert seen == ["earlier", "later"] * 2
        earlier.remove()
        later.remove()

    def test_an_edit_is_made_and_undone(
        self, backbone: Backbone, editor: ReferenceEditor, questions: list[Question]
    ) -> None:
        """With an expert that the editor itself makes."""
        before = _logits_of(backbone, questions, ANSWERS)
        editor.edit([("made", Edit(questions[0], "a purple well"))])
        assert len(editor.repository) == 1
        editor.undo("made")
        assert torch.equal(before, _logits_of(backbone, questions, ANSWERS))

    def test_embeddings_alone_are_refused_while_edits_are_active(
        self, backbone: Backbone, editor: ReferenceEditor, questions: list[Question]
    ) -> None:
        """Their token roles are unknown."""
        _add_forced(editor, questions)
        inputs = backbone.encode(questions[2:])
        embedded = backbone.embeddings(inputs)[:, :-1]
        language = backbone.model_for(inputs)
        with pytest.raises(InvalidInputError, match="inputs_embeds"), torch.no_grad():
            language(inputs_embeds=embedded, attention_mask=inputs.attention_mask[:, :-1])

    def test_ids_of_an_earlier_call_are_not_used_for_embeddings(
        self, backbone: Backbone, editor: ReferenceEditor, questions: list[Question]
    ) -> None:
        """Also if the embeddings have the length of the call before them."""
        _add_forced(editor, questions)
        inputs = backbone.encode(questions[2:])
        model = backbone.model_for(inputs)
        with torch.no_grad():
            with pytest.warns(UserWarning, match="does not say where an answer begins"):
                model(**inputs.model_inputs())
            with pytest.raises(InvalidInputError, match="inputs_embeds"):
                model(inputs_embeds=torch.randn(*inputs.input_ids.shape, backbone.width))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from compiling Gemma's masks.
    def test_a_compiled_model_is_edited(
        self, backbone: Backbone, editor: ReferenceEditor, questions: list[Question]
    ) -> None:
        """With fullgraph=True, compiling is refused."""
        if not isinstance(backbone, _COMPILED) and not os.environ.get("LIVEEDIT_COMPILE_ALL"):
            pytest.skip("compiling takes long; LIVEEDIT_COMPILE_ALL=1 compiles every family")
        _add_forced(editor, questions)
        asked = questions[:1]
        inputs = backbone.encode(asked)
        eager = _logits_of(backbone, asked)
        torch.compiler.reset()
        compiled = torch.compile(backbone.model, backend="eager")
        with torch.no_grad(), pytest.warns(UserWarning, match="does not say where an answer begins"):
            found = compiled(**inputs.model_inputs()).logits
        assert _strongest(editor) == ["edit-0"]
        torch.testing.assert_close(found, eager, atol=1e-4, rtol=1e-3)
        torch.compiler.reset()
        with pytest.raises(Exception, match="find experts in plain Python"), torch.no_grad():
            torch.compile(backbone.model, backend="eager", fullgraph=True)(**inputs.model_inputs())
        torch.compiler.reset()


def _editor_for(backbone: Backbone, layer: int) -> ReferenceEditor:
    return small_editor(backbone, layer=layer, heads=4, feature_parts=2)


def _add_forced(editor: ReferenceEditor, questions: Sequence[Question]) -> None:
    """Add an expert for each question that edits can reach; experts of images fire for their own image only."""
    for index, question in enumerate(questions):
        if editor.config.scope == "image" and question.image is None:
            continue
        others = [other for other in questions if other is not question and other.image is not None]
        editor.add(f"edit-{index}", forced_expert(editor, question, others, seed=index))


def _strongest(editor: ReferenceEditor) -> list[str | None]:
    """The edit with the largest weight for each row of the last batch."""
    return [max(row, key=lambda fired: fired.weight).edit_id if row else None for row in editor.fired() or []]


def _sorted(routed: Sequence[Sequence[Fired]] | None) -> list[list[Fired]]:
    """Each row's edits, largest weight first."""
    return [sorted(row, key=lambda fired: -fired.weight) for row in routed or []]


def _logits_of(backbone: Backbone, questions: Sequence[Question], answers: Sequence[str] | None = None) -> Tensor:
    with torch.no_grad():
        return backbone.logits(backbone.encode(questions, answers))
