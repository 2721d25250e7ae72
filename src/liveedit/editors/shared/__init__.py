"""What several editing methods use: attention, losses, a question encoder, a memory of edits, a training task."""

from .memory import FeatureMemory, nearest
from .question_encoder import EncoderConfig, QuestionEncoder, QuestionTokens, ScopeSimilarity, read_questions
from .retrieval_editor import RetrievalEditor, RetrievedExpert, TextExpert
from .scope_task import ScopePairs, ScopeRows, ScopeTask, scope_loss

__all__ = [
    "EncoderConfig",
    "FeatureMemory",
    "QuestionEncoder",
    "QuestionTokens",
    "RetrievalEditor",
    "RetrievedExpert",
    "ScopePairs",
    "ScopeRows",
    "ScopeSimilarity",
    "ScopeTask",
    "TextExpert",
    "nearest",
    "read_questions",
    "scope_loss",
]
