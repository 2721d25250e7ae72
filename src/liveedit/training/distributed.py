"""The processes of a training: one, or several that `torchrun` started, each with its share of every batch.

Gradients and figures are averaged over the processes. A loss is therefore right if its *mean* over processes is the
loss of the whole batch: a term that every process computes alike stays as it is; a term that a process computes on
its own rows is multiplied by the number of processes and divided by the size of the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, distributed, nn

from ..errors import ConfigError

_Value = TypeVar("_Value")

_LONGEST_WAIT: Final = timedelta(hours=12)
"""How long processes wait for one that generates data, loads or saves. If one fails, torchrun ends all at once."""


@dataclass(frozen=True)
class Processes:
    """This process of a training: its rank, the number of processes, and the device that it uses.

    All of them must call `gather`, `total`, `mean`, `average_gradients`, `from_first` and `wait` in the same order.
    With one process these return their arguments.
    """

    rank: int = 0
    count: int = 1
    device: torch.device | None = None
    """None: the device on which the backbone is loaded by default."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and reports progress."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """The contiguous share of `size` items that belongs to this process; shares differ by one item at most."""
        least, more = divmod(size, self.count)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def gather(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Concatenate the rows of all processes, in the order of their ranks.

        parts: tensors of shape (rows of this process, ...); the number of rows may differ between processes. Gradients,
        summed over all processes, flow back to the process that the rows came from.
        """
        if self.count == 1:
            return parts
        sizes = [torch.zeros(1, dtype=torch.long, device=parts[0].device) for _ in range(self.count)]
        distributed.all_gather(sizes, torch.full_like(sizes[0], len(parts[0])))
        return _Gather.apply([int(size) for size in sizes], self.rank, *parts)  # type: ignore[return-value]

    def total(self, *numbers: float) -> list[float]:
        """Each number summed over the processes."""
        if self.count == 1:
            return list(numbers)
        summed = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(summed)
        return summed.tolist()

    def mean(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Each figure averaged over the processes."""
        if self.count == 1:
            return dict(figures)
        return {name: total / self.count for name, total in zip(figures, self.total(*figures.values()), strict=True)}

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes; a parameter that no process used keeps none."""
        if self.count == 1:
            return
        used = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=self.device)
        distributed.all_reduce(used)
        for parameter, users in zip(parameters, used.tolist(), strict=True):
            if users:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                distributed.all_reduce(gradient)
                parameter.grad = gradient.div_(self.count)

    def from_first(self, value: _Value) -> _Value:
        """The value of the first process."""
        if self.count == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        if self.count > 1:
            distributed.barrier()

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Run the block in the first process, then in the others, which find the files that the first one wrote."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()


ALONE: Final = Processes()
"""A training of one process."""


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the other processes that `torchrun` started; yield `ALONE` if there are none.

    One process per GPU, over NCCL; on a machine without GPUs over gloo. Raises `ConfigError` if the processes do not
    find each other, or if there are more than the machine has GPUs.
    """
    wanted = _wanted()
    if wanted == 1:
        yield ALONE
        return
    from accelerate import PartialState

    # Without `cpu`, Accelerate would not join the processes on a machine without GPUs.
    state: Any = PartialState(cpu=not torch.cuda.is_available(), timeout=_LONGEST_WAIT)
    if state.num_processes != wanted:
        raise ConfigError(
            f"torchrun announced {wanted} processes (WORLD_SIZE) and {state.num_processes} came together: each would "
            "train for itself. Unset the ACCELERATE_* variables, and start with torchrun --nproc_per_node N."
        )
    yield Processes(state.process_index, wanted, state.device)
    state.destroy_process_group()  # After an error the processes are ended by torchrun.


def _wanted() -> int:
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(
            f"WORLD_SIZE is {given!r}. Unset it, or start with torchrun --nproc_per_node N, which sets it."
        )
    wanted = int(given)
    if wanted > 1 and not {"RANK", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys():
        raise ConfigError(
            f"WORLD_SIZE is {wanted}, but RANK, LOCAL_RANK or MASTER_ADDR is not set. Unset it, or start with torchrun "
            "--nproc_per_node N, which sets all of them."
        )
    gpus = torch.cuda.device_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", wanted))
    if wanted > 1 and 0 < gpus < here:
        raise ConfigError(
            f"{here} processes were started on a machine with {gpus} GPUs. Start one for each: torchrun "
            f"--nproc_per_node {gpus}."
        )
    return wanted


class _Gather(torch.autograd.Function):
    """Concatenation over processes. Exchanged in float32, because gloo cannot sum shorter types."""

    @staticmethod
    def forward(ctx: Any, sizes: list[int], rank: int, *parts: Tensor) -> tuple[Tensor, ...]:
        ends = list(accumulate(sizes))
        ctx.own = slice(ends[rank] - sizes[rank], ends[rank])
        return tuple(_all_rows(part, sizes) for part in parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        # Autograd runs backward in reverse order of forward, so all processes take part in the same sums.
        own = []
        for gradient in gradients:
            summed = gradient.float().contiguous()
            summed = summed.clone() if summed.data_ptr() == gradient.data_ptr() else summed
            distributed.all_reduce(summed)
            own.append(summed[ctx.own].to(gradient.dtype))
        return None, None, *own


def _all_rows(part: Tensor, sizes: Sequence[int]) -> Tensor:
    padded = torch.zeros(max(sizes), *part.shape[1:], dtype=torch.float32, device=part.device)
    padded[: len(part)] = part
    found = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(found, padded)
    return torch.cat([rows[:size] for rows, size in zip(found, sizes, strict=True)]).to(part.dtype)
