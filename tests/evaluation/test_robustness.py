"""Questions that provoke broken answers: how they are made, what counts as broken, and a whole run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from shift_editor import ShiftEditor

from liveedit.answering import Answering
from liveedit.answers import Answer, Fired, normalize_answer
from liveedit.backbones import Backbone
from liveedit.editors.base import Editor
from liveedit.editors.none import NoEditor
from liveedit.errors import ConfigError
from liveedit.evaluation.provenance import Provenance
from liveedit.evaluation.robustness import measuring
from liveedit.evaluation.robustness.measuring import NO_WEIGHTS, Robustness, RobustnessConfig, verdict_of
from liveedit.evaluation.robustness.questions import (
    OWN_PROMPT,
    Asked,
    contradictions,
    long_answer,
    long_answers,
    near_wording_questions,
)
from liveedit.evaluation.robustness.report import robustness_tables, rule_table
from liveedit.evaluation.robustness.wordings import RULES, contradicting_prompts, near_wordings
from liveedit.samples import Edit, EditCase, Probe, Question, normalize_prompt

PROVENANCE = Provenance("abc", False, "b" * 64, "d" * 64)
PROMPT = "What is this creature called?"
PROMPTS = (
    PROMPT,
    "Tell me: Which kind of hat is on the creature?",
    "Is the cat black?",
    "a photo of",
    "How many?",
    "Why?",
    "Où vit cette créature ?",
)


# -- near wordings -------------------------------------------------------------------------------------------


def by_rule(prompt: str, seed: str = "0") -> dict[str, str]:
    return {one.rule: one.prompt for one in near_wordings(prompt, seed)}


def test_what_each_rule_makes() -> None:
    made = by_rule(PROMPT)
    assert made["upper"] == "WHAT IS THIS CREATURE CALLED?"
    assert made["lower"] == "what is this creature called?"
    assert made["title"] == "What Is This Creature Called?"
    assert made["no_mark"] == "What is this creature called"
    assert made["exclamation"] == "What is this creature called!!"
    assert made["ellipsis"] == "What is this creature called..."
    assert made["doubled_spaces"] == "What  is  this  creature  called?"
    assert (made["leading_space"], made["trailing_space"]) == (f" {PROMPT}", f"{PROMPT} ")
    assert (made["leading_quote"], made["trailing_quote"]) == (f'"{PROMPT}', f'{PROMPT}"')
    assert made["wh_last"] == "Is this creature called what?"
    assert made["end_first"] == "creature called What is this?"
    assert sorted(made["swapped_words"].rstrip("?").split()) == sorted(PROMPT.rstrip("?").split())
    assert made["other_wh"].split()[0] in {"Where", "When", "Who", "Whose", "Why", "How"}
    assert made["other_wh"].split()[1:] == PROMPT.split()[1:]
    assert len(made["swapped_letters"]) == len(PROMPT)
    assert len(made["dropped_letter"]) == len(PROMPT) - 1
    assert len(made["doubled_letter"]) == len(PROMPT) + 1
    assert made.keys() == {rule for rules in RULES.values() for rule in rules}


def test_rules_for_other_forms_of_questions() -> None:
    assert by_rule("Is the cat black?")["other_wh"] == "Why is the cat black?"
    assert "wh_last" not in by_rule("Is the cat black?")
    assert not {"other_wh", "wh_last", "lower", "no_mark"} & by_rule("a photo of").keys()
    assert by_rule("Tell me: Which hat is it?")["wh_last"] == "Tell me: hat is it which?"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_near_wordings_differ_from_the_prompt_and_depend_on_nothing_but_the_seed(prompt: str) -> None:
    for seed in map(str, range(20)):
        made = near_wordings(prompt, seed)
        assert made == near_wordings(prompt, seed)
        assert all(one.prompt != prompt and one.prompt.strip() for one in made)
        typos = [one for one in made if one.kind == "typos"]
        assert all(normalize_prompt(one.prompt) != normalize_prompt(prompt) for one in typos)
    others = {tuple(one.prompt for one in near_wordings(PROMPT, str(seed))) for seed in range(5)}
    assert len(others) == 5


@pytest.mark.parametrize("prompt", PROMPTS)
def test_contradicting_prompts_differ_in_more_than_case_spaces_and_marks(prompt: str) -> None:
    for seed in map(str, range(20)):
        prompts = contradicting_prompts(prompt, seed)
        if prompt == "Why?":
            assert prompts is None
            continue
        assert prompts is not None
        assert prompts[0] == prompt
        plain = {"".join(character for character in one.casefold() if character.isalpha()) for one in prompts}
        words = {tuple(one.casefold().rstrip(' ?!."').split()) for one in prompts}
        assert len(words) == 3
        assert len(plain) >= 2 or prompt == "a photo of"
        assert contradicting_prompts(prompt, seed) == prompts


# -- questions -----------------------------------------------------------------------------------------------


def case_of(number: int, answer: str, *probes: Probe, subject: str | None = None, relation: str = "name") -> EditCase:
    subject = subject or f"creature {number}"
    question = Question(PROMPT, Path(f"{number}.png"), subject, relation)
    return EditCase(f"case-{number}", Edit(question, answer), probes, "name", answer_before=f"before {number}")


def test_another_question_about_the_image_is_in_no_scope_of_an_edit() -> None:
    color = Question("What color is it?", Path("0.png"), "creature 0", "color")
    food = Question("What does it eat?", Path("9.png"), "creature 0", "food")
    cases = [
        case_of(0, "Zamo", Probe("same_image_locality", color, "red")),
        EditCase("food", Edit(food, "corn"), answer_before="nuts"),
        EditCase("color", Edit(replace(color, image=Path("8.png")), "blue")),
    ]

    def others(edited: Sequence[EditCase]) -> list[Asked]:
        return [one for one in near_wording_questions(edited, 1, cases, 0) if one.rule == "other_question"]

    (first,) = others(cases[:1])
    assert (first.question.prompt, first.question.image, first.labels[0]) == ("What color is it?", Path("0.png"), "red")
    assert first.stays
    (second,) = others([cases[0], cases[2]])
    assert (second.question.prompt, second.question.image) == ("What does it eat?", Path("0.png"))
    assert second.labels[:2] == ("corn", "nuts")
    assert others(cases) == []


def test_near_wordings_of_the_first_edits_only() -> None:
    cases = [case_of(number, f"Zamo {number}") for number in range(4)]
    asked = list(near_wording_questions(cases[:3], 2, cases, 0))
    assert [one.case for one in asked if one.kind == OWN_PROMPT] == ["case-0", "case-1"]
    assert {one.kind for one in asked} == {OWN_PROMPT, *RULES}
    assert {one.question.image for one in asked if one.case == "case-1"} == {Path("1.png")}


def test_triples_have_one_image_three_prompts_and_three_answers() -> None:
    cases = [case_of(number, f"Zamo{number % 5}", Probe("cross_modal", Question("?"), "Zamo3")) for number in range(9)]
    edits, asked = contradictions(cases, 4, 0)
    assert len(edits) == len(asked) == 12
    assert (edits, asked) == contradictions(cases, 4, 0)
    assert [edit.question for _, edit in edits] == [one.question for one in asked]
    assert len({edit_id for edit_id, _ in edits}) == 12
    for start in range(0, 12, 3):
        triple = [edit for _, edit in edits[start : start + 3]]
        assert len({edit.question.image for edit in triple}) == 1
        assert len({normalize_prompt(edit.question.prompt) for edit in triple}) == 3
        answers = [edit.answer for edit in triple]
        assert len({normalize_answer(answer) for answer in answers}) == 3
        assert "Zamo3" not in answers[1:], "a label of the case"
        for edit, one in zip(triple, asked[start : start + 3], strict=True):
            assert one.answer == edit.answer
            assert sorted((*one.others, one.answer)) == sorted(answers)
    assert contradictions(cases[:2], 4, 0) == ([], []), "two answers are not enough for three edits"


def words(text: str) -> int:
    return len(text.split())


def test_long_answers_are_joined_to_the_wanted_length() -> None:
    donors = ["red", "two dogs run home", "a cat sleeps here. ", "blue"]
    assert long_answer(donors, 1, words) == "red"
    assert long_answer(donors, 5, words) == "red Two dogs run home."
    assert long_answer(donors, 8, words) == "red Two dogs run home. A cat sleeps here."
    assert long_answer(donors, 100, words) == "red Two dogs run home. A cat sleeps here., blue"
    assert long_answer(["a very long caption of seven words"], 2, words) == "A very long caption of seven words."


def test_long_answers_are_asked_by_three_prompts() -> None:
    rephrased = Probe("text_generality", Question("Its name?", Path("0.png")), "Zamo0")
    cases = [case_of(0, "Zamo0", rephrased), *(case_of(number, f"Zamo{number}") for number in range(1, 30))]
    edits, asked = long_answers(cases, 6, 1, 0, words)
    ((edit_id, edit),) = edits
    assert (edit_id, words(edit.answer), "Zamo0" in edit.answer.split(", ")) == ("case-0", 6, False)
    assert [(one.rule, one.question.prompt) for one in asked] == [
        ("own_prompt", PROMPT),
        ("paraphrase", "Its name?"),
        ("template", f"Tell me: {PROMPT}"),
    ]
    assert {one.answer for one in asked} == {edit.answer}
    with pytest.raises(ConfigError, match="joined from those of other cases"):
        long_answers(cases[:1], 6, 1, 0, words)


# -- verdicts ------------------------------------------------------------------------------------------------

ASKED = Asked("typos", "rule", "case-0", Question(PROMPT), "Zamo", ("Bruvak",), ("red", "corn"))


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("zamo.", "edit"),
        ("The Bruvak", "other_edit"),
        ("green", "unedited"),
        ("RED", "other_label"),
        ("Zamo green", "broken"),
        ("Zam", "broken"),
        ("", "broken"),
    ],
)
def test_each_verdict(answer: str, verdict: str) -> None:
    assert verdict_of(answer, ASKED, "green") == verdict


def test_an_answer_of_two_counts_as_the_right_one() -> None:
    assert verdict_of("Zamo", ASKED, "Zamo") == "edit"
    assert verdict_of("Zamo", replace(ASKED, stays=True), "Zamo") == "unedited"
    assert verdict_of("Zamo", replace(ASKED, stays=True), "green") == "edit"


# -- a whole run ---------------------------------------------------------------------------------------------


class ScaledShift(ShiftEditor):
    """Has a factor, which is 1 outside of `scaled_weights`."""

    factor = 1.0

    def scaled_weights(self, factor: float) -> AbstractContextManager[None]:
        return self._scaled(factor)

    @contextmanager
    def _scaled(self, factor: float) -> Iterator[None]:
        self.factor = factor
        yield
        self.factor = 1.0


class Scripted(Answering):
    """Answers as scripted: the unedited model says "before", an editor what `says` makes of a question."""

    says: Callable[[Any, Question], str] = staticmethod(lambda editor, question: "")  # type: ignore[assignment]
    asked: list[tuple[Any, int, int]] = []  # noqa: RUF012

    def ask_all(self, questions: Sequence[Question], max_new_tokens: int = 0, **options: Any) -> Iterator[Answer]:
        self.asked.append((self.editor and type(self.editor).__name__, len(questions), max_new_tokens))
        for question in questions:
            if self.editor is None:
                yield Answer("before", None)
            else:
                yield Answer(type(self).says(self.editor, question), (Fired("x", 0.5, 0.25),))


def config_of(**changes: Any) -> RobustnessConfig:
    few = {"edits": 3, "probed": 2, "triples": 2, "lengths": (8, 30), "long_edits": 1, "factors": (0.5,), "batch": 16}
    return RobustnessConfig(backbone="tiny", data="world", **{**few, **changes})


def run_scripted(
    monkeypatch: pytest.MonkeyPatch,
    backbone: Backbone,
    cases: Sequence[EditCase],
    folder: Path,
    says: Callable[[Any, Question], str],
    makers: Sequence[tuple[str, Callable[[Backbone], Editor]]],
    **changes: Any,
) -> tuple[list[dict[str, Any]], list[tuple[Any, int, int]]]:
    monkeypatch.setattr(Scripted, "says", staticmethod(says))
    monkeypatch.setattr(Scripted, "asked", [])
    monkeypatch.setattr(measuring, "Answering", Scripted)
    rows = Robustness(backbone, cases, config_of(**changes), folder, PROVENANCE).run(makers)
    return rows, Scripted.asked


def test_verdicts_are_counted_by_kind_and_rule(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def says(editor: ScaledShift, question: Question) -> str:
        if editor.factor == 0.5:
            return "half an answer"
        if question.prompt.isupper():
            return "before"
        edits = [edit for _, edit in edited if edit.question.image == question.image]
        return next((edit.answer for edit in edits if edit.question == question), "nonsense")

    edited: list[tuple[str, Edit]] = []
    edit = ScaledShift.edit

    def noting(self: ScaledShift, edits: Sequence[tuple[str, Edit]], *options: Any) -> Any:
        edited[:] = edits
        return edit(self, edits, *options)

    monkeypatch.setattr(ScaledShift, "edit", noting)
    makers = [("shift", ScaledShift)]
    (row,), asked = run_scripted(monkeypatch, random_backbone, eval_cases, tmp_path, says, makers)
    kinds, rules = row["kinds"], row["rules"]
    assert kinds["own_prompt"] | {"percent": None} == {
        **{"asked": 2, "edit": 2, "other_edit": 0, "unedited": 0, "other_label": 0, "broken": 0},
        "percent": None,
    }
    assert rules["case"]["upper"]["unedited"] == rules["case"]["upper"]["asked"] == 2
    assert kinds["typos"]["broken"] == kinds["typos"]["asked"] == 6
    assert kinds["typos"]["percent"]["broken"] == 100
    assert kinds["weight_0.5"]["broken"] == kinds["weight_0.5"]["asked"] == 2
    assert kinds["contradictions"]["edit"] == kinds["contradictions"]["asked"] == 6
    assert [rules["long_answer_30"][rule]["edit"] for rule in ("own_prompt", "paraphrase", "template")] == [1, 0, 0]
    assert all(counts["asked"] == sum(counts[verdict] for verdict in measuring.VERDICTS) for counts in kinds.values())
    assert row["notes"] == []
    assert (row["editor"], row["edits"], row["seed"]) == ("shift", 3, 0)
    # The unedited model first, with the same limits; the longest answer is not cut.
    unedited, later = asked[:4], asked[4:]
    assert [name for name, *_ in unedited] == [None] * 4
    without_scaled = (*later[:1], *later[2:])
    assert [size for _, *size in unedited] == [size for _, *size in without_scaled]
    tokens = row["costs"]["long_answer_30"]["answer_tokens"]
    assert abs(tokens - 30) <= 6
    assert unedited[3][2] >= tokens + 2


def test_raw_answers_are_json_lines(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = [("shift", ScaledShift)]
    (row,), _ = run_scripted(monkeypatch, random_backbone, eval_cases, tmp_path, lambda *given: "nonsense", makers)
    lines = (tmp_path / "answers" / "shift-3-seed0.jsonl").read_text(encoding="utf-8").splitlines()
    raw = [json.loads(line) for line in lines]
    assert len(raw) == sum(counts["asked"] for counts in row["kinds"].values())
    first = raw[0]
    assert (first["kind"], first["unedited"], first["answer"]) == ("own_prompt", "before", "nonsense")
    assert (first["verdict"], first["broken"]) == ("broken", True)
    assert first["fired"] == [{"edit_id": "x", "weight": 0.5, "margin": 0.25}]
    assert {one["expected"] for one in raw if one["kind"] == "question_type"} == {"before"}
    assert json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"] == [row]


def test_an_interrupted_run_keeps_what_was_measured(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = 0

    def says(editor: Editor, question: Question) -> str:
        nonlocal said
        said += 1
        if isinstance(editor, NoEditor) and said > first + 3:
            raise KeyboardInterrupt
        return "nonsense"

    first = 0
    makers: list[tuple[str, Callable[[Backbone], Editor]]] = [("shift", ScaledShift), ("none", NoEditor)]
    (row,), _ = run_scripted(monkeypatch, random_backbone, eval_cases, tmp_path, says, makers[:1])
    first, said = said, 0
    with pytest.raises(KeyboardInterrupt):
        run_scripted(monkeypatch, random_backbone, eval_cases, tmp_path, says, makers)
    (kept,) = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]
    assert kept["kinds"] == row["kinds"]
    assert len((tmp_path / "answers" / "none-3-seed0.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_editors_without_weights_and_kinds_that_are_not_wanted(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers: list[tuple[str, Callable[[Backbone], Editor]]] = [("shift", ShiftEditor), ("none", NoEditor)]
    wanted = {"triples": 0, "long_edits": 0}
    rows, asked = run_scripted(
        monkeypatch, random_backbone, eval_cases, tmp_path, lambda *given: "before", makers, **wanted
    )
    assert [row["notes"] for row in rows] == [[NO_WEIGHTS]] * 2
    assert [row["kinds"].keys() for row in rows] == [{OWN_PROMPT, *RULES}] * 2
    assert [name for name, *_ in asked] == [None, "ShiftEditor", "NoEditor"], "the unedited model is asked once"
    assert len(robustness_tables(rows)) == 1, "no costs of long answers"
    assert all(counts["unedited"] == counts["asked"] for row in rows for counts in row["kinds"].values())


def test_the_tables_average_seeds(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = [("shift", ScaledShift)]
    rows, _ = run_scripted(
        monkeypatch, random_backbone, eval_cases, tmp_path, lambda *given: "nonsense", makers, seeds=(0, 1)
    )
    assert [row["seed"] for row in rows] == [0, 1]
    rows[0]["kinds"]["own_prompt"] |= {"edit": 1, "broken": 1}
    rows[0]["kinds"]["own_prompt"]["percent"] |= {"edit": 50.0, "broken": 50.0}
    table, costs = robustness_tables(rows)
    # The means of (50, 0) and (50, 100); sample standard deviation 35.36 of both.
    assert table.rows[0] == ("Own prompt", "shift", "4", *("25.0±35.4 (1)", *["0.0±0.0 (0)"] * 3, "75.0±35.4 (3)"))
    assert [line[0] for line in costs.rows] == ["In sequence", "Long answer 8", "Long answer 30"]
    assert costs.rows[0][4] == "1.00"
    assert ("Case", "upper", "shift") in {line[:3] for line in rule_table(rows).rows}


def test_more_edits_than_cases_are_refused(
    random_backbone: Backbone, eval_cases: tuple[EditCase, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="13 edits were requested and the data holds 12"):
        Robustness(random_backbone, eval_cases, config_of(edits=13), tmp_path, PROVENANCE)


def answers_in(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text(encoding="utf-8") for file in (folder / "answers").iterdir()}


def test_a_run_from_the_command_line(run: Callable[..., tuple[int, str, str]], world: Path, tmp_path: Path) -> None:
    few = ("--edits", 3, "--probed", 1, "--triples", 1, "--lengths", 8, 9, "--long-edits", 1, "--batch", 64)
    given = ("robustness", "--data", world, "--editor", "liveedit", "one=ft-l", "--set", "one.steps=1", *few)
    code, out, err = run(*given, "--out", tmp_path / "first", "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [(row["seed"], row["editor"]) for row in rows] == [(0, "liveedit"), (0, "one")]
    assert rows[0]["kinds"]["own_prompt"]["edit"] == 1, "the built-in editor takes edits"
    assert rows[1]["provenance"]["config"]["editor"]["steps"] == 1
    command = shlex.split(rows[0]["provenance"]["command"])
    assert command == ["liveedit", *map(str, given), "--out", str(tmp_path / "first"), "--json"]
    assert len(answers_in(tmp_path / "first")) == 2
    code, out, _ = run(*given, "--out", tmp_path / "again")
    assert code == 0
    assert "Long answer 9" in out and "broken" in out
    assert answers_in(tmp_path / "first") == answers_in(tmp_path / "again")
    report = (tmp_path / "again" / "report.md").read_text(encoding="utf-8")
    assert "| Typos | dropped\\_letter | liveedit |" in report
