"""Which questions figures 6 and 7 show, and the commands that draw them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from liveedit.backbones import Backbone
from liveedit.cli import paper
from liveedit.editors.liveedit import LiveEdit
from liveedit.editors.liveedit.attribution import Candidate
from liveedit.editors.liveedit.attribution import candidates as candidates_of
from liveedit.errors import DatasetError, InvalidInputError
from liveedit.experiments.liveedit.instances import KINDS, Entries, _hardest, difficulty, figure_6, figure_7
from liveedit.images import open_image
from liveedit.samples import Edit, EditCase, Question


@pytest.fixture
def editor(tiny_llava: Backbone) -> Iterator[LiveEdit]:
    with LiveEdit.load(tiny_llava) as attached:
        yield attached


def candidates(**weights: tuple[float, float]) -> list[Candidate]:
    """By name (weight, weight had all passed), the nearest first."""
    return [
        Candidate(name, "?", "!", 0.0, weight > 0, 0.0, weight, of_all) for name, (weight, of_all) in weights.items()
    ]


@pytest.mark.parametrize(
    ("met_with", "rank"),
    [
        (candidates(own=(0.9, 0.8), other=(0.0, 0.1)), 0),
        (candidates(other=(0.1, 0.1), own=(0.9, 0.8)), 1),
        (candidates(own=(0.9, 0.3), other=(0.0, 0.6)), 2),
        (candidates(near=(0.1, 0.1), own=(0.8, 0.2), like=(0.0, 0.7)), 3),
        (candidates(own=(0.0, 0.9), other=(0.0, 0.1)), -1),
        (candidates(own=(0.4, 0.9), other=(0.6, 0.1)), -1),
        (candidates(own=(0.9, 0.9)), 0),
    ],
)
def test_difficulty_is_what_both_routers_are_needed_for(met_with: Sequence[Candidate], rank: int) -> None:
    found, weight = difficulty(met_with, "own")
    assert found == rank
    assert weight == max((one.weight_of_all for one in met_with if one.edit_id != "own"), default=0.0)


def test_the_hardest_question_of_each_case_is_shown() -> None:
    found = [(2, 0.5, 0), (2, 0.6, 1), (3, 0.1, 2), (-1, 0.9, 3), (2, 0.6, 4)]
    assert _hardest(found, ["a", "a", "b", "c", "d"]) == [2, 1, 4, 3]


def test_figure_6_asks_about_an_edit_in_four_ways(editor: LiveEdit, eval_cases: tuple[EditCase, ...]) -> None:
    shown = Entries()
    figure_6(editor, eval_cases, shown)
    assert sorted(editor.repository.ids) == sorted(case.id for case in eval_cases)
    names = ("reliability", "modal_generality", "near_duplicate_locality", "same_image_locality")
    assert [entry["kind"] for entry in shown.entries] == [KINDS[name] for name in names]
    case = eval_cases[0]
    asked = {probe.name: probe.question for probe in (case.reliability, *case.probes)}
    for name, entry in zip(names, shown.entries, strict=True):
        assert entry["backbone"] == "tiny-llava"
        assert entry["prompt"] == asked[name].prompt
        source = asked[name].image
        assert source is not None
        assert shown.images[entry["image"]].tobytes() == open_image(source).tobytes()
        assert len(entry["candidates"]) == len(eval_cases)
        with_image = ["image" in one for one in entry["candidates"]]
        assert with_image == [True] * 3 + [False] * (len(with_image) - 3)
    own, redrawn, near, another = (entry["candidates"][0] for entry in shown.entries)
    assert own["edit_id"] == redrawn["edit_id"] == case.id
    assert own["passed"] and redrawn["passed"] and not near["passed"] and not another["passed"]
    json.dumps(shown.entries, allow_nan=False)


def test_figure_7_counts_what_it_searched(editor: LiveEdit, eval_cases: tuple[EditCase, ...]) -> None:
    shown = Entries()
    cases = eval_cases[:4]
    sentence = figure_7(editor, cases, shown, crowded=2, most=1)
    related = {f"{case.id}/{name}" for case in cases[:2] for name in ("same_image_locality", "near_duplicate_locality")}
    assert set(editor.repository.ids) == {case.id for case in cases} | related
    assert len(shown.entries) == 1
    assert sentence.startswith("tiny-llava, 6 questions against 8 edits: ")
    near = next(name for name in related if name.endswith("near_duplicate_locality"))
    probe = {case.id: case for case in cases}[near.split("/")[0]].named("near_duplicate_locality")[0]
    edits = {edit_id: Edit(probe.question, probe.answer or "") for edit_id in editor.repository.ids}
    _, found = candidates_of(editor, probe.question, edits)
    assert found[0].edit_id == near and found[0].passed


def test_cases_without_pictures_are_refused(editor: LiveEdit) -> None:
    case = EditCase("text", Edit(Question("What is the capital of Coraland?"), "Reef"))
    with pytest.raises(DatasetError, match="has an image"):
        figure_6(editor, [case], Entries())


# -- commands ----------------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(paper.figure6)
    app.command()(paper.figure7)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    if result.exit_code:
        raise AssertionError(result.output)
    return result.stdout


def test_the_command_draws_figure_6_of_an_own_question(world: Path, tmp_path: Path) -> None:
    picture = tmp_path / "own.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(picture)
    asked = ("--image", str(picture), "--prompt", "What color is the hat?", "--data", str(world))
    found = json.loads(run("figure6", "--out", str(tmp_path / "figure"), "--edits", "2", *asked, "--json"))
    kept = json.loads((tmp_path / "figure" / "attribution.json").read_text())
    assert kept["questions"] == found["questions"]
    (record,) = kept["provenance"].values()
    assert record["config"]["editor"] == "liveedit" and len(record["backbone_digest"]) == 64
    assert "## Provenance" in Path(found["report"]).read_text()
    (entry,) = found["questions"]
    assert (entry["kind"], entry["prompt"]) == ("own question", "What color is the hat?")
    assert len(entry["candidates"]) == 2
    assert Path(found["report"]).exists()
    with Image.open(tmp_path / "figure" / "attribution.png") as drawn:
        assert drawn.size == (1200, 350)


def test_options_that_do_not_fit_are_refused(world: Path, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path), "--data", str(world))
    with pytest.raises(InvalidInputError, match=r"does not route by images\. Give one of liveedit, liveedit-refine"):
        run("figure6", *out, "--editor", "ft-l")
    with pytest.raises(InvalidInputError, match="names tiny-blip2"):
        run("figure7", *out, "--backbone", "tiny-llava", "--editor-path", "tiny-blip2=here")
    with pytest.raises(AssertionError, match="belong together"):
        run("figure6", *out, "--prompt", "What color is the hat?")
