"""Workflows: they run what a person runs, on every Python that the package promises, and publish without a token."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def workflow(name: str) -> Any:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def steps(found: Any) -> list[dict[str, Any]]:
    return [step for job in found["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_runs_targets_that_there_are_and_pins_its_actions(file: Path) -> None:
    found = workflow(file.name)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    made = [
        word for step in steps(found) for word in step.get("run", "").split()[1:] if step["run"].startswith("make ")
    ]
    assert made and set(made) <= targets
    for step in steps(found):
        assert "run" in step or re.fullmatch(r"[\w./-]+@(v\d[\w.]*|release/v1)", step["uses"])
    assert found["permissions"] == {"contents": "read"}


def test_every_promised_python_is_tested() -> None:
    tested = workflow("ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    promised = [line.split(" :: ")[-1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert tested == promised and PROJECT["requires-python"] == f">={promised[0]}"


def test_ci_has_a_job_for_each_check() -> None:
    jobs = workflow("ci.yml")["jobs"]
    assert jobs.keys() == {"lint", "tests", "docs", "wheels", "containers"}
    built = jobs["containers"]["strategy"]["matrix"]["dockerfile"]
    assert built == [file.name for file in sorted((ROOT / "containers").glob("Dockerfile*"))]


def test_only_publishing_may_ask_for_an_identity_and_it_has_no_token() -> None:
    jobs = workflow("release.yml")["jobs"]
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    publish = jobs["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["needs"] == "wheels"
    (upload,) = [step for step in publish["steps"] if step["uses"].startswith("pypa/gh-action-pypi-publish@")]
    assert "with" not in upload
    for file in WORKFLOWS:
        assert "secrets." not in file.read_text(encoding="utf-8")


def test_versions_come_from_tags_that_are_fetched() -> None:
    for name in ("ci.yml", "release.yml"):
        for job in workflow(name)["jobs"].values():
            if any("make" in step.get("run", "") for step in job["steps"]):
                (checkout,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
                assert checkout["with"]["fetch-depth"] == 0
    for file in ("pyproject.toml", "models/pyproject.toml"):
        found = tomllib.loads((ROOT / file).read_text(encoding="utf-8"))
        assert found["project"]["dynamic"] == ["version"]
        settings = found["tool"]["hatch"]["version"]
        assert settings["source"] == "vcs" and settings["fallback-version"].endswith(".dev0")
        assert re.fullmatch(settings["tag-pattern"], "v1.2.3")["version"] == "1.2.3"  # type: ignore[index]
