"""The built-in language models: a small Llama and a small Mistral, pretrained from scratch on the made-up facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ..backbones.precision import mixed_precision
from ..datasets.facts import catalog, questions
from ..progress import TaskProgress, no_task_progress
from .tokenizer import tokenizer_of
from .train import PretrainingRun, optimize

LONGEST = 4096
"""Largest number of tokens of a text. Real passages, spelt out in bytes, have about 600."""
WINDOW = 128
"""Sliding window of `tiny-mistral-lm`, in tokens."""

Turn = tuple[str, str]
"""A prompt and its answer."""


@dataclass(frozen=True)
class BuiltInLanguageModel:
    """How a built-in language model is made. It has no chat template: prompts are given to it unchanged."""

    name: str
    base: str
    summary: str
    make_model: Callable[[PreTrainedTokenizerFast], PreTrainedModel]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Its tokenizer: the words of the facts, and every byte."""
        return tokenizer_of([*questions.vocabulary(), "Say"], (), LONGEST)

    def build(self, seed: int = 0) -> PreTrainedModel:
        """The untrained model."""
        torch.manual_seed(seed)
        tokenizer = self.tokenizer()
        model = self.make_model(tokenizer)
        model.set_attn_implementation("eager")  # Faster than the others on CPUs for rows this short.
        generation: Any = model.generation_config
        generation.pad_token_id, generation.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
        generation.eos_token_id = tokenizer.eos_token_id
        return model


@dataclass(frozen=True)
class LanguageModelConfig(PretrainingRun):
    """How a built-in language model is pretrained. `batch` and `long_rows` are rows of a step, see `draw_rows`."""

    backbone: str = "tiny-llama-lm"
    language_steps: int = 600
    batch: int = 192
    long_rows: int = 2
    long_turns: int = 24
    rate: float = 2e-3


def train_language_model(folder: Path, config: LanguageModelConfig, report: TaskProgress = no_task_progress) -> None:
    """Pretrain a built-in language model into `folder`/model, and resume an earlier run in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    built_in = LANGUAGE_MODELS[config.backbone]
    model, tokenizer = built_in.build(config.seed), built_in.tokenizer()
    decoder: Any = model.get_decoder()  # Its embeddings are the head's weights too.

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([config.seed, 4, step])
        short, long = draw_rows(tokenizer, config, rng)
        with mixed_precision("cpu"):
            logits, wanted = zip(*(_answered(decoder, tokenizer, rows) for rows in (short, long)), strict=True)
        scores, labels = torch.cat(logits), torch.cat(wanted)
        right = (scores.argmax(-1) == labels).float().mean().item()
        return F.cross_entropy(scores, labels), {"token_accuracy": 100 * right}

    optimize(decoder, step_loss, folder / "language.safetensors", config.language_steps, config.rate, config, report)
    save_language_model(model, tokenizer, folder / "model")


def save_language_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer so that the ordinary `from_pretrained` path loads them, weights in fp16."""
    tokenizer.save_pretrained(folder)
    model.half().save_pretrained(folder)
    model.float()


# -- what it is trained on -----------------------------------------------------------------------------


def draw_rows(
    tokenizer: PreTrainedTokenizerFast, config: LanguageModelConfig, rng: np.random.Generator
) -> tuple[list[list[Turn]], list[list[Turn]]]:
    """Rows of one turn, three of four a fact and the others a text to repeat; and long rows of many facts.

    The texts to repeat keep every token of the vocabulary in use. The long rows teach positions, and answers
    that follow other turns.
    """
    repeated = config.batch // 4
    facts = [draw_fact(rng) for _ in range(config.batch - repeated)]
    short = [[turn] for turn in [*facts, *(draw_repetition(tokenizer, rng) for _ in range(repeated))]]
    return short, [[draw_fact(rng) for _ in range(config.long_turns)] for _ in range(config.long_rows)]


def draw_fact(rng: np.random.Generator) -> Turn:
    """A question about a known subject, in a wording that is not held out."""
    subject = catalog.pick(catalog.known_subjects(), rng)
    relation = catalog.pick(subject.relations, rng)
    wording = "train" if rng.random() < 0.8 else "unseen_by_editor"
    return questions.ask(subject.name, relation, wording, rng), subject.answer(relation)


def draw_repetition(tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator) -> Turn:
    """A text of one to four tokens, none of them special, that the answer repeats."""
    text = ""
    while not text:
        tokens = rng.integers(len(tokenizer.all_special_ids), len(tokenizer), rng.integers(1, 5))
        text = str(tokenizer.decode(tokens.tolist())).strip()
    return f"Say {text}", text


def pack(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[Turn]]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and labels (-100 outside of answers), each (rows, length), right-padded.

    A row is a start token and its turns, one after the other: a prompt, its answer, an end token.
    """
    turns = [turn for row in rows for turn in row]
    options: Any = {"add_special_tokens": False}
    prompts = tokenizer([prompt for prompt, _ in turns], **options)["input_ids"]
    answers = tokenizer([f" {answer}" for _, answer in turns], **options)["input_ids"]
    encoded = iter(zip(prompts, answers, strict=True))
    packed = []
    for row in rows:
        ids, labels = [tokenizer.bos_token_id], [-100]
        for _ in row:
            prompt, answer = next(encoded)
            answer = [*answer, tokenizer.eos_token_id]
            ids += [*prompt, *answer]
            labels += [-100] * len(prompt) + answer
        packed.append((ids, labels))
    length = max(len(ids) for ids, _ in packed)
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in packed])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in packed])
    labels = torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in packed])
    return ids, mask, labels


def _answered(
    decoder: Any, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Sequence[Turn]]
) -> tuple[Tensor, Tensor]:
    """Logits (answer tokens, vocabulary) at the positions that predict answers, and the answers' tokens."""
    ids, mask, labels = pack(tokenizer, rows)
    hidden = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    answered = labels[:, 1:] >= 0
    logits = F.linear(hidden[:, :-1][answered], decoder.embed_tokens.weight)
    return logits.float(), labels[:, 1:][answered]


# -- the models ----------------------------------------------------------------------------------------


def _shape(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "max_position_embeddings": LONGEST,
        "tie_word_embeddings": True,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _eased(model: PreTrainedModel) -> PreTrainedModel:
    """Initialise the model so that it learns to repeat an earlier word, as the other built-in backbones are.

    Word embeddings start four times larger than usual, and half of the key heads of each layer start as a query head.
    """
    decoder: Any = model.get_decoder()
    with torch.no_grad():
        decoder.embed_tokens.weight.mul_(4)
        for layer in decoder.layers:
            half = layer.self_attn.k_proj.weight.shape[0] // 2
            layer.self_attn.k_proj.weight[:half] = layer.self_attn.q_proj.weight[:half]
    return model


TINY_LLAMA_LM = BuiltInLanguageModel(
    name="tiny-llama-lm",
    base="LlamaForCausalLM",
    summary="Llama",
    make_model=lambda tokenizer: _eased(
        LlamaForCausalLM(LlamaConfig(num_key_value_heads=6, **_shape(tokenizer)))  # pyright: ignore[reportCallIssue]
    ),
)
TINY_MISTRAL_LM = BuiltInLanguageModel(
    name="tiny-mistral-lm",
    base="MistralForCausalLM",
    summary=f"Mistral, two key and value heads for six heads, a sliding window of {WINDOW} tokens",
    make_model=lambda tokenizer: _eased(
        MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=WINDOW, **_shape(tokenizer)))
    ),
)
LANGUAGE_MODELS = {built_in.name: built_in for built_in in (TINY_LLAMA_LM, TINY_MISTRAL_LM)}
