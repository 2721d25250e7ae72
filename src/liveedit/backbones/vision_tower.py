"""The vision tower, and ways to run it once for an image that is asked about many times."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

_VISION_TOWERS: Final = ("vision_tower", "vision_model", "visual")
_MOST_BYTES: Final = 1 << 28
"""Most memory that kept outputs take by default."""


def find_vision_tower(model: nn.Module, outside: nn.Module | None = None) -> nn.Module | None:
    """The vision tower of a model, if there is one that is known. It does not contain the module `outside`."""
    for wanted in _VISION_TOWERS:
        for name, module in model.named_modules():
            if name.rpartition(".")[2] == wanted and all(inner is not outside for inner in module.modules()):
                return module
    return None


@contextmanager
def computed_once(module: nn.Module | None) -> Iterator[None]:
    """Inside, the module computes its first call and answers all others with what it gave then."""
    kept: list[Any] = []

    def first_or_kept(forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        if not kept:
            with torch.no_grad():
                kept.append(forward(*arguments, **keywords))
        return copy.copy(kept[0])  # Some families write what they compute of it into the same object.

    with _forward_replaced(module, first_or_kept):
        yield


class SeenImages:
    """Outputs of a model's vision tower, by image: inside `used`, an image that was seen is not computed again.

    Each image is computed alone, so that its output does not depend on the others of its batch. Outputs that were not
    used for the longest time go when all take more than `most_bytes`. Towers that take more than one tensor (Qwen) or
    give something that has no row for each image run as they are. One object is for one thread at a time.
    """

    def __init__(self, model: nn.Module, most_bytes: int = _MOST_BYTES):
        self._tower, self._most_bytes = find_vision_tower(model), most_bytes
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._bytes = 0

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the tower computes images that it has not seen. Its weights must be the same as before."""
        with _forward_replaced(self._tower, self._answer):
            yield

    def _answer(self, forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        given = [value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)]
        if len(given) != 1 or given[0].ndim != 4 or given[0].requires_grad:
            return forward(*arguments, **keywords)

        def alone(image: Tensor) -> Any:
            placed = [image if value is given[0] else value for value in arguments]
            named = {name: image if value is given[0] else value for name, value in keywords.items()}
            with torch.inference_mode(False), torch.no_grad():
                return forward(*placed, **named)

        outputs = [self._of(image, alone) for image in given[0].split(1)]
        try:
            return _joined(outputs)
        except _NotByImageError:
            return forward(*arguments, **keywords)

    def _of(self, image: Tensor, compute: Callable[[Tensor], Any]) -> Any:
        key = _digest(image)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        found = self._kept[key] = compute(image)
        self._bytes += _size(found)
        while self._bytes > self._most_bytes and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return found


class _NotByImageError(Exception):
    """An output that has no row for each image."""


def _joined(outputs: list[Any]) -> Any:
    """The output for a batch, from the outputs for its images."""
    first = outputs[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        if not first.ndim or len(first) != 1:
            raise _NotByImageError
        return torch.cat(outputs)
    if isinstance(first, tuple):
        return tuple(_joined(list(parts)) for parts in zip(*outputs, strict=True))
    if isinstance(first, dict):  # What transformers returns.
        return type(first)(**{name: _joined([output[name] for output in outputs]) for name in first})
    raise _NotByImageError


def _size(output: Any) -> int:
    if isinstance(output, Tensor):
        return output.numel() * output.element_size()
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else ()
    return sum(_size(part) for part in parts)


def _digest(image: Tensor) -> str:
    content = image.detach().contiguous().cpu().view(torch.uint8).numpy()
    return hashlib.sha256(f"{image.dtype} {tuple(image.shape)}".encode() + content.tobytes()).hexdigest()


_replacing: Final = threading.Lock()
"""Held while a module's forward is replaced or put back."""


class _ForwardByThread:
    """In place of a module's forward: each thread that replaced it gets its own answers, all others the original's."""

    def __init__(self, module: nn.Module):
        self.original = module.forward
        self.answers: dict[int, Callable[..., Any]] = {}
        self._own = module.__dict__.get("forward")  # Libraries that spread a model over devices put one there.
        module.forward = self

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.answers.get(threading.get_ident(), self.original)(*arguments, **keywords)

    def remove(self, module: nn.Module) -> None:
        """Give the module its own forward back."""
        del module.forward
        if self._own is not None:
            module.forward = self._own


@contextmanager
def _forward_replaced(module: nn.Module | None, answer: Callable[..., Any]) -> Iterator[None]:
    """Inside, `answer` is called with the module's own forward and its arguments, for the calling thread alone.

    Other threads may do the same meanwhile. Without a module nothing changes.
    """
    if module is None:
        yield
        return
    thread = threading.get_ident()
    with _replacing:
        found = module.__dict__.get("forward")
        replaced = found if isinstance(found, _ForwardByThread) else _ForwardByThread(module)
        before = replaced.answers.get(thread)
        replaced.answers[thread] = partial(answer, before or replaced.original)
    try:
        yield
    finally:
        with _replacing:
            del replaced.answers[thread]
            if before is not None:
                replaced.answers[thread] = before
            if not replaced.answers:
                replaced.remove(module)
