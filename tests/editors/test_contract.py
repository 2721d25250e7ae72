"""Every built-in editor under the contract of `liveedit.testing`. A new editor adds one class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from liveedit.backbones import Backbone
from liveedit.editors import Editor, ExpertEditor, editor_class, editor_names
from liveedit.editors.fitted import Calibration, FittedConfig, FittedExperts, calibrate
from liveedit.editors.ft import FineTuneConfig, FineTuneLast, FineTuneMultimodal, FineTuneMultimodalConfig
from liveedit.editors.lemoe import Lemoe, LemoeConfig
from liveedit.editors.liveedit import LiveEdit, LiveEditConfig, LiveEditRefine, RefineConfig
from liveedit.editors.liveedit.modules import LiveEditModules
from liveedit.editors.t_patcher import TPatcher, TPatcherConfig
from liveedit.editors.trained import TrainedEditor
from liveedit.errors import InvalidInputError, NotFoundError
from liveedit.testing import EditorContract, ExpertEditorContract

SMALL: dict[str, Any] = {"width": 192, "layer": 3, "image_tokens": 16, "module_width": 32, "rank": 2, "heads": 4}


class Contract(EditorContract):
    """The contract on the shared random backbone, by default for an editor that is loaded by its name."""

    editor_name: str

    @pytest.fixture
    def backbone(self, random_backbone: Backbone) -> Iterator[Backbone]:
        yield random_backbone

    def make_editor(self, backbone: Backbone) -> Editor:
        return editor_class(self.editor_name).load(backbone)


def one_extractor(editor: LiveEdit) -> LiveEdit:
    """Queries get the features that edits get, so that an untrained editor finds its own edits."""
    editor.modules.bar.load_state_dict(editor.modules.hat.state_dict())
    return editor


class Untrained(Contract):
    """For editors with trained parts: those have their initial weights."""

    def make_editor(self, backbone: Backbone) -> Editor:
        kind = editor_class(self.editor_name)
        assert issubclass(kind, TrainedEditor)
        return kind.untrained(backbone)


class TestNone(Contract):
    editor_name = "none"
    edits_change_answers = False


class TestFineTuneLast(Contract):
    editor_name = "ft-l"

    def make_editor(self, backbone: Backbone) -> Editor:
        return FineTuneLast(backbone, FineTuneConfig(steps=3))  # type: ignore[call-arg]


class TestFineTuneMultimodal(Contract):
    editor_name = "ft-m"

    def make_editor(self, backbone: Backbone) -> Editor:
        return FineTuneMultimodal(backbone, FineTuneMultimodalConfig(steps=3))  # type: ignore[call-arg]


class TestMend(Untrained):
    editor_name = "mend"


class TestSerac(Untrained, ExpertEditorContract):
    editor_name = "serac"


class TestLearningToEdit(Untrained, ExpertEditorContract):
    editor_name = "lte"


class TestRecipe(Untrained, ExpertEditorContract):
    editor_name = "recipe"


class TestLemoe(Contract):
    editor_name = "lemoe"

    def make_editor(self, backbone: Backbone) -> Editor:
        return Lemoe(backbone, LemoeConfig(steps=3, routing_steps=3))  # type: ignore[call-arg]


_calibrations: dict[str, Calibration] = {}


def calibration_of(backbone: Backbone) -> Calibration:
    """Made once for each backbone."""
    key = backbone.digest()
    if key not in _calibrations:
        _calibrations[key] = calibrate(backbone, FittedConfig())  # type: ignore[call-arg]
    return _calibrations[key]


class TestInContext(Contract, ExpertEditorContract):
    editor_name = "ike"


class TestTPatcher(Contract):
    editor_name = "t-patcher"
    undo_is_exact = False  # Later patches were trained in the presence of earlier ones.

    def make_editor(self, backbone: Backbone) -> Editor:
        return TPatcher(backbone, TPatcherConfig(steps=3))  # type: ignore[call-arg]


class TestLiveEdit(ExpertEditorContract, Contract):
    editor_name = "liveedit"

    def make_editor(self, backbone: Backbone) -> ExpertEditor[Any]:
        return one_extractor(LiveEdit.untrained(backbone, LiveEditConfig.create(**SMALL, feature_parts=2)))


class TestLiveEditRefine(ExpertEditorContract, Contract):
    editor_name = "liveedit-refine"

    def make_editor(self, backbone: Backbone) -> ExpertEditor[Any]:
        torch.manual_seed(0)
        modules = LiveEditModules(LiveEditConfig.create(**SMALL, feature_parts=2))
        return one_extractor(LiveEditRefine(backbone, modules, RefineConfig(steps=3)))  # type: ignore[call-arg]


class TestFittedExperts(ExpertEditorContract, Contract):
    editor_name = "fitted-experts"

    def make_editor(self, backbone: Backbone) -> ExpertEditor[Any]:
        return FittedExperts(backbone, FittedConfig(steps=3), calibration_of(backbone))  # type: ignore[call-arg]


CONTRACTS = (
    TestNone,
    TestFineTuneLast,
    TestFineTuneMultimodal,
    TestMend,
    TestSerac,
    TestLearningToEdit,
    TestRecipe,
    TestLemoe,
    TestInContext,
    TestTPatcher,
    TestLiveEdit,
    TestLiveEditRefine,
    TestFittedExperts,
)


ANSWERS_STAY = {"none"}
"""Editors whose edits change no answer here."""


def test_every_built_in_editor_is_under_contract() -> None:
    built_in = {name for name in editor_names() if editor_class(name).__module__.startswith("liveedit.editors")}
    assert built_in == {contract.editor_name for contract in CONTRACTS}
    for contract in CONTRACTS:
        makes_experts = issubclass(editor_class(contract.editor_name), ExpertEditor)
        assert issubclass(contract, ExpertEditorContract) == makes_experts


@pytest.mark.parametrize("contract", CONTRACTS)
def test_each_contract_makes_the_editor_of_its_name(random_backbone: Backbone, contract: type[Contract]) -> None:
    with contract().make_editor(random_backbone) as editor:
        assert editor.name == contract.editor_name


def test_an_unknown_editor_is_refused_with_the_known_ones() -> None:
    with pytest.raises(NotFoundError, match=r"ft-l, ft-m, .*liveedit, .*none"):
        editor_class("rome")


@pytest.mark.parametrize("name", ["none", "ft-l", "ft-m", "t-patcher", "lemoe", "ike"])
def test_editors_without_trained_parts_refuse_a_folder(random_backbone: Backbone, name: str) -> None:
    with pytest.raises(InvalidInputError, match="no trained parts"):
        editor_class(name).load(random_backbone, "some/folder")


@pytest.mark.parametrize("name", ["liveedit", "liveedit-refine", "mend", "serac", "lte", "recipe"])
def test_editors_that_need_training_say_so(random_backbone: Backbone, name: str) -> None:
    with pytest.raises(NotFoundError, match=r"liveedit train .*--backbone tiny-random"):
        editor_class(name).load(random_backbone)
