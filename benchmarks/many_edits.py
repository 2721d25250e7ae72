"""What a question costs beside many stored edits, and the memory that they take: 1,000 to 1,000,000.

The editor is `fitted-experts` on a language model, its experts in memory-mapped files (`experts_on="host"`). Features
of edits are made up: directions drawn at random, but for a share of `--near` that are as similar to the contents of
one of the questions as two texts must be to be compared token by token (cosine 0.45). Experts are those of answers of
one token.

`over_unedited`: processor time of four questions, one by one, up to 16 new tokens, over that with the editor paused;
`batch_over_unedited`: in one batch. `memory_mb`: resident memory of the process, without pages of files;
`file_pages_mb`: pages of files that are mapped at the moment, weights of the model among them, which the system can
take back; `add_ms`: milliseconds of adding one expert.

    python benchmarks/many_edits.py --backbone SmolLM2-135M-Instruct.Q4_1.gguf --counts 1000 10000 100000 1000000
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from liveedit.answering import Answering
from liveedit.backbones import load_backbone
from liveedit.editors import editor_class
from liveedit.editors.shared.routed_editor import RoutedEditor
from liveedit.experts import LowRankExpert
from liveedit.samples import Question
from timing import interleaved_seconds, median_ratio, status_bytes

QUESTIONS = (
    "Who wrote the novel Middlemarch?",
    "What is the capital of Mongolia?",
    "In which year was the Suez Canal opened?",
    "Which language is spoken in Suriname?",
)
NEW_TOKENS = 16
NEAR = 0.45
"""Cosine of the contents of a near edit and of a question."""


class MadeUpExperts:
    """Experts with features at random, a share of them near to one of the questions."""

    def __init__(self, editor: RoutedEditor, questions: Sequence[Question], near: float):
        query = editor.query(editor.read(editor.backbone.encode(questions, padding="left")))
        self._visual, self._prompt = query.visual.clone(), query.prompt
        self._visual[:, -1] = 0.0  # As `StateSimilarities.edit_features`.
        self._width, self._near = editor.backbone.width, near
        self._generator = torch.Generator().manual_seed(0)

    def next(self) -> LowRankExpert:
        """Another expert, different from all before."""
        width, generator = self._width, self._generator
        place = int(torch.randint(len(self._visual), (), generator=generator))
        is_near = float(torch.rand((), generator=generator)) < self._near
        content = F.normalize(torch.randn(width, generator=generator), dim=0)
        if is_near:
            content = F.normalize(NEAR * self._visual[place, :width] + (1 - NEAR**2) ** 0.5 * content, dim=0)
        visual = torch.cat([content, self._visual[place, width:]])
        # The tokens of a question, turned: as many, of the same weights, and similar to none of a question.
        prompt = self._prompt[place].clone()
        prompt[: 8 * width] = prompt[: 8 * width].roll(width // 2)
        factors = torch.randn(2, 1, width, generator=generator)
        return LowRankExpert(factors[0], factors[1], visual, prompt, torch.cat([content, content]))


def main() -> None:
    """Prints a JSON line for each number of edits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny-llama-lm")
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--near", type=float, default=0.002)
    parser.add_argument("--folder", type=Path, help="where the files of experts are; the system's temporary folder")
    parser.add_argument("--experts-on", default="host", choices=["host", "device"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    backbone, questions = load_backbone(given.backbone), [Question(text) for text in QUESTIONS]
    with editor_class("fitted-experts").load(backbone) as editor:
        editor.keep_experts_on(given.experts_on, given.folder)  # type: ignore[attr-defined]
        made, asking = MadeUpExperts(editor, questions, given.near), Answering(backbone, editor)  # type: ignore[arg-type]

        def ask(edited: bool, batch: int) -> None:
            if edited:
                list(asking.ask_all(questions, NEW_TOKENS, batch=batch))
            else:
                with asking.unedited() as plain:
                    list(plain.ask_all(questions, NEW_TOKENS, batch=batch))

        held = 0
        for count in sorted(given.counts):
            started = time.process_time()
            for number in range(held, count):
                editor.add(f"edit{number}", made.next())  # type: ignore[attr-defined]
                if number % 10_000 == 0:
                    print(f"{number:,} of {count:,} edits", end="\r", flush=True)
            adding, held = (time.process_time() - started) / max(1, count - held), count
            calls = {
                "plain": lambda: ask(False, 1),
                "edited": lambda: ask(True, 1),
                "plain batch": lambda: ask(False, len(questions)),
                "edited batch": lambda: ask(True, len(questions)),
            }
            seconds = interleaved_seconds(calls, given.repeats, backbone.device)
            found = {
                "edits": count,
                "over_unedited": round(median_ratio(seconds, "edited", "plain"), 3),
                "batch_over_unedited": round(median_ratio(seconds, "edited batch", "plain batch"), 3),
                "memory_mb": round(status_bytes("RssAnon") / 2**20),
                "file_pages_mb": round(status_bytes("RssFile") / 2**20),
                "add_ms": round(1000 * adding, 3),
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
