"""Edits that are checked: what they supersede, what came out of trying them, and whom they meet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from forced_experts import AlwaysFires
from PIL import Image

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.liveedit import LiveEditConfig, LiveEditRefine
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.shared.routing import Combining
from liveedit.errors import (
    ConflictError,
    EditDidNotTakeError,
    EditStateError,
    ImageError,
    NotFoundError,
    OvertakenError,
    StoreError,
)
from liveedit.experts import LowRankExpert
from liveedit.experts.expert import expert_to_bytes
from liveedit.images import image_digest, open_image
from liveedit.samples import Edit, EditCase, Question
from liveedit.store.idempotency import ChangeRequest
from liveedit.store.store import EditStore, NewEdit

PROMPT = "What color is the hat?"
OTHER_PROMPT = "How many legs are there?"
UNSAYABLE = "Bruvak 1234567890"
"""No edit of the built-in editor without refinement makes the model say this."""


@pytest.fixture
def modules(small_config: Callable[..., LiveEditConfig]) -> LiveEditModules:
    torch.manual_seed(0)
    return LiveEditModules(small_config())


Opener = Callable[[], EditedModel]


@pytest.fixture(params=["memory", "file"])
def opener(request: pytest.FixtureRequest, tiny_llava: Backbone, modules: LiveEditModules, tmp_path: Path) -> Opener:
    """Makes a model with an editor whose experts fire everywhere, on a store in memory or on one file."""
    is_file = request.param == "file"
    return lambda: EditedModel(
        tiny_llava, AlwaysFires(tiny_llava, modules), EditStore(tmp_path / "edits.db") if is_file else None
    )


@pytest.fixture
def model(opener: Opener) -> Iterator[EditedModel]:
    with opener() as opened:
        yield opened


def summing(editor: LiveEditRefine) -> LiveEditRefine:
    """The editor with the paper's sum of all experts, by which edits can meet."""
    editor.combining, editor.answer_confidence = Combining(), 0.0
    return editor


class SpoilsOthers(AlwaysFires):
    """Its experts have the same weight for whatever is asked about their picture."""

    def make_expert(self, edit: Edit) -> tuple[LowRankExpert, int]:
        """An expert without a prompt feature; "loud" answers are said by larger ones."""
        expert, steps = super().make_expert(edit)
        return LowRankExpert(
            expert.u,
            (40 if edit.answer == "loud" else 4) * expert.v,
            expert.visual_feature,
            0 * expert.prompt_feature,
            expert.query_feature,
        ), steps


@pytest.fixture
def spoiling(tiny_llava: Backbone, modules: LiveEditModules) -> Iterator[EditedModel]:
    with EditedModel(tiny_llava, summing(SpoilsOthers(tiny_llava, modules))) as opened:
        yield opened


@pytest.fixture
def on_file(tiny_llava: Backbone, modules: LiveEditModules, tmp_path: Path) -> Iterator[EditedModel]:
    with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), EditStore(tmp_path / "edits.db")) as opened:
        yield opened


@pytest.fixture
def images(eval_cases: tuple[EditCase, ...]) -> list[Path]:
    return [Path(str(case.edit.question.image)) for case in eval_cases]


def logits_of(model: EditedModel, image: Path) -> torch.Tensor:
    with torch.no_grad():
        return model.backbone.logits(model.backbone.encode([Question(PROMPT, image)]))


def writer(model: EditedModel, path: Path) -> EditStore:
    """Another process at the same file."""
    store = EditStore(path)
    store.bind(model.backbone.digest(), model.editor.digest(), backbone="x", editor="y")
    return store


# -- superseding -------------------------------------------------------------------------------------------


def test_an_edit_of_the_same_question_takes_the_place_of_the_old_one(model: EditedModel, images: list[Path]) -> None:
    image = images[0]
    unedited = logits_of(model, image)
    old = model.edit(image, PROMPT, "teal")
    only_teal = logits_of(model, image)
    wording = "  What color is\nthe hat? "
    by_the_old_one = model.ask(image, wording)
    assert [fired.edit_id for fired in by_the_old_one.fired] == [old.id]
    new = model.edit(image.read_bytes(), wording, "red")
    assert (old.evidence.supersedes, new.evidence.supersedes) == ((), (old.id,))
    assert (new.answer_before, new.answer_after) == (by_the_old_one.text, "red")
    assert [edit.id for edit in model.edits()] == [new.id] and len(model) == 1
    assert model.ask(image, PROMPT).fired[0].edit_id == new.id
    model.undo(new.id)
    assert [edit.id for edit in model.edits()] == [old.id]
    assert torch.equal(logits_of(model, image), only_teal)
    model.redo(new.id)
    assert [edit.id for edit in model.edits()] == [new.id]
    with pytest.raises(EditStateError, match=new.id):
        model.redo(old.id)
    assert [event.edit_id for event in model.store.history(old.id)] == [old.id, new.id, new.id, new.id]
    model.undo(new.id)
    model.undo(old.id)
    assert torch.equal(logits_of(model, image), unedited) and len(model) == 0


def test_the_answer_after_is_without_the_old_edit(model: EditedModel, images: list[Path]) -> None:
    image = images[0]
    alone = model.edit(image, PROMPT, "red")
    only_red = logits_of(model, image)
    model.undo(alone.id)
    model.edit(image, PROMPT, "teal")
    new = model.edit(image, PROMPT, "red")
    assert (new.answer_before, new.answer_after) == ("teal", "red")
    assert torch.equal(logits_of(model, image), only_red), "bit for bit as if teal had never been"


def test_other_questions_stay(model: EditedModel, images: list[Path]) -> None:
    first = model.edit(images[0], PROMPT, "teal")
    second = model.edit(images[1], PROMPT, "red")
    third = model.edit(images[0], OTHER_PROMPT, "six")
    assert [receipt.evidence.supersedes for receipt in (first, second, third)] == [()] * 3
    both = model.edit(images[0], PROMPT, "blue", supersede=False, must_take=False)
    assert both.evidence.supersedes == () and len(model) == 4
    chosen = model.edit(images[2], PROMPT, "green", supersede=[second.id[:7], third.id])
    assert chosen.evidence.supersedes == (second.id, third.id)
    assert [edit.id for edit in model.edits()] == [first.id, both.id, chosen.id]
    last = model.edit(images[0], PROMPT, "pink", must_take=False)
    assert last.evidence.supersedes == (first.id, both.id)
    with pytest.raises(NotFoundError):
        model.edit(images[0], PROMPT, "grey", supersede=[first.id], must_take=False)
    assert [edit.id for edit in model.edits()] == [chosen.id, last.id]


def test_a_failure_while_superseding_changes_nothing(
    model: EditedModel, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images[0]
    old = model.edit(image, PROMPT, "teal")
    before, ids = logits_of(model, image), model.editor.repository.ids
    for owner, name, failing_call in (
        (model.store, "add", 1),
        (model.answering, "ask", 1),
        (model.answering, "ask", 2),
    ):
        calls, original = [], getattr(owner, name)

        def fail(
            *arguments: object,
            calls: list[int] = calls,
            original: Callable[..., object] = original,
            failing_call: int = failing_call,
            **named: object,
        ) -> object:
            calls.append(1)
            if len(calls) == failing_call:
                raise StoreError("on purpose")
            return original(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(StoreError, match="on purpose"):
                model.edit(image, PROMPT, "red")
        assert len(calls) == failing_call
        assert model.editor.repository.ids == ids and [edit.id for edit in model.edits()] == [old.id]
        assert torch.equal(logits_of(model, image), before)


def test_an_edit_put_aside_for_a_trial_is_as_old_as_before(
    model: EditedModel, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two edits of one question the newest counts: the older one comes back from the trial as the older one."""
    image = images[0]
    first = model.edit(image, PROMPT, "teal")
    second = model.edit(image, PROMPT, "red", supersede=False)
    before = logits_of(model, image)

    def fail(*_: object, **__: object) -> None:
        raise StoreError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(model.store, "add", fail)
        with pytest.raises(StoreError, match="on purpose"):
            model.edit(image, OTHER_PROMPT, "six", supersede=[first.id])
    assert torch.equal(logits_of(model, image), before)
    assert [fired.edit_id for fired in model.ask(image, PROMPT).fired] == [second.id]


def test_another_writer_of_the_same_question_is_superseded_too(
    on_file: EditedModel, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other edit comes after this one was tried out and before it is stored."""
    model, image = on_file, images[0]
    with writer(model, tmp_path / "edits.db") as other:
        expert, _ = model.editor.make_expert(model_edit(image, "teal"))
        described = described_edit(image)
        theirs: list[str] = []
        add = model.store.add

        def add_after_them(*arguments: object, **named: object) -> object:
            if not theirs:
                theirs.append(other.add(described, expert_to_bytes(expert)).id)
            return add(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(model.store, "add", add_after_them)
        receipt = model.edit(image, PROMPT, "red")
        assert receipt.evidence.supersedes == tuple(theirs)
        assert (receipt.answer_before, receipt.answer_after) == ("teal", "red"), "tried again, with theirs in force"
        assert [edit.id for edit in model.edits()] == [receipt.id] == list(model.editor.repository.ids)
        assert [event.kind for event in other.history()] == ["edit", "supersede"]


def test_writers_that_are_faster_every_time(
    on_file: EditedModel, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = on_file, images[0]
    with writer(model, tmp_path / "edits.db") as other:
        expert, _ = model.editor.make_expert(model_edit(image, "teal"))
        add = model.store.add

        def add_after_them(*arguments: object, **named: object) -> object:
            other.add(described_edit(image), expert_to_bytes(expert))
            return add(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(model.store, "add", add_after_them)
        with pytest.raises(OvertakenError):
            model.edit(image, PROMPT, "red")
        assert {edit.answer for edit in model.edits()} == {"teal"}


def model_edit(image: Path, answer: str) -> Edit:
    return Edit(Question(PROMPT, image), answer)


def described_edit(image: Path) -> NewEdit:
    return NewEdit(prompt=PROMPT, answer="teal", editor="y", image_sha256=image_digest(open_image(image)))


# -- evidence ----------------------------------------------------------------------------------------------


def test_evidence_says_what_was_asked_before_and_after(spoiling: EditedModel, images: list[Path]) -> None:
    rephrasings = ["Of what color is the hat?", "Tell me the color of the hat."]
    locality: list[tuple[Path | None, str]] = [(images[0], OTHER_PROMPT), (None, "What is the capital of Coraland?")]
    asked = [*((images[0], prompt) for prompt in rephrasings), *locality]
    with spoiling as model:
        before = [model.ask(*question).text for question in asked]
        receipt = model.edit(images[0], PROMPT, "loud", rephrasings=rephrasings, locality=locality, must_take=False)
        after = [model.ask(*question).text for question in asked]
        evidence = receipt.evidence
        found = [(it.answer_before, it.answer_after) for it in (*evidence.rephrasings, *evidence.locality)]
        assert found == list(zip(before, after, strict=True))
        assert [it.took for it in evidence.rephrasings] == [text == "loud" for text in after[:2]]
        assert [it.kept for it in evidence.locality] == [
            one == other for one, other in zip(before[2:], after[2:], strict=True)
        ]
        assert [it.image_sha256 for it in evidence.locality] == [image_digest(open_image(images[0])), None]
        assert evidence.locality[1].kept, "no edit of this scope reaches a question without an image"
        assert not evidence.locality[0].kept, "this editor spoils whatever is asked about the image"
        assert model.edits()[0].evidence == evidence
        assert json.loads(json.dumps(receipt.to_dict()))["evidence"]["locality"][1]["kept"] is True
        with pytest.raises(ImageError):
            model.edit(images[0], PROMPT, "red", locality=[(images[0].parent / "nowhere.png", PROMPT)])
        assert len(model) == 1


def test_earlier_edits_are_asked_again(spoiling: EditedModel, images: list[Path]) -> None:
    model = spoiling
    old = model.edit(images[0], PROMPT, "teal")
    assert old.evidence.earlier_edits == old.evidence.collisions == ()
    then = model.ask(images[0], PROMPT).text
    new = model.edit(images[0], OTHER_PROMPT, "loud", must_take=False)
    now, here = model.ask(images[0], PROMPT), model.ask(images[0], OTHER_PROMPT)
    (earlier,), (met,) = new.evidence.earlier_edits, new.evidence.collisions
    assert (earlier.edit_id, earlier.answer_before, earlier.answer_after) == (old.id, then, now.text)
    assert now.text != then and not earlier.kept, "the new edit spoiled the old one"
    weights = [{fired.edit_id: fired.weight for fired in answer.fired} for answer in (here, now)]
    assert (met.edit_id, met.weight_here) == (old.id, pytest.approx(weights[0][old.id], abs=1e-6))
    assert met.weight_there == pytest.approx(weights[1][new.id], abs=1e-6)
    assert not met.is_estimate and met.answers_differ
    unprobed = model.edit(images[0], "Which color?", "six", probe_edits=0, must_take=False)
    assert unprobed.evidence.earlier_edits == ()


def test_a_withheld_answer_hides_no_collision(spoiling: EditedModel, images: list[Path]) -> None:
    """Whether the unedited model answers in place of an edit in doubt says nothing about which edits fired."""
    model = spoiling
    model.edit(images[0], PROMPT, "teal")
    given = model.edit(images[0], OTHER_PROMPT, "loud", must_take=False)
    model.undo(given.id)
    model.editor.answer_confidence = 1 - 1e-9
    withheld = model.edit(images[0], OTHER_PROMPT, "loud", must_take=False)
    assert withheld.answer_after == withheld.answer_before
    assert len(model.ask(images[0], OTHER_PROMPT).withheld) == 2
    (met,), (again,) = given.evidence.collisions, withheld.evidence.collisions
    assert again.edit_id == met.edit_id and not again.is_estimate
    assert (again.weight_here, again.weight_there) == pytest.approx((met.weight_here, met.weight_there), abs=1e-6)


@pytest.mark.parametrize("keep", [False, True])
def test_an_edit_is_asked_again_where_its_picture_is_there_to_the_pixel(
    tiny_llava: Backbone, images: list[Path], keep: bool
) -> None:
    """A thumbnail of a large picture is not its picture."""
    large = open_image(images[0]).resize((300, 200), Image.Resampling.NEAREST)
    with EditedModel(tiny_llava, summing(LiveEditRefine.load(tiny_llava)), keep_images=keep) as model:
        old = model.edit(large, PROMPT, "teal")
        new = model.edit(large, "Of what color is the hat?", "striped")
        assert [other.edit_id for other in new.evidence.earlier_edits] == ([old.id] if keep else [])
        assert [(met.edit_id, met.is_estimate) for met in new.evidence.collisions] == [(old.id, not keep)]


def test_a_collision_is_found_and_a_stranger_is_none(tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]) -> None:
    with EditedModel(tiny_llava, summing(LiveEditRefine.load(tiny_llava))) as model:
        strangers = []
        for case in eval_cases[1:]:
            assert case.edit.question.image is not None
            strangers.append(model.edit(case.edit.question.image, case.edit.question.prompt, case.edit.answer))
        image = Path(str(eval_cases[0].edit.question.image))
        old = model.edit(image, PROMPT, "teal")
        assert old.evidence.collisions == () and old.evidence.earlier_kept == len(old.evidence.earlier_edits) == 8
        other_wording = "Of what color is the hat?"
        new = model.edit(image, other_wording, "striped")
        (met,) = new.evidence.collisions
        assert met.edit_id == old.id and met.answers_differ and not met.is_estimate
        asked = {fired.edit_id: fired.weight for fired in model.ask(image, other_wording).fired}
        assert met.weight_here == pytest.approx(asked[old.id], abs=1e-5)
        there = {fired.edit_id: fired.weight for fired in model.ask(image, PROMPT).fired}
        assert met.weight_there == pytest.approx(there[new.id], abs=1e-5)
        model.undo(new.id)
        (guessed,) = model.edit(image, other_wording, "striped", probe_edits=0).evidence.collisions
        assert guessed.is_estimate and guessed.edit_id == old.id
        assert guessed.weight_there == pytest.approx(there[new.id], abs=0.1), "from the keys alone"


# -- edits that must take ----------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
def unrefined(request: pytest.FixtureRequest, tiny_llava: Backbone, tmp_path: Path) -> Iterator[EditedModel]:
    """The built-in editor without refinement: it can say a word, and not `UNSAYABLE`."""
    edits = tmp_path / "edits.db" if request.param == "file" else None
    with EditedModel.load(tiny_llava, edits=edits, editor="liveedit") as opened:
        yield opened


def test_an_edit_that_does_not_take_leaves_nothing_unless_asked_to(unrefined: EditedModel, images: list[Path]) -> None:
    model, image, request = unrefined, images[0], ChangeRequest("ada", "k", b"body")
    old = model.edit(image, PROMPT, "teal")
    assert old.took
    before, ids, revision = logits_of(model, image), model.editor.repository.ids, model.store.latest_revision()
    with pytest.raises(EditDidNotTakeError) as refused:
        model.edit(image, PROMPT, UNSAYABLE, request=request)
    assert model.editor.repository.ids == ids and [edit.id for edit in model.edits()] == [old.id]
    assert torch.equal(logits_of(model, image), before)
    assert model.store.latest_revision() == revision and len(model.store.list(include_undone=True)) == 1
    assert model.store.made_by(request) is None
    made = model.edit(image, PROMPT, UNSAYABLE, must_take=False, request=request)
    assert not made.took and made.evidence.supersedes == (old.id,), (
        "kept if one asks for it, also by the request refused"
    )
    for text in (PROMPT, UNSAYABLE, made.answer_after):
        assert repr(text) in str(refused.value)


def test_rephrasings_do_not_count_as_taking(unrefined: EditedModel, images: list[Path]) -> None:
    receipt = unrefined.edit(images[0], PROMPT, "teal", rephrasings=[OTHER_PROMPT])
    assert receipt.took and [it.took for it in receipt.evidence.rephrasings] == [False]
    assert len(unrefined) == 1


# -- the same request again --------------------------------------------------------------------------------


def test_a_request_that_comes_again_gets_the_same_receipt(opener: Opener, images: list[Path]) -> None:
    request = ChangeRequest("ada", "k", b"body")
    with opener() as model:
        receipt = model.edit(images[0], PROMPT, "teal", author="ada", rephrasings=["Which color?"], request=request)
        again = model.edit(images[1], "not looked at", "red", request=request)
        assert again == receipt and (receipt.replayed, again.replayed) == (False, True)
        undone = model.undo(receipt.id, request=ChangeRequest("ada", "undo", b""))
        undone_again = model.undo(receipt.id, request=ChangeRequest("ada", "undo", b""))
        assert undone_again == undone and (undone.is_replay, undone_again.is_replay) == (False, True)
        redone = [model.redo(receipt.id, request=ChangeRequest("ada", "redo", b"")) for _ in range(2)]
        assert [edit.is_replay for edit in redone] == [False, True] and not model.edits()[0].is_replay
        model.undo(receipt.id)
        assert model.edit(images[0], PROMPT, "teal", request=request) == receipt
        assert len(model) == 0, "it is answered as it was, and nothing happens"
        with pytest.raises(ConflictError):
            model.edit(images[0], PROMPT, "teal", request=ChangeRequest("ada", "k", b"another"))


def test_a_request_that_was_faster_elsewhere(
    on_file: EditedModel, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image, request = on_file, images[0], ChangeRequest("ada", "k", b"body")
    with writer(model, tmp_path / "edits.db") as other:
        expert, _ = model.editor.make_expert(model_edit(image, "teal"))
        add = model.store.add
        theirs: list[str] = []

        def add_after_them(*arguments: object, **named: object) -> object:
            theirs.append(other.add(described_edit(image), expert_to_bytes(expert), request=request).id)
            return add(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(model.store, "add", add_after_them)
        receipt = model.edit(image, PROMPT, "teal", request=request)
        assert (receipt.id, receipt.replayed) == (theirs[0], True)
        assert [edit.id for edit in model.edits()] == theirs == list(model.editor.repository.ids)
