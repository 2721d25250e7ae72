"""Several tables and figures of the papers in one command."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main

from liveedit.cli import app, main
from liveedit.cli.arguments import spread_values
from liveedit.cli.several import each_command
from liveedit.errors import InvalidInputError


def commands(line: str) -> list[str]:
    return [" ".join(one) for one in each_command(typer.main.get_command(app), spread_values(line.split()))]


@pytest.mark.parametrize("line", ["paper table1 --out d", "edits list", "", "paper", "paper figure9 --out d"])
def test_one_command_stays_as_it_is(line: str) -> None:
    assert commands(line) == [line]


def test_each_has_its_folder_and_the_options_that_it_knows() -> None:
    given = "paper table1 figure6 table6 --out d --jobs 2 --seeds 0 1 --mixed-precision"
    with pytest.raises(InvalidInputError, match="'--colour' is neither a table or figure nor an option"):
        commands(f"{given} --colour")
    assert commands(given) == [
        "paper table1 --jobs 2 --seeds 0 --seeds 1 --mixed-precision --out d/table1",
        "paper figure6 --out d/figure6",
        "paper table6 --jobs 2 --seeds 0 --seeds 1 --mixed-precision --out d/table6",
    ]


def test_a_name_is_measured_once() -> None:
    assert commands("paper figure6 table2 figure6 --out=d") == [
        "paper figure6 --out d/figure6",
        "paper table2 --out d/table2",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--out OUT --json", "--json prints one JSON object"),
        ("--out OUT --seeds 1 a", "Invalid value for '--seeds'"),
        ("--out OUT extra", "'extra' is neither a table or figure"),
        ("figure9 --out OUT", "'figure9' is neither a table or figure"),
        ("--edits 3", "Missing option '--out'"),
    ],
)
def test_nothing_is_run_if_an_option_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    out = tmp_path / "out"
    assert main(["paper", "figure6", "table1", *(str(out) if part == "OUT" else part for part in line.split())]) == 1
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_two_figures_are_two_folders(tmp_path: Path) -> None:
    line = f"paper figure6 figure7 --backbone tiny-llava --edits 3 --questions 1 --out {tmp_path}"
    assert main(line.split()) == 0
    assert {file.parent.name for file in tmp_path.glob("*/report.md")} == {"figure6", "figure7"}


def test_an_error_of_one_does_not_keep_the_next_from_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"paper table1 table2 figure3 --backbone tiny-lava --out {tmp_path}"
    assert main(line.split()) == 1
    assert capsys.readouterr().err.count("Did you mean tiny-llava") == 3
