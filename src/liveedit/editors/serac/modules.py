"""SERAC's trained parts: the scope classifier and the counterfactual model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...backbones import Backbone, HiddenTokens
from ..shared import QuestionEncoder, ScopeSimilarity
from .config import SeracConfig
from .counterfactual import Counterfactual


class ScopeClassifier(nn.Module):
    """`g(edit, query) = sigmoid(t cos(f(edit), f(query)) - b)`: the probability that a query is in an edit's scope.

    The paper's form with embeddings (section 3.2, "Embed"): an edit is read once, when it is made. f reads image and
    prompt. Deviation: the edit's answer is not read, for it says nothing of what the edit reaches.
    """

    def __init__(self, config: SeracConfig):
        super().__init__()
        self.encoder = QuestionEncoder(config.encoder)
        self.similarity = ScopeSimilarity()

    def forward(self, tokens: HiddenTokens) -> Tensor:
        """f, (batch, features) float32, of unit length."""
        return self.encoder(tokens)

    def scores(self, queries: Tensor, edits: Tensor) -> Tensor:
        """Log-odds of g, (queries, edits) float32, of two sets of features; above 0 is in scope."""
        with torch.autocast(queries.device.type, enabled=False):
            return self.similarity(queries.float() @ edits.float().T)


class SeracModules(nn.Module):
    """Both parts."""

    def __init__(self, backbone: Backbone, config: SeracConfig):
        super().__init__()
        self.config = config
        self.classifier = ScopeClassifier(config)
        self.counterfactual = Counterfactual.make(backbone, config)
