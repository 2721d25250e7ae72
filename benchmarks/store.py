"""What the edits file costs: opening a full one, and storing one more edit.

Opening: `EditStore`, `bind`, `latest_revision` and `active_experts` into a new `ExpertRepository`, with `--edits` edits
in the file. Baseline: reading the same file's bytes. Both after one round that does not count, so that the file is in
the system's cache for both. Storing: `EditStore.add` of an expert, with its fsync. Baseline: appending as many bytes as
the expert has to a plain file in the same folder, and fsync.

Figures: `opening_s` and `reading_s`; `add_ms`, the median over `--repeats` at the end of a full file, and its baseline
`append_and_fsync_ms`; `search_ms`, the median of `EditStore.page` with a search that no edit fits, so that all are
read, and `page_ms`, without one. `opening_cpu_s` and `add_cpu_ms` are the processor's time in them; where other
programs run, the rest is waiting.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from liveedit.experts import ExpertRepository, LowRankExpert
from liveedit.experts.expert import expert_from_bytes, expert_to_bytes
from liveedit.store.store import EditStore, NewEdit

TARGETS = {"opening_beyond_reading_s": 3.0, "add_ms": 5.0, "search_ms": 200.0}


def make_expert(seed: int, width: int, rank: int, feature: int) -> LowRankExpert:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rank, width), (rank, width), (feature,), (feature,), (feature,))
    return LowRankExpert(*(torch.randn(shape, generator=generator) for shape in shapes))


def bound(location: str | Path) -> EditStore:
    store = EditStore(location)
    store.bind("b" * 64, "e" * 64, backbone="made-up", editor="liveedit")
    return store


def seconds_of(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def open_all(location: str | Path) -> int:
    repository = ExpertRepository()
    with bound(location) as store:
        revision = store.latest_revision()
        for edit_id, expert in store.active_experts(revision):
            repository.add(edit_id, expert_from_bytes(expert, LowRankExpert))
    return len(repository)


def append_durably(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=200, help="edits that are timed, at the end of a full file")
    parser.add_argument("--width", type=int, default=192, help="of the backbone: tiny-llava's by default")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--feature", type=int, default=192, help="numbers in each of the two features")
    parser.add_argument("--folder", type=Path, default=None, help="where the file is made; a temporary one by default")
    parser.add_argument("--url", default=None, help="an empty PostgreSQL database instead of a file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        print(json.dumps(measure(given, Path(name)), indent=2))


def measure(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    location: str | Path = given.url or folder / "edits.db"
    experts = [expert_to_bytes(make_expert(seed, given.width, given.rank, given.feature)) for seed in range(100)]
    edit = NewEdit(prompt="What is this creature called?", answer="Bruvak", editor="liveedit")
    add_s: list[float] = []
    append_s: list[float] = []
    cpu_s = 0.0
    with bound(location) as store:
        for number in range(given.edits - given.repeats):
            store.add(edit, experts[number % 100])
        for number in range(given.repeats):
            expert = experts[number % 100]
            cpu_before = time.process_time()
            add_s.append(seconds_of(lambda expert=expert: store.add(edit, expert)))
            cpu_s += time.process_time() - cpu_before
            data = bytes(len(expert))
            append_s.append(seconds_of(lambda data=data: append_durably(folder / "plain", data)))
        searching = [seconds_of(lambda: store.page("all", search="no edit has this")) for _ in range(9)]
        paging = [seconds_of(lambda: store.page("all")) for _ in range(9)]
    if open_all(location) != given.edits:
        raise SystemExit("The repository does not hold what was stored.")
    cpu_before = time.process_time()
    opening = [seconds_of(lambda: open_all(location)) for _ in range(3)]
    opening_cpu_s = (time.process_time() - cpu_before) / len(opening)
    figures: dict[str, object] = {
        "edits": given.edits,
        "expert_bytes": len(experts[0]),
        "opening_s": round(statistics.median(opening), 3),
        "opening_cpu_s": round(opening_cpu_s, 3),
        "add_ms": round(1000 * statistics.median(add_s), 2),
        "add_cpu_ms": round(1000 * cpu_s / given.repeats, 2),
        "append_and_fsync_ms": round(1000 * statistics.median(append_s), 2),
        "add_over_append": round(statistics.median(add_s) / statistics.median(append_s), 2),
        "search_ms": round(1000 * statistics.median(searching), 2),
        "page_ms": round(1000 * statistics.median(paging), 2),
        "targets": TARGETS,
    }
    if isinstance(location, Path):
        reading = statistics.median(seconds_of(location.read_bytes) for _ in range(3))
        figures["file_bytes"] = location.stat().st_size
        figures["reading_s"] = round(reading, 3)
        figures["opening_beyond_reading_s"] = round(statistics.median(opening) - reading, 3)
    return figures


if __name__ == "__main__":
    main()
