"""Editors, backbone families and dataset readers of other packages, found by their entry points."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import outside_packages
import pytest
from outside_packages import EntryPoints

from liveedit import registry
from liveedit.backbones.families import backbone_class, known_model_types
from liveedit.backbones.families.text_only import TextBackbone
from liveedit.datasets import format_names, read, reader_named
from liveedit.editors import (
    editor_class,
    editor_names,
    expert_editor_names,
    pretrained_editor_class,
    trained_editor_class,
)
from liveedit.errors import ConfigError, ExtensionError, NotFoundError

Install = Callable[..., None]

MODULE = """
from liveedit.backbones import Backbone
from liveedit.datasets import Reader
from liveedit.editors.none import NoEditor
from liveedit.samples import Edit, EditCase, Question


class Own(NoEditor):
    name = "own"


class OwnFamily(Backbone):
    pass


def read_case(row):
    return EditCase(row.name, Edit(Question(row.prompt("question")), row.answer("answer")))


OWN_FORMAT = Reader("own-format", "Questions and answers", read_case)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution with one module, `NAME_module`, and entry points, for the time of a test."""
    monkeypatch.syspath_prepend(tmp_path)

    def call(name: str, entry_points: EntryPoints, module: str = MODULE) -> None:
        outside_packages.install(tmp_path, name, entry_points, module)
        monkeypatch.delitem(sys.modules, f"{name}_module", raising=False)

    return call


def test_an_editor_of_another_package(install: Install) -> None:
    before = editor_names()
    install("outside", {registry.EDITORS: {"own": "outside_module:Own"}})
    assert set(editor_names()) == {*before, "own"}
    assert "outside_module" not in sys.modules, "listing names imports nothing"
    assert editor_class("own").name == "own"


def test_a_family_of_another_package(install: Install) -> None:
    assert backbone_class("own_model", reads_images=False) is TextBackbone
    install("outside", {registry.BACKBONES: {"own_model": "outside_module:OwnFamily"}})
    assert "own_model" in known_model_types()
    assert backbone_class("own_model", reads_images=False).__name__ == "OwnFamily"


def test_a_format_of_another_package(install: Install, tmp_path: Path) -> None:
    points = {"own-format": "outside_module:OWN_FORMAT", "own-alias": "outside_module:OWN_FORMAT"}
    install("outside", {registry.DATASETS: points})
    assert {"own-format", "own-alias"} < set(format_names())
    assert reader_named("own-alias") is reader_named("Own-Format")
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"question": "Who?", "answer": "Bruvak"}]))
    (case,) = read("own-format", file)
    assert (case.edit.question.prompt, case.edit.answer) == ("Who?", "Bruvak")


def test_built_in_extensions_are_registered() -> None:
    assert {"liveedit", "none", "ike"} < set(editor_names())
    assert {"llava", "blip-2", "qwen3_vl", "llama"} < set(known_model_types())
    for model_type in known_model_types():
        assert backbone_class(model_type, reads_images=True).__module__.startswith("liveedit.backbones.")


def test_unknown_names_come_with_the_closest_and_all_names() -> None:
    with pytest.raises(
        NotFoundError, match=r"no editor 'seracs'\. Did you mean serac\? Installed are: fitted-experts, .*"
    ):
        registry.load(registry.EDITORS, "seracs")
    with pytest.raises(NotFoundError, match=r"no editor 'q'\. Installed are: fitted-experts"):
        registry.load(registry.EDITORS, "q")


@pytest.mark.parametrize(
    ("module", "value", "message"),
    [
        ("import a_package_that_is_absent", "broken_module:Own", r"broken \(broken_module:Own\).*ModuleNotFoundError"),
        ("raise SystemError('no\\nway')", "broken_module:Own", r"SystemError: no way\).*uninstall"),
        ("", "broken_module:Own", "AttributeError"),
        ("Own = 3", "broken_module:Own", "is registered as 3. Register a subclass of liveedit.editors.Editor"),
    ],
)
def test_a_broken_extension_disturbs_only_its_own_use(install: Install, module: str, value: str, message: str) -> None:
    install("broken", {registry.EDITORS: {"own": value}}, module)
    assert "own" in editor_names()
    assert "liveedit" in expert_editor_names() and "own" not in expert_editor_names()
    for kind_of in (trained_editor_class, pretrained_editor_class):
        with pytest.raises(ConfigError, match="Give one of") as refusal:
            kind_of("none")
        listed = str(refusal.value).partition("Give one of ")[2].rstrip(".").split(", ")
        assert "liveedit" in listed and "own" not in listed
    assert editor_class("none").name == "none"
    with pytest.raises(ExtensionError, match=message):
        editor_class("own")


def test_things_of_the_wrong_kind_are_refused(install: Install) -> None:
    install("outside", {registry.BACKBONES: {"odd": "json:loads"}, registry.DATASETS: {"odd": "json:loads"}})
    with pytest.raises(ExtensionError, match=r"backbone family 'odd' is registered as .*Register a subclass"):
        backbone_class("odd", reads_images=True)
    with pytest.raises(ExtensionError, match=r"data format 'odd' is registered as .*Register an instance"):
        reader_named("odd")


def test_one_name_of_two_packages_is_refused_when_it_is_used(install: Install) -> None:
    install("outside", {registry.EDITORS: {"own": "outside_module:Own", "none": "outside_module:Own"}})
    install("further", {registry.EDITORS: {"own": "outside_module:Own"}})
    assert editor_names().count("none") == 1
    assert editor_class("own").name == "own", "both lead to the same object"
    with pytest.raises(ExtensionError, match=r"registered by liveedit \(.*NoEditor\) and outside \(outside_module"):
        editor_class("none")


def test_listing_names_imports_no_torch() -> None:
    code = (
        "import sys; from liveedit import registry, datasets; datasets.reader_named('zsre'); "
        "assert all(registry.names(g) for g in (registry.EDITORS, registry.BACKBONES, registry.DATASETS)); "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
