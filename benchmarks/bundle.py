"""What exporting and importing many edits costs: memory that does not grow with experts and images, and time.

A store of `--edits` edits with experts of `--width` is exported whole and imported into an empty file. Figures:
`export_peak_bytes` and `import_peak_bytes`, by how much the process's own memory (`RssAnon`: mapped files, which the
system takes back when it needs room, do not count) rose above what was held before. Beside them `bundle_bytes`, what is
moved, and `records_bytes`, what is said of the edits besides experts and images, which is in memory as a whole.
Baseline: copying the bundle's bytes to another file, with fsync.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from liveedit.experts.expert import expert_to_bytes
from liveedit.store.store import EditStore, NewEdit
from store import bound, make_expert


def own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def measured(call: Callable[[], object]) -> tuple[float, int]:
    """Seconds, and by how many bytes memory rose at most."""
    gc.collect()
    before, highest, is_over = own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not is_over.wait(0.01):
            highest = max(highest, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        call()
    finally:
        seconds = time.perf_counter() - started
        is_over.set()
        watcher.join()
    return seconds, max(0, highest - before)


def copied(source: Path, to: Path) -> None:
    shutil.copyfile(source, to)
    with to.open("rb+") as file:
        os.fsync(file.fileno())


def fill(path: Path, given: argparse.Namespace) -> None:
    experts = [expert_to_bytes(make_expert(seed, given.width, given.rank, given.feature)) for seed in range(20)]
    with bound(path) as store:
        for number in range(given.edits):
            prompt = f"What is creature {number} called?"
            edit = NewEdit(prompt=prompt, answer=f"Bruvak {number}", editor="liveedit")
            store.add(edit, experts[number % 20])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--edits", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--feature", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=None, help="where files are made; a temporary one by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        bundle = folder / "bundle.safetensors"
        fill(folder / "edits.db", given)
        with EditStore(folder / "edits.db") as store, EditStore(folder / "other.db") as other:
            exporting, export_peak = measured(lambda: store.export_bundle(bundle))
            importing, import_peak = measured(lambda: other.import_bundle(bundle))
            same = other.list() == store.list() and len(other) == given.edits
        copying, _ = measured(lambda: copied(bundle, folder / "copy"))
        with safe_open(bundle, framework="np") as reader:
            records = reader.get_slice("records").get_shape()[0]
        figures = {
            "edits": given.edits,
            "bundle_bytes": bundle.stat().st_size,
            "records_bytes": records,
            "export_peak_bytes": export_peak,
            "import_peak_bytes": import_peak,
            "export_s": round(exporting, 2),
            "import_s": round(importing, 2),
            "copy_and_fsync_s": round(copying, 2),
            "the_same": same,
        }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
