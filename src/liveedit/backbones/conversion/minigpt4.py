"""MiniGPT-4 as a checkpoint of transformers: BLIP-2's vision tower and Q-Former, one projection, Vicuna.

Zhu et al., "MiniGPT-4: Enhancing Vision-Language Understanding with Advanced Large Language Models",
https://arxiv.org/abs/2304.10592. An image p becomes 32 embeddings between the words' in Vicuna:

    W Q(V(p)) + b        V vision tower, Q Q-Former with its query tokens, (W, b) the projection that was released

which is what `Blip2ForConditionalGeneration` computes when its language model is a Llama.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor

from ...errors import BackboneError, InvalidInputError
from .language import LanguageParts, open_language_model
from .shards import SHARD_BYTES, PlannedTensor, Progress, write_shards
from .vision import VISION_PREFIXES, VisionParts, open_vision
from .weight_files import TorchFile, WeightSource, some_names

DTYPES: Mapping[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
PROJECTION = {"language_projection.weight": "llama_proj.weight", "language_projection.bias": "llama_proj.bias"}
_LANGUAGE = "language_model."
_FLOAT32_PREFIXES = ("qformer.", "query_tokens")
_SHOWN = 3


@dataclass(frozen=True)
class Conversion:
    """What was written.

    weight_bytes: of all weight files. image_token_id: marks the places of the image's `image_tokens` embeddings.
    """

    folder: Path
    files: tuple[str, ...]
    parameters: int
    weight_bytes: int
    dtype: str
    image_token_id: int
    image_tokens: int


def convert_minigpt4(
    projection: Path,
    blip2: Path,
    language_model: Path,
    out: Path,
    vision_tower: Path | None = None,
    dtype: str = "float16",
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Conversion:
    """Build MiniGPT-4 from its three sources, as a folder that `AutoModelForImageTextToText` loads.

    projection: MiniGPT-4's .pth with llama_proj.weight (llama width, Q-Former width) and llama_proj.bias (llama width).
    blip2: a BLIP-2 folder of transformers, of which only vision tower, query tokens and Q-Former are read; or LAVIS's
    .pth, with `vision_tower` (eva_vit_g.pth) beside it. language_model: a Vicuna folder of transformers.
    dtype: precision of the file, one of `DTYPES`; query tokens and Q-Former stay in float32, as transformers keeps them
    beside float16. progress: is called with the tensors written and their total.

    Memory: one shard (`shard_bytes`, 2 GiB by default; the largest tensor if that is more) and its
    largest tensor once more, whatever the size of the model. The sources are mapped, and pages of theirs that stay in
    memory are the system's to drop; only files of `torch.save` in its format before PyTorch 1.6 are read as a whole.
    Nothing is written before names, shapes and free disk space have been checked. The folder appears under its name
    when it is whole; until then it is built beside it.

    Raises `NotFoundError` for a missing file, `BackboneError` for one that is damaged or something else than it should
    be, and `InvalidInputError` for an `out` that is in use, an unknown dtype, or a full disk.
    """
    if dtype not in DTYPES:
        raise InvalidInputError(f"The dtype {dtype!r} is unknown. Choose one of {', '.join(DTYPES)}.")
    _check_out(out)
    projected = TorchFile(projection)
    check_projection(projection, projected)
    vision, language = open_vision(blip2, vision_tower), open_language_model(language_model)
    config = minigpt4_config(vision, language, dtype)
    planned = plan_tensors(config, projected, str(projection), vision, language, DTYPES[dtype])
    _check_space(out, sum(tensor.size_bytes for tensor in planned))
    with _finished_at_once(out) as folder:
        files = write_shards(folder, planned, shard_bytes, progress)
        config.save_pretrained(folder)
        processor = Blip2Processor(vision.image_processor, language.tokenizer, num_query_tokens=vision.queries)
        processor.save_pretrained(folder)
        weight_bytes = sum((folder / file).stat().st_size for file in files)
    return Conversion(
        folder=out,
        files=tuple(files),
        parameters=sum(tensor.parameters for tensor in planned),
        weight_bytes=weight_bytes,
        dtype=dtype,
        image_token_id=language.image_token_id,
        image_tokens=vision.queries,
    )


def check_projection(path: Path, weights: WeightSource) -> tuple[int, int]:
    """The widths (llama, Q-Former) of a projection. Raises `BackboneError` if there is none."""
    weight, bias = (weights.shape(name) for name in PROJECTION.values())
    if weight is None or bias is None:
        raise BackboneError(
            f"{path} is not a projection of MiniGPT-4: it lacks {' and '.join(PROJECTION.values())} (found: "
            f"{some_names(weights.names())}). Give the checkpoint that MiniGPT-4 released, such as "
            "pretrained_minigpt4_7b.pth."
        )
    if len(weight) != 2 or bias != (weight[0],):
        raise BackboneError(
            f"The projection in {path} has shapes {weight} and {bias}, where (llama width, Q-Former width) and (llama "
            "width,) are needed. Download it again."
        )
    return weight[0], weight[1]


def minigpt4_config(vision: VisionParts, language: LanguageParts, dtype: str) -> Blip2Config:
    """The configuration of the model."""
    config: Any = Blip2Config(
        vision_config=_own(vision.vision),
        qformer_config=_own(vision.qformer),
        text_config=_own(language.config),
        num_query_tokens=vision.queries,
        image_token_index=language.image_token_id,
        architectures=[Blip2ForConditionalGeneration.__name__],
    )
    config.tie_word_embeddings = False
    for part in (config, config.vision_config, config.qformer_config, config.text_config):
        part.dtype = dtype
    return config


def plan_tensors(
    config: Blip2Config,
    projection: WeightSource,
    projection_label: str,
    vision: VisionParts,
    language: LanguageParts,
    dtype: torch.dtype,
) -> list[PlannedTensor]:
    """Every weight of the model and its source, in the model's order. No weight is read.

    Raises `BackboneError` where one is missing or has another shape than the model needs.
    """
    _check_widths(projection, projection_label, vision, language)
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    planned = []
    missing: dict[str, list[str]] = {}
    for name, shape in shapes.items():
        label, source, stored = _home(name, projection, projection_label, vision, language)
        found = source.shape(stored)
        if found is None:
            missing.setdefault(label, []).append(stored)
        elif found != shape:
            raise BackboneError(
                f"{stored} in {label} is {found}, where its configuration asks for {shape}. Weights and configuration "
                "do not belong together; download both again."
            )
        precision = torch.float32 if name.startswith(_FLOAT32_PREFIXES) else dtype
        planned.append(PlannedTensor(name, shape, precision, _reader(source, stored), label))
    for label, names in missing.items():
        rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise BackboneError(
            f"{label} lacks weights that its configuration asks for: {', '.join(names[:_SHOWN])}{rest}. Give the whole "
            "checkpoint."
        )
    return planned


def _home(
    name: str, projection: WeightSource, projection_label: str, vision: VisionParts, language: LanguageParts
) -> tuple[str, WeightSource, str]:
    """The source of a weight of the model, and its name there."""
    if name in PROJECTION:
        return projection_label, projection, PROJECTION[name]
    if name.startswith(_LANGUAGE):
        return language.label, language.weights, name.removeprefix(_LANGUAGE)
    if not name.startswith(VISION_PREFIXES):
        raise BackboneError(f"This release of transformers has a weight {name} in BLIP-2 that LiveEdit cannot convert.")
    return vision.label, vision.weights, name


def _reader(source: WeightSource, name: str) -> Callable[[], torch.Tensor]:
    return lambda: source.read(name)


def _check_widths(projection: WeightSource, label: str, vision: VisionParts, language: LanguageParts) -> None:
    llama, qformer = check_projection(Path(label), projection)
    if qformer != vision.qformer.hidden_size:
        also = ""
        if qformer == 4 * vision.vision.hidden_size:
            also = " It joins four patches without a Q-Former, as MiniGPT-4 for Llama-2 and MiniGPT-v2 do."
        raise BackboneError(
            f"The projection in {label} takes features of width {qformer}, but the Q-Former of {vision.label} gives "
            f"{vision.qformer.hidden_size}.{also} Give the projection of MiniGPT-4 for Vicuna."
        )
    if llama != language.config.hidden_size:
        raise BackboneError(
            f"The projection in {label} gives embeddings of width {llama}, but {language.label} takes "
            f"{language.config.hidden_size}. Vicuna-7B has 4096 and Vicuna-13B has 5120: give projection and language "
            "model of one size."
        )


def _own(config: Any) -> Any:
    """A configuration without the path that it was read from."""
    config._name_or_path = ""
    return config


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInputError(f"{out} is there already and not empty. Choose another folder, or remove it.")


def _check_space(out: Path, size_bytes: int) -> None:
    place = next(folder for folder in out.absolute().parents if folder.is_dir())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < size_bytes:
        raise InvalidInputError(
            f"The model takes {size_bytes / 1e9:.1f} GB, but {place} has {free_bytes / 1e9:.1f} GB free. Choose "
            "another place, or a smaller dtype."
        )


@contextmanager
def _finished_at_once(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is renamed to it at the end, and removed after an exception."""
    beside = out.absolute().with_name(f".{out.name}.{os.getpid()}.partial")
    beside.mkdir(parents=True)
    try:
        yield beside
        if out.exists():
            out.rmdir()
        beside.rename(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
