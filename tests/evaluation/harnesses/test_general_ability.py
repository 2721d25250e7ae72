"""General ability without a harness: its results in one form, what is reported, tasks of data that is here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liveedit.backbones import Backbone
from liveedit.edited.model import EditedModel
from liveedit.editors.ike import InContext
from liveedit.errors import InvalidInputError, NotFoundError
from liveedit.evaluation.harnesses import measuring, running
from liveedit.evaluation.harnesses.local_tasks import documents_of, write_tasks
from liveedit.evaluation.harnesses.measuring import GeneralAbility
from liveedit.evaluation.harnesses.report import ability_tables, fall, is_within, write_ability_report
from liveedit.evaluation.harnesses.running import EvalConfig, HarnessResults, harness_version
from liveedit.evaluation.provenance import Provenance
from liveedit.experiments.verification import verify_folder
from liveedit.samples import Edit, EditCase, Probe, Question
from liveedit.store.store import EditStore

PROVENANCE = Provenance("abc", False, "b" * 64, "d" * 64, device="cpu")
CONFIG = EvalConfig(harness="lm-eval", tasks=("all", "lonely"))


def score(value: float, stderr: float | None = None, better: bool | None = True) -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "higher_is_better": better}


def sample(task: str, number: int, **scores: float) -> dict[str, Any]:
    return {"task": task, "doc_id": number, "filter": "none", "resps": [["x"]], "scores": scores}


def results(first: float, second: float, perplexity: float) -> HarnessResults:
    tasks = {
        "one": {"documents": 2, "scores": {"acc": score(first, 0.1)}},
        "two": {"documents": 2, "scores": {"acc": score(second, 0.1)}},
        "lonely": {"documents": 2, "scores": {"perplexity": score(perplexity, None, False)}},
    }
    groups = {"all": {"tasks": ["one", "two"], "scores": {"acc": score((first + second) / 2, 0.07)}}}
    samples = [sample("one", 0, acc=first), sample("two", 0, acc=second), sample("lonely", 0, perplexity=perplexity)]
    return HarnessResults(tasks, groups, samples, {"loglikelihood": {"asked": 9, "with_edits": 2, "withheld": 0}})


@pytest.fixture
def measured(tiny_llava: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """Runs the measurement in `tmp_path` with a harness whose results are known; the edited model is worse."""
    asked: list[bool] = []

    def known(model: EditedModel, config: EvalConfig, include: Path | None = None) -> HarnessResults:
        asked.append(len(model.backbone.prepared([Question("Who?")])) > 0)  # A paused editor transforms nothing.
        return results(0.5, 0.25, 12.5) if asked[-1] else results(0.5, 0.75, 10.0)

    monkeypatch.setattr(measuring, "run_harness", known)
    monkeypatch.setattr(measuring, "harness_version", lambda name: "1.2")

    def measure() -> list[Any]:
        with EditedModel(tiny_llava, InContext(tiny_llava), EditStore(tmp_path / "edits.db")) as model:
            if not len(model):
                model.edit(None, "Who?", "nobody", must_take=False, probe_edits=0)
            return [GeneralAbility(model, CONFIG, tmp_path, PROVENANCE, "tiny-llava").run(), asked]

    return measure


def test_the_tables_name_the_task_that_fell_most(measured: Callable[[], list[Any]], tmp_path: Path) -> None:
    rows, asked = measured()
    assert asked == [False, True], "first the unedited model, then the edited one"
    wanted, single = ability_tables(rows, {"two": {"acc": 1}})
    lines = {line[:2]: line[2:] for line in wanted.rows}
    assert lines == {
        ("all", "acc"): ("0.625 ± 0.07", "0.375 ± 0.07", "0.5 ± 0.1 (two)", "no"),
        ("lonely", "perplexity"): ("10", "12.5", "2.5", "–"),
    }
    assert any("Edits fired for 2 of 9 requests" in note for note in wanted.notes)
    assert [line[0] for line in single.rows] == ["one", "two", "lonely"]
    assert [line[-1] for line in single.rows] == ["–", "1", "–"]


def test_what_is_written_is_verified_and_not_measured_again(measured: Callable[[], list[Any]], tmp_path: Path) -> None:
    rows, _ = measured()
    write_ability_report(rows, tmp_path)
    assert json.loads((tmp_path / "rows.json").read_text())["changed"] == {
        "one": {"acc": 0},
        "two": {"acc": 1},
        "lonely": {"perplexity": 1},
    }
    assert verify_folder(tmp_path).disagreements == []
    file = tmp_path / "results" / "edited.samples.jsonl"
    file.write_text(file.read_text().replace("0.25", "0.75"))
    found = {remark.file for remark in verify_folder(tmp_path).disagreements}
    assert found == {"results/edited.samples.jsonl", "rows.json"}


def test_a_column_that_is_there_is_kept_and_one_with_changed_samples_is_not(
    measured: Callable[[], list[Any]], tmp_path: Path
) -> None:
    first, _ = measured()
    file = tmp_path / "results" / "unedited.samples.jsonl"
    file.write_text("{}\n")
    again, asked_again = measured()
    assert asked_again == [False, True, False], "only the column with other samples"
    assert again[1] == first[1]


def test_falls_have_the_direction_of_the_metric() -> None:
    assert fall(score(0.6), score(0.5)) == pytest.approx(0.1)
    assert fall(score(10.0, better=False), score(12.0, better=False)) == pytest.approx(2.0)
    assert str(fall(score(0.5), score(0.5))) == "0.0"
    assert is_within(score(0.6, 0.1), score(0.5, 0.2)) is True
    assert is_within(score(0.6, 0.05), score(0.5, 0.2)) is False
    assert is_within(score(0.6), score(0.5, 0.2)) is None


def test_results_of_a_harness_in_one_form() -> None:
    given = {
        "results": {
            "qa": {"alias": "qa", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 0.25, "em_stderr,strict": "N/A"}
        },
        "groups": {"g": {"alias": "g", "acc,none": 0.5, "acc_stderr,none": 0.1}},
        "group_subtasks": {"g": ["inner"], "inner": ["qa"], "qa": []},
        "higher_is_better": {"qa": {"acc": True, "em": True}},
        "n-samples": {"qa": {"original": 9, "effective": 2}},
        "samples": {"qa": [{"doc_id": 0, "doc": {"a": 1}, "target": 1, "filter": "none", "arguments": [], "acc": 1.0}]},
    }
    found = running._results(given, {})
    assert found.tasks["qa"]["documents"] == 2
    assert found.tasks["qa"]["scores"] == {"acc": score(0.5, 0.1), "em (strict)": score(0.25)}
    assert found.groups["g"]["tasks"] == ["qa"]
    assert found.samples == [{"task": "qa", "doc_id": 0, "filter": "none", "target": 1, "scores": {"acc": 1.0}}]


def test_a_harness_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise running.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(running.metadata, "version", missing)
    with pytest.raises(NotFoundError, match=r"pip install 'liveedit\[eval-images\]'"):
        harness_version("lmms-eval")


# -- tasks of data that is here ------------------------------------------------------------------------------


def case(number: int, image: Path | None = None) -> EditCase:
    stays = Probe("text_locality", Question(f"Capital of land {number}?", image), f"Town {number}")
    return EditCase(
        f"case-{number}", Edit(Question("Who?"), "x"), (stays, Probe("text_locality", Question("No answer?")))
    )


def test_questions_become_documents_with_one_right_choice() -> None:
    cases = [case(number) for number in range(8)]
    documents = documents_of(cases, with_image=False, count=5, seed=3)
    assert len(documents) == len({one["question"] for one in documents}) == 5
    for one in documents:
        assert one["question"].split()[-1] == f"{one['answer'].split()[-1]}?"
        assert one["choices"][one["gold"]] == one["answer"]
        assert len(set(one["choices"])) == 4
    assert documents == documents_of(cases, with_image=False, count=5, seed=3)
    assert documents != documents_of(cases, with_image=False, count=5, seed=4)


def test_images_make_tasks_for_the_other_harness(tmp_path: Path) -> None:
    cases = [case(number, tmp_path / f"{number}.png") for number in range(4)]
    assert write_tasks(cases, "lmms-eval", tmp_path, "My world", 3) == ("my_world_answer",)
    documents = [json.loads(line) for line in (tmp_path / "my_world.jsonl").read_text().splitlines()]
    assert all(Path(one["image"]).is_absolute() and "choices" not in one for one in documents)
    with pytest.raises(InvalidInputError, match="0 different answers to questions without an image"):
        write_tasks(cases, "lm-eval", tmp_path, "My world", 3)
