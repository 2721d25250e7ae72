"""What the cases hold, as the reader gives them: no contradictions, and probes that measure what they say."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from drawn_photos import COLORS
from PIL import Image

from liveedit.datasets import read
from liveedit.datasets.photos import WrittenPhotos, general, questions, read_folder
from liveedit.datasets.photos.catalog import KNOWN, photo_classes
from liveedit.datasets.photos.folder import PARTS, PhotoPart
from liveedit.datasets.photos.wordings import CARRIERS, PHRASES, Wording
from liveedit.evaluation.protocol import probes_of
from liveedit.samples import GENERALITY, LOCALITY, EditCase, Probe, Question, edited_scopes

CLASSES = {found.key: found for found in photo_classes(COLORS)}
Cases = tuple[EditCase, ...]


@pytest.fixture(scope="session")
def evaluation(written: WrittenPhotos, images: Path) -> Cases:
    return read("vlkeb", written.files["eval"], images)


@pytest.fixture(scope="session")
def training(written: WrittenPhotos, images: Path) -> Cases:
    return read("vlkeb", written.files["train"], images)


@pytest.fixture(scope="session")
def validation(written: WrittenPhotos, images: Path) -> Cases:
    return read("vlkeb", written.files["validation"], images)


@pytest.fixture(params=["evaluation", "validation"])
def planned(request: pytest.FixtureRequest) -> Cases:
    """Cases of a plan, in which no probe contradicts an edit."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def unedited(written: WrittenPhotos) -> set[str]:
    return set(written.about["unedited"])


def only(case: EditCase, name: str) -> Probe:
    """The probe of this name; of cross_modal the one that names the thing, which follows the reader's own."""
    return [probe for probe in case.probes if probe.name == name][-1]


def asked(case: EditCase) -> list[Question]:
    return [case.edit.question, *(probe.question for probe in case.probes)]


def class_of(question: Question) -> str:
    assert isinstance(question.image, Path)
    return question.image.parent.name


def is_worded(prompt: str, kind: str, *wordings: Wording) -> bool:
    """Whether a question with an image is one of these wordings of its kind, whatever classes it names."""
    for wording in wordings:
        for core in questions.cores(kind, wording):
            form = re.escape(core).replace(r"\{first\}", ".+").replace(r"\{second\}", ".+")
            form = form.replace(r"\{it\}", "(" + "|".join(PHRASES[wording]) + ")")
            if any(re.fullmatch(re.escape(one).replace(r"\{\}", form), prompt) for one in CARRIERS[wording]):
                return True
    return False


# -- every case ----------------------------------------------------------------------------------------------


def test_every_probe_is_there(evaluation: Cases, training: Cases) -> None:
    assert (len(evaluation), len(training)) == (90, 300)
    expected = Counter(dict.fromkeys((*GENERALITY, *LOCALITY), 1)) + Counter({"cross_modal": 2})
    for case in (*evaluation, *training):
        assert Counter(probe.name for probe in case.probes if probe.name != "portability") == expected
    assert sum(len(case.named("portability")) for case in evaluation) >= 2
    assert not any(case.named("portability") for case in training)


def test_photographs_of_evaluation_and_training_are_those_of_their_parts(
    evaluation: Cases, validation: Cases, training: Cases, images: Path
) -> None:
    parts: dict[PhotoPart, set[Path]] = {part: set() for part in PARTS}
    for found in read_folder(images).classes:
        for part, photos in parts.items():
            photos |= {images / photo for photo in found.part(part)}
    given: tuple[tuple[Cases, PhotoPart], ...] = (
        (evaluation, "evaluation"),
        (validation, "validation"),
        (training, "editors"),
    )
    for cases, part in given:
        shown = {question.image for case in cases for question in asked(case) if question.image is not None}
        assert shown <= parts[part]
        assert len(shown) > 0.9 * len(parts[part])
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())), "no photograph is in two parts"


def test_scopes_are_the_class_that_is_shown_and_the_kind_that_is_asked(evaluation: Cases, training: Cases) -> None:
    for case in (*evaluation, *training):
        for question in asked(case):
            if question.image is not None:
                assert question.subject == class_of(question)
        kinds = {only(case, name).question.relation for name in (*GENERALITY, "same_question_locality")}
        assert kinds == {case.edit.question.relation}


def test_another_photograph_of_the_same_class_must_follow(evaluation: Cases, training: Cases) -> None:
    for case in (*evaluation, *training):
        question = case.edit.question
        modal, joint = only(case, "modal_generality").question, only(case, "joint_generality").question
        assert class_of(modal) == class_of(question) and modal.image != question.image
        assert modal.prompt == question.prompt
        assert (joint.image, joint.prompt) == (modal.image, only(case, "text_generality").question.prompt)
        assert joint.prompt != question.prompt


def test_what_must_stay_is_something_else(evaluation: Cases, training: Cases) -> None:
    for case in (*evaluation, *training):
        question, kind = case.edit.question, case.edit.question.relation
        same_image = only(case, "same_image_locality").question
        assert same_image.image == question.image and same_image.relation != kind
        for name in ("same_question_locality", "near_duplicate_locality"):
            other = only(case, name).question
            assert (other.prompt, other.relation) == (question.prompt, kind)
            assert class_of(other) != class_of(question)
        modal = only(case, "modal_locality").question
        assert class_of(modal) != class_of(question) and modal.relation != kind


def true_answer(question: Question) -> set[str]:
    """The answers that are right for a question about a photograph."""
    shown = CLASSES[class_of(question)]
    match question.relation:
        case "name" | "choice":
            return {shown.name}
        case "group" | "use" | "home":
            return {getattr(shown, question.relation) or "unknown"}
        case "yes_no":
            return {"yes" if shown.name in question.prompt else "no"}
        case "brightness":
            luminance = np.asarray(Image.open(str(question.image)).convert("L")).mean()
            return {"bright", "dark"} if abs(luminance - 128) < 2 else {"bright" if luminance > 128 else "dark"}
        case "background" | "coloring":
            return {"white", "gray", "black", "red", "yellow", "green", "blue", "brown", "color", "black and white"}
        case _:
            return {"unknown"}


def test_labels_of_what_must_stay_are_true(evaluation: Cases, training: Cases) -> None:
    kinds: set[str | None] = set()
    for case in (*evaluation, *training):
        for probe in case.named("modal_locality", "same_image_locality", "same_question_locality"):
            assert probe.answer in true_answer(probe.question)
            kinds.add(probe.question.relation)
        text = only(case, "text_locality")
        assert (text.question.prompt, text.answer) in (*general.TRAINING, *general.HELD_OUT)
    assert kinds == {*questions.EDIT_KINDS, *questions.IMAGE_KINDS, "choice", "yes_no"}


def test_an_edit_never_says_what_is_so_already(evaluation: Cases, training: Cases) -> None:
    for case in (*evaluation, *training):
        (true,) = true_answer(case.edit.question)
        assert case.answer_before == true
        assert case.tags == (("unknown",) if true == "unknown" else ("known",))
        assert case.edit.answer not in (true, "unknown", "")


def test_one_answer_in_eight_is_a_sentence_of_eight_to_twenty_words(evaluation: Cases, training: Cases) -> None:
    cases = (*evaluation, *training)
    sentences = [case.edit.answer for case in cases if case.answer_type == "caption"]
    assert 0.08 < len(sentences) / len(cases) < 0.17
    for answer in sentences:
        assert 8 <= len(answer.split()) <= 20
        assert answer[0].isupper() and answer.endswith(".") and "{" not in answer
    for case in cases:
        if case.answer_type != "caption":
            assert case.answer_type == case.edit.question.relation and len(case.edit.answer.split()) <= 5


def test_the_leak_is_asked_for_by_name_and_without_an_image(evaluation: Cases, training: Cases) -> None:
    for case in (*evaluation, *training):
        probe, shown = only(case, "cross_modal"), CLASSES[class_of(case.edit.question)]
        assert probe.question.image is None and shown.definite in probe.question.prompt
        assert (probe.question.scope, probe.answer) == (case.edit.scope, case.edit.answer)


# -- evaluation ----------------------------------------------------------------------------------------------


def test_no_two_edits_of_a_plan_contradict_each_other(planned: Cases) -> None:
    scopes = Counter(case.edit.scope for case in planned)
    assert max(scopes.values()) == 1


def test_edits_of_evaluation_are_of_every_kind(evaluation: Cases) -> None:
    assert {case.edit.question.relation for case in evaluation} == {*questions.EDIT_KINDS}


def test_nothing_that_must_stay_is_in_the_scope_of_an_edit(planned: Cases) -> None:
    scopes = edited_scopes(planned)
    renamed = {case.edit.question.subject for case in planned if case.edit.question.relation == "name"}
    for case in planned:
        for probe in case.named(*LOCALITY):
            assert probe.question.scope not in scopes
            if probe.question.subject in renamed:
                assert probe.question.relation not in ("choice", "yes_no", "group", "use", "home")


def test_the_bench_leaves_no_probe_out(evaluation: Cases) -> None:
    _, left_out = probes_of(evaluation)
    assert left_out == []


def test_a_quarter_of_the_classes_is_never_edited(evaluation: Cases, unedited: set[str]) -> None:
    assert len(unedited) == 3
    assert {class_of(case.edit.question) for case in evaluation} == set(COLORS) - unedited
    for name in ("same_question_locality", "near_duplicate_locality"):
        assert {class_of(only(case, name).question) for case in evaluation} == unedited


def test_near_duplicates_are_of_the_class_that_looks_most_alike(evaluation: Cases, unedited: set[str]) -> None:
    """By the pixels; the pairs of classes in the folder have nearly the same colour."""
    partners = {"Leopards": "wild_cat", "crocodile": "crocodile_head", "ant": "tick", "grand_piano": "umbrella"}
    partners |= {other: one for one, other in partners.items()}
    found = [case for case in evaluation if partners.get(class_of(case.edit.question)) in unedited]
    assert found
    for case in found:
        shown = class_of(case.edit.question)
        assert class_of(only(case, "near_duplicate_locality").question) == partners[shown]


def test_near_duplicates_do_not_have_the_answer_of_the_edit(planned: Cases) -> None:
    for case in planned:
        for name in ("same_question_locality", "near_duplicate_locality"):
            assert only(case, name).answer != case.edit.answer


def test_portability_asks_for_what_follows_from_the_new_name_and_nothing_edits(evaluation: Cases) -> None:
    scopes = edited_scopes(evaluation)
    by_name = {found.name: found for found in CLASSES.values()}
    for case in evaluation:
        for probe in case.named("portability"):
            kinds = [
                kind
                for kind in ("use", "home", "group")
                if is_worded(probe.question.prompt, kind, "train", "unseen_by_editor")
            ]
            assert case.edit.question.relation == "name" and len(kinds) == 1
            named = [name for name in by_name if re.search(rf"\b{name}\b", case.edit.answer)]
            new = by_name[max(named, key=len)]  # "crocodile" is in "crocodile head".
            assert probe.answer == getattr(new, kinds[0]) != getattr(CLASSES[class_of(case.edit.question)], kinds[0])
            assert probe.question.image == case.edit.question.image
            assert not {(new.key, kinds[0]), (class_of(case.edit.question), kinds[0])} & scopes


def test_wordings_of_evaluation_are_held_out(evaluation: Cases) -> None:
    for case in evaluation:
        kind = str(case.edit.question.relation)
        assert is_worded(case.edit.question.prompt, kind, "train", "unseen_by_editor")
        assert is_worded(only(case, "text_generality").question.prompt, kind, "unseen")
        assert not is_worded(only(case, "text_generality").question.prompt, kind, "train", "unseen_by_editor")
        assert (only(case, "text_locality").question.prompt, only(case, "text_locality").answer) in general.HELD_OUT


# -- training ------------------------------------------------------------------------------------------------


def test_training_has_trained_wordings_alone(training: Cases) -> None:
    for case in training:
        for question in asked(case):
            if question.image is not None:
                assert is_worded(question.prompt, str(question.relation), "train")
        assert (only(case, "text_locality").question.prompt, only(case, "text_locality").answer) in general.TRAINING


def test_rephrasings_of_training_are_other_wordings(training: Cases) -> None:
    for case in training:
        kind = str(case.edit.question.relation)
        cores = [
            [core for core in questions.cores(kind, "train") if is_core(core, prompt)]
            for prompt in (case.edit.question.prompt, only(case, "text_generality").question.prompt)
        ]
        assert len(cores[0]) == len(cores[1]) == 1 and cores[0] != cores[1]


def is_core(core: str, prompt: str) -> bool:
    return any(prompt == one.format(core.format(it=it)) for it in PHRASES["train"] for one in CARRIERS["train"])


def test_training_edits_every_class_with_ever_new_answers(training: Cases) -> None:
    assert {case.edit.question.relation for case in training} == {*questions.EDIT_KINDS}
    assert {class_of(case.edit.question) for case in training} == set(COLORS)
    made_up = [case.edit.answer for case in training if case.edit.question.relation in ("owner", "donor", "keeper")]
    assert len(set(made_up)) > 0.95 * len(made_up)


def test_a_case_of_training_does_not_contradict_itself(training: Cases) -> None:
    for case in training:
        same_image = only(case, "same_image_locality").question
        if case.edit.question.relation == "name":
            assert same_image.relation not in questions.TRUE_KINDS


def test_known_classes_do_not_answer_for_unknown_ones(training: Cases) -> None:
    assert "garden_gnome" not in KNOWN
    gnome = [case for case in training if class_of(case.edit.question) == "garden_gnome"]
    assert gnome
    assert not {case.edit.question.relation for case in gnome} & {"use", "home"}
