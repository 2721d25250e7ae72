"""`liveedit train-backbone`: images, vision stage, language stage, model card. Resumable at every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from ..backbones.built_in import built_in_folder
from ..backbones.precision import mixed_precision
from ..errors import CheckpointError
from ..progress import TaskProgress, no_task_progress, progress_of
from ..training.checkpoints import load_tensors, resume_training, save_tensors, save_training
from .images import ImagePool
from .language_stage import LanguageStage, alignment_words, image_turns, text_turns
from .models import BUILT_INS, BuiltIn, VisionPart
from .rows import RowPacker
from .vision_stage import VisionHeads, VisionTargets, use_convolved_patches, use_linear_patches


@dataclass(frozen=True)
class PretrainingRun:
    """What every pretraining has. Fields named ..._steps and `save_every` may change between two runs.

    backbone: name of the built-in backbone. save_every: steps between checkpoints.
    """

    backbone: str
    seed: int = 0
    save_every: int = 200


@dataclass(frozen=True)
class PretrainingConfig(PretrainingRun):
    """How a built-in backbone is pretrained on the drawn world."""

    backbone: str = "tiny-llava"
    images: int = 60_000
    vision_steps: int = 3_000
    vision_batch: int = 128
    vision_rate: float = 2e-3
    language_steps: int = 1_150
    language_batch: int = 32
    text_rows: int = 4
    language_rate: float = 1e-3


def train_backbone(
    folder: Path, config: PretrainingConfig, report: TaskProgress = no_task_progress, vision_source: Path | None = None
) -> None:
    """Pretrain a built-in backbone into `folder`/model, and resume an earlier run in `folder`.

    vision_source: the checkpoint of the vision part, for a backbone that takes it from another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    built_in = BUILT_INS[config.backbone]
    pool = ImagePool(folder, config.images, config.seed, progress_of(report, "images"))
    model = built_in.build(config.seed)
    vision = VisionPart(model)
    if built_in.vision_from is None:
        _vision_stage(vision, pool, folder, config, report)
    else:
        _take_vision(vision, vision_source or built_in_folder(built_in.vision_from))
    _language_stage(model, vision, built_in, pool, folder, config, report)
    save_backbone(model, built_in, folder / "model")


def save_backbone(model: PreTrainedModel, built_in: BuiltIn, folder: Path) -> None:
    """Write model and processor so that the ordinary `from_pretrained` path loads them, weights in fp16."""
    built_in.processor().save_pretrained(folder)
    model.half().save_pretrained(folder)
    model.float()


def _take_vision(vision: VisionPart, source: Path) -> None:
    """The trained vision part of another checkpoint of the same shape."""
    taken = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    vision.load_state_dict(VisionPart(taken).state_dict())


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    warmup = min(100, steps // 6)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def _vision_stage(
    vision: VisionPart, pool: ImagePool, folder: Path, config: PretrainingConfig, report: TaskProgress
) -> None:
    stage = nn.ModuleDict({"vision": vision, "heads": VisionHeads(vision.width)})
    use_linear_patches(vision.tower)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([config.seed, 2, step])
        indices = rng.integers(pool.count, size=config.vision_batch).tolist()
        pixels = _augment(pool.normalized(indices), torch.Generator().manual_seed(step))
        with mixed_precision("cpu"):
            tokens = vision(pixels)
        return stage["heads"](tokens.float(), VisionTargets([pool.scenes[index] for index in indices]))

    optimize(stage, step_loss, folder / "vision.safetensors", config.vision_steps, config.vision_rate, config, report)
    use_convolved_patches(vision.tower)


def _language_stage(
    model: PreTrainedModel,
    vision: VisionPart,
    built_in: BuiltIn,
    pool: ImagePool,
    folder: Path,
    config: PretrainingConfig,
    report: TaskProgress,
) -> None:
    features = _features(vision, pool, folder / "features.safetensors", report)
    stage, packer = LanguageStage(model), RowPacker(built_in.layout)
    tokenizer = packer.tokenizer
    words = np.stack([alignment_words(scene, tokenizer) for scene in pool.scenes])
    cells = np.stack([scene.creature.cells.reshape(-1) for scene in pool.scenes])

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([config.seed, 3, step])
        indices = rng.integers(pool.count, size=config.language_batch)
        rows = [(True, image_turns(pool.scenes[index], rng)) for index in indices]
        rows += [(False, text_turns(tokenizer, rng)) for _ in range(config.text_rows)]
        picked = features[torch.from_numpy(indices)].float()
        # Vision is frozen here: noise on its features replaces new drawings.
        picked += 0.05 * picked.std() * torch.randn(picked.shape, generator=torch.Generator().manual_seed(step))
        with mixed_precision("cpu"):
            return stage(
                packer.pack(rows), picked, torch.from_numpy(words[indices]), torch.from_numpy(cells[indices]).float()
            )

    optimize(
        stage, step_loss, folder / "language.safetensors", config.language_steps, config.language_rate, config, report
    )


def optimize(
    module: nn.Module,
    step_loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    checkpoint: Path,
    steps: int,
    peak_rate: float,
    config: PretrainingRun,
    report: TaskProgress,
) -> None:
    """Run AdamW from the last checkpoint on. A step depends only on the weights and its number."""
    decayed = [value for value in module.parameters() if value.ndim > 1]
    plain = [value for value in module.parameters() if value.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.98))
    resumed = resume_training(checkpoint, module, optimizer)
    if resumed and resumed[1] != _identity(config):
        raise CheckpointError(
            f"{checkpoint} was made with {resumed[1]}, but {_identity(config)} was given. Choose another folder, "
            "remove it, or give the settings it was made with. Only the number of steps may change."
        )
    module.train()
    for step in range(resumed[0] if resumed else 0, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak_rate)
        loss, figures = step_loss(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        report(checkpoint.stem, step + 1, steps, {"loss_nats": loss.item(), **figures})
        if (step + 1) % config.save_every == 0 or step + 1 == steps:
            save_training(checkpoint, module, optimizer, step + 1, _identity(config))
    module.eval()


def _identity(config: PretrainingRun) -> dict[str, float]:
    """What must not change between two runs that continue each other."""
    return {
        name: value for name, value in asdict(config).items() if not name.endswith("_steps") and name != "save_every"
    }


@torch.no_grad()
def _features(vision: VisionPart, pool: ImagePool, file: Path, report: TaskProgress) -> Tensor:
    """Output of the trained vision part for every image, (images, 16, width) in half precision."""
    if file.exists():
        return load_tensors(file)[0]["features"]
    found = []
    for start in range(0, pool.count, 500):
        pixels = pool.normalized(range(start, min(start + 500, pool.count)))
        with mixed_precision("cpu"):
            found.append(vision(pixels).half())
        report("features", start + len(pixels), pool.count)
    features = torch.cat(found)
    save_tensors(file, {"features": features}, {"images": pool.count})
    return features


def _augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Add a little noise and shift by up to one pixel, so that the model never sees the same image twice."""
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    noise = torch.randn(pixels.shape, generator=generator) * 0.06
    return pixels.roll((down, right), (2, 3)) + noise
