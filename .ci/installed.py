"""Tries an installation of the built wheels: what they contain, and the example of README.md.

usage: installed.py FOLDER, with the Python of the environment that they are installed in.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTION = "## Your first edit"


def check_contents(declared: dict) -> None:
    """py.typed, models, extras, entry points: as declared, and of the installation."""
    home = Path(str(resources.files("liveedit")))
    if not home.is_relative_to(sys.prefix):
        sys.exit(f"liveedit is imported from {home}, not from {sys.prefix}.")
    for package, name in (("liveedit", "py.typed"), ("liveedit", "assets/tiny-llava/model.safetensors")):
        if not resources.files(package).joinpath(name).is_file():
            sys.exit(f"The wheel of {package} lacks {name}.")
    found = set(metadata.metadata("liveedit").get_all("Provides-Extra") or [])
    if found != set(declared["optional-dependencies"]):
        sys.exit(f"The wheel has the extras {sorted(found)}; pyproject.toml declares others.")
    for group, points in declared["entry-points"].items():
        installed = {point.name: point for point in metadata.entry_points(group=group)}
        if installed.keys() != points.keys():
            sys.exit(f"The wheel has {sorted(installed)} in {group}; pyproject.toml declares {sorted(points)}.")
        if group.startswith("liveedit."):  # Others are for programs that are not installed here: vLLM, lmms-eval.
            for point in installed.values():
                point.load()
    versions = {name: metadata.version(name) for name in ("liveedit", "liveedit-models")}
    if len(set(versions.values())) != 1:
        sys.exit(f"The distributions have different versions: {versions}.")
    print(f"Contents as declared: version {versions['liveedit']}, {len(found)} extras, entry points load.")


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of the fenced blocks of the section with the example."""
    section = text.split(SECTION, 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^```(\w*)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def run_example(folder: Path) -> None:
    """Every block of the example in order, in an empty folder; the answers must be those that the text promises."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(folder), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    answers = []
    for language, code in blocks((ROOT / "README.md").read_text(encoding="utf-8")):
        if language == "python":
            before_after, answer = run(sys.executable, "-c", code).splitlines()[-2:]
            if not before_after.endswith("-> Bruvak") or not answer.startswith("Bruvak "):
                sys.exit(f"The example answered {before_after!r} and {answer!r}.")
            answers.append(answer)
            continue
        for line in code.splitlines():
            if not line.startswith("liveedit "):
                continue
            if line.endswith(" ID"):
                edits = json.loads(run("liveedit", "edits", "list", "--edits", "edits.db", "--json"))["edits"]
                line = line.removesuffix("ID") + edits[-1]["id"]
            answers.append(run("bash", "-c", line))
    if len(answers) != 6 or "Bruvak" not in answers[3]:
        sys.exit(f"The example has changed, or answered otherwise: {answers}")
    print("The README's example passes.")


if __name__ == "__main__":
    with (ROOT / "pyproject.toml").open("rb") as stream:
        check_contents(tomllib.load(stream)["project"])
    work = Path(sys.argv[1]) / "example"
    work.mkdir()
    run_example(work)
