"""`liveedit calibrate`, and which editor the commands take if none is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from liveedit.cli.calibrating import images_in
from liveedit.editors.fitted import calibration as calibration_module
from liveedit.editors.fitted.calibration import FILE, calibrated_settings
from liveedit.editors.trained import trained_folder
from liveedit.errors import InvalidInputError
from liveedit.testing import tiny_backbone

Run = Callable[..., tuple[int, str, str]]
NOTE = "Without a trained editor, edits are fitted one by one (fitted-experts)."


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIVEEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration_module, "NEUTRAL_QUESTIONS", calibration_module.NEUTRAL_QUESTIONS[::3])
    monkeypatch.setattr(calibration_module, "DRAWN_IMAGES", 16)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    tiny_backbone("llava", folder)
    return folder


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny_backbone("llama", folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, picture: Callable[[int], Image.Image]) -> Path:
    """40 images in two folders, and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for number in range(40):
        place = folder / "more" if number % 2 else folder
        picture(number).save(place / f"{number:02}.{'jpg' if number % 3 else 'PNG'}")
    (folder / "notes.txt").write_text("no image")
    return folder


# -- calibrate -------------------------------------------------------------------------------------------


def test_a_calibration_of_ones_own_images_is_used_by_the_other_commands(
    run: Run, model_folder: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibration"
    code, said, err = run(
        *("calibrate", "--backbone", model_folder, "--out", out, "--images", images, "--most-images", 20),
        *("--set", "false_firing=0.05", "--set", "layer=1"),
    )
    assert code == 0, err
    assert f"--editor-path {out}" in " ".join(said.split())
    layers = {"layer": 1, "content_layer": 1, "reading_layer": 1}
    shares = {"false_firing": 0.05, "image_matches": 0.004, "reading_matches": 0.1}
    assert calibrated_settings(out) == {**layers, **shares}
    edited = ("--backbone", model_folder, "--edits", tmp_path / "edits.db", "--editor-path", out, "--json")
    image = ("--image", images / "00.PNG", "--prompt", "What?")
    code, said, err = run("edit", *edited, *image, "--answer", "A", "--no-must-take")
    assert code == 0, err
    code, said, err = run("ask", *edited, *image)
    assert code == 0 and len(json.loads(said)["fired"]) + len(json.loads(said)["withheld"]) == 1, err
    code, _, err = run("ask", *edited[:4], "--json", *image)
    assert code == 1 and "with the editor 'fitted-experts'" in err, "edits are bound to the calibration"


def test_json_is_one_object(run: Run, model_folder: Path, images: Path, tmp_path: Path) -> None:
    given = ("calibrate", "--backbone", model_folder, "--out", tmp_path / "made", "--json")
    code, said, err = run(*given, "--images", images)
    found = json.loads(said)
    assert code == 0 and found["images"] == 40, err
    assert found["calibration"] == str(tmp_path / "made" / FILE) and (tmp_path / "made" / FILE).is_file()
    assert 0 < found["text threshold"] < 1 and 0 < found["image threshold"] < 1
    code, said, _ = run(*given)
    assert code == 0 and json.loads(said)["images"] == "drawn"


def test_a_model_without_images_needs_none(run: Run, text_folder: Path, images: Path, tmp_path: Path) -> None:
    given = ("calibrate", "--backbone", text_folder, "--out", tmp_path / "made", "--json")
    code, said, _ = run(*given)
    assert code == 0 and (json.loads(said)["images"], json.loads(said)["image threshold"]) == (None, None)
    (tmp_path / "made" / FILE).unlink()
    code, said, err = run(*given, "--images", images)
    assert code == 1 and "reads text alone" in err
    assert list((tmp_path / "made").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--images", "nowhere"), "There is no folder 'nowhere'"),
        (("--set", "wordigns=3"), "wordigns"),
        (("--set", "false_firing=2"), "false_firing"),
        (("--set", "false_firing"), "is not of the form NAME=VALUE"),
        (("--most-images", "3"), "--most-images"),
        (("--set", "layer=3"), "layer=3 was given"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(
    run: Run, text_folder: Path, tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    code, out, err = run("calibrate", "--backbone", text_folder, "--out", tmp_path / "made", *given)
    assert code != 0 and message in " ".join(err.split()), err
    assert out == "" and not (tmp_path / "made").exists()


def test_only_listed_images_are_used(run: Run, model_folder: Path, images: Path, tmp_path: Path) -> None:
    listed = tmp_path / "listed.txt"
    names = sorted(file.relative_to(images).as_posix() for file in images_in(images, 1000))
    listed.write_text("\n".join(names[:20]) + "\n")
    assert images_in(images, 1000, listed) == [images / name for name in names[:20]]
    given = ("calibrate", "--backbone", model_folder, "--out", tmp_path / "made", "--json", "--image-list", listed)
    code, said, err = run(*given, "--images", images)
    assert code == 0 and json.loads(said)["images"] == 20, err


@pytest.mark.parametrize(
    ("lines", "folder", "message"),
    [
        ("00.PNG\nnot_there.png\n", True, "1 of the 2 images that"),
        ("\n", True, "holds no image"),
        (None, True, "cannot be read as a list of images"),
        ("00.PNG\n", False, "without --images"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(
    run: Run, model_folder: Path, images: Path, tmp_path: Path, lines: str | None, folder: bool, message: str
) -> None:
    listed = tmp_path / "listed.txt"
    if lines is not None:
        listed.write_text(lines)
    given = ("calibrate", "--backbone", model_folder, "--out", tmp_path / "made", "--image-list", listed)
    code, _, err = run(*given, *(("--images", images) if folder else ()))
    assert code == 1 and message in " ".join(err.split()), err
    assert not (tmp_path / "made").exists()


def test_images_are_spread_over_the_folder(images: Path, tmp_path: Path) -> None:
    everything = images_in(images, 1000)
    assert len(everything) == 40 and everything == sorted(everything)
    some = images_in(images, 16)
    assert len(set(some)) == 16 and some == sorted(some)
    assert {file.parent for file in some} == {images, images / "more"}
    with pytest.raises(InvalidInputError, match=r"holds no image .*\.png"):
        images_in(tmp_path, 16)


def test_too_few_images_are_refused(
    run: Run, model_folder: Path, tmp_path: Path, picture: Callable[[int], Image.Image]
) -> None:
    (tmp_path / "few").mkdir()
    picture(1).save(tmp_path / "few" / "1.png")
    code, _, err = run(
        *("calibrate", "--backbone", model_folder, "--out", tmp_path / "made", "--images", tmp_path / "few")
    )
    assert code == 1 and "1 images were given. A calibration needs at least 16" in " ".join(err.split())


# -- a trained editor ------------------------------------------------------------------------------------


def test_thresholds_of_a_trained_editor_are_chosen_on_cases(run: Run, world: Path, tmp_path: Path) -> None:
    shipped, out = trained_folder("liveedit", "tiny-llava"), tmp_path / "calibrated"
    given = ("calibrate", "--editor-path", shipped, "--data", world, "--cases", 8, "--out", out)
    code, said, err = run(*given, "--set", "false_firing=0.1", "--json")
    found = json.loads(said)
    assert code == 0 and found["cases"] == 8 and found["use"] == f"--editor-path {out}", err
    kept = json.loads((out / "editor.json").read_text(encoding="utf-8"))
    for name in ("visual_threshold", "prompt_threshold"):
        assert kept[name] == pytest.approx(found[name], abs=1e-3)
    assert found["false_firing_percent"] <= 10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--data", "world"), "--editor-path and --data belong together"),
        (("--editor-path", "somewhere"), "--editor-path and --data belong together"),
        (("--editor-path", "somewhere", "--data", "world"), "no trained editor"),
        (("--editor", "liveedit"), "--editor and --cases are for a trained editor"),
        (("--cases", "5"), "--editor and --cases are for a trained editor"),
        (("--editor-path", "somewhere", "--data", "world", "--set", "layer=3"), "There is no setting layer"),
        (("--editor-path", "somewhere", "--data", "world", "--set", "false_firing=2"), "false_firing=2 was given"),
        (("--editor-path", "somewhere", "--data", "world", "--set", "false_firing=few"), "false_firing=few was given"),
    ],
)
def test_a_trained_editor_that_cannot_be_calibrated_is_left_alone(
    run: Run, tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    code, out, err = run("calibrate", "--out", tmp_path / "made", *given)
    assert code != 0 and message in " ".join(err.split()), err
    assert out == "" and not (tmp_path / "made").exists()


# -- the editor of a command -----------------------------------------------------------------------------


def test_a_command_says_that_edits_are_fitted_one_by_one(run: Run, text_folder: Path, tmp_path: Path) -> None:
    given = ("--backbone", text_folder, "--edits", tmp_path / "edits.db", "--prompt", "Who?")
    code, out, err = run("edit", *given, "--answer", "A", "--no-must-take")
    assert code == 0 and NOTE in " ".join(err.split()) and NOTE not in out
    code, out, err = run("ask", *given, "--json")
    assert code == 0 and "fitted" not in err and json.loads(out)
    code, out, err = run("ask", *given, "--editor", "fitted-experts")
    assert code == 0 and "fitted" not in err, "it was named"


def test_a_trained_editor_needs_no_such_line(run: Run, tmp_path: Path, images: Path) -> None:
    code, _, err = run(
        *("edit", "--edits", tmp_path / "edits.db", "--image", images / "00.PNG", "--prompt", "What is it?"),
        *("--answer", "red", "--no-must-take"),
    )
    assert code == 0 and "fitted" not in err
