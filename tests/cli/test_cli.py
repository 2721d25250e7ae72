"""The command line: what it prints, what it refuses, how it goes on after an interruption."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import liveedit
from liveedit.answering import Answering
from liveedit.answers import Answer, Fired
from liveedit.backbones import Backbone
from liveedit.cli import app
from liveedit.cli.arguments import named_values, spread_values
from liveedit.datasets.facts import fact_cases
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig
from liveedit.evaluation import bench as bench_module
from liveedit.samples import EditCase

PROMPT = "What is this creature called?"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def answer_of(run: Run) -> Callable[..., dict[str, Any]]:
    """Runs a command with --json that must succeed; gives what it printed."""

    def call(*arguments: object) -> dict[str, Any]:
        code, out, err = run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.fixture(scope="session")
def editor_folder(
    tmp_path_factory: pytest.TempPathFactory,
    shared_tiny_llava: Backbone,
    small_config: Callable[..., LiveEditConfig],
) -> Path:
    """An untrained editor that finds an edit again all the same: both of its extractors are one."""
    folder = tmp_path_factory.mktemp("editor")
    with LiveEdit.untrained(shared_tiny_llava, small_config()) as editor:
        editor.modules.hat.load_state_dict(editor.modules.bar.state_dict())
        editor.save_pretrained(folder)
    return folder


@pytest.fixture
def image_file(eval_cases: tuple[EditCase, ...]) -> Path:
    image = eval_cases[0].edit.question.image
    assert isinstance(image, Path)
    return image


# -- the line itself -------------------------------------------------------------------------------------


def test_several_values_behind_one_option() -> None:
    given = [
        "bench",
        "--edits",
        "1",
        "10",
        "100",
        "--json",
        "--seeds",
        "0",
        "--editor",
        "a",
        "b",
        "--out",
        "x",
    ]
    assert spread_values(given) == [
        *("bench", "--edits", "1", "--edits", "10", "--edits", "100", "--json", "--seeds", "0"),
        *("--editor", "a", "--editor", "b", "--out", "x"),
    ]


def test_a_repeated_option_stays_as_it_is() -> None:
    given = ["bench", "--edits", "1", "--edits", "10"]
    assert spread_values(given) == given


def test_other_commands_keep_their_arguments() -> None:
    given = ["edits", "undo", "--edits", "edits.db", "0a1b2c3d"]
    assert spread_values(given) == given


def test_named_values() -> None:
    assert named_values(["a=1", "b=x=y"], "--set") == {"a": "1", "b": "x=y"}


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"liveedit {liveedit.__version__}\n", "")


def test_every_command_is_listed(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    listed = {line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.strip()}
    assert listed >= {"edit", "ask", "edits", "data", "train-backbone", "train", "bench", "demo", "editors"}


def test_no_command_is_registered_twice() -> None:
    """The parser would keep one of the two without a word."""
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_editors(answer_of: Callable[..., dict[str, Any]]) -> None:
    found = {editor["name"]: editor["summary"] for editor in answer_of("editors")["editors"]}
    assert {"liveedit", "liveedit-refine", "ft-l", "none"} <= found.keys()
    assert all(found.values())


def test_the_command_is_installed_and_help_is_quick_to_load() -> None:
    code = "import sys; from liveedit.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "train-backbone" in done.stdout


def test_importing_the_package_loads_no_model_code() -> None:
    code = "import sys, liveedit; assert 'torch' not in sys.modules; assert liveedit.Question('a').prompt == 'a'"
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)


def test_the_public_names_are_there() -> None:
    assert {name for name in liveedit.__all__ if getattr(liveedit, name, None) is None} == set()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = liveedit.nothing


# -- editing ---------------------------------------------------------------------------------------------


def test_edit_ask_list_show_and_undo(
    answer_of: Callable[..., dict[str, Any]],
    run: Run,
    tmp_path: Path,
    editor_folder: Path,
    image_file: Path,
) -> None:
    file = tmp_path / "edits.db"
    asked = ("--edits", file, "--image", image_file, "--prompt", PROMPT, "--editor-path", editor_folder)
    before = answer_of("ask", *asked)
    assert before["fired"] == []
    assert not file.exists(), "asking made an edits file"

    receipt = answer_of("edit", *asked, "--answer", "forest")
    assert receipt["answer_before"] == before["text"] != "forest"
    assert receipt["answer_after"] == "forest"
    assert receipt["took"] is True
    assert receipt["milliseconds"] > 0 < receipt["store_bytes"]

    after = answer_of("ask", *asked)
    assert answer_of("ask", *asked, "--experts-on", "host") == after
    assert after["text"] == "forest"
    assert [fired["edit_id"] for fired in after["fired"]] == [receipt["id"]]

    (listed,) = answer_of("edits", "list", "--edits", file)["edits"]
    assert (listed["id"], listed["prompt"], listed["answer"]) == (receipt["id"], PROMPT, "forest")
    assert (listed["image_name"], listed["active"]) == (image_file.name, True)
    shown = answer_of("edits", "show", "--edits", file, receipt["id"][:4])
    assert [event["kind"] for event in shown["history"]] == ["edit"]
    assert shown["store_bytes"] == receipt["store_bytes"]

    undone = answer_of("edits", "undo", "--edits", file, receipt["id"])
    assert (undone["active"], undone["active_edits"]) == (False, 0)
    assert answer_of("ask", *asked) == before
    assert answer_of("edits", "list", "--edits", file)["edits"] == []
    assert [edit["id"] for edit in answer_of("edits", "list", "--edits", file, "--all")["edits"]] == [receipt["id"]]

    code, out, err = run("edits", "undo", "--edits", file, receipt["id"])
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "already undone" in err


def test_the_same_for_people(run: Run, tmp_path: Path, editor_folder: Path, image_file: Path) -> None:
    file = tmp_path / "edits.db"
    asked = ("--edits", file, "--image", image_file, "--prompt", PROMPT, "--editor-path", editor_folder)
    code, out, err = run("edit", *asked, "--answer", "forest", "--editor", "liveedit", "--no-must-take")
    assert (code, err) == (0, "")
    edit_id = out.split()[1]
    code, out, err = run("edits", "list", "--edits", file)
    assert (code, err) == (0, "")
    assert edit_id in out
    assert "Active edits: 1" in out
    assert PROMPT in run("edits", "show", "--edits", file, edit_id)[1]
    assert f"Edit {edit_id} is undone" in run("edits", "undo", "--edits", file, edit_id)[1]


def test_a_question_without_a_picture(
    answer_of: Callable[..., dict[str, Any]], editor_folder: Path, tiny_llava: Backbone
) -> None:
    from liveedit.samples import Question

    prompt = "What is the capital of Helbinland?"
    (expected,) = tiny_llava.generate(tiny_llava.encode([Question(prompt)], padding="left"), 32)
    found = answer_of("ask", "--prompt", prompt, "--editor-path", editor_folder)
    assert found == {"text": expected, "fired": [], "withheld": []}


def test_an_answer_in_doubt_names_the_edits_that_were_withheld(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer("red", (), None, (Fired("a1b2c3d4", 1.0, 2.0),))
    monkeypatch.setattr(Answering, "ask", lambda *_: [answer])
    code, out, err = run("ask", "--prompt", "What color is the hat?")
    assert code == 0, err
    assert out.splitlines() == ["red", "edit a1b2c3d4 fired, in doubt: this is the unedited answer"]


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 1
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_edits_of_another_model_are_named_and_not_its_missing_editor(
    run: Run, tmp_path: Path, editor_folder: Path, image_file: Path
) -> None:
    file = tmp_path / "edits.db"
    made = run(
        *("edit", "--edits", file, "--editor-path", editor_folder, "--prompt", PROMPT, "--image", image_file),
        *("--answer", "a mirror", "--no-must-take"),
    )
    assert made[0] == 0, made[2]
    asked = ("ask", "--edits", file, "--backbone", "tiny-llama-lm", "--prompt", PROMPT)
    refused(run(*asked), "belongs to the model 'tiny-llava'", "loaded is the model 'tiny-llama-lm'")


def test_bad_input_is_refused_in_one_line(run: Run, tmp_path: Path, editor_folder: Path, image_file: Path) -> None:
    file = tmp_path / "edits.db"
    shared = ("--edits", file, "--editor-path", editor_folder)
    ask = (*shared, "--prompt", PROMPT)
    refused(run("edit", *ask, "--image", "absent.png", "--answer", "a"), "absent.png", "does not exist")
    refused(run("edit", *ask, "--image", image_file, "--answer", " "), "answer is empty")
    refused(run("edit", *ask, "--image", image_file, "--answer", "Zorp</s>"), "contains '</s>'", "control token")
    refused(run("ask", *shared, "--prompt", " ", "--image", image_file), "prompt is empty")
    refused(run("ask", *ask, "--editor", "no-such"), "no editor 'no-such'", "liveedit-refine")
    refused(run("ask", *ask, "--editor", "ft-l"), "'ft-l'")
    refused(run("ask", "--prompt", PROMPT, "--editor-path", tmp_path / "empty"), "no trained editor and no calibration")
    refused(run("edit", "--edits", file), "--prompt")
    refused(run("edits", "undo", "--edits", file), "'ID'", "See `liveedit edits undo --help`.")
    refused(run("ask", "--prompt", PROMPT, "--at", 3), "--at 3", "--edits")
    refused(run("no-such-command"), "no-such-command")
    refused(run("edt"), "'edit'", "? See `liveedit --help`.")
    refused(run("edits", "list", "--edits", tmp_path / "absent.db"), "absent.db")
    refused(run("edits", "list", "--edits", "mysql://me:secret@host/name"), "mysql", "postgresql://")
    assert list(tmp_path.iterdir()) == [], "what failed left an edits file"


def test_a_broken_edits_file_is_refused(run: Run, tmp_path: Path, editor_folder: Path) -> None:
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"SQLite format 3\x00 and then nothing of the kind" * 50)
    refused(run("edits", "list", "--edits", broken), "broken.db")
    refused(run("ask", "--edits", broken, "--prompt", PROMPT, "--editor-path", editor_folder), "broken.db")


def test_debug_shows_the_traceback(run: Run, tmp_path: Path) -> None:
    code, _, err = run("edits", "list", "--edits", tmp_path / "absent.db", "--debug")
    assert code == 1
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("Error: ")


def test_what_nobody_foresaw_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("liveedit.editors.editor_names", fail)
    refused(run("editors"), "RuntimeError: first line second line", "--debug")


# -- data ------------------------------------------------------------------------------------------------


def test_data_draw_and_check(answer_of: Callable[..., dict[str, Any]], run: Run, tmp_path: Path) -> None:
    drawn = answer_of("data", "draw", "--out", tmp_path, "--seed", "5", "--train", "2", "--eval", "3")
    assert {part: len(json.loads(Path(file).read_text())) for part, file in drawn["files"].items()} == {
        "train": 2,
        "eval": 3,
    }
    report = answer_of("data", "check", "mmedit", drawn["files"]["eval"], "--images", tmp_path)
    assert (report["rows"], report["rows_read"], report["missing_images"], report["ok"]) == (3, 3, 0, True)
    assert "unique images" in run("data", "check", "mmedit", drawn["files"]["eval"])[1]

    next((tmp_path / "images").glob("eval-5-000001.png")).unlink()
    code, out, err = run("data", "check", "mmedit", drawn["files"]["eval"], "--images", tmp_path, "--json")
    assert code == 1
    assert json.loads(out)["missing_images"] == 1
    assert "row 1 (counted from 0), key 'image'" in err.splitlines()[-1]


def test_bad_data_is_refused(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('[{"src": 1}, ')
    refused(run("data", "check", "no-such", broken), "no data format 'no-such'", "mmedit")
    refused(run("data", "check", "mmedit", tmp_path / "absent.json"), "absent.json")
    code, _, err = run("data", "check", "mmedit", broken)
    assert (code, "broken.json, row 0" in err) == (1, True)
    refused(run("data", "draw", "--out", tmp_path, "--train", "0", "--eval", "0"), "at least one case")


# -- the bench -------------------------------------------------------------------------------------------


def bench_arguments(world: Path, out: Path, editor_folder: Path) -> list[object]:
    few = ("--edits", 1, 2, "--few-edits-cases", 2, "--seeds", 0, 1)
    own = ("--editor-path", f"liveedit={editor_folder}")
    return ["bench", "--data", world, "--out", out, *few, "--editor", "liveedit", *own]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what two runs of the same may differ in: times, the command, and the state of the source tree."""
    times = ("milliseconds_per_edit", "seconds", "row_digest")
    varying = ("git_sha", "dirty", "started", "command")
    return [
        {
            **{key: value for key, value in row.items() if key not in times},
            "provenance": {key: value for key, value in row["provenance"].items() if key not in varying},
        }
        for row in rows
    ]


def test_bench_goes_on_after_an_interruption(
    run: Run,
    answer_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
    world: Path,
    editor_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = answer_of(*bench_arguments(world, tmp_path / "whole", editor_folder))["rows"]
    assert [(row["seed"], row["edits"]) for row in whole] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    names = {
        *("reliability", "text_generality", "modal_generality", "text_locality", "modal_locality"),
        *("same_image_locality", "same_question_locality", "near_duplicate_locality"),
    }
    for row in whole:
        assert (row["editor"], row["backbone"], row["data"]) == ("liveedit", "tiny-llava", world.name)
        assert names <= row["metrics"].keys()
        assert {"teacher_forced", "exact_match"} <= row["metrics"]["reliability"].keys()
        assert row["metrics"]["reliability"]["count"] == 2
        assert sum(kind["reliability"]["count"] for kind in row["by_answer_type"].values()) >= 2

    measured = 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal measured
        measured += 1
        if measured > 4:  # Two groups of one edit, one of two, and into the third row.
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    measure = bench_module.measure
    monkeypatch.setattr(bench_module, "measure", interrupted)
    arguments = bench_arguments(world, tmp_path / "cut", editor_folder)
    code, out, err = run(*arguments, "--json")
    assert (code, out) == (130, "")
    assert "Run the same command again" in err.splitlines()[-1]
    kept = sorted((tmp_path / "cut" / "results").glob("*.json"))
    assert [file.name for file in kept] == ["liveedit-1-seed0.json", "liveedit-2-seed0.json"]
    texts = [file.read_text() for file in kept]

    monkeypatch.setattr(bench_module, "measure", measure)
    resumed = answer_of(*arguments)
    assert without_times(resumed["rows"]) == without_times(whole)
    assert [file.read_text() for file in kept] == texts, "rows that were there were measured again"
    report = Path(resumed["report"])
    assert report == tmp_path / "cut" / "report.md"
    assert {file.name for file in report.parent.iterdir()} >= {
        "table.md",
        "table.tex",
        "table.csv",
        "rows.json",
    }


def test_bench_prints_a_table_and_takes_labels(run: Run, tmp_path: Path, world: Path, editor_folder: Path) -> None:
    few = ("--edits", 1, "--few-edits-cases", 1, "--data", f"mmedit:{world / 'eval.json'}", "--out", tmp_path)
    code, out, _ = run(
        "bench", *few, "--editor", "own=liveedit", "none", "--editor-path", f"own={editor_folder}", "--published"
    )
    assert code == 0
    assert "own" in out
    assert "Reliability" in out
    own, none = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (own["editor"], own["data"], none["editor"]) == ("own", "mmedit:eval.json", "none")
    locality = [values for name, values in none["metrics"].items() if name.endswith("locality")]
    assert [(values["teacher_forced"], values["exact_match"]) for values in locality] == [(100, 100)] * 5
    assert "Published values (not ours)" in (tmp_path / "report.md").read_text()


def test_bench_takes_settings_of_editors(answer_of: Callable[..., dict[str, Any]], tmp_path: Path, world: Path) -> None:
    few = ("--edits", 1, "--few-edits-cases", 1, "--data", world, "--out", tmp_path)
    chosen = ("--editor", "ft-l", "one=ft-l", "--set", "ft-l.steps=2", "one.steps=1", "one.stop_below_nats=0")
    answer_of("bench", *few, *chosen)
    two, one = json.loads((tmp_path / "rows.json").read_text())["rows"]
    settings = [row["provenance"]["config"]["editor"] for row in (two, one)]
    assert [(given["steps"], given["stop_below_nats"]) for given in settings] == [(2, 0.01), (1, 0)]


def test_bad_benches_are_refused(run: Run, tmp_path: Path, world: Path, editor_folder: Path) -> None:
    def bench(*options: object) -> tuple[int, str, str]:
        return run("bench", "--out", tmp_path / "out", *options)

    refused(bench("--editor", "no-such", "--edits", 1, "--data", world), "no editor 'no-such'", "ft-l")
    refused(bench("--editor", "none", "--edits", 13, "--data", world), "13 edits", "holds 12")
    refused(bench("--editor", "none", "--edits", 0, "--data", world), "--edits")
    refused(bench("--editor", "none", "--edits", "many", "--data", world), "--edits")
    refused(bench("--editor", "none", "--edits", 1, "--data", "no-such"), "no data 'no-such'", "mmedit")
    refused(bench("--editor", "none", "--edits", 1, "--data", "world:x"), "'world:x'")
    refused(bench("--editor", "none", "--edits", 1, "--data", tmp_path), "no eval.json")
    stray = ("--editor-path", f"liveedit={editor_folder}")
    refused(bench("--editor", "none", "--edits", 1, "--data", world, *stray), "--editor-path names liveedit")
    few = ("--editor", "ft-l", "none", "--edits", 1, "--data", world, "--set")
    refused(bench(*few, "other.steps=1"), "--set names other", "ft-l")
    refused(bench(*few, "steps=1"), "NAME.SETTING=VALUE")
    refused(bench(*few, "ft-l.stepz=1"), "stepz", "stop_below_nats")
    refused(bench(*few, "none.steps=1"), "'none'", "has no settings")


def test_the_world_by_name_is_drawn_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from liveedit.datasets import sources

    monkeypatch.setenv("LIVEEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "FEWEST_DRAWN", 4)
    drawn: list[tuple[int, int]] = []
    first = sources.open_data("world:9", 2, lambda done, total: drawn.append((done, total)))
    again = sources.open_data("world:9", 2, lambda done, total: pytest.fail("it was drawn again"))
    assert drawn
    assert (first.name, len(first.cases)) == ("world:9", 4)
    assert first == again
    assert first.files[0].parent == tmp_path / "cache" / "world-9-4"
    first.files[0].unlink()
    assert sources.open_data("world:9", 2).cases == first.cases
    assert len(sources.open_data("world", 10).cases) == 12


# -- training --------------------------------------------------------------------------------------------

TRAINING: tuple[object, ...] = (
    *("--module-width", 32, "--rank", 2, "--heads", 4, "--validation", 4),
    *("--set", "feature_parts=2", "warmup=1", "validate_every=10", "same_subject=ignored"),
    *("--stage", "routing:20:4:1e-3", "joint:2:4:1e-3"),
)


def test_train_goes_on_after_an_interruption(
    run: Run,
    answer_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
    world: Path,
    tiny_llava: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from liveedit.training import trainer as training

    whole = answer_of("train", "--data", world, "--out", tmp_path / "whole", *TRAINING)
    with LiveEdit.from_pretrained(whole["editor"], tiny_llava) as editor:
        assert (editor.config.module_width, editor.config.rank, editor.config.feature_parts) == (32, 2, 2)
        assert whole["parameters"] == sum(part.numel() for part in editor.modules.parameters())
    assert "reliability" in whole["validation"]
    stages = [entry["stage"] for entry in json.loads((tmp_path / "whole" / "curves.json").read_text())]
    assert stages == ["routing"] * 4 + ["joint"]
    assert (tmp_path / "whole" / "curves.png").read_bytes().startswith(b"\x89PNG")
    settings = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert settings["options"]["same_subject"] == "ignored"

    save = training.save_training

    def interrupted(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_training", interrupted)
    arguments = ("train", "--data", world, "--out", tmp_path / "cut", *TRAINING)
    code, out, err = run(*arguments, "--json")
    assert (code, out) == (130, "")
    assert "Run the same command again: the training continues" in err.splitlines()[-1]
    monkeypatch.setattr(training, "save_training", save)
    resumed = answer_of(*arguments)
    assert resumed["validation"] == whole["validation"]
    files = [Path(result["editor"]) / "editor.safetensors" for result in (whole, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()

    another = [4 if before == "--rank" else given for before, given in zip(("", *arguments), arguments, strict=False)]
    refused(run(*another), "other settings", "editor.rank = 2 there, 4 here")


def test_train_in_the_papers_form(answer_of: Callable[..., dict[str, Any]], tmp_path: Path, world: Path) -> None:
    own = ("--form", "paper", "--module-width", 16, "--validation", 4, "--stage", "routing:1:2:1e-3")
    trained = answer_of("train", "--data", "mmedit", "--annotations", world / "train.json", "--out", tmp_path, *own)
    config = json.loads((Path(trained["editor"]) / "editor.json").read_text())
    assert (config["similarity"], config["heads"], config["residual_tokens"]) == ("dot", 1, "all")
    settings = json.loads((tmp_path / "training.json").read_text())
    assert settings["options"]["hard_loss"] == "paper"
    assert (settings["training"]["keep"], settings["training"]["clip"]) == ("loss", None)


def test_the_papers_form_is_refused_for_a_model_without_images(run: Run, tmp_path: Path) -> None:
    own = ("--backbone", "tiny-llama-lm", "--data", "facts", "--cases", 8, "--form", "paper")
    refused(run("train", *own, "--out", tmp_path), "reads text alone: no edit would ever fire", "Leave out --form")


def test_bad_trainings_are_refused(run: Run, tmp_path: Path, world: Path) -> None:
    def train(*options: object) -> tuple[int, str, str]:
        return run("train", "--out", tmp_path / "out", "--data", world, *options)

    refused(train("--stage", "routing:1"), "'routing:1'", "NAME:STEPS:BATCH:RATE")
    refused(train("--stage", "other:1:2:1e-3"), "no stage 'other'", "generator")
    refused(train("--set", "no_such=1"), "no setting no_such", "answer_source")
    refused(train("--set", "no_such"), "NAME=VALUE")
    refused(train("--heads", 5), "heads = 5 must divide")
    refused(train("--set", "hard_loss=other"), "hard_loss")
    refused(train("--cases", 13), "13 cases", "holds 12")
    refused(run("train", "--out", tmp_path, "--data", "mmedit"), "--annotations")
    refused(train("--validation", 12), "12 cases")


def test_language_models_train_editors_on_facts_alone(
    answer_of: Callable[..., dict[str, Any]], run: Run, tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIVEEDIT_CACHE", str(tmp_path / "cache"))
    own = ("train", "--editor", "mend", "--backbone", "tiny-llama-lm")
    few = ("--cases", 12, "--validation", 4, "--stage", "edit:1:4:1e-3")
    trained = answer_of(*own, "--data", "facts:3", "--out", tmp_path / "facts", *few)
    assert (Path(trained["editor"]) / "editor.safetensors").is_file()
    assert trained["validation"].keys() == {"reliability", "text_generality", "text_locality"}
    refused(run(*own, "--data", world, "--out", tmp_path / "world", *few), "reads text alone", "--data facts")


def test_language_models_are_asked_without_an_editor(answer_of: Callable[..., dict[str, Any]], run: Run) -> None:
    case = next(case for case in fact_cases("eval", 0, 20) if case.answer_before)
    asked = ("ask", "--backbone", "tiny-llama-lm", "--prompt", case.edit.question.prompt)
    assert answer_of(*asked) == {"text": case.answer_before, "fired": [], "withheld": []}
    refused(run(*asked, "--editor", "no-such"), "no-such")


def test_train_backbone_and_its_card(answer_of: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    few = ("--images", 40, "--vision-steps", 1, "--language-steps", 1, "--card", "--card-images", 1)
    result = answer_of("train-backbone", "tiny-llava", "--out", tmp_path, *few)
    model = Path(result["model"])
    assert set(result["accuracy"]["capital"]) == {"train", "unseen_by_editor", "unseen"}
    card = json.loads((model / "model_card.json").read_text())
    assert card["accuracy"] == result["accuracy"]
    assert "capital" in (model / "README.md").read_text()
    assert (model / "model.safetensors").is_file()
