"""`vllm serve` as a process of its own, with the plugin, which ends with the tests whatever ends those."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
from served_process import START_SECONDS, die_with_parent, free_port

from liveedit.backbones import BUILT_IN, built_in_folder


class VllmProcess:
    """A server of a model in float32, and a client of it. name: built-in, or a folder.

    settings: of the plugin; None for vLLM alone.
    """

    def __init__(self, name: str, settings: dict[str, Any] | None, log: Path, *options: object):
        self.port, self.log, self.name = free_port(), log, name
        self.url = f"http://127.0.0.1:{self.port}"
        config = {} if settings is None else {"liveedit": {"backbone": name, **settings}}
        sizes = {"--max-model-len": 256, "--max-num-seqs": 16, "--max-num-batched-tokens": 1024}
        command: list[object] = [Path(sys.executable).parent / "vllm", "serve"]
        command.append(built_in_folder(name) if name in BUILT_IN else name)
        command += ["--served-model-name", name, "--dtype", "float32", "--port", self.port]
        command += [part for pair in sizes.items() for part in pair]
        command += ["--no-enable-chunked-prefill", "--additional-config", json.dumps(config), *options]
        further = {"OMP_NUM_THREADS": "1", "VLLM_PLUGINS": "liveedit", "VLLM_CPU_KVCACHE_SPACE": "1"}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdout=output,
                stderr=output,
                env={**os.environ, **further},
                preexec_fn=_own_group,
            )
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)
        self.http = httpx2.Client(base_url=self.url, timeout=120)

    def wait_until_ready(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                if self.http.get("/health").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"vLLM did not start within {START_SECONDS} s: {self.log.read_text()[-4000:]}")

    def ask(self, content: Any, **further: Any) -> Any:
        """The answer to a question about an image, as the `openai` client gives it."""
        messages: list[Any] = [{"role": "user", "content": content}]
        options = {"temperature": 0, "max_tokens": 16, **further}
        return self.openai.chat.completions.create(model=self.name, messages=messages, **options)

    def kill(self) -> None:
        """All of its processes at once, as the kernel does where memory ends."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._close()

    def stop(self) -> None:
        """As an operator does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            finally:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._close()

    def _close(self) -> None:
        self.openai.close()
        self.http.close()


def _own_group() -> None:
    os.setpgrp()
    die_with_parent()
