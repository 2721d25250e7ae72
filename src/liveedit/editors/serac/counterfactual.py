"""The counterfactual model: a small language model that answers a query as an edit says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...backbones import Backbone
from ...backbones.tokens import TokenBatch, TokenRole, pad
from ...errors import ConfigError, InvalidInputError
from .config import SeracConfig


@dataclass(frozen=True)
class Rewrite:
    """What the counterfactual model reads: an edit, and a query that is in its scope."""

    prompt: str
    answer: str
    query: str


class Counterfactual(nn.Module):
    """`h(edit question, edit answer, query) -> answer` (paper, section 3.2), as a causal language model.

    It reads text alone: [start, edit question, end, edit answer, start, query, end], each text by itself in tokens of
    the backbone, whose vocabulary it shares. Its answers can then be scored token by token beside the backbone's own.
    """

    def __init__(self, model: Any, backbone: Backbone, vocabulary: int):
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary
        self.tokenizer: Any = backbone.tokenizer
        self.end, self.padding = backbone.end_token_id, backbone.pad_token_id
        self.register_state_dict_post_hook(_leave_out_shared)
        self.register_load_state_dict_pre_hook(_fill_in_shared)

    @classmethod
    def make(cls, backbone: Backbone, config: SeracConfig) -> Counterfactual:
        """The model that the configuration names, or a new small one.

        Raises `ConfigError` if the named model has another vocabulary than the backbone.
        """
        if config.counterfactual is None:
            return cls(_small(backbone, config), backbone, config.vocabulary)
        return cls(_pretrained(config.counterfactual, backbone), backbone, config.vocabulary)

    def forward(self, rewrites: Sequence[Rewrite], answers: Sequence[Sequence[int]]) -> Tensor:
        """Logits that predict each token of these answers, (answer tokens, vocabulary), answer by answer."""
        contexts = self._contexts(rewrites)
        rows = [[*context, *answer] for context, answer in zip(contexts, answers, strict=True)]
        prompt, answered = TokenRole.PROMPT, TokenRole.ANSWER
        roles = [
            [prompt] * len(context) + [answered] * len(answer)
            for context, answer in zip(contexts, answers, strict=True)
        ]
        self.check_length(max(map(len, rows)))
        tokens = TokenBatch(pad(roles, TokenRole.PADDING, "right"), pad(rows, self.padding, "right")).to(self.device)
        logits = self.model(**tokens.model_inputs(), use_cache=False).logits
        return self._widened(logits[tokens.predicting])

    @torch.no_grad()
    def generate(self, rewrites: Sequence[Rewrite], max_new_tokens: int) -> list[str]:
        """Greedy answers."""
        contexts = self._contexts(rewrites)
        self.check_length(max(map(len, contexts)) + max_new_tokens)
        ids = pad(contexts, self.padding, "left").to(self.device)
        present = pad([[1] * len(context) for context in contexts], 0, "left").to(self.device)
        output = self.model.generate(
            input_ids=ids,
            attention_mask=present,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            pad_token_id=self.padding,
            eos_token_id=self.end,
        )
        answers = output[:, ids.shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def check_length(self, tokens: int) -> None:
        """Raise `InvalidInputError` if the model has fewer positions than this."""
        limit = int(self.model.config.max_position_embeddings)
        if tokens > limit:
            raise InvalidInputError(
                f"Edit, query and answer take {tokens} tokens, and the counterfactual model takes {limit} at most. "
                "Shorten them."
            )

    def answer_ids(self, answer: str) -> list[int]:
        """An answer's tokens, and the one that ends it."""
        return [*self._ids(answer), self.end]

    def _contexts(self, rewrites: Sequence[Rewrite]) -> list[list[int]]:
        return [
            [*self._turn(item.prompt), *self._ids(item.answer), *self._turn(item.query)]  # The answer follows.
            for item in rewrites
        ]

    def _turn(self, question: str) -> list[int]:
        start = self.tokenizer.bos_token_id
        return [self.end if start is None else int(start), *self._ids(question), self.end]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(f" {text.strip()}", add_special_tokens=False)["input_ids"]

    def _widened(self, logits: Tensor) -> Tensor:
        """As wide as the backbone's: vocabularies are padded differently, by tokens that are never an answer."""
        missing = self.vocabulary - logits.shape[-1]
        return F.pad(logits, (0, missing), value=torch.finfo(logits.dtype).min) if missing else logits


def _small(backbone: Backbone, config: SeracConfig) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    width = config.counterfactual_width
    shape = LlamaConfig(
        vocab_size=config.vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=config.counterfactual_layers,
        num_attention_heads=config.counterfactual_heads,
        num_key_value_heads=config.counterfactual_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        attention_bias=True,
        pad_token_id=backbone.pad_token_id,
        bos_token_id=backbone.tokenizer.bos_token_id,
        eos_token_id=backbone.end_token_id,
    )
    shape._attn_implementation = "eager"
    model = LlamaForCausalLM(shape)
    _begin_by_copying(model)
    return model


@torch.no_grad()
def _begin_by_copying(model: Any) -> None:
    """Start the first two layers as an induction circuit: what followed a token before is expected to follow it again.

    The heads of the first layer attend to the token before; those of the second to where the token before equals the
    current one, and copy the token there (Olsson et al. 2022, https://arxiv.org/abs/2209.11895). Such heads form by
    themselves in large trainings; a small one starts with them, and learns when to use them in a few hundred steps.
    """
    size, width = 0.08, model.config.hidden_size
    model.get_input_embeddings().weight.normal_(std=size)
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    heads = model.config.num_attention_heads
    half = width // heads // 2
    angles = 1e4 ** (-torch.arange(half) / half)  # Of the rotary embedding, per token of distance.
    peak = torch.where(torch.arange(half) < 6, 4.0, 0.0)  # The fastest six distinguish neighbours.
    first.k_proj.bias.copy_(torch.cat([peak, 0 * peak]).repeat(heads))
    first.q_proj.bias.copy_(torch.cat([peak * angles.cos(), -peak * angles.sin()]).repeat(heads))
    before, read, write = (nn.init.orthogonal_(torch.empty(width, width)) for _ in range(3))
    first.v_proj.weight.copy_(read)
    first.o_proj.weight.copy_(size * before @ read.T)
    second.q_proj.weight.copy_(2 * read)
    second.k_proj.weight.copy_(2 * read @ before.T)
    second.v_proj.weight.copy_(write)
    second.o_proj.weight.copy_(2 * size * write.T)


def _pretrained(name: str, backbone: Backbone) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        vocabulary = AutoTokenizer.from_pretrained(name).get_vocab()
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"counterfactual = {name!r} could not be loaded as a causal language model ({error}). Give the folder or "
            "hub name of one, or none for a small one that is trained here."
        ) from error
    known = backbone.tokenizer.get_vocab()
    other = next((token for token, number in vocabulary.items() if known.get(token) != number), None)
    if other is not None:
        raise ConfigError(
            f"counterfactual = {name!r} has another vocabulary than {backbone.name} (token {other!r} is "
            f"{vocabulary[other]} there and {known.get(other)} here), and its answers are scored token by token beside "
            "the backbone's. Give one with the same tokenizer, or none for a small one that is trained here."
        )
    return model


def _shared(module: Counterfactual) -> dict[str, str]:
    """Second names of weights that have two names, each with the first one."""
    names: dict[int, str] = {}
    shared = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(parameter), name)
        if first != name:
            shared[name] = first
    return shared


def _leave_out_shared(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Remove them: safetensors files refuse tensors that share memory."""
    for name in _shared(module):
        state.pop(prefix + name, None)


def _fill_in_shared(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, first in _shared(module).items():
        if prefix + first in state:
            state.setdefault(prefix + name, state[prefix + first])
