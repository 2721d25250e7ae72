"""How MEND is trained: each case of a batch is edited for itself, and its answers afterwards give the loss.

Everything runs on states before the first edited layer that were computed once; only the edited layers run in a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...backbones import Backbone
from ...backbones.hidden_states import HiddenStateBatch, HiddenStateCache
from ...progress import Progress, no_progress
from ...samples import LOCALITY, EditCase, ProbeName
from ...training.distributed import ALONE, Processes
from ..shared import IN_SCOPE, CaseInputs
from .config import MendConfig
from .factors import Factors, changed, edit_gradients, layer_before, mlp_matrices
from .modules import MendModules

_GATHERED_AT_ONCE = 32


@dataclass(frozen=True)
class _Answers:
    """Logits of edited models for some probes.

    logits: (answer tokens, vocabulary), row by row. batch: the probes. names: the probe of each row.
    """

    logits: Tensor
    batch: HiddenStateBatch
    names: list[str]

    def tokens_of(self, wanted: Sequence[str]) -> Tensor:
        """(answer tokens,) booleans: those of probes with these names."""
        rows = torch.tensor([name in wanted for name in self.names], device=self.batch.roles.device)
        return rows[self.batch.answer_mask.nonzero()[:, 0]]


class MendTask:
    """Cases with their kept states, the loss on batches of them, and what is measured of them."""

    def __init__(
        self,
        backbone: Backbone,
        config: MendConfig,
        cases: Sequence[EditCase],
        store: HiddenStateCache,
        processes: Processes = ALONE,
    ):
        self.backbone, self.config, self.store, self.processes = backbone, config, store, processes
        self.matrices = mlp_matrices(backbone, config.layers)
        self.cases = tuple(cases)
        inputs = CaseInputs.of(self.cases, self._wanted)
        self.items, self._places = inputs.items, inputs.places

    def _wanted(self, number: int, case: EditCase) -> tuple[ProbeName, ...]:
        """What a case is trained on: its scope, and some kinds of locality inputs, which cases take in turn."""
        first = number % len(LOCALITY)
        kinds: list[ProbeName] = [name for name in (*LOCALITY[first:], *LOCALITY[:first]) if case.named(name)]
        return (*IN_SCOPE, *kinds[: self.config.locality_inputs])

    def prepare(self, progress: Progress = no_progress) -> None:
        """Compute the states of every input, once."""
        self.store.fill(self.items, progress=progress)

    # -- loss --------------------------------------------------------------------------------------------

    def loss(
        self, modules: MendModules, stage: str, chosen: Sequence[int], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """c_edit (NLL of edits + NLL of their generality) + c_loc KL(base || edited) on locality inputs.

        Each is averaged over answer tokens; means over processes are those of the batch.
        """
        if not modules.has_statistics:
            self._gather(modules)
        own = chosen[self.processes.share(len(chosen))]
        answers = self._edited(modules, own, self.config.edits_together)
        targets = answers.batch.targets
        nll = F.cross_entropy(answers.logits.float(), targets, reduction="none")
        edit, general, outside = (answers.tokens_of(part) for part in (IN_SCOPE[:1], IN_SCOPE[1:], LOCALITY))
        edited, base = answers.logits[outside], self._base_logits(answers.batch.final[outside])
        kl = F.kl_div(edited.float().log_softmax(-1), base.log_softmax(-1), log_target=True, reduction="none").sum(-1)
        edit_nll, general_nll, locality_kl = self._means(nll[edit], nll[general], kl)
        loss = self.config.edit_weight * (edit_nll + general_nll) + self.config.locality_weight * locality_kl
        (right,) = self._means((answers.logits.argmax(-1) == targets)[~outside].float())
        return loss, {
            "edit_loss_nats": edit_nll.item(),
            "generality_loss_nats": general_nll.item(),
            "kl_nats": locality_kl.item(),
            "token_accuracy": 100 * right.item(),
        }

    def _gather(self, modules: MendModules) -> None:
        """Gather the statistics of gradients, the same in every process."""
        cases = range(min(self.config.statistics_cases, len(self.cases)))
        for start in cases[::_GATHERED_AT_ONCE]:
            modules.gather(self._gradients(cases[start : start + _GATHERED_AT_ONCE]))

    def _gradients(self, cases: Sequence[int]) -> list[Factors]:
        batch = self.store.batch([self._places[case]["reliability"] for case in cases])
        with self._attention():
            return edit_gradients(self.backbone, self.matrices, batch.hidden_states, batch)

    def _edited(self, modules: MendModules, cases: Sequence[int], together: int = 1) -> _Answers:
        """All probes of these cases, answered with the edits of `together` neighbouring cases active."""
        changes = [change.together(together) for change in modules(self._gradients(cases))]
        rows = [(number, name) for number, case in enumerate(cases) for name in self._places[case]]
        batch = self.store.batch([self._places[cases[number]][name] for number, name in rows])
        case = torch.tensor([number // together for number, _ in rows], device=batch.roles.device)
        with self._attention(), changed(self.matrices, changes, case, batch.roles.shape[1]):
            logits = self.backbone.logits_from(
                batch.hidden_states.to(self.backbone.dtype), batch, layer_before(self.matrices), batch.predicting
            )
        return _Answers(logits.to(batch.roles.device), batch, [name for _, name in rows])

    def _attention(self) -> AbstractContextManager[Any]:
        """On a CPU the fused attention's backward takes a third of a step; the plain one is several times faster."""
        on_cpu = self.backbone.device.type == "cpu"
        return sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext()

    def _base_logits(self, final: Tensor) -> Tensor:
        """Logits of the unedited model, from its last hidden states."""
        return self.backbone.head(final.to(self.backbone.dtype)).to(final.device).float()

    def _means(self, *parts: Tensor) -> list[Tensor]:
        """Factors that make means over processes those of all values; a mean of nothing is 0."""
        totals = self.processes.total(*map(len, parts))
        return [part.sum() * (self.processes.count / max(1, total)) for part, total in zip(parts, totals, strict=True)]

    # -- validation --------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, modules: MendModules, chosen: Sequence[int], group: int = 16) -> dict[str, float]:
        """Every case edited for itself on the unedited model: teacher-forced token accuracy in percent by probe.

        Locality compares with the unedited model. The token that ends an answer is not counted.
        """
        names = (*IN_SCOPE, *LOCALITY)
        own = chosen[self.processes.share(len(chosen))]
        counts: dict[str, tuple[int, int]] = dict.fromkeys(names, (0, 0))
        for start in range(0, len(own), group):
            answers = self._edited(modules, own[start : start + group])
            right, counted = self._right(answers)
            for name in names:
                tokens = answers.tokens_of([name]) & counted
                before = counts[name]
                counts[name] = (before[0] + int(right[tokens].sum()), before[1] + int(tokens.sum()))
        found = {name: self.processes.total(*counts[name]) for name in names}
        return {name: 100 * right / total for name, (right, total) in found.items() if total}

    def _right(self, answers: _Answers) -> tuple[Tensor, Tensor]:
        """(answer tokens,) booleans: which are right, and which are counted."""
        batch = answers.batch
        outside = answers.tokens_of(LOCALITY)
        wanted = torch.where(outside, self._base_logits(batch.final).argmax(-1), batch.targets)
        answer = batch.answer_mask
        ends = answer & ~torch.cat([answer[:, 1:], torch.zeros_like(answer[:, :1])], 1)
        alone = answer.sum(1, keepdim=True) == 1
        return answers.logits.argmax(-1) == wanted, (~ends | alone)[answer]
