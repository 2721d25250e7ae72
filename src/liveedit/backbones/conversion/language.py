"""The language model of a conversion: a Llama, its tokenizer, and the rows that new tokens add to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig

from ...errors import BackboneError, NotFoundError, first_line
from ..families.blip2 import MINIGPT4_CHAT_TEMPLATE
from .vision import read_config
from .weight_files import CheckpointFolder, WeightSource, some_names

IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class LanguageParts:
    """A Llama for MiniGPT-4.

    label: where it comes from. weights: as in `LlamaForCausalLM`, grown to `config.vocab_size` rows. tokenizer: has the
    image token, a padding token and MiniGPT-4's template.
    """

    label: str
    weights: WeightSource
    config: LlamaConfig
    tokenizer: Any
    image_token_id: int


def open_language_model(folder: Path) -> LanguageParts:
    """Open a Llama (Vicuna) folder of transformers and make its tokenizer ready for images.

    Raises `NotFoundError` for what is missing, `BackboneError` for another kind of model.
    """
    if not folder.is_dir():
        raise NotFoundError(
            f"The folder {folder} is not there. Give the folder of a Vicuna checkpoint of transformers."
        )
    _check_kind(folder, read_config(folder))
    weights = CheckpointFolder(folder)
    config, tokenizer = _read_settings(folder)
    return prepare_language_model(str(folder), weights, config, tokenizer)


def prepare_language_model(label: str, weights: WeightSource, config: LlamaConfig, tokenizer: Any) -> LanguageParts:
    """Add the image token (and a padding token, if there is none), with rows for them.

    The rows are the mean of those of the tokens known before: such a token's logit is the mean of all, so that it is
    never the most likely one. `config` and `tokenizer` are changed.
    """
    rows = _rows(label, weights)
    known = min(rows, _vocabulary(tokenizer))
    image = AddedToken(IMAGE_TOKEN, normalized=False, special=True)
    tokenizer.add_tokens([image], special_tokens=True)
    if tokenizer.pad_token_id is None:
        unknown = tokenizer.unk_token
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN if unknown is None else unknown})
    tokenizer.chat_template = MINIGPT4_CHAT_TEMPLATE
    config.vocab_size = max(rows, _vocabulary(tokenizer))
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.tie_word_embeddings = False  # A tied head is written as a weight of its own.
    grown = GrownWeights(weights, known, config.vocab_size)
    return LanguageParts(label, grown, config, tokenizer, int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)))


class GrownWeights:
    """A Llama's weights with `rows` rows in embeddings and head: the first `known` as they were, then their mean.

    A head that is tied to the embeddings is read from there.
    """

    def __init__(self, weights: WeightSource, known: int, rows: int):
        self._weights, self._known, self._rows = weights, known, rows

    def names(self) -> Iterable[str]:
        """All names."""
        return self._weights.names()

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Its shape; None if there is no such weight."""
        found = self._weights.shape(self._stored(name))
        return (self._rows, *found[1:]) if found is not None and name in (EMBEDDINGS, HEAD) else found

    def read(self, name: str) -> Tensor:
        """The weight itself."""
        stored = self._weights.read(self._stored(name))
        if name not in (EMBEDDINGS, HEAD):
            return stored
        grown = stored.new_empty((self._rows, *stored.shape[1:]))
        grown[: self._known] = stored[: self._known]
        grown[self._known :] = stored[: self._known].mean(dim=0, dtype=torch.float32)
        return grown

    def _stored(self, name: str) -> str:
        return EMBEDDINGS if name == HEAD and self._weights.shape(HEAD) is None else name


def _check_kind(folder: Path, raw: dict[str, Any]) -> None:
    kind = raw.get("model_type")
    if kind == "llama" and not raw.get("is_encoder_decoder"):
        return
    also = ""
    if raw.get("is_encoder_decoder") or str(kind).endswith("t5"):
        also = " It is an encoder-decoder, whose decoder cannot read image features as MiniGPT-4's does."
    raise BackboneError(
        f"{folder} holds a model of type {kind!r}, where one of type 'llama' is needed.{also} Give the folder of the "
        "Vicuna that the projection was trained for."
    )


def _read_settings(folder: Path) -> tuple[LlamaConfig, Any]:
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise NotFoundError(f"{folder} has no tokenizer. It needs {' or '.join(TOKENIZER_FILES)}; download it too.")
    try:
        config = LlamaConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # Tokenizer libraries raise many types.
        reason = first_line(error)
        raise BackboneError(
            f"The configuration or the tokenizer of {folder} could not be read ({reason}). A folder with "
            "tokenizer.model and no tokenizer.json needs `pip install sentencepiece protobuf`."
        ) from error
    return config, tokenizer


def _rows(label: str, weights: WeightSource) -> int:
    embeddings = weights.shape(EMBEDDINGS)
    if embeddings is None:
        raise BackboneError(
            f"{label} has no {EMBEDDINGS} (found: {some_names(weights.names())}). Give a Vicuna checkpoint in the "
            "format of transformers."
        )
    head = weights.shape(HEAD)
    if head is not None and head != embeddings:
        raise BackboneError(
            f"In {label} the head is {head} and the embeddings are {embeddings}, where they must be alike. Download "
            "the checkpoint again."
        )
    return embeddings[0]


def _vocabulary(tokenizer: Any) -> int:
    """One more than the largest token id."""
    return max(tokenizer.get_vocab().values()) + 1
