"""The settings of the vLLM plugin, and the errors for wrong ones. vLLM itself is not needed."""

from __future__ import annotations

from typing import Any

import pytest

from liveedit.errors import ConfigError
from liveedit.vllm.settings import Settings


def of(**values: Any) -> Settings:
    found = Settings.of({"liveedit": values})
    assert found is not None
    return found


@pytest.mark.parametrize("config", [None, {}, {"another_plugin": {"edits": "edits.db"}}])
def test_without_settings_the_plugin_does_nothing(config: Any) -> None:
    assert Settings.of(config) is None


def test_one_repository_is_used_by_every_request_that_does_not_refuse_it() -> None:
    settings = of(edits="edits.db", editor_path="editor", backbone="tiny-llava")
    assert settings.repositories["default"].edits == "edits.db"
    assert settings.repositories["default"].editor_path == "editor"
    assert settings.repository_of(None) == "default"
    assert settings.repository_of({"liveedit": "none"}) is None
    assert settings.repository_of({"another_plugin": 1}) == "default"


def test_of_several_repositories_a_request_names_its_own() -> None:
    settings = of(repositories={"shop": {"edits": "shop.db"}, "museum": {"edits": "museum.db"}})
    assert settings.repository_of({}) is None
    assert settings.repository_of({"liveedit": "museum"}) == "museum"
    assert of(repositories={"shop": {"edits": "shop.db"}}, default="shop").repository_of(None) == "shop"
    with pytest.raises(ConfigError, match=r"'bank'.*There are shop, museum; 'none' asks the unedited model"):
        settings.repository_of({"liveedit": "bank"})


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "repositories: Field required"),
        ({"edits": "a.db", "repositories": {"shop": {"edits": "b.db"}}}, "both edits and repositories"),
        ({"edits": "a.db", "edit": "b.db"}, "edit: Extra inputs"),
        ({"repositories": {"none": {"edits": "a.db"}}}, "stands for the unedited model"),
        ({"repositories": {"shop": {"edits": "a.db"}}, "default": "bank"}, "'bank' is not one of shop"),
        ({"repositories": {}}, "repositories: Dictionary should have at least 1 item"),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        of(**values)
    assert "--additional-config" in str(caught.value)
    assert '{"liveedit": {"edits": "edits.db"}}' in str(caught.value)
