"""Editors pushed to a hub over HTTP and loaded from it are the same to the bit; what is wrong is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hub_server import READER, STRANGER, HubServer, use_hub
from huggingface_hub import HfApi, ModelCard

from liveedit import EditedModel, LiveEdit, LiveEditRefine
from liveedit.backbones import Backbone, load_backbone
from liveedit.cli import main
from liveedit.editors import editor_class, pretrained_editor_class
from liveedit.editors.trained import trained_folder
from liveedit.errors import BackboneError, CheckpointError, ConfigError, HubError
from liveedit.hub.cards import Score

NAME = "owner/tiny-llava-liveedit"

# The hub's client sends files as `data`, of which its own HTTP library warns.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def shipped(tiny_llava: Backbone, hub: HubServer) -> str:
    """The built-in editor of tiny-llava in a repository. Returns the address of the commit."""
    with LiveEdit.load(tiny_llava) as editor:
        return editor.push_to_hub(NAME, private=True)


def test_a_trained_editor_comes_back_bit_for_bit(shipped: str, hub: HubServer, tiny_llava: Backbone) -> None:
    folder = trained_folder("liveedit", "tiny-llava")
    pushed = hub.files(NAME)
    assert set(pushed) == {".gitattributes", "README.md", "editor.json", "editor.safetensors"}
    assert pushed["editor.safetensors"] == (folder / "editor.safetensors").read_bytes()
    with LiveEdit.load(tiny_llava) as editor:
        digest = editor.digest()
        weights = {name: tensor.clone() for name, tensor in editor.modules.state_dict().items()}
    with LiveEdit.from_pretrained(NAME, tiny_llava) as loaded:
        assert loaded.digest() == digest
        assert loaded.configuration().keys() == editor.configuration().keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in loaded.modules.state_dict().items())
    assert hub.repositories[NAME].private
    assert shipped.startswith(f"{hub.url}/{NAME}/commit/")
    sent = [
        "POST /api/repos/create",
        f"POST /api/models/{NAME}/preupload/main",
        f"POST /{NAME}.git/info/lfs/objects/batch",
    ]
    assert [one for one in hub.requests if one in sent] == sent, "over HTTP, in this order"
    assert len(hub.asked("^PUT /lfs/")) == 1


def test_weights_that_float16_does_not_hold_come_back_as_well(hub: HubServer, random_backbone: Backbone) -> None:
    with LiveEdit.untrained(random_backbone, seed=3) as editor:
        editor.origin = {
            "data": "world",
            "cases": 12,
            "backbone_digest": "0" * 64,
            "validation": {"reliability": 98.24},
        }
        editor.push_to_hub("owner/random")
        digest = editor.digest()
        weights = {name: tensor.clone() for name, tensor in editor.modules.state_dict().items()}
    with LiveEdit.from_pretrained("owner/random", random_backbone) as loaded:
        assert loaded.digest() == digest and loaded.origin["cases"] == 12
        assert all(torch.equal(weights[name], tensor) for name, tensor in loaded.modules.state_dict().items())
        loaded.push_to_hub("owner/again")
    assert hub.files("owner/again")["editor.safetensors"] == hub.files("owner/random")["editor.safetensors"]


def test_a_calibration_comes_back_bit_for_bit(hub: HubServer, random_backbone: Backbone, tmp_path: Path) -> None:
    kind = pretrained_editor_class("fitted-experts")
    with kind.load(random_backbone) as editor:
        editor.push_to_hub("owner/calibration")
        digest = editor.digest()
    with kind.from_pretrained("owner/calibration", random_backbone) as loaded:
        assert loaded.digest() == digest
        loaded.save_pretrained(tmp_path / "again")
    kept = (tmp_path / "again" / "calibration.safetensors").read_bytes()
    assert kept == hub.files("owner/calibration")["calibration.safetensors"]


def test_a_revision_is_a_branch_a_tag_or_a_commit(shipped: str, hub: HubServer, tiny_llava: Backbone) -> None:
    HfApi().create_tag(NAME, tag="v1")
    HfApi().create_branch(NAME, branch="trial")
    with LiveEdit.load(tiny_llava) as first:
        digest = first.digest()
    with LiveEdit.untrained(tiny_llava, first.config, seed=5) as second:
        second.push_to_hub(NAME, branch="trial")
        other = second.digest()
    commit = shipped.rsplit("/", 1)[1]
    assert digest != other
    for revision, expected in (("v1", digest), (commit, digest), ("trial", other), (None, digest)):
        with LiveEdit.from_pretrained(NAME, tiny_llava, revision=revision) as loaded:
            assert loaded.digest() == expected, revision
    with LiveEdit.load(tiny_llava, f"{NAME}@trial") as loaded:
        assert loaded.digest() == other


def test_a_repository_is_an_editor_path(shipped: str, hub: HubServer) -> None:
    with EditedModel.load("tiny-llava", editor_path=NAME, device="cpu") as model:
        assert isinstance(model.editor, LiveEditRefine)
        assert model.editor.digest() == LiveEdit.load(load_backbone("tiny-llava", device="cpu")).digest()


def test_without_the_hub_the_cache_is_used(shipped: str, hub: HubServer, tiny_llava: Backbone) -> None:
    with LiveEdit.from_pretrained(NAME, tiny_llava) as loaded:
        digest = loaded.digest()
    hub.failing_with = 503
    with LiveEdit.from_pretrained(NAME, tiny_llava) as loaded:
        assert loaded.digest() == digest
    before = len(hub.requests)
    with LiveEdit.from_pretrained(NAME, tiny_llava, revision=shipped.rsplit("/", 1)[1]) as loaded:
        assert loaded.digest() == digest
    assert len(hub.requests) == before, "a commit never changes"


def test_the_card_has_all_that_is_known(hub: HubServer, random_backbone: Backbone) -> None:
    score = Score("liveedit", "world", random_backbone.digest(), 1000, "text_generality", 99.25, 98.5, 0.5, 3)
    with LiveEdit.untrained(random_backbone) as editor:
        editor.origin = {
            "data": "world",
            "cases": 16000,
            "backbone_digest": "a" * 64,
            "validation": {"reliability": 98.24},
        }
        editor.push_to_hub("owner/card", model_card_kwargs={"license": "apache-2.0", "scores": [score]})
        digest = editor.digest()
    card = ModelCard(hub.files("owner/card")["README.md"].decode())
    assert card.data.license == "apache-2.0" and card.data.library_name == "liveedit"
    assert {"liveedit", "model-editing"} <= set(card.data.tags)
    assert card.data.base_model is None, "tiny-random is no name of a hub"
    assert [(result.metric_value, result.metric_args) for result in card.data.eval_results] == [
        (99.25, {"edits": 1000, "seeds": 3}),
        (98.5, {"edits": 1000, "seeds": 3}),
        (0.5, {"edits": 1000, "seeds": 3}),
    ]
    for line in (
        f"| backbone digest | {random_backbone.digest()} |",
        f"| editor digest | {digest} |",
        "| trained on | 16,000 edits of world |",
        f"| trained with the backbone digest | {'a' * 64} |",
        "| validation, reliability | 98.2 % |",
        "| licence | apache-2.0 |",
        f"| liveedit | world | {random_backbone.digest()[:12]} | 1,000 | text generality | 99.2 | 98.5 | 0.5 | 3 |",
    ):
        assert line in card.text.splitlines(), line
    assert 'from_pretrained("owner/card", backbone)' in card.text


def row(editor: str, digest: str, edits: int, seed: int, exact: float, status: str = "complete") -> dict[str, object]:
    return {
        **{"editor": editor, "backbone": "tiny-llava", "data": "world", "edits": edits, "seed": seed, "status": status},
        "metrics": {"reliability": {"teacher_forced": 100.0, "exact_match": exact, "broken": 0.0, "count": 100}},
        "provenance": {"config": {"editor_digest": digest}, "backbone_digest": "b" * 64},
    }


def test_the_command_pushes_figures_of_this_editor_only(
    hub: HubServer, tiny_llava: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LiveEdit.load(tiny_llava) as editor:
        digest = editor.digest()
    rows = [
        *(row("liveedit", digest, 10, seed, exact) for seed, exact in ((0, 98.0), (1, 100.0))),
        row("liveedit", digest, 100, 0, 97.0),
        row("liveedit", digest, 1000, 0, 12.0, "interrupted"),
        row("other", "0" * 64, 10, 0, 50.0),
    ]
    (tmp_path / "rows.json").write_text(json.dumps({"rows": rows}))
    given = ["push-editor", NAME, "--backbone", "tiny-llava", "--load", "device=cpu", "--results", str(tmp_path)]
    assert main([*given, "--license", "apache-2.0", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["editor_digest"] == digest and done["commit"].startswith(hub.url)
    card = ModelCard(hub.files(NAME)["README.md"].decode())
    measured = [line for line in card.text.splitlines() if line.startswith("| liveedit | world |")]
    assert measured == [
        f"| liveedit | world | {'b' * 12} | 10 | reliability | 100.0 | 99.0 | 0.0 | 2 |",
        f"| liveedit | world | {'b' * 12} | 100 | reliability | 100.0 | 97.0 | 0.0 | 1 |",
    ]
    assert "| trained on | not recorded |" in card.text
    for content, words in (
        (json.dumps({"rows": rows[-1:]}), "None of the 1 rows"),
        ("{}", "holds no rows of the bench"),
    ):
        (tmp_path / "rows.json").write_text(content)
        before = len(hub.requests)
        assert main(given) == 1
        assert words in capsys.readouterr().err and len(hub.requests) == before, "nothing is pushed"


# -- what goes wrong -------------------------------------------------------------------------------------------


def one_sentence(error: pytest.ExceptionInfo[Exception], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_a_repository_or_revision_that_is_not_there(shipped: str, tiny_llava: Backbone, hub: HubServer) -> None:
    with pytest.raises(HubError) as refused:
        LiveEdit.from_pretrained("owner/nothing", tiny_llava)
    one_sentence(refused, "no folder 'owner/nothing'", "no repository 'owner/nothing'", hub.url)
    with pytest.raises(HubError) as refused:
        LiveEdit.from_pretrained(NAME, tiny_llava, revision="v9")
    one_sentence(refused, NAME, "no such revision")


@pytest.mark.parametrize("token", [None, STRANGER])
def test_a_private_repository_needs_a_token_that_may_read_it(
    token: str | None,
    shipped: str,
    hub: HubServer,
    tiny_llava: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_hub(hub.url, tmp_path / "other", token, monkeypatch)
    with pytest.raises(HubError) as refused:
        LiveEdit.from_pretrained(NAME, tiny_llava)
    one_sentence(refused, "private", "hf auth login")


def test_a_push_needs_a_token(
    hub: HubServer, random_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LiveEdit.untrained(random_backbone) as editor:
        use_hub(hub.url, tmp_path / "other", None, monkeypatch)
        with pytest.raises(HubError) as refused:
            editor.push_to_hub("owner/mine")
        one_sentence(refused, "no token", "hf auth login", "HF_TOKEN")
        assert hub.requests == []
        use_hub(hub.url, tmp_path / "other", READER, monkeypatch)
        with pytest.raises(HubError) as refused:
            editor.push_to_hub("owner/mine")
        one_sentence(refused, "refused this token", "owner/mine", "403")


def test_no_network(hub: HubServer, random_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub("http://127.0.0.1:9", tmp_path / "other", "hf_any", monkeypatch)
    with pytest.raises(HubError) as refused:
        LiveEdit.from_pretrained(NAME, random_backbone)
    one_sentence(refused, NAME, "http://127.0.0.1:9 cannot be reached")
    with LiveEdit.untrained(random_backbone) as editor, pytest.raises(HubError) as refused:
        editor.push_to_hub(NAME)
    one_sentence(refused, "http://127.0.0.1:9 cannot be reached")


def test_an_editor_of_another_model_is_refused(shipped: str, hub: HubServer) -> None:
    with pytest.raises(BackboneError, match="was trained for another model") as refused:
        LiveEdit.from_pretrained(NAME, load_backbone("tiny-llama-lm", device="cpu"))
    one_sentence(refused, "model_type llava, here llama", "Give the editor of tiny-llama-lm")


def test_an_editor_without_files_cannot_be_pushed() -> None:
    assert not hasattr(editor_class("ft-l"), "push_to_hub")
    with pytest.raises(ConfigError, match="has no files to push"):
        pretrained_editor_class("ft-l")


def test_the_folder_of_a_model_stays_as_it_is(random_backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with LiveEdit.untrained(random_backbone) as editor, pytest.raises(CheckpointError, match="holds a model"):
        editor.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
