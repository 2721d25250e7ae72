"""EditedModel: asking, editing, undoing, and edits that outlive the process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from forced_experts import AlwaysFires
from PIL import Image

from liveedit.backbones import Backbone, built_in_folder, load_backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.errors import ImageError, InvalidInputError, LiveEditError, NotFoundError, StoreError
from liveedit.experts import LowRankExpert
from liveedit.experts.expert import expert_to_bytes
from liveedit.images import image_digest, open_image
from liveedit.samples import EditCase, Question
from liveedit.store.store import EditStore, NewEdit
from liveedit.testing.family_models import FAMILIES

PROMPT = "What color is the hat?"


@pytest.fixture
def modules(small_config: Callable[..., LiveEditConfig]) -> LiveEditModules:
    torch.manual_seed(0)
    return LiveEditModules(small_config())


@pytest.fixture
def model(tiny_llava: Backbone, modules: LiveEditModules) -> Iterator[EditedModel]:
    with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules)) as opened:
        yield opened


@pytest.fixture
def image(eval_cases: tuple[EditCase, ...]) -> Path:
    return Path(str(eval_cases[0].edit.question.image))


def logits_of(backbone: Backbone, image: Path) -> torch.Tensor:
    with torch.no_grad():
        return backbone.logits(backbone.encode([Question(PROMPT, image)]))


def test_the_steps_of_an_edit_are_reported_one_by_one(model: EditedModel, image: Path) -> None:
    found: list[tuple[int, int]] = []
    receipt = model.edit(image, PROMPT, "teal", progress=lambda done, most: found.append((done, most)))
    most = found[0][1]
    assert found == [(step, most) for step in range(1, receipt.refine_steps + 1)]
    assert most >= receipt.refine_steps > 0


def test_an_edit_takes_and_its_receipt_says_so(model: EditedModel, image: Path) -> None:
    before = model.ask(image, PROMPT)
    assert before.fired == ()
    receipt = model.edit(image, PROMPT, "teal")
    after = model.ask(image, PROMPT)
    assert after.text == "teal" == receipt.answer_after
    assert receipt.answer_before == before.text != "teal"
    assert receipt.took and receipt.refine_steps > 0 and receipt.milliseconds > 0
    assert receipt.store_bytes == 4 * (2 * 2 * 192 + 3 * 64)
    assert [fired.edit_id for fired in after.fired] == [receipt.id]
    assert after.fired[0].weight > 0.9
    assert len(model) == 1
    json.dumps([receipt.to_dict(), after.to_dict()])


def test_undo_leaves_the_bits_from_before(model: EditedModel, image: Path) -> None:
    unedited = logits_of(model.backbone, image)
    receipt = model.edit(image, PROMPT, "teal")
    assert not torch.equal(logits_of(model.backbone, image), unedited)
    undone = model.undo(receipt.id)
    assert undone.id == receipt.id
    assert torch.equal(logits_of(model.backbone, image), unedited)
    assert len(model) == 0 and model.edits() == ()
    with pytest.raises(NotFoundError):
        model.undo(receipt.id)


def test_edits_are_listed_oldest_first(model: EditedModel, image: Path) -> None:
    receipts = [model.edit(image, PROMPT, answer, supersede=False, must_take=False) for answer in ("red", "blue")]
    listed = model.edits()
    assert [stored.id for stored in listed] == [receipt.id for receipt in receipts]
    assert [stored.answer for stored in listed] == ["red", "blue"]
    assert listed[0].image_name == image.name
    model.undo(receipts[0].id)
    assert [stored.answer for stored in model.edits()] == ["blue"]


def test_a_batch_answers_as_one_by_one(model: EditedModel, image: Path) -> None:
    model.edit(image, PROMPT, "teal")
    asked: list[tuple[Path | None, str]] = [
        (image, PROMPT),
        (None, "What is the capital of Coraland?"),
        (image, "Can you say how many legs there are?"),
    ]
    together = model.ask_batch(asked)  # type: ignore[arg-type]
    alone = [model.ask(*question) for question in asked]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [bool(answer.fired) for answer in together] == [True, False, True]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"answer": ""}, InvalidInputError),
        ({"answer": "  "}, InvalidInputError),
        ({"prompt": " "}, InvalidInputError),
        ({"image": "nowhere.png"}, ImageError),
        ({"image": b"no image"}, ImageError),
        ({"prompt": "What is <image>?"}, InvalidInputError),
        ({"answer": "an <image>"}, InvalidInputError),
    ],
)
def test_bad_inputs_leave_nothing(
    model: EditedModel, image: Path, change: dict[str, object], error: type[LiveEditError]
) -> None:
    unedited = logits_of(model.backbone, image)
    arguments: dict[str, object] = {"image": image, "prompt": PROMPT, "answer": "red", **change}
    with pytest.raises(error):
        model.edit(**arguments)  # type: ignore[arg-type]
    assert len(model) == 0 and model.edits() == ()
    assert torch.equal(logits_of(model.backbone, image), unedited)


def test_a_failure_while_storing_leaves_nothing(
    tiny_llava: Backbone,
    modules: LiveEditModules,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreError("on purpose")

    store = EditStore(tmp_path / "edits.db")
    with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), store) as model:
        unedited = logits_of(tiny_llava, image)
        monkeypatch.setattr(store, "add", fail)
        with pytest.raises(StoreError, match="on purpose"):
            model.edit(image, PROMPT, "red")
        assert len(model) == 0 and model.edits() == ()
        assert torch.equal(logits_of(tiny_llava, image), unedited)


def test_edits_outlive_the_model(tiny_llava: Backbone, modules: LiveEditModules, image: Path, tmp_path: Path) -> None:
    unedited = logits_of(tiny_llava, image)
    file = tmp_path / "edits.db"
    with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), EditStore(file)) as model:
        kept = model.edit(image, PROMPT, "teal")
        edited = logits_of(tiny_llava, image)
        dropped = model.edit(image, PROMPT, "red")
        model.undo(dropped.id)
    assert torch.equal(logits_of(tiny_llava, image), unedited)
    with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), EditStore(file)) as model:
        assert [stored.id for stored in model.edits()] == [kept.id]
        assert model.ask(image, PROMPT).text == "teal"
        assert torch.equal(logits_of(tiny_llava, image), edited)
        model.undo(kept.id)
    with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), EditStore(file)) as model:
        assert len(model) == 0
        assert torch.equal(logits_of(tiny_llava, image), unedited)


def test_experts_on_the_host_answer_to_the_same_bits(
    tiny_llava: Backbone, modules: LiveEditModules, image: Path, tmp_path: Path
) -> None:
    file = tmp_path / "edits.db"
    with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), EditStore(file)) as model:
        for answer in ("red", "blue", "green"):
            model.edit(image, PROMPT, answer, supersede=False, must_take=False)
        edited = logits_of(tiny_llava, image)
    editor = AlwaysFires(tiny_llava, modules)
    with EditedModel(tiny_llava, editor, EditStore(file), experts_on="host", experts_folder=tmp_path) as model:
        assert len(model) == 3 and editor.repository.experts_on == "host"
        assert torch.equal(logits_of(tiny_llava, image), edited)
        editor.keep_experts_on("device")
        assert torch.equal(logits_of(tiny_llava, image), edited)
    with pytest.raises(StoreError, match="missing"):
        editor = AlwaysFires(tiny_llava, modules)
        EditedModel(tiny_llava, editor, EditStore(file), experts_on="host", experts_folder=tmp_path / "missing")


def test_redo_brings_back_the_bits(tiny_llava: Backbone, modules: LiveEditModules, image: Path, tmp_path: Path) -> None:
    for store in (None, EditStore(tmp_path / "edits.db")):
        with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), store) as model:
            unedited = logits_of(tiny_llava, image)
            first, second = (
                model.edit(image, PROMPT, answer, author="ada", supersede=False).id for answer in ("teal", "red")
            )
            both = logits_of(tiny_llava, image)
            model.undo(first)
            model.undo(second)
            assert torch.equal(logits_of(tiny_llava, image), unedited)
            assert model.redo(second).author == "ada"
            model.redo(first)
            assert [stored.id for stored in model.edits()] == [first, second]
            assert torch.equal(logits_of(tiny_llava, image), both)
            for unknown in (first, "0" * 9):
                with pytest.raises(NotFoundError):
                    model.redo(unknown)
            third = model.edit(image, PROMPT, "blue")
            assert model.edits()[-1].number == 3 and len({first, second, third.id}) == 3


def test_every_revision_is_the_model_with_the_edits_of_then(
    tiny_llava: Backbone, modules: LiveEditModules, image: Path, tmp_path: Path
) -> None:
    file = tmp_path / "edits.db"
    logits = [logits_of(tiny_llava, image)]
    with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), EditStore(file)) as model:
        ids = []
        changes: list[Callable[[], object]] = [
            *(
                lambda answer=answer: ids.append(model.edit(image, PROMPT, answer, supersede=False).id)
                for answer in ("teal", "red")
            ),
            lambda: model.undo(ids[0]),
            lambda: model.redo(ids[0]),
            lambda: model.undo(ids[1]),
        ]
        for change in changes:
            change()
            logits.append(logits_of(tiny_llava, image))
    for revision, expected in enumerate(logits):
        past = EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), EditStore(file), at=revision)
        with past as model:
            assert torch.equal(logits_of(tiny_llava, image), expected)
            assert len(model.edits()) == len(model)
            for change in (lambda: model.edit(image, PROMPT, "blue"), lambda: model.undo(ids[0])):
                with pytest.raises(InvalidInputError, match="the past cannot be changed"):
                    change()
    with EditStore(file) as opened:
        for store, at in ((opened, 6), (None, 1)):
            with pytest.raises(InvalidInputError, match="evision"):
                EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), store, at=at)
        assert not tiny_llava.model._forward_pre_hooks


def test_a_replica_takes_in_the_changes_of_others(
    tiny_llava: Backbone,
    random_expert: Callable[..., LowRankExpert],
    modules: LiveEditModules,
    image: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / "edits.db"
    with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), EditStore(file)) as model, EditStore(file) as other:
        unedited = logits_of(tiny_llava, image)
        own = model.edit(image, PROMPT, "teal").id
        edited = logits_of(tiny_llava, image)
        other.bind(tiny_llava.digest(), model.editor.digest(), backbone="x", editor="y")
        theirs = other.add(NewEdit(prompt="?", answer="!", editor="y"), expert_to_bytes(random_expert(3))).id
        other.undo(own)
        assert model.refresh().added == (theirs,)
        assert model.editor.repository.ids == (theirs,) and model.revision == 3
        other.redo(own)
        other.undo(theirs)
        assert not torch.equal(logits_of(tiny_llava, image), edited)
        changes = model.refresh()
        assert (changes.added, changes.removed) == ((own,), (theirs,))
        assert torch.equal(logits_of(tiny_llava, image), edited)
        assert not model.refresh()
        other.purge(own)
        model.refresh()
        assert torch.equal(logits_of(tiny_llava, image), unedited)


def test_logits_survive_export_and_import(
    tiny_llava: Backbone, modules: LiveEditModules, image: Path, tmp_path: Path
) -> None:
    with EditStore(tmp_path / "one.db") as one, EditStore(tmp_path / "other.db") as other:
        with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), one) as model:
            for answer in ("teal", "red", "blue"):
                model.edit(image, PROMPT, answer)
            expected = logits_of(tiny_llava, image)
            one.export_bundle(tmp_path / "bundle")
        other.import_bundle(tmp_path / "bundle")
        with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), other):
            assert torch.equal(logits_of(tiny_llava, image), expected)


def test_whole_pictures_are_kept_where_asked_for(
    tiny_llava: Backbone, modules: LiveEditModules, image: Path, tmp_path: Path
) -> None:
    for keep in (False, True):
        with EditStore(tmp_path / f"{keep}.db") as store:
            editor = AlwaysFires(tiny_llava, modules)
            model = EditedModel(tiny_llava, editor, store, keep_images=keep)
            receipt = model.edit(image, PROMPT, "teal")
            kept = store.image(receipt.id)
            assert (kept is not None) == keep
            if kept is not None:
                assert image_digest(open_image(kept)) == image_digest(open_image(image)) == store.list()[0].image_sha256
            assert store.verify() == ()
            model.close()


def test_a_failed_edit_leaves_no_file(
    tiny_llava: Backbone, modules: LiveEditModules, image: Path, tmp_path: Path
) -> None:
    with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), EditStore(tmp_path / "edits.db")) as model:
        with pytest.raises(ImageError):
            model.edit(tmp_path / "nowhere.png", PROMPT, "red")
        assert model.edits() == () and model.ask(image, PROMPT).fired == ()
    assert list(tmp_path.iterdir()) == []


def test_an_edits_file_of_another_editor_is_refused_and_leaves_no_hooks(
    tiny_llava: Backbone,
    random_backbone: Backbone,
    modules: LiveEditModules,
    image: Path,
    tmp_path: Path,
    small_config: Callable[..., LiveEditConfig],
) -> None:
    file = tmp_path / "edits.db"
    with EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules), EditStore(file)) as model:
        model.edit(image, PROMPT, "red")
    others = [
        (tiny_llava, lambda: LiveEdit.untrained(tiny_llava, small_config(), seed=5)),
        (random_backbone, lambda: LiveEdit(random_backbone, modules)),
    ]
    for backbone, make in others:
        store = EditStore(file)
        with pytest.raises(StoreError):
            EditedModel(backbone, make(), store)
        store.close()
        assert not backbone.model._forward_pre_hooks


def test_closing_leaves_the_backbone_as_it_was(tiny_llava: Backbone, modules: LiveEditModules, image: Path) -> None:
    unedited = logits_of(tiny_llava, image)
    model = EditedModel(tiny_llava, AlwaysFires(tiny_llava, modules))
    model.edit(image, PROMPT, "red")
    model.close()
    model.close()
    assert torch.equal(logits_of(tiny_llava, image), unedited)


def test_pictures_may_be_files_bytes_or_images(model: EditedModel, image: Path) -> None:
    with Image.open(image) as opened:
        sources = (image, str(image), image.read_bytes(), opened)
        answers = {model.ask(source, PROMPT).text for source in sources}
    assert len(answers) == 1


@pytest.mark.parametrize("name", ["none", "ft-l"])
def test_editors_that_cannot_keep_edits_apart_are_refused(tiny_llava: Backbone, name: str) -> None:
    with pytest.raises(InvalidInputError, match="makes no expert per edit"):
        EditedModel.load(tiny_llava, editor=name)


def test_loading_without_a_trained_editor_is_told_and_closes_the_file(
    random_backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="no trained editor 'liveedit'"):
        EditedModel.load(random_backbone, edits=tmp_path / "edits.db", editor="liveedit")
    assert list(tmp_path.iterdir()) == []


def test_loading_from_a_folder(tiny_llava: Backbone, modules: LiveEditModules, image: Path, tmp_path: Path) -> None:
    with LiveEdit(tiny_llava, modules) as editor:
        editor.save_pretrained(tmp_path / "editor")
    loaded = EditedModel.load(
        tiny_llava, edits=tmp_path / "edits.db", editor="liveedit", editor_path=tmp_path / "editor"
    )
    with loaded as model:
        receipt = model.edit(image, PROMPT, "red", must_take=False)
        assert receipt.refine_steps == 0
        assert [stored.id for stored in model.edits()] == [receipt.id]


def test_digests_tell_backbones_apart(tiny_llava: Backbone, random_backbone: Backbone) -> None:
    digest = tiny_llava.digest()
    assert digest == tiny_llava.digest() != random_backbone.digest()


@pytest.mark.skipif(
    not (built_in_folder("tiny-llava-liveedit") / "editor.json").is_file(), reason="no trained editor ships yet"
)
@pytest.mark.parametrize("editor", ["liveedit", "liveedit-refine"])
def test_the_editor_that_ships_edits_and_keeps_edits_apart(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], editor: str
) -> None:
    with EditedModel.load(tiny_llava, editor=editor) as model:
        wanted = []
        for case in eval_cases:
            question = case.edit.question
            assert question.image is not None
            wanted.append((question.image, question.prompt, case.edit.answer))
        unedited = [model.ask(image, prompt).text for image, prompt, _ in wanted]
        receipts = [model.edit(*edit) for edit in wanted]
        answers = [model.ask(image, prompt).text for image, prompt, _ in wanted]
        taken = sum(answer == edit[2] for answer, edit in zip(answers, wanted, strict=True))
        assert taken >= 11, "99 of 100 edits take, and these are twelve"
        for receipt in receipts:
            model.undo(receipt.id)
        assert [model.ask(image, prompt).text for image, prompt, _ in wanted] == unedited


def test_a_language_model_is_edited_asked_and_undone(tmp_path: Path) -> None:
    """Without pictures, in an edits file, from one process to the next."""
    FAMILIES["mistral"](tmp_path / "model")
    backbone = load_backbone(tmp_path / "model", device="cpu")
    sizes = {"module_width": 32, "heads": 4, "rank": 2, "feature_parts": 2}
    config = LiveEditConfig.create(**{**LiveEdit.backbone_settings(backbone), **sizes})
    with LiveEdit.untrained(backbone, config) as editor:
        editor.save_pretrained(tmp_path / "editor")
    prompt, edits = "Who holds the office now?", tmp_path / "edits.db"
    with EditedModel.load(backbone, edits=edits, editor="liveedit", editor_path=tmp_path / "editor") as model:
        before = model.ask(None, prompt).text
        receipt = model.edit(None, prompt, "red", must_take=False)
        (stored,) = model.edits()
        assert (stored.image_sha256, stored.thumbnail) == (None, None)
        with pytest.raises(InvalidInputError, match="reads text alone"):
            model.edit(Image.new("RGB", (8, 8)), prompt, "red")
    with EditedModel.load(backbone, edits=edits, editor="liveedit", editor_path=tmp_path / "editor") as model:
        assert model.ask(None, prompt).text == receipt.answer_after
        model.undo(receipt.id)
        assert model.ask(None, prompt).text == before


def test_an_edit_without_a_picture_needs_a_scope_for_it(
    random_backbone: Backbone, small_config: Callable[..., LiveEditConfig]
) -> None:
    with EditedModel(random_backbone, LiveEdit.untrained(random_backbone, small_config())) as model:
        with pytest.raises(InvalidInputError, match="scope is 'image'"):
            model.edit(None, "What is this?", "red")
        assert len(model) == 0
