"""Files of API keys."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from liveedit.errors import ConfigError, NotFoundError
from liveedit.serving.api_keys import KeyFile


def test_a_key_is_known_by_its_digest_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, text = KeyFile(path).add("edit", "the night shift")
    assert text not in path.read_text()
    assert json.loads(path.read_text())["keys"][0]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = KeyFile(path)
    assert again.holder(text) == key
    assert again.holder(text[:-1]) is None and again.holder("") is None and again.holder(key.sha256) is None
    assert (key.role, key.name) == ("edit", "the night shift")


def test_keys_are_long_and_differ(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    texts = {file.add("ask")[1] for _ in range(20)}
    assert len(texts) == 20 and min(map(len, texts)) >= 43
    assert len(file.keys) == 20 and len({key.id for key in file.keys}) == 20


def test_roles_reach_what_lies_below_them(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    made = {role: file.add(role)[0] for role in ("ask", "edit", "admin")}  # type: ignore[arg-type]
    reach = {role: [key.allows(wanted) for wanted in ("ask", "edit", "admin")] for role, key in made.items()}  # type: ignore[arg-type]
    assert reach == {"ask": [True, False, False], "edit": [True, True, False], "admin": [True, True, True]}


def test_a_removed_key_is_unknown_to_who_has_the_file_open(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, text = KeyFile(path).add("ask")
    watching = KeyFile(path)
    assert watching.holder(text) == key
    KeyFile(path).remove(key.id)
    assert watching.holder(text) is None
    with pytest.raises(NotFoundError, match=key.id):
        KeyFile(path).remove(key.id)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2, "keys": []}', '{"keys": [{"role": "root"}]}'])
def test_a_damaged_file_is_refused_and_the_keys_before_hold_on(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    key, text = KeyFile(path).add("ask")
    watching = KeyFile(path)
    assert watching.holder(text) == key
    path.write_text(content)
    os.utime(path, ns=(1, 1))
    assert watching.holder(text) == key
    with pytest.raises(ConfigError, match=r"keys\.json"):
        _ = KeyFile(path).keys
    with pytest.raises(ConfigError):
        KeyFile(path).add("ask")
    assert path.read_text() == content
