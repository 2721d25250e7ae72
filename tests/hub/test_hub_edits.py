"""Edits pushed to a hub over HTTP and pulled from it are the same to the bit; what is wrong is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from edit_examples import BACKBONE, EDITOR, bound, make_edit, make_expert
from hub_server import WRITER, HubServer, use_hub
from huggingface_hub import HfApi, ModelCard

from liveedit.cli import main
from liveedit.errors import HubError, StoreError
from liveedit.store.evidence import EarlierEdit, Evidence, LocalityProbe, Rephrased
from liveedit.store.hub_bundle import FILE, HubBundle
from liveedit.store.store import EditStore, NewEdit

NAME = "owner/corrections"

# The hub's client sends files as `data`, of which its own HTTP library warns.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

EVIDENCE = Evidence(
    rephrasings=(Rephrased("Colour?", "blue", "red", True), Rephrased("Of what colour?", "blue", "grey", False)),
    locality=(LocalityProbe("Wheels?", None, "four", "four", True),),
    earlier_edits=(EarlierEdit("0" * 8, "five", "fivered", False),),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three edits: one with evidence that took, one that did not take, one undone."""
    place = tmp_path / "edits.db"
    with bound(place) as store:
        for answer, after, evidence in (("red", "Red.", EVIDENCE), ("1", "2", None), ("blue", "blue", None)):
            edit = NewEdit(**{**vars(make_edit(answer)), "answer_after": after, "evidence": evidence, "author": "ada"})
            last = store.add(edit, make_expert(len(answer))).id
        store.undo(last)
    return place


def exported(file: Path, folder: Path, **options: bool) -> HubBundle:
    with EditStore(file) as store:
        store.export_bundle(folder / "bundle", **options)
    return HubBundle(str(folder / "bundle"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(one) for one in arguments])
    return code, *capsys.readouterr()


def test_a_bundle_comes_back_bit_for_bit(hub: HubServer, file: Path, tmp_path: Path) -> None:
    bundle = exported(file, tmp_path)
    commit = bundle.push_to_hub(NAME, private=True)
    assert commit.startswith(f"{hub.url}/{NAME}/commit/") and hub.repositories[NAME].private
    assert set(hub.files(NAME)) == {".gitattributes", "README.md", FILE}
    loaded = HubBundle.from_pretrained(NAME)
    assert loaded.path.read_bytes() == bundle.path.read_bytes() == hub.files(NAME)[FILE]
    with EditStore(file) as store, EditStore(tmp_path / "other.db") as other:
        other.import_bundle(loaded.path, on_conflict="keep")
        assert other.list(include_undone=True) == store.list(include_undone=True)
        assert [edit.expert for edit in other.list()] == [edit.expert for edit in store.list()]
        assert other.history() == store.history() and other.binding == store.binding
    bundle.save_pretrained(tmp_path / "saved")
    assert HubBundle.from_pretrained(tmp_path / "saved").path.read_bytes() == bundle.path.read_bytes()


def test_the_commands_push_and_pull_revisions(
    hub: HubServer, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "edits", "push", NAME, "--edits", file, "--license", "cc-by-4.0", "--json")
    first = json.loads(out)
    assert (code, first["edits"], first["revision"]) == (0, 3, 4)
    assert hub.repositories[NAME].private
    HfApi().create_tag(NAME, tag="first")
    code, out, _ = run(capsys, "edits", "push", NAME, "--edits", file, "--active")
    assert code == 0 and out.startswith(f"Pushed 2 edits to {NAME}: {hub.url}/{NAME}/commit/")
    keep = ("--on-conflict", "keep")
    for revision, count in (("first", 3), (first["commit"].rsplit("/", 1)[1], 3), (None, 2)):
        place = tmp_path / f"{revision}.db"
        named = () if revision is None else ("--revision", revision)
        code, out, _ = run(capsys, "edits", "pull", NAME, "--edits", place, *named, *keep, "--json")
        assert (code, len(json.loads(out)["added"])) == (0, count)
    assert "licence | cc-by-4.0" in hub.files(NAME, "first")["README.md"].decode()
    code, _, err = run(capsys, "edits", "pull", NAME, "--edits", tmp_path / "strict.db")
    assert code == 1 and "Nothing was imported" in err, "contradictions are refused, as by import"


def test_commands_in_a_process_of_their_own(hub: HubServer, file: Path, tmp_path: Path) -> None:
    """As a person runs them: the hub by HF_ENDPOINT, the token by HF_TOKEN; without torch."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": WRITER,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    script = (
        "import sys; from liveedit.cli import main; code = main(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    )
    for given in (
        ("push", NAME, "--edits", file),
        ("pull", NAME, "--edits", tmp_path / "o.db", "--on-conflict", "keep"),
    ):
        command = [sys.executable, "-c", script, "edits", *map(str, given), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("{"), "one JSON object and nothing else"
    with EditStore(file) as store, EditStore(tmp_path / "o.db") as other:
        assert other.history() == store.history()


def test_the_card_has_all_that_is_known_and_no_text_of_an_edit(hub: HubServer, file: Path, tmp_path: Path) -> None:
    exported(file, tmp_path).push_to_hub(NAME, model_card_kwargs={"license": "apache-2.0"})
    card = ModelCard(hub.files(NAME)["README.md"].decode())
    assert card.data.license == "apache-2.0" and "edits" in card.data.tags
    for line in (
        f"| backbone digest | {BACKBONE} |",
        f"| editor digest | {EDITOR} |",
        "| active edits T | 2 |",
        "| undone or purged edits | 1 |",
        "| revision | 4 |",
        "| trials: edits that took | 1 of 2 |",
        "| trials: rephrasings that took | 1 of 2 |",
        "| trials: locality probes that kept their answer | 1 of 1 |",
        "| trials: earlier edits that kept their answer | 0 of 1 |",
        "| trials: broken answers | 2 of 4 |",
        "| licence | apache-2.0 |",
    ):
        assert line in card.text.splitlines(), line
    assert "What colour" not in card.text and "ada" not in card.text
    assert f"liveedit edits pull {NAME}" in card.text


# -- what goes wrong -------------------------------------------------------------------------------------------


def test_edits_of_another_model_are_refused(
    hub: HubServer, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(file, tmp_path).push_to_hub(NAME)
    with EditStore(tmp_path / "other.db") as other:
        other.bind("f" * 64, EDITOR, backbone="tiny-blip2", editor="liveedit")
        other.add(make_edit("own"), make_expert())
        with pytest.raises(StoreError):
            other.import_bundle(HubBundle.from_pretrained(NAME).path)
    code, out, err = run(capsys, "edits", "pull", NAME, "--edits", tmp_path / "other.db")
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert "f" * 12 in err and BACKBONE[:12] in err and "tiny-blip2" in err


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("owner/nothing", None, "no repository 'owner/nothing'"),
        (NAME, 500, "answered with status 500"),
        ("no-such-folder", None, "'no-such-folder' holds no edits.safetensors"),
    ],
)
def test_a_pull_that_fails_is_one_sentence_and_makes_no_file(
    name: str, status: int | None, words: str, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.failing_with = status
    code, out, err = run(capsys, "edits", "pull", name, "--edits", tmp_path / "new.db")
    assert (code, out) == (1, "") and words in err and len(err.splitlines()) == 1
    assert not (tmp_path / "new.db").exists()


def test_a_push_without_a_token_or_network_is_one_sentence(
    hub: HubServer, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_hub(hub.url, tmp_path / "cache", None, monkeypatch)
    code, _, err = run(capsys, "edits", "push", NAME, "--edits", file)
    assert code == 1 and "no token" in err and hub.requests == []
    use_hub("http://127.0.0.1:9", tmp_path / "cache", WRITER, monkeypatch)
    code, _, err = run(capsys, "edits", "push", NAME, "--edits", file)
    assert code == 1 and "cannot be reached" in err and len(err.splitlines()) == 1


def test_a_damaged_bundle_is_not_taken(hub: HubServer, file: Path, tmp_path: Path) -> None:
    bundle = exported(file, tmp_path)
    data = bytearray(bundle.path.read_bytes())
    data[600] ^= 1
    bundle.path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        HubBundle(bundle.path)
    with pytest.raises(HubError, match="holds no"):
        HubBundle.from_pretrained(tmp_path)
