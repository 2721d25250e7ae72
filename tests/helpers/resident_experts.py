"""A process of its own that adds experts to a repository and prints by how many bytes its resident memory grew.

`python resident_experts.py PLACE FOLDER COUNT WIDTH`, where PLACE is "device" or "host".
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from liveedit.experts import ExpertRepository, LowRankExpert


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


def main() -> None:
    place, folder, count, width = sys.argv[1:]
    repository = ExpertRepository(experts_on=place, folder=folder)  # type: ignore[arg-type]
    factors, feature = torch.randn(2, 4, int(width)), torch.randn(32)
    repository.add("first", LowRankExpert(factors[0], factors[1], feature, feature, feature))
    before = resident()
    for number in range(int(count)):
        repository.add(str(number), LowRankExpert(factors[0], factors[1], feature, feature, feature))
    print(resident() - before)


if __name__ == "__main__":
    main()
