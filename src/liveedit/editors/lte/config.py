"""Every choice of LTE."""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..shared import EncoderConfig

PAPER_EDIT, PAPER_QUERY = "[Updated Information] {question} {answer}\n", "{edits}[Query] {question}"
PLAIN_EDIT, PLAIN_QUERY = "{question} = {answer}\n", "{edits}{question}"


class LearningToEditConfig(BaseModel):
    """How the model is tuned, and how an edit is found and put before a query.

    Paper: Jiang et al. 2024, https://arxiv.org/abs/2402.11905 (sections 3.2 and 3.3).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(gt=0, description="Width d of the backbone's hidden states.")
    layer: int = Field(ge=0, description="Decoder layer whose states the retriever reads, counted from 0.")
    tuning: Literal["lora", "all"] = Field(
        default="all",
        description="What is tuned: a change of low rank of the decoder's linear layers, or all of these and learned "
        "positions (the paper has both; LiveEdit paper, table 4: the whole language transformer).",
    )
    rank: int = Field(default=32, gt=0, description="Rank of the change, with tuning = lora.")
    alpha: float = Field(default=32.0, gt=0, description="The change of low rank is multiplied by alpha / rank.")
    top_k: int = Field(default=1, gt=0, description="Edits put before a query (paper: 3).")
    threshold: Annotated[float, Field(ge=-1, le=1)] | Literal["trained"] | None = Field(
        default="trained",
        description="Cosine that an edit must exceed to be put before a query: a number, the one that the retriever "
        "was trained with, or none: the nearest always are (paper).",
    )
    edit_template: str = Field(default=PAPER_EDIT, description="An edit in the context: {question}, {answer}.")
    query_template: str = Field(default=PAPER_QUERY, description="The whole prompt: {edits}, {question}.")
    retriever: str | None = Field(
        default=None,
        description="Folder or hub name of the retriever's text encoder (paper: sentence-transformers/"
        "all-MiniLM-L6-v2). None: a small one that is trained here.",
    )
    features: int = Field(default=128, gt=0, description="Length of the vector of a question.")
    retriever_layers: int = Field(default=2, gt=0, description="Layers of the small retriever.")
    retriever_heads: int = Field(default=4, gt=0, description="Attention heads of the small retriever.")
    random_answers: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Share of training edits whose answer is made of random words, so that the model learns to follow "
        "edits to answers that no training edit has.",
    )
    keep_weight: float = Field(
        default=1.0, gt=0, description="Weight of staying with the base model's own answers, in and without a context."
    )

    @model_validator(mode="after")
    def _templates_are_complete(self) -> Self:
        wanted = {"edit_template": {"question", "answer"}, "query_template": {"edits", "question"}}
        for name, fields in wanted.items():
            text = getattr(self, name)
            found = {field for _, field, _, _ in Formatter().parse(text) if field is not None}
            if found != fields:
                raise ValueError(f"{name} = {text!r} has the fields {sorted(found)}; it needs {sorted(fields)}")
        return self

    @property
    def encoder(self) -> EncoderConfig:
        """The retriever's encoder of questions."""
        return EncoderConfig(
            width=self.width,
            layer=self.layer,
            features=self.features,
            layers=self.retriever_layers,
            heads=self.retriever_heads,
            text_encoder=self.retriever,
        )
