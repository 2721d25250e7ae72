"""GGUF files, as llama.cpp uses them: transformers reads them, and the weights are dequantised."""

from __future__ import annotations

import struct
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

from transformers.utils import is_gguf_available, logging

from ..errors import BackboneError

_MAGIC = b"GGUF"
_PROJECTOR = "clip"
"""The architecture of a vision projector (mmproj), a part of a model and no model."""
_NOT_ARCHITECTURES = {"general", "tokenizer"}
"""Sections of a GGUF file that transformers lists with the architectures."""
_parsing: Final = threading.Lock()
_READING_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError, OSError, struct.error)


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a name stands for: the file itself, or the only one of a folder without config.json.

    Returns an absolute path, or None if the name stands for something else. Raises `BackboneError` for a name that ends
    with .gguf and is no GGUF file, and for a folder with several files.
    """
    path = Path(name)
    if path.is_dir():
        return None if (path / "config.json").is_file() else _only_file(path)
    if path.is_file():
        if path.suffix.lower() == ".gguf" or _starts_as_gguf(path):
            return path.absolute()
    elif path.suffix.lower() == ".gguf":
        raise BackboneError(f"There is no file {name!r}. Give an existing GGUF file, or a folder with one.")
    return None


def check_gguf(file: Path) -> None:
    """Raise `BackboneError` if a file is no whole GGUF file of a language model that transformers reads."""
    if not _starts_as_gguf(file):
        raise BackboneError(
            f"{str(file)!r} is not a GGUF file: it does not begin with the letters GGUF. Give a GGUF file, or a folder "
            "with a transformers checkpoint."
        )
    if not is_gguf_available():
        raise BackboneError(
            f"{str(file)!r} is a GGUF file, and reading it needs the package gguf: pip install 'liveedit[gguf]'."
        )
    # Imported here: these modules of transformers are not public, and only GGUF files need them.
    from transformers.integrations.gguf.reader import GgufHeader

    try:
        header = GgufHeader.from_file(str(file))
        end = max((header.data_start + one.offset + one.nbytes for one in header.tensors), default=header.data_start)
    except _READING_ERRORS as error:
        raise BackboneError(not_read(file, error)) from error
    _check_architecture(file, header.architecture)
    size = file.stat().st_size
    if end > size:
        raise BackboneError(
            f"The GGUF file {str(file)!r} is cut off: it has {size:,} bytes, and its weights end at byte {end:,}. Copy "
            "or download it again."
        )


def not_read(file: Path, error: Exception) -> str:
    """The message for a GGUF file with which reading fails."""
    reason = " ".join(str(error).split()).rstrip(".")
    if "ignore_mismatched_sizes" in reason:  # What transformers says here names an option that is not for users.
        reason = "its weights have other shapes than its description says"
    kind = "" if isinstance(error, ValueError | RuntimeError) and reason else f"{type(error).__name__}: "
    return (
        f"The GGUF file {str(file)!r} could not be read: {kind}{reason}. It is damaged, or transformers cannot read "
        "it: copy it again, or give a transformers checkpoint of this model."
    )


def check_complete(file: Path, missing: Collection[str]) -> None:
    """Raise `BackboneError` if weights of the model are not in its file. missing: their names."""
    if missing:
        raise BackboneError(
            f"The GGUF file {str(file)!r} lacks {len(missing)} weights of the model, such as {min(missing)}. If it is "
            "one of several parts, merge them with `llama-gguf-split --merge`. Otherwise give a transformers "
            "checkpoint of this model."
        )


@contextmanager
def parsed_once(file: Path) -> Iterator[None]:
    """Inside, transformers parses this file once, and not for configuration, tokenizer and weights anew.

    Each time takes seconds for a large vocabulary. transformers takes both functions from the package gguf when it
    calls them; here they are replaced by ones that keep their results. The bar that it shows meanwhile becomes one that
    transformers' own setting disables, as all others. One thread at a time.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    with _parsing:
        reader, name_map, bar = gguf.GGUFReader, gguf.get_tensor_name_map, loader.tqdm
        kept = cache(lambda: reader(file))
        loader.tqdm = logging.tqdm
        gguf.GGUFReader = lambda path, *rest: kept() if Path(path) == file and not rest else reader(path, *rest)
        gguf.get_tensor_name_map = cache(name_map)
        try:
            yield
        finally:
            gguf.GGUFReader, gguf.get_tensor_name_map, loader.tqdm = reader, name_map, bar


def as_dequantised(model: Any) -> None:
    """Remove what marks a model as read from GGUF blocks: it is an ordinary one, and can be saved as such."""
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    # Saving writes this, and the digest of the configuration is to be the same before and after.
    model.config.architectures = [type(model).__name__]


def _only_file(folder: Path) -> Path | None:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".gguf" and file.is_file())
    if len(files) > 1:
        raise BackboneError(
            f"The folder {str(folder)!r} has {len(files)} GGUF files: {', '.join(file.name for file in files)}. Give "
            "the path of one of them."
        )
    return files[0].absolute() if files else None


def _starts_as_gguf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_MAGIC)) == _MAGIC


def _check_architecture(file: Path, architecture: str) -> None:
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    if architecture == _PROJECTOR:
        raise BackboneError(
            f"{str(file)!r} is a vision projector and no language model, and transformers reads no images through "
            "GGUF. Give the GGUF file of the language model, or a transformers checkpoint of the whole model."
        )
    known = {*GGUF_SUPPORTED_ARCHITECTURES, *GGUF_CONFIG_ARCHS} - _NOT_ARCHITECTURES
    # GGUF writes some names with a hyphen or without a separator: gpt-oss, qwen2moe.
    if architecture.replace("-", "_") not in known and architecture not in {name.replace("_", "") for name in known}:
        raise BackboneError(
            f"{str(file)!r} has the architecture {architecture!r}, which transformers does not read from GGUF. It "
            f"reads {', '.join(sorted(known))}. Give a transformers checkpoint of this model."
        )
