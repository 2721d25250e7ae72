"""What retrieving editors share: an encoder of questions, how it is trained, and a memory of the edits."""

from .memory import EditMemory, FeatureMemory, latest_of_nearest
from .question_encoder import EncoderConfig, QuestionEncoder, ScopeSimilarity, read_questions
from .scope_task import ScopePairs, ScopeRows, ScopeTask, scope_loss

__all__ = [
    "EditMemory",
    "EncoderConfig",
    "FeatureMemory",
    "QuestionEncoder",
    "ScopePairs",
    "ScopeRows",
    "ScopeSimilarity",
    "ScopeTask",
    "latest_of_nearest",
    "read_questions",
    "scope_loss",
]
