"""Facts as an annotation file in the ZsRE schema, the same bytes for the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...files import write_json
from ...samples import EditCase, Probe
from .cases import Part, fact_cases


def write_facts(file: Path, part: Part, seed: int, count: int) -> Path:
    """Write the cases of `fact_cases`, so that `read("zsre", file)` gives them back. Returns the file."""
    write_json(file, [_row(case) for case in fact_cases(part, seed, count)])
    return file


def _row(case: EditCase) -> dict[str, Any]:
    """One case in the ZsRE schema; `probes` and further keys hold what that schema has no key for."""
    (rephrased,) = case.named("text_generality")
    first, *further = case.named("text_locality")
    return {
        "id": case.id,
        "subject": case.edit.question.subject,
        "relation": case.edit.question.relation,
        "src": case.edit.question.prompt,
        "pred": case.answer_before,
        "rephrase": rephrased.question.prompt,
        "alt": case.edit.answer,
        "answers": [case.answer_before] if case.answer_before is not None else [],
        "loc": first.question.prompt,
        "loc_ans": first.answer,
        "loc_subject": first.question.subject,
        "loc_relation": first.question.relation,
        "answer_type": case.answer_type,
        "tags": list(case.tags),
        "probes": [_probe(probe) for probe in further],
    }


def _probe(probe: Probe) -> dict[str, str | None]:
    question = probe.question
    return {
        "name": probe.name,
        "prompt": question.prompt,
        "answer": probe.answer,
        "subject": question.subject,
        "relation": question.relation,
    }
