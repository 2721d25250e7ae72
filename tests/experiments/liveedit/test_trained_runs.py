"""Table 2 and figures 3 to 5: runs that train their editor first, and what is concluded from their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from liveedit.backbones import Backbone
from liveedit.backbones.hidden_states import HiddenStateCache
from liveedit.cli import main
from liveedit.cli.arguments import spread_values
from liveedit.editors.liveedit import LiveEdit, LiveEditLosses
from liveedit.errors import ConfigError, DatasetError, InvalidInputError
from liveedit.experiments import runs
from liveedit.experiments.jobs import Workers, run_jobs
from liveedit.experiments.liveedit import trained_runs
from liveedit.experiments.liveedit.ablation import SETTINGS, ablation
from liveedit.experiments.liveedit.ablation import summarize as summarize_ablation
from liveedit.experiments.liveedit.forms import SWITCHES, forms
from liveedit.experiments.liveedit.forms import summarize as summarize_forms
from liveedit.experiments.liveedit.sweeps import FIGURE_3, FIGURE_4, FIGURE_5, layers_of, sweep
from liveedit.experiments.liveedit.sweeps import summarize as summarize_sweep
from liveedit.experiments.liveedit.trained_runs import TrainedRun, Training, training_cases
from liveedit.experiments.report.averages import PAPER_METRICS
from liveedit.experiments.runs import BenchOptions, EditorChoice
from liveedit.training.trainer import StageConfig

SMALL = (("module_width", 32), ("rank", 2), ("heads", 4), ("feature_parts", 2), ("same_subject", "ignored"))
MEASURING = BenchOptions(cases=2, few_edits_cases=1, max_new_tokens=2)

Row = dict[str, Any]


@pytest.fixture
def loaded(tiny_llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    monkeypatch.setattr(runs, "load_backbone", lambda name, **load: tiny_llava)
    runs.loaded_backbone.cache_clear()
    runs.opened_data.cache_clear()
    return tiny_llava


def trained_cell(out: Path, world: Path, settings: tuple[tuple[str, Any], ...] = ()) -> TrainedRun:
    stages = (
        StageConfig(name="routing", steps=2, batch=4, learning_rate=1e-3),
        StageConfig(name="joint", steps=1, batch=4, learning_rate=1e-3),
    )
    training = Training(str(world), validation=4, stages=stages, settings=SMALL)
    data, choice = f"mmedit:{world / 'eval.json'}", EditorChoice("small", "liveedit")
    return TrainedRun(out, "tiny-llava", data, choice, (1,), (0,), MEASURING, 0, settings, training)


# -- training and options ------------------------------------------------------------------------------


@pytest.mark.usefixtures("loaded")
def test_an_editor_is_trained_once_and_then_measured(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = trained_cell(tmp_path, world)
    (first,) = run_jobs([given], Workers())
    assert first.error == ""
    assert first.done is not None and not first.done.kept
    (row,) = first.done.rows
    assert row["editor"] == "small"
    assert row["training"]["parameters"] > 0
    assert row["training"]["form"] == "improved"
    assert row["provenance"]["config"]["editor"]["module_width"] == 32
    assert not list((tmp_path / "trained").glob("*/states*"))

    monkeypatch.setattr(trained_runs, "train_editor", lambda *_, **__: pytest.fail("it was trained again"))
    (again,) = run_jobs([given], Workers())
    assert again.done is not None
    assert (again.done.kept, again.done.rows) == (True, first.done.rows)


@pytest.mark.usefixtures("loaded")
def test_other_settings_are_another_training(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def train(setup: Any, backbone: Any, found: Any, folder: Path, report: Any, states: Any) -> Any:
        folders.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(trained_runs, "train_editor", train)
    for settings in ((), (("rank", 1),), ()):
        with pytest.raises(KeyboardInterrupt):
            trained_cell(tmp_path, world, settings).run(lambda *_: None)
    assert folders[0] == folders[2] != folders[1]  # An interrupted training is found again.


@pytest.mark.usefixtures("loaded")
def test_hidden_states_are_computed_once_for_a_layer(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[int] = []
    fill = HiddenStateCache.fill

    def counted(self: HiddenStateCache, *given: Any, **named: Any) -> None:
        filled.append(self.layer)
        fill(self, *given, **named)

    monkeypatch.setattr(HiddenStateCache, "fill", counted)
    monkeypatch.setattr(trained_runs, "_LAST_STATES", {})
    kinds: list[tuple[tuple[str, Any], ...]] = [(), (("rank", 1),), (("layer", 1),), (("text_locality", False),)]
    outcomes = run_jobs([trained_cell(tmp_path, world, settings) for settings in kinds], Workers())
    assert [outcome.error for outcome in outcomes] == [""] * 4
    assert filled == [3, 1, 3]
    alone = trained_cell(tmp_path / "alone", world, kinds[1])
    monkeypatch.setattr(trained_runs, "_LAST_STATES", {})
    (again,) = run_jobs([alone], Workers())
    assert again.done is not None and outcomes[1].done is not None
    assert again.done.rows[0]["training"]["validation"] == outcomes[1].done.rows[0]["training"]["validation"]


@pytest.mark.usefixtures("loaded")
def test_incomplete_hidden_states_are_not_used_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trained_runs, "_LAST_STATES", {})
    with monkeypatch.context() as broken:
        broken.setattr(HiddenStateCache, "_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained_cell(tmp_path, world).run(lambda *_: None)
    assert trained_runs._LAST_STATES == {}
    assert trained_cell(tmp_path, world).run(lambda *_: None).rows[0]["status"] == "complete"


def test_a_share_of_the_steps_shortens_every_stage(loaded: Backbone) -> None:
    whole = Training().setup(loaded, 8000, {}).training
    tenth = Training(steps_share=0.1, settings=(("prompt_dropout", 0.3),)).setup(loaded, 8000, {"rank": 2})
    assert [stage.steps for stage in tenth.training.stages] == [stage.steps // 10 for stage in whole.stages]
    assert (tenth.training.warmup, tenth.training.validate_every) == (whole.warmup // 10, whole.validate_every // 10)
    assert (tenth.config.rank, tenth.options.prompt_dropout) == (2, 0.3)
    least = Training(steps_share=0.0001).setup(loaded, 40, {}).training
    assert [stage.steps for stage in least.stages] == [1, 1, 0]  # What has no steps gets none.
    assert least.validation == 10
    paper = Training(form="paper").setup(loaded, 8000, {"rank": 2})
    assert (paper.config.heads, paper.config.rank, paper.options.soft_loss) == (1, 2, "paper")
    assert paper.options.prompt_dropout == 0
    assert paper.training.stages[-1].name == "joint" and paper.training.stages[-1].steps > 0


def test_impossible_trainings_are_refused(loaded: Backbone, world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no setting ranks"):
        Training().setup(loaded, 100, {"ranks": 2})
    with pytest.raises(ConfigError, match="rank"):
        Training().setup(loaded, 100, {"rank": 0})
    with pytest.raises(ConfigError, match="share of 0"):
        Training(steps_share=0).setup(loaded, 100, {})
    with pytest.raises(DatasetError, match=r"no train\.json"):
        training_cases(Training(str(tmp_path)))
    with pytest.raises(ConfigError, match="the data has 12"):
        training_cases(Training(str(world), cases=13))
    assert len(training_cases(Training(str(world), cases=5)).cases) == 5
    assert len(training_cases(Training(f"mmedit:{world / 'train.json'}")).cases) == 12


# -- what is planned -------------------------------------------------------------------------------------


def test_the_ablation_switches_off_one_part_at_a_time(tmp_path: Path, loaded: Backbone) -> None:
    found = ablation(tmp_path)
    jobs: Sequence[Any] = found.jobs
    assert [job.editor.label for job in jobs] == [setting.name for setting in SETTINGS]
    assert [setting.paper_name for setting in SETTINGS] == ["N/A", "LiveEdit", "- l_sr1", "- l_sr2", "- SR", "HR*"]
    assert all((job.backbone, job.edits, job.seeds) == ("tiny-blip2", (1000,), (0, 1, 2)) for job in jobs)
    recipes = {job.editor.label: job.training.setup(loaded, 100, dict(job.settings)) for job in jobs[1:]}
    whole = recipes.pop("liveedit").to_dict()
    changed = {
        label: {
            (part, name)
            for part, values in recipe.to_dict().items()
            for name, value in values.items()
            if value != whole[part][name]
        }
        for label, recipe in recipes.items()
    }
    soft = {("options", "soft_terms"), ("editor", "soft_factors")}
    assert changed == {
        "liveedit-without-sr1": soft,
        "liveedit-without-sr2": soft,
        "liveedit-without-sr": {("editor", "soft_routing")},
        "liveedit-hr-star": {("editor", "hard_prompt")},
    }
    assert recipes["liveedit-without-sr1"].options.soft_terms == "relative"
    assert recipes["liveedit-without-sr2"].config.soft_factors == "absolute"
    assert type(jobs[0]) is not TrainedRun and jobs[0].editor.name == "none"
    with pytest.raises(InvalidInputError, match="no setting liveedit-with"):
        ablation(tmp_path, ["liveedit-with"])


def test_the_way_from_the_papers_form_ends_at_the_improved_one(tmp_path: Path, loaded: Backbone) -> None:
    shared = Training(settings=(("layer", 1), ("module_width", 32)))
    jobs: Sequence[Any] = forms(tmp_path, loaded, training=shared).jobs
    assert [job.editor.label for job in jobs] == ["none", *(switch.name for switch in SWITCHES)]
    setups = [job.training.setup(loaded, 100, dict(job.settings)) for job in jobs[1:]]
    exact = Training(form="paper", settings=shared.settings).setup(loaded, 100, {})
    assert setups[0].config == exact.config.model_copy(update={"value_start": None})
    assert (setups[1].config, setups[1].options) == (exact.config, LiveEditLosses.paper())
    before = setups[1].to_dict()
    for switch, setup in zip(SWITCHES[2:], setups[2:], strict=True):
        now = setup.to_dict()
        changed = {name for part, values in now.items() for name in values if values[name] != before[part][name]}
        assert changed == set(switch.settings), switch.name
        before = now
    improved = Training(settings=(("module_width", 32),)).setup(loaded, 100, {})
    assert (setups[-1].config, setups[-1].options) == (improved.config, improved.options)
    same = {"validation", "stages"}
    assert setups[-1].training.model_dump(exclude=same) == LiveEdit.schedule().model_dump(exclude=same)


def test_the_forms_are_compared_one_by_one() -> None:
    averages = {"none": 30, "paper": 60, "PyTorch's start": 50, "answer embeddings": 90}
    found = summarize_forms(Training(form="paper"), [row(name, value) for name, value in averages.items()], [])
    assert [line[0] for line in found.tables[0].rows] == ["none", "PyTorch's start", "paper", "answer embeddings"]
    assert found.summary[0] == "Teacher-forced token accuracy, PyTorch's start: average 50.0."
    assert found.summary[2] == "Teacher-forced token accuracy, answer embeddings: average 90.0 (+30.0)."


def test_a_sweep_trains_every_combination(tmp_path: Path, loaded: Backbone) -> None:
    grid = {"module_width": (32, 64), "rank": (1, 2, 2)}
    jobs: Sequence[Any] = sweep(FIGURE_3, tmp_path, loaded, grid=grid).jobs
    assert sorted(tuple(dict(job.settings).values()) for job in jobs) == [(32, 1), (32, 2), (64, 1), (64, 2)]
    assert len(sweep(FIGURE_3, tmp_path, loaded).jobs) == 16
    by_default: Sequence[Any] = sweep(FIGURE_4, tmp_path, loaded).jobs
    assert sorted(job.settings[0][1] for job in by_default) == [1, 2, 4, 8, 16]  # The paper's own.
    layers: Sequence[Any] = sweep(FIGURE_5, tmp_path, loaded).jobs
    assert sorted(job.settings[0][1] for job in layers) == list(layers_of(loaded)) == [0, 1, 2, 3, 4]
    with pytest.raises(InvalidInputError, match="figure4 does not vary rank"):
        sweep(FIGURE_4, tmp_path, loaded, grid={"rank": (1,)})
    with pytest.raises(ConfigError):
        sweep(FIGURE_3, tmp_path, loaded, grid={"module_width": (33,)})


# -- what is concluded -----------------------------------------------------------------------------------


def row(editor: str, average: float, seed: int = 0, **changes: Any) -> Row:
    values = {"teacher_forced": average, "exact_match": average - 10, "count": 5, "left_out": 0}
    named = {"editor": editor, "backbone": "tiny-blip2", "data": "world", "edits": 1000, "seed": seed}
    return {**named, "metrics": {name: dict(values) for name in PAPER_METRICS}, "status": "complete", **changes}


def test_the_ablation_says_what_each_part_is_worth() -> None:
    rows = [row(name, average, seed) for seed in (0, 1) for name, average in
            (("none", 40), ("liveedit", 95), ("liveedit-without-sr1", 85), ("liveedit-hr-star", 96))]  # fmt: skip
    found = summarize_ablation(Training(steps_share=0.1), rows, [("liveedit-without-sr", "too hot")])
    assert [line[0] for line in found.tables[0].rows] == ["N/A", "LiveEdit", "- l_sr1", "HR*"]
    assert "10% of the steps" in found.tables[0].notes[-1]
    assert (
        "- l_sr1 (without the absolute soft-routing loss and the sigmoid in the weights) costs 10.0 points"
        in found.summary[0]
    )
    assert "HR* (hard routing compresses the whole image, whatever is asked) gains 1.0 points" in found.summary[1]
    assert "95 % interval 10.0 to 10.0" in found.summary[0]
    assert len(found.summary) == 4
    assert found.tables[0].header[0] == "Setting"
    assert found.published[0].title == "Published ablation (not ours)"
    assert not any("84.41" in table.markdown() for table in found.tables)


def test_an_ablation_of_what_learned_nothing_says_so() -> None:
    rows = [row("none", 40), row("liveedit", 39), row("liveedit-without-sr", 38)]
    found = summarize_ablation(Training(), rows, [])
    assert "LiveEdit is no better than the unedited model" in found.summary[0]
    assert found.summary[1].endswith("costs 1.0 points of the average (one seed).")


def sweep_rows(names: Sequence[str], averages: dict[tuple[int, ...], float]) -> list[Row]:
    return [
        row(
            " ".join(f"{name}={value}" for name, value in zip(names, values, strict=True)),
            average,
            settings=dict(zip(names, values, strict=True)),
            training={"parameters": 1000 * values[0]},
        )
        for values, average in averages.items()
    ]


def test_a_sweep_says_where_it_is_best_and_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = sweep_rows(["module_width", "rank"], {(64, 1): 60, (32, 1): 50, (32, 2): 55, (64, 2): 71.5})
    found = summarize_sweep(FIGURE_3, Training(), rows, [])
    assert [line[0] for line in found.tables[0].rows] == [
        *("module_width=32 rank=1", "module_width=32 rank=2", "module_width=64 rank=1", "module_width=64 rank=2"),
    ]
    assert found.summary[0] == (
        "1,000 edits, teacher-forced token accuracy: the best average is at d_m = 64, r = 2 (71.5), the worst at "
        "d_m = 32, r = 1 (50.0)."
    )
    assert "exact match: the best average is at d_m = 64, r = 2 (61.5)" in found.summary[1]
    assert found.summary[-1] == FIGURE_3.paper
    (plot,) = found.drawings[0](tmp_path)
    assert plot.path.read_bytes().startswith(b"\x89PNG")


def test_a_sweep_of_one_setting_is_drawn_as_lines(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = sweep_rows(["feature_parts"], {(16,): 60, (1,): 50, (4,): 75})
    rows += [{**entry, "seed": 1} for entry in rows]
    found = summarize_sweep(FIGURE_4, Training(), rows, [])
    assert "k = 4 (75.0±0.0), the worst at k = 1 (50.0±0.0)" in found.summary[0]
    (plot,) = found.drawings[0](tmp_path)
    assert plot.path.read_bytes().startswith(b"\x89PNG")


def test_nothing_measured_is_said(tmp_path: Path) -> None:
    failed = [("a run", "an error")]
    assert summarize_sweep(FIGURE_5, Training(), [], failed).summary[0] == "Nothing could be measured."
    assert summarize_ablation(Training(), [], failed).failed == failed


# -- the commands ----------------------------------------------------------------------------------------


def test_grids_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    from liveedit.cli import paper

    seen: list[Any] = []
    ran: Callable[..., None] = lambda experiment, *_: seen.append(experiment)  # noqa: E731
    monkeypatch.setattr(paper, "_run_trained", ran)
    common = ("--out", str(tmp_path), "--backbone", "tiny-llava", "--steps-share", "0.1", "--edits", "5")
    assert main(["paper", "figure3", *common, "--grid", "module_width=32,64", "rank=1"]) == 0
    assert main(["paper", "figure4", *common, "--grid", "1", "2", "4", "--set", "prompt_dropout=0.3", "rank=2"]) == 0
    assert [len(experiment.jobs) for experiment in seen] == [2, 3]
    assert seen[1].jobs[0].training.settings == (("prompt_dropout", 0.3), ("rank", 2))
    assert main(["paper", "figure5", *common, "--grid", "deep"]) == 1
    assert "--grid" in capsys.readouterr().err
    assert main(["paper", "table2", *common, "--setting", "liveedit", "none"]) == 0
    assert [job.editor.label for job in seen[2].jobs] == ["liveedit", "none"]


def test_several_values_in_a_row_after_the_name_of_a_figure() -> None:
    given = ["paper", "figure3", "--grid", "a=1", "b=2", "--backbone", "x", "--seeds", "0", "1"]
    assert spread_values(given) == [
        *("paper", "figure3", "--grid", "a=1", "--grid", "b=2", "--backbone", "x", "--seeds", "0", "--seeds", "1"),
    ]
