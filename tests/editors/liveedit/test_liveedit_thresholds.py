"""Thresholds of routing, chosen on cases: the choice itself, what they do, and what becomes of edits and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from liveedit.backbones import Backbone
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig, LiveEditRefine
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.liveedit.refine import CALIBRATED_WEIGHT
from liveedit.editors.liveedit.thresholds import RoutedQueries, choose_thresholds
from liveedit.editors.serac import Serac
from liveedit.errors import ConfigError, InvalidInputError
from liveedit.samples import LOCALITY, EditCase, Question

ConfigMaker = Callable[..., LiveEditConfig]


def drawn(seed: int) -> RoutedQueries:
    """40 queries with an own edit among 12, and 60 without, which are less similar to all of them."""
    generator = torch.Generator().manual_seed(seed)
    margins, scores = 3 * torch.randn(2, 100, 12, generator=generator) - 6
    own = torch.zeros(100, 12, dtype=torch.bool)
    own[torch.arange(40), torch.arange(40) % 12] = True
    margins[own] += 7
    scores[own] += 8
    return RoutedQueries(margins, scores, own)


def shares(queries: RoutedQueries, visual: float, prompt: float) -> tuple[float, float]:
    fires = (queries.margins > visual) & (queries.scores > prompt)
    found = (fires & queries.own).any(1)[queries.own.any(1)]
    return float(found.float().mean()), float(fires.any(1)[~queries.own.any(1)].float().mean())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("allowed", [0.0, 0.05, 0.3])
def test_the_choice_is_as_good_as_any_pair_that_keeps_the_limit(seed: int, allowed: float) -> None:
    queries = drawn(seed)
    chosen = choose_thresholds(queries, allowed)
    assert (chosen.found, chosen.false_firing) == pytest.approx(shares(queries, chosen.visual, chosen.prompt))
    assert chosen.false_firing <= allowed
    own = queries.own.any(1)
    best = 0.0
    for visual in queries.margins[queries.own].quantile(torch.linspace(0, 0.5, 30)).tolist():
        for prompt in torch.linspace(float(queries.scores.min()), float(queries.scores.max()), 200).tolist():
            found, false = shares(queries, visual, prompt)
            best = max(best, found if false <= allowed else 0.0)
    assert chosen.found >= best - 1.5 / int(own.sum())


def test_a_larger_limit_lets_more_in() -> None:
    found = [choose_thresholds(drawn(0), allowed).found for allowed in (0.0, 0.02, 0.1, 0.5)]
    assert found == sorted(found) and found[-1] > found[0]


def test_both_kinds_of_questions_are_needed() -> None:
    queries = drawn(0)
    alone = RoutedQueries(queries.margins[:40], queries.scores[:40], queries.own[:40])
    with pytest.raises(InvalidInputError, match="40 questions in scope of an edit and 0 others"):
        choose_thresholds(alone, 0.1)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(InvalidInputError, match="Give a share"):
            choose_thresholds(queries, share)


@pytest.mark.parametrize("form", ["improved", "paper"])
def test_thresholds_move_both_similarities_by_what_they_say(form: str, small_config: ConfigMaker) -> None:
    torch.manual_seed(0)
    modules = LiveEditModules(small_config(form))
    query, sentinel, edit = torch.nn.functional.normalize(torch.randn(3, 5, 64), dim=-1).unbind()
    plain = modules.visual_score(query, sentinel), modules.prompt_score(query, edit)
    assert modules._raised(sentinel, query) is sentinel
    modules.config = modules.config.model_copy(update={"visual_threshold": -1.5, "prompt_threshold": 2.5})
    raised = modules._raised(sentinel, query)
    torch.testing.assert_close(modules.visual_score(query, raised), plain[0] - 1.5)
    torch.testing.assert_close(modules.prompt_score(query, edit), plain[1] - 2.5)


def test_an_editor_lets_in_what_the_limit_allows(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    with LiveEdit.load(tiny_llava) as editor:
        before = editor.digest()
        chosen = editor.calibrate_on(eval_cases, 0.0)
        assert chosen["false_firing_percent"] == 0.0 and chosen["found_percent"] > 80
        assert editor.digest() != before, "edits are bound to the thresholds that they were made with"
        editor.save_pretrained(tmp_path / "calibrated")
        again = editor.calibrate_on(eval_cases, 0.0)
        assert again == chosen, "an earlier choice does not matter"
    with LiveEdit.load(tiny_llava, str(tmp_path / "calibrated")) as editor:
        assert editor.config.visual_threshold == chosen["visual_threshold"]
        editor.edit([(case.id, case.edit) for case in eval_cases])
        with pytest.raises(InvalidInputError, match="12 edits are active"):
            editor.calibrate_on(eval_cases)
        inside = [probe.question for case in eval_cases for probe in case.named("text_generality", "modal_generality")]
        own = [question_fires(editor, question) for question in (*inside, *(case.edit.question for case in eval_cases))]
        assert 100 * sum(own) / len(own) >= chosen["found_percent"] - 1e-6
        outside = [probe.question for case in eval_cases for probe in case.named(*LOCALITY) if probe.question.image]
        assert not any(question_fires(editor, question) for question in outside)
        strict = editor.config.model_copy(update={"visual_threshold": chosen["visual_threshold"] + 100})
        editor.modules.config = strict
        assert not any(question_fires(editor, case.edit.question) for case in eval_cases)


def question_fires(editor: LiveEdit, question: Question) -> bool:
    """Whether an edit has at least half of the weight."""
    editor.backbone.hidden_states(editor.backbone.encode([question]), editor.config.layer)
    found = editor.fired()
    return bool(found) and sum(one.weight for one in found[0]) >= 0.5


def test_a_calibrated_editor_that_refines_fires_from_half_of_the_weight(tiny_llava: Backbone) -> None:
    with LiveEditRefine.load(tiny_llava) as editor:
        assert editor.combining.weight_threshold == 0.01
        modules = editor.modules
    modules.config = modules.config.model_copy(update={"prompt_threshold": -3.0})
    with LiveEditRefine(tiny_llava, modules) as editor:
        assert editor.combining.weight_threshold == CALIBRATED_WEIGHT
        assert editor.configuration()["refine"]["weight_threshold"] == CALIBRATED_WEIGHT
    given = editor.refining.model_copy(update={"weight_threshold": 0.2})
    with LiveEditRefine(tiny_llava, modules, given) as editor:
        assert editor.combining.weight_threshold == 0.2


def test_an_editor_without_thresholds_says_so(random_backbone: Backbone, eval_cases: tuple[EditCase, ...]) -> None:
    with (
        Serac.untrained(random_backbone) as editor,
        pytest.raises(ConfigError, match="'serac' has no thresholds to choose"),
    ):
        editor.calibrate_on(eval_cases)
