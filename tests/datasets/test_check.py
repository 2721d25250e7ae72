import importlib
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from liveedit.datasets import check
from liveedit.errors import DatasetError, NotFoundError

DATA = Path(os.environ.get("LIVEEDIT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def row(**changes: object) -> dict[str, object]:
    return {
        "src": "What is it?",
        "pred": "cat",
        "rephrase": "What is this?",
        "alt": "dog",
        "image": "a.png",
        "image_rephrase": "b.png",
        "loc": "nq question: who",
        "loc_ans": "he",
        "m_loc": "c.png",
        "m_loc_q": "Where?",
        "m_loc_a": "here",
        **changes,
    }


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.effect_noise((64, 64), 50).save(folder / f"{name}.png")
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no image")
    return folder


def write(folder: Path, *rows: object) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def test_a_sound_file(tmp_path, pictures):
    extra = {"name": "same_image_locality", "prompt": "Which?", "image": "a.png"}
    file = write(tmp_path, row(), row(alt="3", image="b.png", note="x", probes=[extra]))
    report = check("e-vqa", file, pictures)
    assert report.ok
    assert (report.format, report.file, report.images_dir) == ("mmedit", str(file), str(pictures))
    assert (report.rows, report.rows_read, report.unique_images, report.shared_images) == (2, 2, 3, 3)
    assert (report.missing_images, report.unreadable_images, report.problem_count) == (0, 0, 0)
    assert report.answer_types == {"other": 1, "number": 1}
    assert report.probes["same_image_locality"] == 1 and report.probes["text_generality"] == 2
    assert report.unused_keys == {"note": 1}


def test_missing_and_unreadable_pictures_are_named_once(tmp_path, pictures):
    file = write(
        tmp_path,
        row(image="gone.png"),
        row(image="gone.png", image_rephrase="cut.png"),
        row(m_loc="text.png", image_rephrase="."),
        row(probes=[{"name": "portability", "prompt": "?", "image": "lost.png"}]),
    )
    report = check("mmedit", file, pictures)
    assert (report.rows, report.rows_read) == (4, 4)
    assert (report.missing_images, report.unreadable_images, report.problem_count) == (2, 3, 5)
    # a, b, c, gone, cut, text, lost and the folder itself; shared: a, b, c, gone.
    assert (report.unique_images, report.shared_images) == (8, 4)
    found = {(problem.row, problem.key): problem.message for problem in report.problems}
    assert set(found) == {
        (0, "image"),
        (1, "image_rephrase"),
        (2, "m_loc"),
        (2, "image_rephrase"),
        (3, "probes[0].image"),
    }
    assert "gone.png' does not exist" in found[0, "image"]
    assert "Named by 2 rows." in found[0, "image"]
    assert "damaged" in found[1, "image_rephrase"]
    assert "not an image" in found[2, "m_loc"]
    assert str(report.problems[0]).startswith(f"{file}, row ")


def test_without_a_folder_pictures_are_not_looked_for(tmp_path):
    report = check("mmedit", write(tmp_path, row()), progress=lambda done, total: pytest.fail("opened"))
    assert report.ok
    assert (report.images_dir, report.missing_images, report.unreadable_images) == (None, None, None)
    assert report.unique_images == 3


def test_wrong_rows_are_counted_and_the_first_kept(tmp_path, pictures):
    broken = row(alt=None)
    del broken["src"]
    file = write(tmp_path, row(), *[broken] * 50, 5, row())
    report = check("mmedit", file, pictures, keep=3)
    assert (report.rows, report.rows_read, report.problem_count) == (53, 2, 101)
    assert [(problem.row, problem.key) for problem in report.problems] == [(1, "src"), (1, "alt"), (2, "src")]
    assert not report.ok


def test_broken_json_is_a_problem_beside_the_rows_before_it(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([row(), row()])[:-40])
    report = check("mmedit", file)
    assert (report.rows, report.rows_read, report.problem_count) == (1, 1, 1)
    assert (report.problems[0].row, report.problems[0].key) == (1, None)


def test_empty_fields_are_counted_by_key_and_are_no_problem(tmp_path):
    blank = row(src=" ", alt="", loc="nq question: ", probes=[{"name": "portability", "prompt": ""}])
    report = check("mmedit", write(tmp_path, row(), blank, row(alt="\n")))
    assert report.ok
    assert report.empty_fields == {"src": 1, "alt": 2, "loc": 1, "probes[0].prompt": 1}


def test_progress_counts_distinct_pictures(tmp_path, pictures):
    seen: list[tuple[int, int]] = []
    check("mmedit", write(tmp_path, row(), row()), pictures, progress=lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_each_picture_is_opened_once(tmp_path, pictures, monkeypatch):
    opened: list[Path] = []
    module = importlib.import_module("liveedit.datasets.check")
    monkeypatch.setattr(module, "open_image", opened.append)
    check("mmedit", write(tmp_path, row(), row(image="c.png")), pictures)
    assert sorted(path.name for path in opened) == ["a.png", "b.png", "c.png"]


def test_to_dict_is_json_and_complete(tmp_path, pictures):
    report = check("mmedit", write(tmp_path, row(image="gone.png")), pictures)
    plain = report.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert set(plain) == {*vars(report), "ok"}
    assert plain["problems"][0] == {
        "file": str(tmp_path / "rows.json"),
        "row": 0,
        "key": "image",
        "message": f"The image {str(pictures / 'gone.png')!r} does not exist. Give the path of an image file.",
        "line": None,
    }
    with pytest.raises(AttributeError):
        report.rows = 3  # type: ignore[misc]


def test_what_cannot_be_checked_at_all_raises(tmp_path, pictures):
    with pytest.raises(DatasetError, match=r"absent\.json does not exist"):
        check("mmedit", tmp_path / "absent.json", pictures)
    with pytest.raises(DatasetError, match=r"image folder .*nowhere' does not exist"):
        check("mmedit", write(tmp_path, row()), tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="no data format"):
        check("coco", write(tmp_path, row()))


def test_real_photographs_and_missing_counts(tmp_path):
    """Of E-VQA's pictures three are here; row 94 of the training file asks about one of them."""
    file, photographs = DATA / "e-vqa/vqa_train.json", DATA / "coco_val2014"
    if not (file.is_file() and photographs.is_dir()):
        pytest.skip(f"E-VQA or its photographs are not under LIVEEDIT_DATA ({DATA})")
    (tmp_path / "val2014").symlink_to(photographs.resolve())
    raw = json.loads(file.read_text(encoding="utf-8"))
    named = {entry[key] for entry in raw for key in ("image", "image_rephrase", "m_loc")}
    present = {name for name in named if (tmp_path / name).is_file()}
    assert raw[94]["image"] in present
    report = check("e-vqa", file, tmp_path)
    assert (report.rows, report.rows_read, report.unreadable_images) == (6345, 6345, 0)
    assert report.unique_images == len(named)
    assert report.missing_images == report.problem_count == len(named) - len(present)
    assert len(report.problems) == 100
