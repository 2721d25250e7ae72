"""`liveedit doctor`: what a model is, whether the contract holds on it, and what editing it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .backbones import Backbone
from .backbones.families import known_model_types
from .editors import expert_editor_class
from .editors.reference import ReferenceEditor, small_editor
from .errors import LiveEditError, first_line
from .experts.expert import Expert, expert_to_bytes
from .progress import TaskProgress, no_task_progress
from .registry import UNTRAINED_EDITOR
from .samples import Edit, Question
from .testing.backbone_checks import ANSWERS, BackboneChecks

EDITS_PLANNED = 1_000
_PLANNED_ANSWERS = ("blue", "a large square and a small circle")
"""Their experts are made, to see what an edit costs, and what a longer answer adds."""
_FAILURES = (LiveEditError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError)
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of logits, relative to the largest logit."""


@dataclass(frozen=True)
class Check:
    """One property of the contract: whether it holds on this model, and by what margin."""

    name: str
    holds: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that the doctor found. Layers are counted from 0."""

    found: dict[str, Any]
    checks: tuple[Check, ...]
    plan: dict[str, Any]
    warnings: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks)


def examine(backbone: Backbone, report: TaskProgress = no_task_progress) -> Diagnosis:
    """Inspect a backbone. Runs a few short questions through it and changes nothing.

    report: is called with the name of each check that begins, the number of checks done and their total, and once more
    when all are done.
    """
    layer = backbone.default_edit_layer()
    examination = _Examination(backbone, layer)
    checks = []
    tests = examination.tests()
    for done, (name, test) in enumerate(tests):
        report(name, done, len(tests))
        checks.append(_outcome(name, test))
    report("done", len(tests), len(tests))
    plan, warnings = _plan(backbone, layer), list(_warnings(backbone))
    try:
        plan["untrained"] = _untrained_plan(backbone, examination.questions[0])
    except _FAILURES as error:
        warnings.append(f"What edits cost without a trained editor is not known: {first_line(error)}")
    return Diagnosis(_found(backbone), tuple(checks), plan, tuple(warnings))


def _outcome(name: str, test: Callable[[], str]) -> Check:
    try:
        return Check(name, True, test())
    except _BrokenError as broken:
        return Check(name, False, str(broken))
    except _FAILURES as error:
        return Check(name, False, f"{type(error).__name__}: {first_line(error)}")


class _BrokenError(Exception):
    """A property that does not hold."""


class _Examination:
    """The contract of a backbone, checked on the model itself with three short questions."""

    def __init__(self, backbone: Backbone, layer: int):
        self.backbone = backbone
        image, wide = (_image(size) if backbone.reads_images else None for size in ((336, 336), (480, 240)))
        self.questions = [
            Question("What color is the circle?", image),
            Question("Can you say what lies beside the square?", wide),
            Question("How many corners does a square have?"),
        ]
        self.checks = BackboneChecks(backbone, layer, self.questions)

    def tests(self) -> list[tuple[str, Callable[[], str]]]:
        """Name and test; a test returns a detail, or raises."""
        return [
            ("every token is image, prompt or answer", self.tokens),
            ("prefix and suffix give the logits of the whole model", self.split_logits),
            ("prefix and suffix give its gradients", self.split_gradients),
            ("a batch gives the logits of its rows, padded left or right", self.batches),
            ("generation is the same with and without the cache", self.caches),
            ("an expert of zeros changes no bit", self.zeros),
            ("an edit changes the answer, and undo restores every bit", self.undone),
        ]

    def tokens(self) -> str:
        counts = self.checks.image_token_counts()
        for count, question in zip(counts, self.questions, strict=True):
            if (count > 0) != (question.image is not None):
                raise _BrokenError(
                    f"A question {'with' if question.image else 'without'} an image has {count} image tokens."
                )
        return f"image tokens {counts}" if any(counts) else "text alone"

    def split_logits(self) -> str:
        return self._within(_difference(*self.checks.split_logits()))

    def split_gradients(self) -> str:
        return self._within(_difference(*self.checks.split_gradients(rows=1)))

    def batches(self) -> str:
        alone = self.checks.rows_alone()
        found = [
            _difference(*pair) for padding in ("left", "right") for pair in self.checks.rows_of_a_batch(padding, alone)
        ]
        # torch's max keeps NaN; Python's max may drop it.
        return self._within(float(torch.tensor(found).max()))

    def caches(self) -> str:
        cached, uncached = self.checks.generations()
        exact = self.backbone.dtype == torch.float32 and not getattr(self.backbone.model, "is_quantized", False)
        if cached != uncached and exact:
            raise _BrokenError(f"{cached} with the cache, {uncached} without.")
        return "equal" if cached == uncached else "they differ, which rounding in this precision explains"

    @torch.no_grad()
    def zeros(self) -> str:
        with small_editor(self.backbone) as editor:
            before = self._answers()
            self._force(editor, zero=True)
            if not torch.equal(before, self._answers()):
                raise _BrokenError("Logits differ with an expert whose residual is zero.")
        return "bit for bit"

    @torch.no_grad()
    def undone(self) -> str:
        before = self._answers()
        with small_editor(self.backbone) as editor:
            self._force(editor, zero=False)
            if torch.equal(before, self._answers()):
                raise _BrokenError(
                    "An expert that must fire changed nothing: the edit layer does not influence the answer."
                )
            editor.undo("doctor")
            if not torch.equal(before, self._answers()):
                raise _BrokenError("Logits differ after the edit was undone.")
        if not torch.equal(before, self._answers()):
            raise _BrokenError("Logits differ after the editor was detached.")
        return "bit for bit"

    def _force(self, editor: ReferenceEditor, zero: bool) -> None:
        """Add an expert that both routers pass for the first question."""
        query = editor.modules.query(editor.read(self.backbone.encode(self.questions[:1])))
        generator = torch.Generator().manual_seed(0)
        u, v = (torch.randn(2, self.backbone.width, generator=generator) for _ in range(2))
        expert = editor.make_experts([Edit(self.questions[0], ANSWERS[0])])[0]
        forced = replace(
            expert,
            u=u.to(editor.device),
            v=(0 if zero else 10) * v.to(editor.device),
            visual_feature=1e4 * (query.visual[0] - query.sentinel[0]),
            prompt_feature=100 * query.prompt[0],
        )
        editor.add("doctor", forced)

    def _answers(self) -> Tensor:
        return self.backbone.logits(self.backbone.encode(self.questions[:1], ANSWERS[:1]))

    def _within(self, difference: float) -> str:
        # Rounding of quantized activations depends on the other rows of the batch.
        quantized = getattr(self.backbone.model, "is_quantized", False)
        allowed = 0.2 if quantized else _TOLERANCES.get(self.backbone.dtype, 0.2)
        if not difference <= allowed:
            raise _BrokenError(f"They differ by {difference:.1e} of the largest value; {allowed:.0e} is allowed.")
        return f"within {difference:.0e} of the largest value"


def _found(backbone: Backbone) -> dict[str, Any]:
    config = backbone.model.config
    known = config.model_type in known_model_types()
    return {
        "model": type(backbone.model).__name__,
        "family": f"{config.model_type} ({'covered by the contract tests' if known else 'by the general rules'})",
        "decoder": f"{len(backbone.layers)} layers of width {backbone.width} ({_path(backbone)})",
        "head": f"{type(backbone.output_embeddings).__name__}, {config.get_text_config().vocab_size} tokens",
        "precision": str(backbone.dtype).removeprefix("torch."),
        "devices": ", ".join(sorted({str(backbone.layer_device(layer)) for layer in range(len(backbone.layers))})),
        "image tokens": _image_tokens(backbone),
        "prompt": backbone.prompt_text(Question("QUESTION", _image((336, 336)) if backbone.reads_images else None)),
        "end of an answer": repr(backbone.tokenizer.decode([backbone.end_token_id])),
    }


def _path(backbone: Backbone) -> str:
    return next(
        (f"{name}.layers" for name, part in backbone.model.named_modules() if part is backbone.decoder), "layers"
    )


def _image_tokens(backbone: Backbone) -> str:
    if not backbone.reads_images:
        return "none: text alone"
    sizes = ((336, 336), (448, 448), (640, 320))
    counts = [int(backbone.encode([Question("?", _image(size))]).image_mask.sum()) for size in sizes]
    marker = backbone.image_token_id
    if len(set(counts)) == 1:
        return f"{counts[0]} for any image (token id {marker})"
    listed = ", ".join(f"{width} x {height}: {count}" for (width, height), count in zip(sizes, counts, strict=True))
    return f"by the image's size ({listed}; token id {marker})"


def _plan(backbone: Backbone, layer: int) -> dict[str, Any]:
    config = ReferenceEditor.new_config(backbone)
    with torch.device("meta"):
        parameters = sum(value.numel() for value in ReferenceEditor.new_modules(backbone, config).parameters())
    features = config.feature_parts * config.module_width
    expert_bytes = 4 * (2 * config.rank * config.width + 2 * features)
    model_bytes = sum(value.numel() * value.element_size() for value in backbone.model.parameters())
    return {
        "edit_layer": layer,
        "layers": len(backbone.layers),
        "model_bytes": model_bytes,
        "editor_parameters": parameters,
        "editor_bytes": 4 * parameters,
        "editor_training_bytes": 16 * parameters,
        "edits": EDITS_PLANNED,
        "edits_bytes": EDITS_PLANNED * expert_bytes,
        "bytes_per_edit": expert_bytes,
        "module_width": config.module_width,
        "rank": config.rank,
        "untrained": None,
    }


def _untrained_plan(backbone: Backbone, question: Question) -> dict[str, Any] | None:
    """What an edit costs with the editor that needs no training; None if that editor gives no size.

    memory_bytes_per_edit: of its tensors. store_bytes_per_edit: in the edits file, without texts, evidence and image.
    bytes_per_answer_token: what each further token of the answer adds.
    """
    kind = expert_editor_class(UNTRAINED_EDITOR)
    made = [kind.sized_expert(backbone, Edit(question, answer)) for answer in _PLANNED_ANSWERS]
    short, long = made
    if not isinstance(short, Expert) or not isinstance(long, Expert):
        return None
    tokens = (long.rank or 0) - (short.rank or 0)
    return {
        "editor": kind.name,
        "answer": _PLANNED_ANSWERS[0],
        "rank": short.rank,
        "memory_bytes_per_edit": short.store_bytes,
        "store_bytes_per_edit": len(expert_to_bytes(short)),
        "bytes_per_answer_token": (long.store_bytes - short.store_bytes) // tokens if tokens else None,
    }


def _warnings(backbone: Backbone) -> Iterator[str]:
    model = backbone.model
    if model.config.model_type not in known_model_types():
        yield f"The family {model.config.model_type!r} is not covered by the contract tests; rely on the checks above."
    if not backbone.reads_images:
        yield (
            "There is no image to route by: edits are routed by the prompt alone (scope text+image). Train an editor "
            "with `liveedit train --data facts`, or with questions of your own without images."
        )
    if getattr(model, "is_quantized", False):
        yield "The weights are quantized: fine-tuning editors cannot change them; editors with experts need not."
    if "cpu" in (places := {str(value) for value in getattr(model, "hf_device_map", {}).values()}) or "disk" in places:
        yield "Part of the model is offloaded: every pass moves weights, and training will be slow."
    if backbone.first_edit_layer:
        yield f"Edit layers before {backbone.first_edit_layer} are not possible: they add image features again."
    if not getattr(backbone.processor, "chat_template", None) and not backbone.tokenizer.chat_template:
        yield "There is no chat template: prompts use the family's plain format."
    yield "torch.compile works around the edit layer; with fullgraph=True it refuses."


def _image(size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    width, height = size
    pen.ellipse((width // 8, height // 8, width // 2, height // 2), fill="red")
    pen.rectangle((width // 2, height // 2, width - 9, height - 9), fill="blue")
    return image


def _difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value of `wanted`; the tensors may be on two devices."""
    wanted = wanted.float().to(found.device)
    return float((found.float() - wanted).abs().max() / wanted.abs().max())
