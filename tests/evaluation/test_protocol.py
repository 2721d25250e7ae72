"""The lifelong protocol on cases worked by hand, with editors that do exactly as told."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from liveedit.answering import Answering
from liveedit.answers import Answer, Fired
from liveedit.backbones import Backbone
from liveedit.editors.base import Editor, EditRecord
from liveedit.errors import InvalidInputError
from liveedit.evaluation.probing import ask_freely, choose_along
from liveedit.evaluation.protocol import (
    UneditedAnswers,
    cost,
    measure,
    probes_of,
    raw_cases,
    scored_again,
    summarize_measurements,
)
from liveedit.evaluation.recurring import recurring_edits
from liveedit.samples import LOCALITY, Edit, EditCase, Probe, ProbeName, Question


def question(subject: str, relation: str, prompt: str | None = None) -> Question:
    return Question(prompt or f"What is the {relation} of {subject}?", None, subject, relation)


def case_of(
    case_id: str, subject: str, relation: str, answer: str, *probes: tuple[ProbeName, Question, str | None]
) -> EditCase:
    return EditCase(
        case_id,
        Edit(question(subject, relation), answer),
        tuple(Probe(name, asked, expected) for name, asked, expected in probes),
        answer_type="word",
        tags=("odd",) if case_id == "a" else (),
    )


CASE_A = case_of(
    "a",
    "cat",
    "color",
    "red",
    ("text_generality", question("cat", "color", "Which color has the cat?"), "red"),
    ("modal_generality", question("tom", "color"), "red"),
    ("same_image_locality", question("cat", "size"), "big"),
    ("modal_locality", question("dog", "color"), "brown"),
    ("text_locality", question("owl", "home"), None),
    ("cross_modal", question("cat", "color"), "red"),
    ("portability", question("cat", "shade"), "dark"),
)
CASE_B = case_of(
    "b",
    "dog",
    "color",
    "blue",
    ("modal_locality", question("tom", "color"), "grey"),
    ("same_image_locality", question("dog", "size"), "small"),
    ("same_image_locality", question("dog", "age"), "old"),
)


def asked_names(cases: Sequence[EditCase]) -> list[tuple[str, str, str]]:
    return [(it.case.id, it.probe.name, it.probe.question.scope[0]) for it in probes_of(cases)[0]]


def left_out_names(cases: Sequence[EditCase]) -> list[tuple[str, str]]:
    return [(it.case.id, it.probe.name) for it in probes_of(cases)[1]]


def test_alone_every_probe_is_asked() -> None:
    asked, left_out = probes_of([CASE_A])
    assert [it.probe.name for it in asked] == [
        "reliability",
        "text_generality",
        "modal_generality",
        "same_image_locality",
        "modal_locality",
        "text_locality",
        "portability",
    ]
    assert not left_out


def test_a_locality_probe_in_anybodys_scope_is_left_out() -> None:
    """The dog's color is what b edits; tom's color is what a's modal generality redraws."""
    assert left_out_names([CASE_A, CASE_B]) == [("a", "modal_locality"), ("b", "modal_locality")]
    names = asked_names([CASE_A, CASE_B])
    assert ("a", "modal_locality", "dog") not in names
    assert ("b", "modal_locality", "tom") not in names
    assert ("a", "same_image_locality", "cat") in names
    assert ("a", "text_locality", "owl") in names


def test_a_probe_is_left_out_by_a_later_edit_too() -> None:
    late = case_of("late", "owl", "home", "barn")
    assert left_out_names([CASE_A, late]) == left_out_names([late, CASE_A]) == [("a", "text_locality")]


def test_generality_and_portability_are_never_left_out() -> None:
    shade = case_of("shade", "cat", "shade", "light")
    assert ("a", "portability", "cat") in asked_names([CASE_A, shade])


class Scripted:
    """A substitute for a backbone: answers are looked up by prompt, each word is a token.

    forced: by prompt the words chosen along an expected answer, before and after edits, if they are not the answer's.
    """

    def __init__(self, before: dict[str, str], after: dict[str, str]):
        self.before, self.after, self.edited = before, after, False
        self.forced: dict[str, tuple[str, str]] = {}
        self.asked_unedited: list[str] = []

    def choose(self, prompt: str) -> str:
        return self.forced[prompt][self.edited] if prompt in self.forced else self.say(prompt)

    def say(self, prompt: str) -> str:
        return (self.after if self.edited and prompt in self.after else self.before)[prompt]


class ScriptedEditor(Editor):
    name, summary = "scripted", "does as it is told"

    def __init__(self, script: Scripted, fires: dict[str, tuple[Fired, ...]] | None):
        self.script, self.fires = script, fires
        self.last: list[str] = []

    def _edit_one(self, edit_id: str, edit: Edit) -> dict[str, Any]:
        self.script.edited = True
        return {}

    def reset(self) -> None:
        self.script.edited = False

    @contextmanager
    def _paused(self) -> Iterator[None]:
        edited, self.script.edited = self.script.edited, False
        yield
        self.script.edited = edited

    def fired(self) -> list[tuple[Fired, ...]] | None:
        if self.fires is None:
            return None
        found = [self.fires.get(prompt, ()) for prompt in self.last]
        return found if any(found) else []


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Free answers and forced tokens come from the script: tokens are the answer's words."""
    prompts = [probe.question.prompt for case in (CASE_A, CASE_B) for probe in (case.reliability, *case.probes)]
    before = dict.fromkeys(prompts, "nothing")
    before[question("cat", "size").prompt] = "very big"
    before[question("dog", "size").prompt] = ""
    before[question("dog", "age").prompt] = "old"
    after = {
        question("cat", "color").prompt: "red",
        "Which color has the cat?": "Red.",
        question("tom", "color").prompt: "green",
        question("cat", "size").prompt: "very small",
        question("dog", "color").prompt: "blue",
        question("dog", "age").prompt: "young",
    }
    script = Scripted(before, after)

    def ask_freely(
        answering: Answering, probes: Sequence[Probe], max_new_tokens: int, batch: int, count: Any
    ) -> list[Answer]:
        found: list[Answer] = []
        editor: Any = answering.editor
        for probe in probes:
            fired = None
            if editor is not None:
                editor.last = [probe.question.prompt]
                reported = editor.fired()
                fired = None if reported is None else (reported or [()])[0]
            else:
                script.asked_unedited.append(probe.question.prompt)
            found.append(Answer(script.say(probe.question.prompt), fired))
            count(1)
        return found

    def choose_along(
        backbone: Any, probes: Sequence[Probe], answers: Sequence[str], free: Any, batch: int, count: Any
    ) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        def tokens(text: str, count: int) -> tuple[int, ...]:
            words = [*text.lower().strip(".").split(), *["</s>"] * (count + 1)][: max(1, count)]
            return tuple(sum(word.encode()) for word in words)

        return [
            (
                tokens(answer, len(answer.split())),
                tokens(script.choose(probe.question.prompt), len(answer.split())),
            )
            for probe, answer in zip(probes, answers, strict=True)
        ]

    monkeypatch.setattr("liveedit.evaluation.protocol.ask_freely", ask_freely)
    monkeypatch.setattr("liveedit.evaluation.protocol.choose_along", choose_along)
    return script


def measured(script: Scripted, cases: Sequence[EditCase], editor: ScriptedEditor, raw: Any = None) -> Any:
    unedited = UneditedAnswers(script, 8, 4)  # type: ignore[arg-type]
    unedited.ask(probes_of(cases)[0])
    editor.edit([(case.id, case.edit) for case in cases])
    return measure(script, editor, cases, unedited, raw=raw)  # type: ignore[arg-type]


def test_scores_worked_by_hand(scripted: Scripted) -> None:
    found = summarize_measurements([measured(scripted, [CASE_A, CASE_B], ScriptedEditor(scripted, None))])
    metrics = found["metrics"]
    assert metrics["reliability"]["exact_match"] == 100 and metrics["reliability"]["count"] == 2
    assert metrics["text_generality"]["exact_match"] == 100
    assert metrics["modal_generality"]["exact_match"] == 0
    # The unedited model's own answers are what must stay: "very big" changed in one word of two; the empty
    # answer stayed empty; "old" became "young".
    same = metrics["same_image_locality"]
    assert same["count"] == 3
    assert same["exact_match"] == pytest.approx(100 / 3)
    assert same["teacher_forced"] == pytest.approx((50 + 100 + 0) / 3)
    assert metrics["text_locality"]["exact_match"] == 100
    assert metrics["modal_locality"] == {
        "teacher_forced": None,
        "exact_match": None,
        "contains": None,
        "f1": None,
        "broken": None,
        "count": 0,
        "left_out": 2,
    }
    assert found["by_answer_type"]["odd"]["reliability"]["count"] == 1
    assert found["by_answer_type"]["word"]["reliability"]["count"] == 2
    left_out = {kind: metrics["modal_locality"]["left_out"] for kind, metrics in found["by_answer_type"].items()}
    assert left_out == {"word": 2, "odd": 1}


def test_locality_is_asked_of_the_unedited_model(scripted: Scripted) -> None:
    measurement = measured(scripted, [CASE_A], ScriptedEditor(scripted, None))
    expected = {item.probe.name: score.expected for item, score in measurement.scores}
    assert expected["same_image_locality"] == "very big"  # Not "big", which is the data set's label.
    assert expected["text_locality"] == "nothing"
    assert expected["portability"] == "dark"


def test_locality_compares_with_the_tokens_that_the_unedited_model_chose(scripted: Scripted) -> None:
    """These can differ from the tokens of its own text, as where one text has several encodings."""
    size = question("cat", "size").prompt
    scripted.after[size] = scripted.before[size] = "very big"
    scripted.forced[size] = ("very large", "very large")
    scores = dict_of_scores(measured(scripted, [CASE_A], ScriptedEditor(scripted, None)))
    assert scores["same_image_locality"] == 100
    scripted.edited = False
    scripted.forced[size] = ("very large", "very big")
    scores = dict_of_scores(measured(scripted, [CASE_A], ScriptedEditor(scripted, None)))
    assert scores["same_image_locality"] == 50


def dict_of_scores(measurement: Any) -> dict[str, float]:
    return {item.probe.name: score.teacher_forced for item, score in measurement.scores}


def test_an_editor_that_cannot_tell_has_no_routing_figures(scripted: Scripted) -> None:
    measurement = measured(scripted, [CASE_A], ScriptedEditor(scripted, None))
    assert measurement.fired == ()
    assert summarize_measurements([measurement])["routing"] is None


def test_routing_worked_by_hand(scripted: Scripted) -> None:
    own, other, faint = Fired("a", 0.9, 1.0), Fired("b", 0.6, 1.0), Fired("a", 0.009, 1.0)
    fires = {
        question("cat", "color").prompt: (own, other),
        "Which color has the cat?": (own,),
        question("tom", "color").prompt: (faint,),
        question("cat", "size").prompt: (own,),
    }
    measurement = measured(scripted, [CASE_A], ScriptedEditor(scripted, fires))
    routing = summarize_measurements([measurement])["routing"]
    # In scope: the edit and two generality probes; for the last one its edit fired below the threshold. Four fired,
    # two of them the question's own.
    assert routing == {"recall": pytest.approx(200 / 3), "precision": pytest.approx(50)}


def test_another_edit_that_fires_in_scope_counts_for_neither_recall_nor_precision(scripted: Scripted) -> None:
    other = Fired("b", 0.9, 1.0)
    in_scope = (question("cat", "color").prompt, "Which color has the cat?", question("tom", "color").prompt)
    wrong = measured(scripted, [CASE_A], ScriptedEditor(scripted, dict.fromkeys(in_scope, (other,))))
    assert summarize_measurements([wrong])["routing"] == {"recall": 0.0, "precision": 0.0}
    scripted.edited = False
    # Its own edit fired for a question out of scope: that is no hit either.
    outside = {question("cat", "size").prompt: (Fired("a", 0.9, 1.0),)}
    measurement = measured(scripted, [CASE_A], ScriptedEditor(scripted, outside))
    assert summarize_measurements([measurement])["routing"] == {"recall": 0.0, "precision": 0.0}


def test_an_editor_that_never_fires_has_no_recall(scripted: Scripted) -> None:
    measurement = measured(scripted, [CASE_A], ScriptedEditor(scripted, {}))
    assert summarize_measurements([measurement])["routing"] == {"recall": 0.0, "precision": 100.0}


def test_groups_are_summed_up_together(scripted: Scripted) -> None:
    first = measured(scripted, [CASE_A], ScriptedEditor(scripted, None))
    scripted.edited = False
    second = measured(scripted, [CASE_B], ScriptedEditor(scripted, None))
    both = summarize_measurements([first, second])["metrics"]
    assert both["reliability"]["count"] == 2
    assert both["modal_locality"]["count"] == 2  # Alone, neither stands in the other's way.
    assert both["modal_locality"]["left_out"] == 0


def test_raw_answers_are_json_lines(scripted: Scripted) -> None:
    raw = io.StringIO()
    measured(scripted, [CASE_A], ScriptedEditor(scripted, {}), raw)
    rows = [json.loads(line) for line in raw.getvalue().splitlines()]
    assert len(rows) == 7
    assert rows[0] == {
        "case": "a",
        "probe": "reliability",
        "prompt": "What is the color of cat?",
        "image": None,
        "expected": "red",
        "answer": "red",
        "cut": False,
        "teacher_forced": 100.0,
        "exact_match": True,
        "broken": False,
        "unedited": None,
        "fired": [],
        "about": {
            "subject": "cat",
            "relation": "color",
            "labels": ["red", "big", "brown", "dark"],
            "kinds": ["word", "odd"],
            "left_out": [],
        },
    }
    assert [name for row in rows for name in row if name == "about"] == ["about"]


def test_raw_answers_scored_again_give_every_figure(scripted: Scripted) -> None:
    """Two groups: one with probes left out, an answer that is broken, one that is another label, edits that fired, and
    two edits that contradict each other."""
    later = case_of("later", "dog", "color", "pink")
    fires = {
        CASE_A.edit.question.prompt: (Fired("a", 0.9, 1.0), Fired("b", 0.2, -0.5)),
        RENAMED: (Fired("b", 1.0, 0.0),),
    }
    scripted.after |= {RENAMED: "reddish", TOM: "brown"}
    scripted.forced[RENAMED] = ("red", "blue")
    raw, groups = io.StringIO(), ([CASE_A, CASE_B, later], [CASE_B])
    before = []
    for cases in groups:
        scripted.edited = False
        before.append(measured(scripted, cases, ScriptedEditor(scripted, fires), raw))
    cases = raw_cases(json.loads(line) for line in raw.getvalue().splitlines())
    again = [scored_again(cases[:3]), scored_again(cases[3:])]
    expected = summarize_measurements(before)
    assert summarize_measurements(again) == expected
    assert recurring_edits(again) == recurring_edits(before) is not None
    assert [score for one in again for _, score in one.scores] == [score for one in before for _, score in one.scores]
    assert expected["metrics"]["modal_locality"]["left_out"] == 2 and expected["metrics"]["text_generality"]["broken"]
    assert expected["routing"]["recall"] > 0 and {"odd", "word"} == expected["by_answer_type"].keys()


def test_raw_answers_without_their_cases_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="an earlier version wrote them"):
        raw_cases([{"case": "a", "probe": "reliability"}])


def broken_by_prompt(measurement: Any) -> dict[str, bool]:
    return {item.probe.question.prompt: score.broken for item, score in measurement.scores}


COLOR, RENAMED, TOM, SHADE = (
    question("cat", "color").prompt,
    "Which color has the cat?",
    question("tom", "color").prompt,
    question("cat", "shade").prompt,
)


def test_what_is_neither_a_label_nor_the_unedited_answer_is_broken(scripted: Scripted) -> None:
    size, dog, owl = question("cat", "size").prompt, question("dog", "color").prompt, question("owl", "home").prompt
    scripted.after |= {
        COLOR: "red nothing",  # A blend of the edit's answer and the model's.
        RENAMED: "Nothing.",  # The unedited model's answer.
        TOM: "the brown",  # Another label of the case.
        SHADE: "re",  # A piece of an answer.
        size: "Red",  # The edit's answer.
        dog: "no dog",
        owl: "nothing",
    }
    found = broken_by_prompt(measured(scripted, [CASE_A], ScriptedEditor(scripted, None)))
    assert found == {COLOR: True, RENAMED: False, TOM: False, SHADE: True, size: False, dog: True, owl: False}


def test_the_share_of_broken_answers_is_beside_the_other_figures(scripted: Scripted) -> None:
    scripted.after |= {question("dog", "color").prompt: "blue", question("dog", "age").prompt: "old old"}
    metrics = summarize_measurements([measured(scripted, [CASE_B], ScriptedEditor(scripted, None))])["metrics"]
    assert metrics["reliability"]["broken"] == 0
    assert metrics["same_image_locality"]["broken"] == 50


def test_the_unedited_model_is_asked_once_about_no_other_answer_than_strange_ones(
    scripted: Scripted, tmp_path: Path
) -> None:
    file = tmp_path / "answers.jsonl"
    scripted.after |= {COLOR: "red", RENAMED: "pink", TOM: "brown", SHADE: "nothing"}
    cases, editor, raw = [CASE_A], ScriptedEditor(scripted, None), io.StringIO()
    unedited = UneditedAnswers(scripted, 8, 4, file)  # type: ignore[arg-type]
    unedited.ask(probes_of(cases)[0])
    before, counted = list(scripted.asked_unedited), []
    editor.edit([(case.id, case.edit) for case in cases])
    compared: list[tuple[int, int]] = []

    def show(done: int, total: int) -> None:
        compared.append((done, total))

    for _ in range(2):
        measure(scripted, editor, cases, unedited, counted.append, raw, show)  # type: ignore[arg-type]
        assert scripted.edited
    assert compared == [(1, 2), (2, 2)], "once"
    assert scripted.asked_unedited[len(before) :] == [RENAMED, SHADE]
    assert sum(counted) == 2 * 7  # Free answers; this substitute counts no forced ones.
    rows = [json.loads(line) for line in raw.getvalue().splitlines()]
    assert {row["prompt"]: row["unedited"] for row in rows if row["probe"] not in LOCALITY} == {
        COLOR: None,
        RENAMED: "nothing",
        TOM: None,
        SHADE: "nothing",
    }
    again = UneditedAnswers(scripted, 8, 4, file)  # type: ignore[arg-type]
    measure(scripted, editor, cases, again)  # type: ignore[arg-type]
    assert scripted.asked_unedited[len(before) :] == [RENAMED, SHADE]


def test_a_free_answer_alone_does_not_do_for_a_locality_probe(scripted: Scripted, tmp_path: Path) -> None:
    file, (asked, *_) = tmp_path / "answers.jsonl", probes_of([CASE_B])
    alone = UneditedAnswers(scripted, 8, 4, file)  # type: ignore[arg-type]
    alone.ask_texts(asked)
    locality = [item for item in asked if item.probe.name in LOCALITY]
    for answers in (alone, UneditedAnswers(scripted, 8, 4, file)):  # type: ignore[arg-type]
        assert answers.missing(asked) == locality
    alone.ask(asked)
    file.write_text(file.read_text(encoding="utf-8") + '["b", 0, "blank"]\n', encoding="utf-8")
    again = UneditedAnswers(scripted, 8, 4, file)  # type: ignore[arg-type]
    assert again.missing(asked) == []
    assert all(again[item].forced == alone[item].forced is not None for item in locality)


def test_unedited_answers_are_asked_once(scripted: Scripted) -> None:
    unedited = UneditedAnswers(scripted, 8, 4)  # type: ignore[arg-type]
    seen: list[int] = []
    asked, *_ = probes_of([CASE_B])
    unedited.ask(asked, seen.append)
    unedited.ask(asked, seen.append)
    assert sum(seen) == 3
    by_prompt = {it.probe.question.prompt: unedited[it].text for it in asked if it.probe.name != "reliability"}
    assert by_prompt[question("dog", "size").prompt] == ""
    assert by_prompt[question("dog", "age").prompt] == "old"


def test_unedited_answers_outlive_the_run_and_a_line_cut_short(scripted: Scripted, tmp_path: Path) -> None:
    file, (asked, *_) = tmp_path / "unedited" / "answers.jsonl", probes_of([CASE_B])
    UneditedAnswers(scripted, 8, 4, file).ask(asked)  # type: ignore[arg-type]
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + lines[-1][:5], encoding="utf-8")
    again = UneditedAnswers(scripted, 8, 4, file)  # type: ignore[arg-type]
    assert len(again.missing(asked)) == 1
    first = UneditedAnswers(scripted, 8, 4)  # type: ignore[arg-type]
    first.ask(asked)
    kept = [item for item in asked if item not in again.missing(asked) and item.probe.name != "reliability"]
    assert kept and all(again[item] == first[item] for item in kept)


def test_teacher_forcing_is_the_same_where_free_answers_spare_it(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]
) -> None:
    """Against asking every probe: half of the expected answers are what the model says, half are not."""
    probes = [probe for case in eval_cases[:6] for probe in (case.reliability, *case.probes)]
    free = ask_freely(Answering(tiny_llava), probes, 8, 16, lambda more: None)
    answers = [answer.text if place % 2 else "teal well" for place, answer in enumerate(free)]
    unknown = [replace(answer, tokens=None) for answer in free]
    forwards: list[int] = []
    handle = tiny_llava.model.register_forward_pre_hook(lambda module, arguments: forwards.append(1))
    try:
        spared = choose_along(tiny_llava, probes, answers, free, 1, lambda done: None)
        asked = len(forwards)
        assert choose_along(tiny_llava, probes, answers, unknown, 1, lambda done: None) == spared
    finally:
        handle.remove()
    assert 0 < asked < len(probes) == len(forwards) - asked


def test_costs() -> None:
    records = [
        EditRecord(str(n), float(n), refine_steps=steps, store_bytes=10) for n, steps in enumerate((0, 0, 4, 8), 1)
    ]
    found = cost(records)
    assert found["milliseconds_per_edit"]["median"] == 2.5
    assert found["refine_steps"] == {"median": 2, "mean": 3, "max": 8, "refined": 50}
    assert found["store_bytes_per_edit"] == 10


def test_a_real_model_gets_full_marks_for_staying_itself(
    tiny_llava: Backbone, eval_cases: tuple[EditCase, ...]
) -> None:
    """Without an editor every locality probe stays, in both ways of scoring, empty answers included; nothing breaks."""
    from liveedit.editors.none import NoEditor

    cases = eval_cases[:4]
    unedited = UneditedAnswers(tiny_llava, 8, 32)
    unedited.ask(probes_of(cases)[0])
    metrics = summarize_measurements([measure(tiny_llava, NoEditor(tiny_llava), cases, unedited)])["metrics"]
    for name in ("text_locality", "modal_locality", "same_image_locality", "near_duplicate_locality"):
        assert metrics[name]["exact_match"] == metrics[name]["teacher_forced"] == 100
    assert metrics["reliability"]["count"] == 4
    assert {values["broken"] for values in metrics.values()} == {0}
