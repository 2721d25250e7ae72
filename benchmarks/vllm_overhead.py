"""What edits cost inside vLLM: throughput and time to first token beside vLLM without the plugin, in one run.

Two servers are started on the same model: `vllm serve` alone, and with the plugin and some number of edits. Clients
stream answers; both servers answer the same questions in turns. Edits are made up: they have the experts of a few real
edits, and features in random directions. `--firing N` makes N real edits of the questions that are asked, which are the
same ones in all rounds then.

`edited_throughput`: answers per second over those of vLLM alone, and `edited_error`, its standard error;
`edited_first_token`: the time to the first token over that of vLLM alone; `unedited_...`: of requests that ask for the
unedited model. Higher is better for throughput, lower for first tokens.

    .vllm-env/bin/python benchmarks/vllm_overhead.py --model tiny-llava --edits 0 1000 10000 --clients 1 16

On a GPU, with a model in a folder:

    VLLM_USE_V2_MODEL_RUNNER=0 python benchmarks/vllm_overhead.py --model llava-1.5-7b-hf --dtype bfloat16 \\
        --calibration calibration --vllm='--compilation-config={"cudagraph_mode": "PIECEWISE"}'
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import torch
from torch.nn import functional as F

from liveedit.backbones import BUILT_IN, Backbone, built_in_folder, load_backbone
from liveedit.editors import default_editor, expert_editor_class
from liveedit.editors.shared.routed_editor import RoutedEditor
from liveedit.experts import LowRankExpert
from liveedit.experts.expert import expert_to_bytes
from liveedit.samples import Edit, Question
from liveedit.store.store import EditStore, NewEdit
from liveedit.testing import random_image

TOKENS = 16
START_SECONDS = 600
"""Until a server answers: it compiles the model first."""
LOW_PRIORITY = 15
_ROUTED = ("visual_feature", "prompt_feature", "query_feature")


def questions(backbone: Backbone, numbers: Iterable[int]) -> list[Question]:
    """Different questions, about different images if the model reads them."""
    found = []
    for number in numbers:
        image = random_image(number) if backbone.reads_images else None
        found.append(Question(f"Number {number}: what is its name, and who gave it?", image))
    return found


def fill(file: Path, backbone: Backbone, editor: RoutedEditor, asked: Sequence[Question], count: int, firing: int):
    """A store of `count` edits: the first `firing` of them are real."""
    real = [editor.make_expert(Edit(question, "Bruvak"))[0] for question in asked[: max(firing, min(count, 4))]]
    generator = torch.Generator().manual_seed(0)
    partial = file.with_suffix(".partial")
    for left in file.parent.glob(f"{partial.name}*"):  # Of a run that was interrupted.
        left.unlink()
    with EditStore(partial) as store:
        store.bind(backbone.digest(), editor.digest(), backbone=backbone.name, editor=editor.name)
        for place in range(count):
            expert = real[place] if place < firing else turned(real[place % len(real)], generator)
            edit = NewEdit(
                prompt=f"made up {place}", answer="Bruvak", editor=editor.name, milliseconds=0.0, refine_steps=0
            )
            store.add(edit, expert_to_bytes(expert))
    if count:
        partial.rename(file)


def turned(expert: LowRankExpert, generator: torch.Generator) -> LowRankExpert:
    """The expert with features of the same lengths in random directions."""
    changed = {}
    for name in _ROUTED:
        feature = getattr(expert, name)
        direction = F.normalize(torch.randn(feature.shape, generator=generator), dim=0)
        changed[name] = direction * feature.norm()
    return replace(expert, **changed)


@dataclass(frozen=True)
class Server:
    """A server of vLLM that is stopped where it is not `running`."""

    url: str
    group: int
    """Of its processes."""

    @contextmanager
    def running(self) -> Iterator[None]:
        os.killpg(self.group, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.group, signal.SIGSTOP)


def let_the_api_server_run(group: int) -> None:
    """Lower the priority of the other processes of a server of vLLM, which keep all processors busy by waiting.

    On few processors the API server often gets none otherwise: requests come late, batches are small, and the same
    round takes one second or three, with the plugin and without.
    """
    for process in psutil.Process(group).children(recursive=True):
        for thread in process.threads():
            os.setpriority(os.PRIO_PROCESS, thread.id, LOW_PRIORITY)


@contextmanager
def server(folder: Path, name: str, config: dict[str, Any], options: Sequence[str]) -> Iterator[Server]:
    """A server of vLLM, stopped once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(folder), "--served-model-name", name]
    command += ["--port", str(port), "--max-model-len", "512", "--max-num-seqs", "32"]
    command += ["--max-num-batched-tokens", "2048", "--additional-config", json.dumps(config)]
    command += options
    environment = {**os.environ, "VLLM_PLUGINS": "liveedit", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            until = time.monotonic() + START_SECONDS
            while time.monotonic() < until and process.poll() is None:
                with suppress(httpx2.TransportError):
                    if httpx2.get(f"{url}/health").status_code == 200:
                        break
                time.sleep(0.5)
            else:
                log.seek(0)
                raise SystemExit(log.read().decode()[-4000:])
            let_the_api_server_run(process.pid)
            os.killpg(process.pid, signal.SIGSTOP)
            yield Server(url, process.pid)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # Also workers that did not end.
            process.wait()


def ask(client: openai.OpenAI, name: str, question: Question, further: dict[str, Any]) -> float:
    """Seconds to the first token of an answer, which is read to its end."""
    content: list[Any] = [{"type": "text", "text": question.prompt}]
    if question.image is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": uri(question.image)}})
    started, first = time.perf_counter(), 0.0
    messages: list[Any] = [{"role": "user", "content": content}]
    options = {"temperature": 0, "max_tokens": TOKENS, "stream": True, "extra_body": {"ignore_eos": True, **further}}
    for chunk in client.chat.completions.create(model=name, messages=messages, **options):
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - started
    return first


def uri(image: Any) -> str:
    """An image as a data URI."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def measured(url: str, name: str, asked: Sequence[Question], clients: int, further: dict[str, Any]) -> tuple:
    """Seconds until all are answered, and those to each first token."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            firsts = list(pool.map(lambda question: ask(client, name, question, further), asked))
        return time.perf_counter() - started, firsts


def compare(servers: tuple[Server, Server], name: str, new: Callable[[], list[Question]], clients: int, rounds: int):
    """Ratios to vLLM alone, with their standard errors.

    In each round all ways answer the same questions, in an order that changes, and no question comes again in another
    round: nothing is taken from a prefix cache. The server that does not answer is stopped, so that it takes nothing of
    the processors.
    """
    alone, edited = servers
    ways = {"alone": (alone, {}), "edited": (edited, {}), "unedited": (edited, {"vllm_xargs": {"liveedit": "none"}})}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    firsts: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        asked = new()
        for way in random.Random(number).sample(sorted(ways), len(ways)):
            one, further = ways[way]
            with one.running():
                taken, first = measured(one.url, name, asked, clients, further)
            if number:  # The first round warms up.
                seconds[way].append(taken)
                firsts[way].append(statistics.median(first))
    found = {}
    for way in ("edited", "unedited"):
        found[f"{way}_throughput"], found[f"{way}_error"] = ratio(seconds["alone"], seconds[way])
        found[f"{way}_first_token"], _ = ratio(firsts[way], firsts["alone"])
    return {what: round(value, 3) for what, value in found.items()}


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
    """Of two sums over rounds, and its standard error by leaving out a round at a time (jackknife)."""
    count = len(above)
    whole = sum(above) / sum(below)
    if count < 2:
        return whole, float("nan")
    parts = [(sum(above) - above[place]) / (sum(below) - below[place]) for place in range(count)]
    middle = statistics.fmean(parts)
    return whole, ((count - 1) / count * sum((part - middle) ** 2 for part in parts)) ** 0.5


def main() -> None:
    """Prints a JSON line for each number of edits and of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-llava", help="a built-in name, or a folder")
    parser.add_argument("--editor", help="by default liveedit for tiny-llava, else the default editor")
    parser.add_argument("--calibration", type=Path, help="folder for the calibration of fitted experts")
    parser.add_argument("--dtype", default="float32", help="of vLLM")
    parser.add_argument("--vllm", action="append", default=[], help="an option of vllm serve, for both servers")
    parser.add_argument("--edits", type=int, nargs="+", default=[0, 1_000, 10_000])
    parser.add_argument("--stores", type=Path, help="folder that keeps the stores of made-up edits for the next run")
    parser.add_argument("--firing", type=int, default=0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--requests", type=int, default=64, help="in each round, by each way")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    name = arguments.model
    folder = built_in_folder(name) if name in BUILT_IN else Path(name)
    backbone = load_backbone(name, device="cpu")
    kind = expert_editor_class(arguments.editor or ("liveedit" if name == "tiny-llava" else default_editor(name)))
    places = itertools.count(arguments.requests)
    asked = questions(backbone, range(arguments.requests))

    def new() -> list[Question]:
        """The questions that have real edits, if there are any, else some that were not asked before."""
        return asked if arguments.firing else questions(backbone, itertools.islice(places, arguments.requests))

    with tempfile.TemporaryDirectory() as work:
        path = str(arguments.calibration or Path(work) / "calibration")
        settings: dict[str, Any] = {"backbone": name, "editor": kind.name}
        if kind.name == "fitted-experts":
            kind.calibrate(backbone, Path(path), {})
            settings["editor_path"] = path
        editor: Any = kind.load(backbone, settings.get("editor_path"))
        options = [f"--dtype={arguments.dtype}", *arguments.vllm]
        if editor.form.residual_tokens != "answer":
            options.append("--no-enable-chunked-prefill")
        files = {}
        for count in arguments.edits:
            firing = min(arguments.firing, count)
            files[count] = (arguments.stores or Path(work)) / f"{folder.name}-{kind.name}-{count}-{firing}.db"
            if not files[count].exists():
                fill(files[count], backbone, editor, asked, count, firing)
        with server(folder, name, {}, options) as alone:
            for count, file in files.items():
                config = {"liveedit": {**settings, "edits": str(file)}}
                with server(folder, name, config, options) as edited:
                    for clients in arguments.clients:
                        row = compare((alone, edited), name, new, clients, arguments.rounds)
                        load = round(os.getloadavg()[0], 1)
                        print(json.dumps({"edits": count, "clients": clients, **row, "load": load}), flush=True)


if __name__ == "__main__":
    main()
