"""Many clients at once against `liveedit serve`, while edits are made and undone: speed, errors, wrong answers.

A server of the built-in model is started as a process of its own. One client asks, one question after the other
("single"); then `--clients` do at once ("load"), while another makes and undoes edits without pause. Both take
`--seconds`, the single client half of them before the load and half after it, because machines get faster and slower; a
warm-up of the load does not count.

Every answer is checked: questions whose answers no edit touches must be answered as before the load; a question that
is edited must be answered as before or as edited, and, where no edit or undo of it was under way, as the last one left
it. Refusals with 429 are counted and asked again after the time that the server names; anything else is an error.

Figures: `throughput_ratio`, answers per second under load over those of the single client, target >= 4; `errors` and
`wrong`, target 0; `server_cpu_ms_per_answer`, which other programs on the machine touch less (the edits' time counts
in); `memory_growth`, resident bytes of the server at the end of the load over those after three tenths of it;
`memory_mib`, the same before the load and after each tenth of it.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import httpx2

from liveedit.datasets import read
from liveedit.datasets.world import write_world
from liveedit.images import open_image
from liveedit.samples import EditCase

MODEL = "tiny-llava"
QUESTIONS, EDITED = 48, 4
_JSON = {"Content-Type": "application/json"}


@dataclass
class Pair:
    """A question, and what may be answered: `expected` is None while an edit of it is under way."""

    prompt: str
    body: bytes
    """JSON, ready to be sent: the client's own work is not what is measured."""
    allowed: set[str]
    expected: str | None
    changes: int = 0
    """How often its answer was about to change or had changed: an answer is judged exactly only if this stood still."""


@dataclass
class Counts:
    answers: int = 0
    refused_429: int = 0
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Server:
    """`liveedit serve` as a process."""

    def __init__(self, folder: Path, options: Sequence[str]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "liveedit", "serve", "--backbone", MODEL, "--edits", str(folder / "edits.db")]
        command += ["--port", str(port), "--no-auth", *options]
        self.process = subprocess.Popen(command)
        until = time.monotonic() + 180
        while time.monotonic() < until:
            try:
                httpx2.get(f"{self.url}/readyz")
                return
            except httpx2.TransportError:
                time.sleep(0.2)
        raise TimeoutError("The server did not start within 180 s.")

    def resident_bytes(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

    def cpu_seconds(self) -> float:
        parts = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    def batches(self) -> tuple[float, float]:
        """How many questions were answered, and in how many batches."""
        lines = [line.split() for line in httpx2.get(f"{self.url}/metrics").text.splitlines()]
        found = {line[0]: float(line[1]) for line in lines if len(line) == 2}
        return found["liveedit_batch_size_sum"], found["liveedit_batch_size_count"]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def data_uri(case: EditCase) -> str:
    stream = io.BytesIO()
    image = case.edit.question.image
    assert image is not None
    open_image(image).save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def chat_body(case: EditCase) -> bytes:
    parts = [
        {"type": "text", "text": case.edit.question.prompt},
        {"type": "image_url", "image_url": {"url": data_uri(case)}},
    ]
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": parts}]}).encode()


def ask(client: HTTPConnection, pair: Pair, counts: Counts) -> None:
    """One question, asked again while it is refused with 429, and its answer checked."""
    while True:
        changes, started = pair.changes, time.monotonic()
        try:
            client.request("POST", "/v1/chat/completions", pair.body, _JSON)
            response = client.getresponse()
            body = response.read()
        except (OSError, HTTPException) as error:
            client.close()
            with counts.lock:
                counts.errors.append(repr(error))
            return
        if response.status != 429:
            break
        with counts.lock:
            counts.refused_429 += 1
        time.sleep(float(response.headers["retry-after"]))
    expected = pair.expected
    with counts.lock:
        if response.status != 200:
            counts.errors.append(f"{response.status} {body[:200]!r}")
            return
        text = json.loads(body)["choices"][0]["message"]["content"]
        counts.answers += 1
        counts.latencies.append(time.monotonic() - started)
        stood_still = changes == pair.changes and expected is not None
        if text not in pair.allowed or (stood_still and text != expected):
            counts.wrong.append(f"{text!r}, not {expected!r}: {pair.prompt}")


def keep_asking(url: str, pairs: list[Pair], first: int, until: float, counts: Counts) -> None:
    # Not httpx2: 64 of its clients would take a core from the server.
    with closing(HTTPConnection(url.removeprefix("http://"), timeout=120)) as client:
        turn = first
        while time.monotonic() < until:
            ask(client, pairs[turn % len(pairs)], counts)
            turn += 1


def keep_editing(url: str, edited: list[tuple[Pair, EditCase]], until: float, counts: Counts) -> int:
    """Make and undo one edit after the other; returns how many."""
    made = 0
    with httpx2.Client(base_url=url, timeout=120) as client:
        while time.monotonic() < until:
            pair, case = edited[made % len(edited)]
            before, pair.expected = pair.expected, None
            pair.changes += 1
            wanted = {"prompt": case.edit.question.prompt, "answer": case.edit.answer, "image": data_uri(case)}
            response = client.post("/v1/edits", json=wanted)
            if response.status_code != 201:
                counts.errors.append(f"edit: {response.status_code} {response.text[:200]}")
                continue
            pair.changes += 1
            pair.expected = response.json()["evidence"]["answer_after"]
            time.sleep(0.2)
            pair.expected = None
            pair.changes += 1
            undone = client.post(f"/v1/edits/{response.json()['id']}/undo")
            if undone.status_code != 200:
                counts.errors.append(f"undo: {undone.status_code} {undone.text[:200]}")
                continue
            pair.changes += 1
            pair.expected = before
            made += 1
    return made


def known_pairs(url: str, cases: list[EditCase]) -> list[Pair]:
    """What the unedited model answers, one by one."""
    pairs = []
    with httpx2.Client(base_url=url, timeout=120) as client:
        for case in cases:
            body = chat_body(case)
            answer = client.post("/v1/chat/completions", content=body, headers=_JSON).json()
            text = answer["choices"][0]["message"]["content"]
            pairs.append(Pair(case.edit.question.prompt, body, {text}, text))
    return pairs


def run_single(server: Server, pairs: list[Pair], seconds: float, counts: Counts) -> tuple[float, float]:
    """One client alone; returns seconds of the clock, and of the server's processor."""
    started, cpu = time.monotonic(), server.cpu_seconds()
    keep_asking(server.url, pairs, 0, started + seconds, counts)
    return time.monotonic() - started, server.cpu_seconds() - cpu


def run_load(
    server: Server, pairs: list[Pair], edited: list[tuple[Pair, EditCase]], clients: int, seconds: float
) -> Any:
    counts = Counts()
    made: list[int] = []
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=keep_asking, args=(server.url, pairs, 7 * number, until, counts))
        for number in range(clients)
    ]
    threads.append(threading.Thread(target=lambda: made.append(keep_editing(server.url, edited, until, counts))))
    memory = [server.resident_bytes()]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for tenth in range(1, 11):
        time.sleep(max(0.0, started + tenth * seconds / 10 - time.monotonic()))
        memory.append(server.resident_bytes())
        print(f"load: {tenth} of 10, {counts.answers:,} answers", file=sys.stderr, flush=True)
    for thread in threads:
        thread.join()
    return counts, counts.answers / (time.monotonic() - started), made[0], memory


def measure(clients: int, seconds: float, options: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder, seed=11, train=0, eval=QUESTIONS)
        cases = list(read("mmedit", folder / "eval.json", folder))[:QUESTIONS]
        server = Server(folder, options)
        try:
            pairs = known_pairs(server.url, cases)
            edited = list(zip(pairs[:EDITED], cases[:EDITED], strict=True))
            for pair, case in edited:
                pair.allowed.add(case.edit.answer)
            single = Counts()
            print(f"one client for {seconds / 2:.0f} s", file=sys.stderr, flush=True)
            times = [run_single(server, pairs, seconds / 2, single)]
            run_load(server, pairs, edited, clients, min(3.0, seconds))
            cpu, before = server.cpu_seconds(), server.batches()
            counts, rate, made, memory = run_load(server, pairs, edited, clients, seconds)
            load_cpu = (server.cpu_seconds() - cpu) / counts.answers
            after = server.batches()
            times.append(run_single(server, pairs, seconds / 2, single))
        finally:
            server.stop()
    latencies = sorted(counts.latencies)
    single_rate, single_cpu = single.answers / sum(wall for wall, _ in times), sum(cpu for _, cpu in times)
    return {
        "benchmark": "serving_load",
        "throughput_ratio": round(rate / single_rate, 2),
        "target": 4.0,
        "answers_per_second": round(rate, 1),
        "single_answers_per_second": round(single_rate, 1),
        "server_cpu_ms_per_answer": {
            "single": round(1000 * single_cpu / single.answers, 1),
            "load": round(1000 * load_cpu, 1),
        },
        "answers": counts.answers,
        "errors": len(counts.errors) + len(single.errors),
        "wrong": len(counts.wrong) + len(single.wrong),
        "refused_429": counts.refused_429,
        "edits_made_and_undone": made,
        "latency_ms": {
            "median": round(1000 * latencies[len(latencies) // 2]),
            "p99": round(1000 * latencies[int(0.99 * len(latencies))]),
        },
        "single_latency_ms": round(1000 * sorted(single.latencies)[len(single.latencies) // 2]),
        "mean_batch": round((after[0] - before[0]) / (after[1] - before[1]), 1),
        "memory_growth": round(memory[-1] / memory[3], 3),
        "memory_mib": [size >> 20 for size in memory],
        "first_errors": (counts.errors + single.errors)[:3],
        "first_wrong": (counts.wrong + single.wrong)[:3],
        "clients": clients,
        "seconds": seconds,
        "options": list(options),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Measure and report; exit code 1 for errors or wrong answers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    # Further options are those of `liveedit serve`, such as --workers 1 or --load dtype=bfloat16.
    given, options = parser.parse_known_args()
    found = measure(given.clients, given.seconds, options)
    print(json.dumps(found))
    if found["errors"] or found["wrong"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
