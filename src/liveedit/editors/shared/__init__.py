"""What several editing methods use: attention, losses, a question encoder, a memory of edits, a training task."""

from .memory import FeatureMemory, nearest
from .question_encoder import EncoderConfig, QuestionEncoder, ScopeSimilarity, read_questions
from .retrieval_editor import RetrievalEditor, RetrievedExpert, TextExpert
from .scope_task import IN_SCOPE, CaseInputs, ScopePairs, ScopeRows, ScopeTask, StagedScopeTask, scope_loss

__all__ = [
    "IN_SCOPE",
    "CaseInputs",
    "EncoderConfig",
    "FeatureMemory",
    "QuestionEncoder",
    "RetrievalEditor",
    "RetrievedExpert",
    "ScopePairs",
    "ScopeRows",
    "ScopeSimilarity",
    "ScopeTask",
    "StagedScopeTask",
    "TextExpert",
    "nearest",
    "read_questions",
    "scope_loss",
]
