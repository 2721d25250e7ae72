"""What RECIPE trains: a retriever with a sentinel, and a generator of continuous prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones import HiddenTokens
from ..shared import QuestionEncoder, RetrievedExpert
from ..shared.attention import left_pack
from ..shared.question_encoder import Block
from .config import RecipeConfig


@dataclass(frozen=True, eq=False)
class PromptExpert(RetrievedExpert):
    """An edit as a key, `feature`, and its continuous prompt, (prompt tokens, width)."""

    prompt: Tensor


class RecipeModules(nn.Module):
    """Retriever and prompt generator (RECIPE, sections 3.2 to 3.4).

    For an edit: `key = f(q)` and `p = MLP(g(q, a))`, (prompt tokens, width). For a query: `f~(q) = MLP_q(f(q))`; the
    nearest edit's prompt is put before the query if `f~(q) . key > f~(q) . sentinel`. All vectors of the retriever
    have unit length and the products a trained temperature (paper: plain products).

    Where we differ. The paper's key knows the answer, and its prompt is made from the key. A query has no answer, and
    a prompt that is to carry one needs more than a point to be found by: here f reads image and prompt, and a second
    encoder g image, prompt and answer. The paper's sentinel is a text of trained word embeddings that goes through
    f; as f gives one fixed vector for it, that vector is trained itself.
    """

    def __init__(self, config: RecipeConfig):
        super().__init__()
        self.config = config
        features = config.features
        self.encoder = QuestionEncoder(config)
        self.as_query = nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.Linear(features, features))
        self.sentinel = nn.Parameter(torch.randn(features) / math.sqrt(features))
        self.temperature = nn.Parameter(torch.tensor(3.0))
        self.generator = PromptGenerator(config)

    def keys(self, tokens: HiddenTokens) -> Tensor:
        """Keys of edits, (batch, features) of unit length; answers are not read."""
        return self.encoder(tokens)

    def queries(self, tokens: HiddenTokens) -> Tensor:
        """Vectors of queries, (batch, features) of unit length."""
        return self._sought(self.encoder(tokens))

    def both(self, tokens: HiddenTokens) -> tuple[Tensor, Tensor]:
        """Keys and queries of the same questions, their states read once."""
        keys = self.encoder(tokens)
        return keys, self._sought(keys)

    def _sought(self, keys: Tensor) -> Tensor:
        # A step away from the key itself: at the start a query looks for what it is.
        return F.normalize(keys + self.as_query(keys).float(), dim=-1)

    @property
    def sentinel_key(self) -> Tensor:
        """The key of the sentinel, (features,), of unit length. (The parameter `sentinel` has any length.)"""
        return F.normalize(self.sentinel, dim=-1)

    @property
    def scale(self) -> Tensor:
        """Factor on cosines."""
        return self.temperature.exp()


class PromptGenerator(nn.Module):
    """A small transformer encoder over [image; prompt; answer], one summary token per prompt vector.

    Image and prompt are states of the backbone; the answer is given by its word embeddings, each with a trained slot
    for its position and one for the answer's length, as in the LiveEdit editor here. Summary i, and through one linear
    map the prompt vector itself, starts from answer tokens i and i - 1: what to say, and after what.
    """

    def __init__(self, config: RecipeConfig):
        super().__init__()
        self.config = config
        width, entering = config.generator_width, config.width
        self.norm = nn.LayerNorm(entering)
        self.enter_question, self.enter_answer = nn.Linear(entering, width), nn.Linear(entering, width)
        self.enter_pair = nn.Linear(2 * entering, width)
        self.summaries = nn.Parameter(torch.randn(config.prompt_tokens, width) / math.sqrt(width))
        self.slots, self.lengths = nn.Embedding(config.answer_slots, width), nn.Embedding(config.answer_slots, width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.generator_layers))
        self.leave = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, entering)
        )
        self.direct = nn.Linear(2 * entering, entering, bias=False)
        nn.init.zeros_(self.direct.weight)

    def forward(self, tokens: HiddenTokens) -> Tensor:
        """Tokens of questions with answers -> prompts, (batch, prompt tokens, width) float32."""
        question, question_present = left_pack(tokens.hidden_states, tokens.image_mask | tokens.prompt_mask)
        answer, answer_present = left_pack(tokens.embeddings, tokens.answer_mask)
        answer = F.layer_norm(answer, answer.shape[-1:])
        pairs = self._pairs(answer, answer_present)
        summaries = self.summaries + self.enter_pair(pairs)
        read = self.enter_question(self.norm(question))
        said = self.enter_answer(answer) + self._places(answer_present)
        x = torch.cat([summaries.to(read.dtype), read, said.to(read.dtype)], 1)
        present = torch.cat([summaries.new_ones(summaries.shape[:2]).bool(), question_present, answer_present], 1)
        for block in self.blocks[:-1]:
            x = block(x, x, present)
        x = self.blocks[-1](x[:, : self.config.prompt_tokens], x, present)
        return (self.leave(x) + self.direct(pairs)).float() * self.config.embedding_scale * self.config.prompt_scale

    def _pairs(self, answer: Tensor, present: Tensor) -> Tensor:
        """Answer tokens i and i - 1 of each prompt vector i, (batch, prompt tokens, 2 width).

        The last token, which ends the answer, is repeated where the answer is shorter; before the first is nothing.
        """
        last = present.sum(1, keepdim=True) - 1
        place = torch.arange(self.config.prompt_tokens, device=answer.device).minimum(last).clamp(min=0)
        own = answer.gather(1, place[..., None].expand(-1, -1, answer.shape[-1]))
        before = torch.cat([torch.zeros_like(own[:, :1]), own[:, :-1]], 1)
        return torch.cat([own, before], -1)

    def _places(self, present: Tensor) -> Tensor:
        last = self.config.answer_slots - 1
        position = torch.arange(present.shape[1], device=present.device).clamp(max=last)
        length = (present.sum(1, keepdim=True) - 1).clamp(0, last)
        return self.slots(position) + self.lengths(length)
