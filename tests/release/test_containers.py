"""Containers: every file parses, names what is there, and pins what it takes from outside."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from liveedit.cli import app
from liveedit.serving.metrics import Metrics

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"
DOCKERFILES = sorted(CONTAINERS.glob("Dockerfile*"))
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+[\w.-]*")


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_steps", CONTAINERS / "run_steps.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["run_steps"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run_steps = loaded()


def yaml_of(name: str) -> Any:
    return yaml.safe_load((CONTAINERS / name).read_text(encoding="utf-8"))


def steps(file: Path) -> list[tuple[str, str]]:
    return run_steps.instructions(file.read_text(encoding="utf-8"))


def given(file: Path, name: str) -> list[str]:
    return [arguments for instruction, arguments in steps(file) if instruction == name]


def check_serve_command(words: list[str]) -> None:
    """The options are those of `liveedit serve`, and the address is one that other containers reach."""
    printed = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).output
    known = set(re.findall(r"--[\w-]+", printed))
    assert words[0] == "serve"
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known
    assert "--keys" in " ".join(words) and "0.0.0.0" in " ".join(words)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_a_dockerfile_is_pinned_and_runs_as_no_root(file: Path) -> None:
    names = [arguments.split()[0] for arguments in given(file, "FROM")]
    assert names and all(PINNED.fullmatch(name) for name in names)
    assert given(file, "USER")[-1] not in ("root", "0")
    assert {name for name, _ in steps(file)} <= {
        *("FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER"),
        *("VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
    }


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_what_a_dockerfile_copies_is_there_and_not_ignored(file: Path) -> None:
    sources = [word for copy in given(file, "COPY") if not copy.startswith("--from=") for word in copy.split()[:-1]]
    assert sources and all((ROOT / source).exists() for source in sources)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) <= kept


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_what_an_image_runs_is_a_command_of_the_package(file: Path) -> None:
    assert json.loads(given(file, "ENTRYPOINT")[-1]) == ["liveedit"]
    check_serve_command(json.loads(given(file, "CMD")[-1]))
    health = json.loads(given(file, "HEALTHCHECK")[-1].split("CMD", 1)[1])
    compile(health[-1], "HEALTHCHECK", "exec")
    port = given(file, "EXPOSE")[-1]
    assert f":{port}/readyz" in health[-1] and port in json.loads(given(file, "CMD")[-1])


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_installs_extras_that_there_are(file: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (install,) = [step for step in given(file, "RUN") if "pip install" in step]
    words = shlex.split(install)
    (extras,) = [word[2:-1].split(",") for word in words if word.startswith(".[")]
    assert {"serve", "postgres"} <= set(extras) <= set(project["optional-dependencies"])
    assert words[words.index("-c") + 1] == "constraints.txt"


def test_the_images_of_compose_are_pinned_and_its_files_are_there() -> None:
    compose = yaml_of("compose.yaml")
    services = compose["services"]
    assert services.keys() == {"database", "liveedit", "prometheus"}
    for name in ("database", "prometheus"):
        assert PINNED.fullmatch(services[name]["image"]), name
    build = services["liveedit"]["build"]
    assert (CONTAINERS / build["context"]).resolve() == ROOT
    assert build["dockerfile"] == "containers/${LIVEEDIT_DOCKERFILE:-Dockerfile}"
    arguments = {one.split("=")[0] for one in given(CONTAINERS / "Dockerfile", "ARG")}
    assert build["args"].keys() == arguments
    mounted = [volume for service in services.values() for volume in service.get("volumes", [])]
    for source in (volume.split(":")[0] for volume in mounted):
        assert (CONTAINERS / source).is_file() if source.startswith("./") else source in compose["volumes"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports), "a proxy with TLS stands before them"


def test_compose_has_no_password_and_starts_the_service_after_the_database() -> None:
    services = yaml_of("compose.yaml")["services"]
    passwords = [
        services["database"]["environment"]["POSTGRES_PASSWORD"],
        services["liveedit"]["environment"]["PGPASSWORD"],
    ]
    assert all(password.startswith("${POSTGRES_PASSWORD:?") for password in passwords)
    check_serve_command(services["liveedit"]["command"])
    assert services["liveedit"]["depends_on"]["database"]["condition"] == "service_healthy"
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"containers/.env", "containers/metrics-key"} <= set(ignored)


def test_prometheus_asks_the_service_with_the_mounted_key() -> None:
    compose, prometheus = yaml_of("compose.yaml"), yaml_of("prometheus.yml")
    (job,) = prometheus["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"] == [{"targets": ["liveedit:8000"]}]
    (secret,) = compose["services"]["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}" and secret in compose["secrets"]
    mounted = {volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]}
    assert {f"/etc/prometheus/{name}" for name in ("prometheus.yml", *prometheus["rule_files"])} <= mounted


def test_alarms_watch_metrics_that_the_service_has() -> None:
    rules = yaml_of("alarms.yml")["groups"][0]["rules"]
    metrics = Metrics()
    metrics.requests.labels("GET", "/healthz", "200").inc()
    text = metrics.text().decode()
    found = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    named = {name for rule in rules for name in re.findall(r"\bliveedit_\w+", rule["expr"])}
    assert named and named <= found
    assert all(rule["for"] and rule["annotations"]["summary"] for rule in rules)


def test_steps_are_carried_out_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "stubs").mkdir()
    build = run_steps.Build(tmp_path, "1234")
    text = "FROM a:1.0\nARG WORD=seven\nENV SAID=${WORD} PATH=/opt/liveedit/bin:/bin\nWORKDIR /source\n"
    text += "COPY pyproject.toml ./\nRUN mkdir -p /opt/x && \\\n  echo $SAID > /opt/x/word && test -f pyproject.toml\n"
    text += "USER me\n"
    for name, arguments in run_steps.instructions(text):
        build.step(name, arguments)
    assert (tmp_path / "opt" / "x" / "word").read_text() == "seven\n"
    assert build.environment["PATH"] == f"{tmp_path}/stubs:{tmp_path}/opt/liveedit/bin:/bin"
    with pytest.raises(SystemExit, match="This step failed: RUN false"):
        build.step("RUN", "false")
