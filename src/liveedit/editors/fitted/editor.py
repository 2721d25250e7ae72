"""Fitted experts: LiveEdit's experts and routing without anything trained beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch
from torch import Tensor

from ...backbones import Backbone, HiddenTokens, TokenBatch
from ...backbones.vision_tower import SeenImages
from ...experts import LowRankExpert
from ...hub.repositories import folder_of
from ...progress import Progress, no_progress, report_step
from ...samples import Edit, ImageSource, Question
from ..base import Neighbour, checked_config
from ..pretrained import PretrainedEditor
from ..shared.fitting import Fitting, Passage
from ..shared.reading import KeptLayer
from ..shared.routed_editor import RoutedEditor
from ..shared.routing import QueryFeatures
from ..shared.wordings import wordings
from .calibration import Calibration, calibrate, calibrated_settings, default_calibration
from .config import FittedConfig
from .similarities import StateSimilarities


@dataclass(frozen=True)
class _Form:
    """What experts change: the tokens whose hidden states become the answer, and nothing of image or prompt."""

    rank: int = 1
    expert_input: Literal["normed"] = "normed"
    expert_scale: Literal["none"] = "none"
    residual_tokens: Literal["answer"] = "answer"


FORM: Final = _Form()


class FittedExperts(PretrainedEditor, RoutedEditor):
    """An editor for any backbone: no generator and no router is trained. Not part of a paper.

    Experts, repository and routing are LiveEdit's. What differs is where their parts come from:

    1. The expert of an edit has a row of U and V for each token of the answer. Row t of U is a gate that ridge
       regression opens where answer token t is predicted, in several wordings of the prompt, and closes at other tokens
       and in neutral questions. V is fitted by gradient steps through the layers after the edit layer alone, at random
       weights and with noise on the image.
    2. Edits are found by hidden states of the frozen model (`StateSimilarities`), made comparable by the statistics of
       questions and images that nobody edits (`Calibration`).

    Answers are whole or not at all: the nearest expert alone, with a weight of 0 or 1, and the unedited model where the
    edited one is in doubt or gives an answer of another length than the edit's: it has skipped or repeated a token.
    """

    name = "fitted-experts"
    summary = "an expert per edit, fitted by a few gradient steps; nothing is trained beforehand"
    table_order = 92
    settings_class = FittedConfig

    def __init__(self, backbone: Backbone, config: FittedConfig | None = None, calibration: Calibration | None = None):
        super().__init__(backbone)
        self.config = config or FittedConfig()
        layer = self.config.edit_layer(backbone)
        found = calibration or default_calibration(backbone, self.config, report_step)
        found = found.to(backbone.layer_device(layer))
        self._similarities = StateSimilarities(found, self.config, backbone.tokenizer.decode)
        self._content_number = self.config.layer_of_content(backbone)
        self._reading_number = self.config.layer_of_reading(backbone)
        self._content_layer = KeptLayer(backbone, self._content_number)
        self._reading_layer = KeptLayer(backbone, self._reading_number)
        self._attach(layer, FORM)
        self.combining = self.config.combining
        self.answer_confidence = self.config.answer_confidence

    @classmethod
    def load(cls, backbone: Backbone, source: str | None = None) -> Self:
        """Create the editor. source: the folder of a calibration (`liveedit calibrate`); by default the built-in one.

        Raises `CheckpointError` and `BackboneError` as `Calibration.load` does.
        """
        return cls.configured(backbone, {}, source)

    @classmethod
    def configured(cls, backbone: Backbone, settings: Mapping[str, Any], source: str | None = None) -> Self:
        """Create the editor with some settings of `FittedConfig` changed.

        Settings that a calibration depends on are those of the given calibration, and cannot differ from them.
        """
        folder = None if source is None else folder_of(source)
        found = {} if folder is None else calibrated_settings(folder)
        config = checked_config(FittedConfig, {**found, **settings}, cls.name)
        calibration = Calibration.load(folder, backbone, config) if folder is not None else None
        return cls(backbone, config, calibration)

    @classmethod
    def from_folder(cls, folder: Path, backbone: Backbone) -> Self:
        """Create the editor with the calibration in a folder."""
        return cls.configured(backbone, {}, str(folder))

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the calibration."""
        self.calibration.save(save_directory, self.backbone, self.config)

    def facts(self) -> dict[str, object]:
        """The calibration and its thresholds."""
        image = self.calibration.image
        return {
            "calibration": self.calibration.name,
            "text threshold": round(self.calibration.text.least_similarity, 4),
            "image threshold": None if image is None else round(image.least_similarity, 4),
        }

    @classmethod
    def calibrate(
        cls,
        backbone: Backbone,
        folder: Path,
        settings: Mapping[str, Any],
        images: Sequence[ImageSource] | None = None,
        progress: Progress = no_progress,
    ) -> dict[str, Any]:
        """Write a calibration into a folder. Returns its thresholds. Raises as `calibrate` does."""
        config = checked_config(FittedConfig, settings, cls.name)
        made = calibrate(backbone, config, images, progress)
        file = made.save(folder, backbone, config)
        return {
            "calibration": str(file),
            "text threshold": round(made.text.least_similarity, 4),
            "image threshold": None if made.image is None else round(made.image.least_similarity, 4),
            "reading threshold": None if made.image is None else round(made.image.least_reading, 4),
        }

    def configuration(self) -> dict[str, Any]:
        """`FittedConfig`, with the layers that were chosen, and the name of the calibration."""
        return {
            **self.config.model_dump(mode="json"),
            "layer": self.layer,
            "content_layer": self._content_number,
            "reading_layer": self._reading_number,
            "calibration": self.calibration.name,
        }

    @property
    def calibration(self) -> Calibration:
        """The statistics by which edits are found."""
        return self._similarities.calibration

    # -- routing -----------------------------------------------------------------------------------------

    @property
    def similarities(self) -> StateSimilarities:
        """How features of queries and edits are compared."""
        return self._similarities

    @property
    def feature_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of an expert's features."""
        return self._similarities.shapes(self.backbone.width)

    @property
    def read_layers(self) -> tuple[int, ...]:
        """The content layer, the reading layer and the edit layer."""
        return tuple(sorted({self._content_number, self._reading_number, self.layer}))

    def query(self, tokens: HiddenTokens) -> QueryFeatures:
        """Features of the queries of this thread's last forward pass."""
        content, reading = (kept.states.to(self.device).float() for kept in (self._content_layer, self._reading_layer))
        return self._similarities.query(tokens, content, reading)

    def neighbours(self, expert: LowRankExpert, most: int) -> list[Neighbour]:
        """Up to `most` active edits whose contents are most similar to the expert's, most similar first."""
        if not len(self.repository) or most < 1:
            return []
        content = expert.visual_feature.to(self.device)
        products = torch.cat([part @ content for part in self.repository.parts("visual_feature")])
        found = products.topk(min(most, len(products)))
        pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return [Neighbour(self.repository.id_of(row), similarity) for row, similarity in pairs]

    def answer_length(self, edit_id: str) -> int | None:
        """The rank of the edit's expert: it has a row of U and V for each token of the answer."""
        return self.repository.rank_of(edit_id) if edit_id in self else None

    occlusion_feature = "content and reading"

    def occlusion_features(self, questions: Sequence[Question]) -> Tensor:
        """Content and reading of the questions, (questions, 2 width)."""
        return self.query(self.read(self.backbone.encode(questions, padding="left"))).compared

    def detach(self) -> None:
        """Remove hooks and edits from the backbone."""
        self._content_layer.remove()
        self._reading_layer.remove()
        super().detach()

    # -- editing -----------------------------------------------------------------------------------------

    def make_expert(self, edit: Edit) -> tuple[LowRankExpert, int]:
        """The expert of one edit, and the number of gradient steps."""
        with SeenImages(self.backbone.model).used():  # All wordings show the same image.
            return self._made_expert(edit)

    def _made_expert(self, edit: Edit) -> tuple[LowRankExpert, int]:
        with torch.no_grad():
            everything = self._passage(edit)
            # The question as it is asked later, alone and without an answer: to itself it is then at distance 0, and
            # two edits of the same question are equally near to it.
            asked = self.read(self.backbone.encode([edit.question], padding="left"))
            features = self._similarities.edit_features(self.query(asked))
        fitting = Fitting(self.backbone, self.layer, FORM, self.config)
        passages = self._parts(everything)
        u, v, steps = fitting.run(fitting.from_gates([everything], [self._neutral(edit)]), passages)
        return LowRankExpert(u, v, *(part[0].clone() for part in features)), steps

    @classmethod
    def sized_expert(cls, backbone: Backbone, edit: Edit) -> LowRankExpert:
        """The expert of an edit without gradient steps and calibration, which take long on a large model."""
        with cls(backbone, FittedConfig(steps=0), Calibration.without_statistics(backbone)) as editor:
            return editor.make_expert(edit)[0]

    def _passage(self, edit: Edit) -> Passage:
        """The edit in all of its wordings, its own prompt first."""
        prompts = wordings(edit.question.prompt, self.config.wordings)
        questions = [Question(prompt, edit.question.image) for prompt in prompts]
        inputs = self.backbone.encode(questions, [edit.answer] * len(questions))
        return Passage(inputs, self.read(inputs))

    def _parts(self, everything: Passage) -> list[Passage]:
        """A few wordings at a time, the edit's own prompt first in each."""
        others, size = range(1, len(everything.inputs)), self.config.rows - 1
        return [_rows_of(everything, [0, *others[start : start + size]]) for start in range(0, len(others), size)]

    def _neutral(self, edit: Edit) -> HiddenTokens:
        """Last tokens of neutral questions, at which no gate should open."""
        calibration = self.calibration
        found = calibration.text if edit.question.image is None or calibration.image is None else calibration.image
        states = found.neutral[:, None]
        roles = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
        return HiddenTokens.of(TokenBatch(roles, roles), states)


def _rows_of(passage: Passage, rows: list[int]) -> Passage:
    """Some rows of a passage."""
    chosen = torch.tensor(rows)
    inputs, tokens = passage.inputs, passage.tokens
    return Passage(_selected(inputs, chosen), _selected(tokens, chosen, hidden_states=tokens.hidden_states[rows]))


def _selected(tokens: Any, rows: Tensor, **further: Any) -> Any:
    here = rows.to(tokens.roles.device)
    return replace(
        tokens,
        roles=tokens.roles[here],
        input_ids=tokens.input_ids[here],
        positions=None if tokens.positions is None else tokens.positions[:, here],
        extras={},
        **({"word_embeddings": None} if isinstance(tokens, HiddenTokens) else {}),
        **further,
    )
