import csv
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from liveedit.errors import InvalidInputError, LiveEditError
from liveedit.evaluation import plotting
from liveedit.evaluation.lines import at_largest, lines_of
from liveedit.evaluation.plots import write_plots
from liveedit.evaluation.plotting import COLORS, PlotsUnavailableError
from liveedit.evaluation.published import published_table, published_values
from liveedit.evaluation.report import render, write_report
from liveedit.evaluation.report_tables import answer_type_table, cost_table, interval_table, main_table
from liveedit.evaluation.table import Table, latex_text


def metric(teacher_forced, exact_match, broken=1.5, *, count=10, left_out=0):
    return {
        "teacher_forced": teacher_forced,
        "exact_match": exact_match,
        "contains": exact_match,
        "f1": exact_match,
        "broken": broken,
        "count": count,
        "left_out": left_out,
    }


def row(editor="liveedit", edits=10, seed=0, *, reliability=(99.0, 97.0), status="complete", **changes):
    metrics = {
        "reliability": metric(*reliability),
        "text_generality": metric(95.0, 90.0),
        "text_locality": metric(100.0, 80.5, count=8, left_out=2),
    }
    return {
        "editor": editor,
        "backbone": "tiny-llava",
        "data": "world",
        "edits": edits,
        "seed": seed,
        "metrics": metrics,
        "by_answer_type": {"colour": metrics, "name": {"reliability": metric(50.0, 25.0, count=4)}},
        "routing": {"precision": 99.0, "recall": 98.0},
        "milliseconds_per_edit": {"median": 12.34, "p90": 20.0},
        "refine_steps": None,
        "store_bytes_per_edit": 12345,
        "status": status,
        "provenance": {"git_sha": "0123456789abcdef", "dirty": True, "backbone_digest": "b" * 64},
    } | changes


def height_of(path):
    with Image.open(path) as picture:
        return picture.height


def of_an_earlier_version(found):
    """The row without the shares of broken answers."""
    metrics = {name: {**values} for name, values in found["metrics"].items()}
    for values in metrics.values():
        del values["broken"]
    return {**found, "metrics": metrics, "by_answer_type": {"colour": metrics}}


def three_seeds(editor="liveedit", edits=10):
    # Teacher-forced: mean 93, std sqrt(13) = 3.606. Exact match: mean 81, deviations -1, 0, 1, std 1,
    # half width of the interval 4.303 / sqrt(3) = 2.484. Broken: the half of these, from a mean of 2.
    return [row(editor, edits, s, reliability=r) for s, r in enumerate([(90, 80, 1.5), (92, 81, 2), (97, 82, 2.5)])]


def cells(table: Table, line: int = 0) -> dict[str, str]:
    return dict(zip(table.header, table.rows[line], strict=True))


def test_one_seed_shows_three_figures_and_no_plus_minus():
    table = main_table(lines_of([row()]), "Title")
    assert cells(table) == {
        "Editor": "liveedit",
        "Edits": "10",
        "Reliability": "99.0 / 97.0 / 1.5",
        "Text generality": "95.0 / 90.0 / 1.5",
        "Text locality": "100.0 / 80.5 / 1.5",
        "Seeds": "1",
        "ms per edit": "12.3",
    }
    assert "±" not in table.markdown()
    assert interval_table(lines_of([row()])) is None


def test_several_seeds_show_mean_and_sample_deviation():
    lines = lines_of(three_seeds())
    table = main_table(lines, "Title")
    assert cells(table)["Reliability"] == "93.0±3.6 / 81.0±1.0 / 2.0±0.5"
    assert cells(table)["Seeds"] == "3"
    intervals = interval_table(lines)
    assert intervals is not None
    # 4.303 * sqrt(13 / 3) = 8.957 on either side of 93
    assert cells(intervals)["Reliability"] == "[84.0, 102.0] / [78.5, 83.5] / [0.8, 3.2]"


def test_a_missing_value_is_an_en_dash():
    without = row("other", metrics={"reliability": metric(99.0, None), "text_locality": metric(None, None, None)})
    table = main_table(lines_of([row(), without]), "Title")
    assert cells(table, 1)["Editor"] == "other"
    assert cells(table, 1)["Reliability"] == "99.0 / – / 1.5"
    assert cells(table, 1)["Text generality"] == "–"
    assert cells(table, 1)["Text locality"] == "–"


def test_rows_of_an_earlier_version_have_an_en_dash_for_broken_answers(tmp_path):
    lines = lines_of([row("new"), *(of_an_earlier_version(found) for found in three_seeds("old"))])
    table = main_table(lines, "Title")
    assert cells(table, 0)["Reliability"] == "99.0 / 97.0 / 1.5"
    assert cells(table, 1)["Reliability"] == "93.0±3.6 / 81.0±1.0 / –"
    intervals = interval_table(lines)
    assert intervals is not None and cells(intervals)["Reliability"] == "[84.0, 102.0] / [78.5, 83.5] / –"
    assert len(write_plots(lines, tmp_path / "both")) == 3
    heights = {}
    for name, rows in (("new", [row()]), ("old", [of_an_earlier_version(row())])):
        plots = write_plots(lines_of(rows), tmp_path / name)
        heights[name] = [height_of(plot.path) for plot in plots]
    # One panel of bars and one line of numbers less; metrics against edits have one panel each.
    assert [a - b for a, b in zip(heights["new"], heights["old"], strict=True)] == [0, 300, 24]


def test_a_value_that_some_seeds_lack_says_so():
    rows = three_seeds()
    rows[2] = {**rows[2], "metrics": {}}
    table = main_table(lines_of(rows), "Title")
    # of 90, 92: mean 91, std sqrt(2); of 80, 81: mean 80.5, std sqrt(1 / 2); of 1.5, 2 half of that
    assert cells(table)["Reliability"] == "91.0±1.4 (2 of 3 seeds) / 80.5±0.7 (2 of 3 seeds) / 1.8±0.4 (2 of 3 seeds)"


def test_lines_are_sorted_by_edits_then_editor():
    rows = [row("serac", 1000), row("ft", 1000), row("serac", 1), row("ft", 10)]
    table = main_table(lines_of(rows), "Title")
    assert [line[:2] for line in table.rows] == [
        ("serac", "1"),
        ("ft", "10"),
        ("ft", "1,000"),
        ("serac", "1,000"),
    ]


def test_runs_that_did_not_complete_are_marked_and_never_averaged_in():
    rows = [row(seed=0), row(seed=1, status="interrupted", reliability=(1.0, 1.0))]
    table = main_table(lines_of(rows), "Title")
    assert [line[0] for line in table.rows] == ["liveedit", "liveedit (interrupted)"]
    assert cells(table)["Reliability"] == "99.0 / 97.0 / 1.5"
    assert any("Not complete: liveedit at 10 edits" in note and "seed 1" in note for note in table.notes)


def test_what_was_left_out_stands_below_once_for_all_editors():
    notes = main_table(lines_of([row(), row("ft"), row(edits=1)]), "Title").notes
    left_out = [note for note in notes if note.startswith("Left out")]
    assert len(left_out) == 2
    assert left_out[1].endswith("10 edits (ft, liveedit): text locality 2 of 10.")


def test_backbone_and_data_are_columns_where_they_differ():
    table = main_table(lines_of([row(), row(data="e-vqa")]), "Title")
    assert table.header[:3] == ("Data", "Editor", "Edits")
    assert [line[0] for line in table.rows] == ["e-vqa", "world"]
    assert any(note == "Backbone: tiny-llava." for note in table.notes)


def test_answer_types_are_shown_at_the_most_edits():
    rows = [row(edits=1), row(edits=100), row("ft", edits=1), row(edits=1000, status="interrupted")]
    lines = lines_of(rows)
    assert [(line.editor, line.edits) for line in at_largest(lines)] == [("liveedit", 100)]
    table = answer_type_table(lines)
    assert table is not None
    assert table.header == (
        "Editor",
        "Edits",
        "Answer type",
        "Reliability",
        "Text generality",
        "Samples",
    )
    assert table.rows == (
        ("liveedit", "100", "colour", "99.0 / 97.0 / 1.5", "95.0 / 90.0 / 1.5", "10"),
        ("liveedit", "100", "name", "50.0 / 25.0 / 1.5", "–", "4"),
    )
    assert "No run of 100 edits: ft." in table.notes
    assert answer_type_table(lines_of([row(by_answer_type={})])) is None


def test_costs_show_only_what_was_measured():
    table = cost_table(lines_of([row()]))
    assert table is not None
    assert cells(table) == {
        "Editor": "liveedit",
        "Edits": "10",
        "Median ms per edit": "12.3",
        "p90 ms per edit": "20.0",
        "Bytes per edit": "12,345",
        "Routing precision %": "99.0",
        "Routing recall %": "98.0",
    }
    steps = {"median": 0.0, "mean": 0.5, "max": 3, "refined": 12.5}
    refined = cost_table(lines_of([row(refine_steps=steps)]))
    assert refined is not None
    assert cells(refined) == {
        **cells(table),
        "Median refine steps": "0.0",
        "Mean refine steps": "0.5",
        "Max refine steps": "3.0",
        "Edits refined %": "12.5",
    }


def test_latex_is_escaped():
    assert latex_text("a_b 5% $x$ & #1 {y} ~^\\ ± –") == (
        r"a\_b 5\% \$x\$ \& \#1 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{} $\pm$ --"
    )
    text = main_table(lines_of([row("ft_l", edits=1000)]), "50% & more").latex()
    assert r"\caption{50\% \& more}" in text
    assert "\\begin{tabular}{lrrrrrr}\n\\toprule\nEditor & Edits & Reliability" in text
    cells_there = "99.0 / 97.0 / 1.5 & 95.0 / 90.0 / 1.5 & 100.0 / 80.5 / 1.5 & 1 & 12.3"
    assert f"ft\\_l & 1,000 & {cells_there} \\\\\n\\bottomrule" in text
    assert "\\hline" not in text
    assert "exact match of free generation / broken answers, in \\%." in text


def test_markdown_is_escaped_and_aligned():
    lines = Table("T", ("Name", "Value"), (("a|b_c", "1"),), ("a note",)).markdown().splitlines()
    assert lines == ["## T", "", "| Name | Value |", "| :-- | --: |", r"| a\|b\_c | 1 |", "", "- a note"]


def test_the_report_folder_holds_everything(tmp_path):
    rows = [*three_seeds(), row("ft", 10), row("ft", 1)]
    report = write_report(rows, tmp_path / "new" / "folder", title="My bench", published=True)
    folder = report.parent
    assert {file.name for file in folder.iterdir()} == {
        "report.md",
        "table.md",
        "table.tex",
        "table.csv",
        "rows.json",
        "metrics-by-edits-tiny-llava-world.png",
        "reliability-tiny-llava-world.png",
        "answer-types-tiny-llava-world.png",
    }
    made_with = {"of": "bench", "title": "My bench", "published": True}
    assert json.loads((folder / "rows.json").read_text()) == {"rows": rows, "report": made_with}
    text = report.read_text()
    assert text.startswith("# My bench\n")
    for picture in folder.glob("*.png"):
        assert f"]({picture.name})" in text
    assert "| 93.0±3.6 / 81.0±1.0 / 2.0±0.5 |" in text
    assert "code 0123456789ab with uncommitted changes, backbone bbbbbbbbbbbb, data not recorded" in text
    assert text.index("## Published values (not ours)") > text.index("## Cost and routing")
    assert "Published" not in (folder / "table.md").read_text()
    assert "Published" not in (folder / "table.tex").read_text()


def test_csv_read_again_equals_the_rows(tmp_path):
    rows = [*three_seeds(), row('odd, "name"\n', 1, refine_steps={"median": 0, "mean": 0.1, "max": 2})]
    rows[1]["metrics"] = {"reliability": metric(None, None, None, count=0, left_out=3)}
    write_report(rows, tmp_path)
    text = (tmp_path / "table.csv").read_bytes().decode()
    again = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(again) == len(rows)

    def as_text(value):
        return "" if value is None else str(value)

    for read, given in zip(again, rows, strict=True):
        for key in ("editor", "backbone", "data", "edits", "seed", "status", "store_bytes_per_edit"):
            assert read[key] == as_text(given[key])
        assert read["milliseconds_per_edit.median"] == "12.34"
        assert read["refine_steps.mean"] == as_text((given["refine_steps"] or {}).get("mean"))
        for name in ("reliability", "text_generality", "text_locality"):
            for score in ("teacher_forced", "exact_match", "contains", "f1", "broken", "count", "left_out"):
                assert read[f"{name}.{score}"] == as_text(given["metrics"].get(name, {}).get(score))


def printed(table, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_a_narrow_console_gets_the_table_in_parts_with_whole_words():
    names = ("reliability", "text_generality", "modal_generality", "near_duplicate_locality", "portability")
    rows = [
        row(editor, edits, metrics={name: metric(100.0, 98.0 + edits, 0.5) for name in names})
        for editor in ("liveedit", "liveedit-refine")
        for edits in (0, 1)
    ]
    table = render(rows)
    wide = printed(table, 180)
    assert "100.0 / 98.0 / 0.5" in wide and wide.count("Editor") == 1
    narrow = printed(table, 80)
    assert max(map(len, narrow.splitlines())) <= 80
    words = narrow.replace("│", " ").replace("┃", " ").split()
    assert words.count("Editor") == words.count("Edits") == 2  # Both parts say what their rows are about.
    assert words.count("liveedit-refine") == 4
    for word in ("Reliability", "generality", "duplicate", "Portability"):
        assert word in words
    assert words.count("100.0") == words.count("0.5") == 20  # No number is broken or lost.
    assert narrow.count("Lifelong editing") == narrow.count("Each cell") == 1
    assert not [line for line in narrow.splitlines() if line.replace("│", " ").split()[:1] == ["/"]]


def test_columns_of_texts_share_the_room_that_is_left():
    text = "a b c d e f g h i j k l m n"
    table = Table("T", ("Question", "Answer", "Value"), ((text, text * 2, "1 / 2"),), text_columns=2)
    assert "1 / 2" in printed(table, 40)
    assert max(map(len, printed(table, 40).splitlines())) <= 40
    assert f"│ {text} │ {text * 2} │ 1 / 2 │" in printed(table, 100)
    assert Table("T", ("Only", "Two"), ()).title in printed(Table("T", ("Only", "Two"), ()), 20)


def test_the_console_table_shows_all_figures():
    console = Console(file=io.StringIO(), width=160)
    console.print(render([row(), row("[bold]ft", status="failed", metrics={})]))
    text = console.file.getvalue()
    assert "99.0 / 97.0 / 1.5" in text
    assert "[bold]ft (failed)" in text  # names are no markup
    assert "Reliability" in text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([row(), row()], "Seed 0 occurs 2 times"),
        ([{**row(), "seed": None}], r"Row 0 .* seed = None"),
        ([row(metrics=None)], "metrics"),
        ([row(edits=-1)], "edits = -1"),
        ([row(store_bytes_per_edit=float("nan"))], "JSON"),
    ],
)
def test_rows_that_cannot_be_reported_are_refused_before_writing(rows, message, tmp_path):
    with pytest.raises(InvalidInputError, match=message):
        write_report(rows, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def colors_in(path) -> set[tuple[int, int, int]]:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width == 1200
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return {tuple(map(int, color)) for color in np.unique(pixels, axis=0)}


def rgb(code: str) -> tuple[int, int, int]:
    return (int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16))


def test_pictures_show_every_editor_in_its_colour(tmp_path):
    rows = [
        *three_seeds("a$b", 1),
        *three_seeds("a$b", 10),
        row("_c", 1),
        row("_c", 10),
        row("d", 10, status="failed"),
    ]
    metrics, reliability, heat = (plot.path for plot in write_plots(lines_of(rows), tmp_path))
    for path in (metrics, reliability):
        found = colors_in(path)
        assert {rgb(code) for code in COLORS[:3]} <= found
        assert rgb(COLORS[3]) not in found
    assert len(colors_in(heat)) > 100
    assert (0xE6, 0xE6, 0xE6) in colors_in(heat)  # the cells without a value


def test_pictures_are_drawn_apart_for_each_data_set(tmp_path):
    rows = [row(), row(data="E VQA", edits=0), row(data="e-vqa", edits=0, by_answer_type={})]
    assert sorted(plot.path.name for plot in write_plots(lines_of(rows), tmp_path)) == [
        "answer-types-tiny-llava-e-vqa.png",
        "answer-types-tiny-llava-world.png",
        "metrics-by-edits-tiny-llava-e-vqa-2.png",
        "metrics-by-edits-tiny-llava-e-vqa.png",
        "metrics-by-edits-tiny-llava-world.png",
        "reliability-tiny-llava-e-vqa.png",
        "reliability-tiny-llava-world.png",
    ]


def test_no_picture_without_values(tmp_path):
    assert write_plots(lines_of([row(metrics={}, by_answer_type={}, status="failed")]), tmp_path) == ()


def test_edit_labels_keep_their_distance():
    assert plotting._spaced([1, 10, 100, 1000]) == [1000, 100, 10, 1]
    # 1000 ** (1 / 7) = 2.68: after 1000 comes the first number below 373, after 300 the first below 112, ...
    assert plotting._spaced([0, 1, 2, 90, 100, 300, 900, 1000]) == [1000, 300, 100, 2, 0]


def test_pictures_leave_pyplot_alone(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    write_plots(lines_of([row()]), tmp_path)
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_without_matplotlib_the_report_says_so(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotsUnavailableError, match=r"liveedit\[plot\]") as caught:
        write_plots(lines_of([row()]), tmp_path)
    assert isinstance(caught.value, LiveEditError)
    assert isinstance(caught.value, ImportError)
    text = write_report([row()], tmp_path / "report").read_text()
    assert "No figures: matplotlib" in text
    assert "| 99.0 / 97.0 / 1.5 |" in text
    assert not list((tmp_path / "report").glob("*.png"))


def test_published_values_are_those_of_the_paper():
    values = published_values()
    assert len(values["rows"]) == 324  # 3 backbones, 3 data sets, 4 numbers of edits, 9 editors
    # Read off the paper's table 6, block 1000, last line, E-VQA.
    assert [
        "MiniGPT-4 (7B)",
        "E-VQA",
        1000,
        "LiveEdit",
        92.75,
        89.81,
        85.12,
        100.0,
        96.82,
        92.9,
        0.21,
    ] in values["rows"]
    for entry in values["rows"]:
        assert sum(entry[4:9]) / 5 == pytest.approx(entry[9], abs=0.0101)


def test_published_table_names_its_source_and_keeps_to_the_given_edits():
    table = published_table({1000, 5})
    assert len(table.rows) == 81
    assert {line[3] for line in table.rows} == {"1,000"}
    assert "2411.15432" in table.notes[0]
    assert len(published_table({7}).rows) == 324
