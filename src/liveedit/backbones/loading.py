"""Load frozen models: built-in ones, local folders, GGUF files, or models of the hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from .. import registry
from ..errors import BackboneError, first_line
from .backbone import Backbone
from .built_in import BUILT_IN, MADE_HERE, built_in_folder
from .families import backbone_class
from .families.text_only import TextBackbone
from .gguf import as_dequantised, check_complete, check_gguf, gguf_file, not_read, parsed_once
from .hub import hub_source
from .linear import speed_up_linear_layers

_DAMAGED = (SafetensorError, StrictDataclassError)

Quantization = Literal["8bit", "4bit"]
DeviceMap = str | dict[str, int | str | torch.device]


class Source(NamedTuple):
    """Where a model is: a folder or hub name, and the GGUF file in the folder if that is what is loaded."""

    place: str
    gguf: Path | None = None


def load_backbone(
    name: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    quantization: Quantization | None = None,
    offload_folder: str | Path | None = None,
) -> Backbone:
    """Load a vision-language model, or a language model, for editing.

    name: a built-in name, a local folder, a GGUF file (or a folder with one), or a hub name; all are loaded by
    transformers. dtype: float32 on CPUs and bfloat16 elsewhere by default (float16 with 8 bits). device_map: spreads
    the model over devices instead of `device`, as in Accelerate ("auto", or modules by name to devices, "cpu" or
    "disk"). offload_folder: for parts on disk. quantization: needs bitsandbytes, and is refused for GGUF files.
    Raises `BackboneError` with the reason if the model cannot be loaded, and `ExtensionError` if the package that
    registers its family is broken.
    """
    if device is not None and device_map is not None:
        raise BackboneError("Both device and device_map were given. Give one of them.")
    source = located(str(name), quantization)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    spread = device_map is not None or quantization is not None
    options: dict[str, Any] = {"dtype": dtype or _default_precision(target, quantization)}
    if spread:
        options |= {"device_map": device_map or {"": target}, "offload_folder": offload_folder}
    if quantization is not None:
        options["quantization_config"] = _quantization(quantization)
    try:
        kind, model, processor = _loaded(str(name), source, options)
        model = model if spread else model.to(target)
        speed_up_linear_layers(model)
    except BackboneError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AssertionError, *_DAMAGED) as error:
        raise BackboneError(_not_loaded(str(name), error)) from error
    return kind(str(name), model, processor)


def located(name: str, quantization: Quantization | None = None) -> Source:
    """Where the model of this name is. Raises `BackboneError` if it is nowhere."""
    if name in BUILT_IN + MADE_HERE:
        return Source(str(built_in_folder(name)))
    file = gguf_file(name)
    if file is not None:
        if quantization is not None:
            raise BackboneError(
                f"quantization={quantization!r} was given for a GGUF file, whose weights are dequantised. Leave it "
                "out, or give a transformers checkpoint of this model."
            )
        check_gguf(file)
        return Source(str(file.parent), file)
    path = Path(name)
    if path.is_file():
        raise BackboneError(f"{name!r} is a file. Give the folder of a transformers checkpoint, or a GGUF file.")
    if path.exists():
        return Source(name)
    if path.is_absolute() or name.startswith((".", "~")):
        raise BackboneError(f"There is no folder {name!r}. Give the folder of a transformers checkpoint.")
    return Source(hub_source(name))


def _loaded(name: str, source: Source, options: dict[str, Any]) -> tuple[type[Backbone], Any, Any]:
    """The class of its family, the model and its processor, as transformers loads them."""
    if source.gguf is not None:
        try:
            with parsed_once(source.gguf):
                return _loaded_gguf(name, source, source.gguf, options)
        except BackboneError:
            raise
        except Exception as error:  # In a damaged file every value can be wrong, so that anything may fail.
            raise BackboneError(not_read(source.gguf, error)) from error
    import_towers(source.place)
    kind = kind_of(name, AutoConfig.from_pretrained(source.place))
    auto = AutoModelForImageTextToText if kind.reads_images else AutoModelForCausalLM
    processor = kind.load_processor(source.place)
    return kind, auto.from_pretrained(source.place, **options), processor


def import_towers(source: str) -> None:
    """Import what registers the types of a checkpoint's parts with transformers, where a package provides it."""
    values, _ = PreTrainedConfig.get_config_dict(source)
    types = {part.get("model_type") for part in values.values() if isinstance(part, dict)}
    for name in registry.names(registry.TOWERS):
        if name in types:
            registry.load(registry.TOWERS, name)


def _loaded_gguf(name: str, source: Source, file: Path, options: dict[str, Any]) -> tuple[type[Backbone], Any, Any]:
    config = AutoConfig.from_pretrained(source.place, gguf_file=str(file))
    kind = kind_of(name, config)
    if not issubclass(kind, TextBackbone):
        raise BackboneError(
            f"{name} is of the type {config.model_type!r}, and of GGUF files only language models without images can "
            "be loaded. Give a transformers checkpoint of this model."
        )
    # The path is absolute: transformers looks for a bare name in the working directory first.
    processor = kind.load_processor(source.place, gguf_file=str(file))
    unpacked = {**options, "gguf_file": str(file), "quantization_config": GgufConfig(dequantize=True)}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.place, config=config, output_loading_info=True, **unpacked
    )
    model, found = loaded
    check_complete(file, found["missing_keys"])
    as_dequantised(model)
    return kind, model, processor


def kind_of(name: str, config: Any) -> type[Backbone]:
    """The class of a model's family. Raises `BackboneError` if it cannot be edited."""
    model_type = config.model_type
    if getattr(config, "is_encoder_decoder", False) or getattr(
        config.get_text_config(decoder=True), "is_encoder_decoder", False
    ):
        raise BackboneError(
            f"{name} is an encoder-decoder ({model_type}): LiveEdit edits decoder-only language models, with or "
            "without images. Give one of those."
        )
    images = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if not images and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BackboneError(
            f"{name} is of the type {model_type!r}, which transformers loads neither as a vision-language model nor "
            "as a causal language model. Give a model that generates text."
        )
    return backbone_class(model_type, images)


def _default_precision(target: torch.device, quantization: Quantization | None) -> torch.dtype:
    if quantization == "8bit":
        return torch.float16  # bitsandbytes multiplies in this precision.
    return torch.float32 if target.type == "cpu" and quantization is None else torch.bfloat16


def _quantization(kind: Quantization) -> BitsAndBytesConfig:
    if find_spec("bitsandbytes") is None:
        raise BackboneError(f"Loading in {kind} needs bitsandbytes, which is not installed: pip install bitsandbytes.")
    return BitsAndBytesConfig(load_in_8bit=kind == "8bit", load_in_4bit=kind == "4bit")


def _not_loaded(name: str, error: Exception) -> str:
    if isinstance(error, SafetensorError):
        reason = f"its weights are damaged or cut off ({first_line(error)})"
    elif isinstance(error, StrictDataclassError):
        reason = f"its config.json has impossible values ({' '.join(str(error).split()).rstrip('.')})"
    elif Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        reason = "the folder has no config.json, so it holds no transformers checkpoint"
    elif "compiled with CUDA" in str(error) or "No CUDA GPUs" in str(error) or "NVIDIA driver" in str(error):
        return (
            f"The backbone {name!r} could not be loaded on the device that was given: {first_line(error)}. Give "
            "device=cpu (--load device=cpu), or install a build of torch for this machine's GPU."
        )
    else:
        reason = first_line(error)
    return (
        f"The backbone {name!r} could not be loaded: {reason}. Give a built-in name ({', '.join(BUILT_IN)}), a folder "
        "with a transformers checkpoint, a GGUF file, or a hub name."
    )
