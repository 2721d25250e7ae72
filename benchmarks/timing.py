"""Interleaved timing, the command line and the output that all benchmarks share."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from shapes import CPU_SHAPES, JUDGED_SHAPES, SHAPES, Shape

Call = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """The options of the command line."""

    shapes: tuple[Shape, ...]
    repeats: int
    threads: int
    device: torch.device


def read_settings(description: str, repeats: int, short: tuple[int, Sequence[str]] | None = None) -> Settings:
    """Parse the command line and set the number of threads.

    repeats: the default, on all CPU shapes. short: repeats and shapes to use instead unless `--long` is given, for
    benchmarks that would take longer than five minutes.
    """
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES), help="several: repeat the option")
    parser.add_argument("--repeats", type=int, help="interleaved repetitions per measurement")
    if short is not None:
        parser.add_argument("--long", action="store_true", help=f"all CPU shapes, {repeats} repetitions")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; llava-7b needs cuda")
    given = parser.parse_args()
    device = torch.device(given.device)
    default_repeats, shapes = (repeats, CPU_SHAPES) if short is None or given.long else short
    names = tuple(given.shape or shapes)
    if device.type == "cpu" and "llava-7b" in names:
        parser.error("llava-7b runs on a GPU only: give --device cuda")
    torch.set_num_threads(given.threads)
    return Settings(
        tuple(SHAPES[name] for name in names), max(1, given.repeats or default_repeats), given.threads, device
    )


def interleaved_seconds(
    calls: Mapping[str, Call], repeats: int, device: torch.device, between: Call = lambda: None
) -> dict[str, list[float]]:
    """Seconds of each call, repetition by repetition: A B A B ..., after one round of warm-up.

    `between` runs before each call and is not timed. Each repetition is printed as it ends.

    On CPUs this is the CPU time of the process over all threads, which waiting for other programs does not increase;
    on GPUs it is wall time, with the device synchronised on both sides.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repeats + 1):
        for name, call in calls.items():
            between()
            seconds = _seconds(call, device)
            if repetition:
                found[name].append(seconds)
        print(f"{', '.join(calls)}: {repetition} of {repeats} repetitions", file=sys.stderr, flush=True)
    return found


def _seconds(call: Call, device: torch.device) -> float:
    gc.collect()
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    _synchronize(device)
    started = clock()
    call()
    _synchronize(device)
    return clock() - started


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ratio(seconds: Mapping[str, Sequence[float]], above: str, *below: str) -> float:
    """Median time of one call over the summed median times of others."""
    return statistics.median(seconds[above]) / sum(statistics.median(seconds[name]) for name in below)


def milliseconds(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median milliseconds of each call."""
    return {f"{name}_ms": round(1000 * statistics.median(values), 3) for name, values in seconds.items()}


def peak_extra_bytes(call: Call, device: torch.device) -> int | None:
    """Peak memory over what is held before the call; None if the system does not report it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = status_bytes("VmRSS")
        call()
        return max(0, status_bytes("VmHWM") - before)
    except (OSError, StopIteration):
        return None


def status_bytes(name: str) -> int:
    """A figure of this process in /proc, such as VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def report(name: str, settings: Settings, found: dict[str, dict[str, Any]], targets: Mapping[str, float]) -> None:
    """Print a table and, as the last line, a JSON object whose top-level figures are the worst of the judged shapes."""
    judged = [shape for shape in found if shape in JUDGED_SHAPES] or list(found)
    worst = {key: max(found[shape][key] for shape in judged) for key in targets}
    table = Table(title=f"{name}: {settings.device}, {settings.threads} threads, {settings.repeats} repetitions")
    table.add_column("figure")
    for column in (*found, "target"):
        table.add_column(column, justify="right")
    for key in dict.fromkeys(key for figures in found.values() for key in figures):
        target = f"<= {targets[key]}" if key in targets else ""
        table.add_row(key, *(_text(figures.get(key)) for figures in found.values()), target)
    Console(width=max(120, Console().width)).print(table)
    summary = {
        "benchmark": name,
        **worst,
        "worst_over": judged,
        "targets": dict(targets),
        "met": {key: worst[key] <= target for key, target in targets.items()},
        "shapes": found,
        "clock": "cpu_time" if settings.device.type == "cpu" else "wall_time",
        "repeats": settings.repeats,
        "threads": settings.threads,
        "device": torch.cuda.get_device_name() if settings.device.type == "cuda" else platform.machine(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }
    print(json.dumps(summary), flush=True)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
