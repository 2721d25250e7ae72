"""Linear layers of the built-in models on oneDNN over the same on MKL, what PyTorch uses by default.

Each shape (rows, in, out) is run by both in turn on one thread, in float32 without gradients; the figure is the ratio
of the least times. Also printed: the largest difference of each from products in float64, and whether `load_backbone`
uses oneDNN on this processor.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from torch import Tensor, nn

from liveedit.backbones.linear import OneDnnLinear, is_worthwhile

SHAPES = ((34, 192, 512), (34, 512, 192), (1632, 192, 512), (1632, 512, 192), (1632, 192, 192))
"""One question of tiny-llava, and 48 in a batch."""
ROUNDS, CALLS = 8, 20


@torch.no_grad()
def measure(rows: int, width: int, out: int) -> dict[str, object]:
    torch.manual_seed(0)
    plain = nn.Linear(width, out, bias=False)
    fast = nn.Linear(width, out, bias=False)
    fast.weight = plain.weight
    fast.__class__ = OneDnnLinear
    given = torch.randn(rows, width)
    exact = given.double() @ plain.weight.double().T
    layers = {"mkl": plain, "onednn": fast}
    times = {name: min(seconds(layer, given) for _ in range(ROUNDS)) for name, layer in layers.items()}
    errors = {name: float((layer(given).double() - exact).abs().max()) for name, layer in layers.items()}
    return {"shape": [rows, width, out], "speedup": round(times["mkl"] / times["onednn"], 2), "error": errors}


def seconds(layer: nn.Module, given: Tensor) -> float:
    started = time.perf_counter()
    for _ in range(CALLS):
        layer(given)
    return time.perf_counter() - started


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    found = []
    for shape in SHAPES:
        found.append(measure(*shape))
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"benchmark": "linear_layers", "used_here": is_worthwhile(), "layers": found}), flush=True)


if __name__ == "__main__":
    main()
