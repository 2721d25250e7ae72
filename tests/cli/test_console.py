"""What commands show while they work: a line on a terminal, little elsewhere."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from liveedit.backbones import Backbone
from liveedit.cli import console
from liveedit.doctor import examine

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal receives in place of standard error."""
    written = io.StringIO()
    monkeypatch.setattr(console, "Console", lambda **_: Console(file=written, force_terminal=True, width=120))
    return written


def plain(written: io.StringIO) -> str:
    return re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", written.getvalue())


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0.0, "0"), (12.345678901234567, "12.35"), (999.96, "1,000"), (1234.5678, "1,235"), (0.00012345678, "0.0001235")],
)
def test_numbers_have_four_digits(number: float, shown: str) -> None:
    assert console.four_digits(number) == shown


def test_the_bar_of_the_doctor_names_the_check_that_runs(terminal: io.StringIO, random_backbone: Backbone) -> None:
    with console.ProgressDisplay() as progress:
        steps = progress.steps("checking")
        shown = []

        def report(step: str, done: int, total: int, figures: object = None, /) -> None:
            steps(step, done, total)
            shown.append(plain(terminal).rstrip().splitlines()[-1])

        diagnosis = examine(random_backbone, report)
    assert len(shown) == len(diagnosis.checks) + 1
    for done, (line, check) in enumerate(zip(shown, diagnosis.checks, strict=False)):
        assert f"checking: {check.name}" in line and f"{done}/{len(diagnosis.checks)}" in line
    assert "7/7" in shown[-1]


def test_elsewhere_the_doctor_writes_a_line_at_most_every_15_seconds(run: Run) -> None:
    code, out, err = run("doctor", "--json")
    assert code == 0
    assert out.startswith("{")
    first, *_, last = err.splitlines()
    assert first == "checking: 0 of 7 (every token is image, prompt or answer)"
    assert last == "checking: 7 of 7 (done)"


def test_threads_sleep_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # So that it is as before after the test.
    monkeypatch.delenv("OMP_WAIT_POLICY")
    console.wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    console.wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_an_edit_shows_its_steps_on_a_terminal(terminal: io.StringIO) -> None:
    with console.spinner("editing", shown=True) as steps:
        steps(3, 60)
    assert "editing: step 3 of at most 60" in plain(terminal)


def test_nothing_is_shown_elsewhere_or_with_json(
    terminal: io.StringIO, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with console.spinner("editing", shown=False) as steps:
        steps(3, 60)
    monkeypatch.setattr(console, "Console", Console)
    with console.spinner("editing", shown=True) as steps:
        steps(3, 60)
    assert (terminal.getvalue(), *capsys.readouterr()) == ("", "", "")


def test_long_work_shows_a_line_every_15_seconds_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((100.0, 101.0, 114.0, 116.0, 120.0, 131.5))  # Of the start, and of each step.
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.spinner("editing", shown=True) as steps:
        for step in range(5):
            steps(step, 60)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["editing: step 2 of at most 60", "editing: step 4 of at most 60"]


def test_a_task_that_is_done_again_writes_its_end_once(capsys: pytest.CaptureFixture[str]) -> None:
    with console.ProgressDisplay() as progress:
        for _ in range(3):
            progress.report("asking", 4, 4)
        progress.report("editing", 2, 2)
    assert capsys.readouterr().err.splitlines() == ["asking: 4 of 4", "editing: 2 of 2"]


def test_the_command_passes_the_steps_on(
    run: Run, terminal: io.StringIO, tmp_path: Path, picture: Callable[[int], object]
) -> None:
    image = tmp_path / "image.png"
    picture(3).save(image)  # type: ignore[attr-defined]
    asked = ("--edits", tmp_path / "edits.db", "--image", image, "--prompt", "What is this?", "--answer", "a mirror")
    assert run("edit", *asked, "--no-must-take")[0] == 0
    shown = plain(terminal)
    assert re.search(r"editing: step \d+ of at most \d+", shown) and "editing" in shown
    before = len(terminal.getvalue())
    assert run("edit", *asked, "--no-must-take", "--json")[0] == 0
    assert "step" not in plain(io.StringIO(terminal.getvalue()[before:]))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (3_440_000, "3.4 MB"), (5e9, "5.0 GB"), (2e12, "2.0 TB")],
)
def test_sizes_are_readable(count: float, text: str) -> None:
    assert console.byte_size(count) == text
