"""LTE's trained parts: the change of the model's weights, and the retriever."""

from __future__ import annotations

from torch import nn

from ...backbones import Backbone
from ..shared import QuestionEncoder, ScopeSimilarity
from .config import LearningToEditConfig
from .tuning import Tuning


class LearningToEditModules(nn.Module):
    """Both parts; `similarity` decides from which cosine on an edit concerns a query."""

    def __init__(self, backbone: Backbone, config: LearningToEditConfig):
        super().__init__()
        self.config = config
        self.retriever = QuestionEncoder(config.encoder)
        self.similarity = ScopeSimilarity()
        self.tuning = Tuning(backbone, config)

    def threshold(self) -> float | None:
        """The cosine that an edit must exceed to be put before a query; None if all may be."""
        if self.config.threshold != "trained":
            return self.config.threshold
        return (self.similarity.offset / self.similarity.temperature.exp()).item()
