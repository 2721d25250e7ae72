"""The processes of a training: shares of a batch, joining, and what one of them does alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import SlopeTask, config_of
from torch import nn

from liveedit.errors import ConfigError
from liveedit.training.distributed import ALONE, Processes, joined_processes
from liveedit.training.trainer import Trainer


@pytest.mark.parametrize(("size", "count"), [(7, 3), (6, 2), (3, 3), (2, 5), (0, 2)])
def test_shares_are_neighbours_that_cover_everything_once(size: int, count: int) -> None:
    shares = [list(range(size))[Processes(rank, count).share(size)] for rank in range(count)]
    assert [thing for share in shares for thing in share] == list(range(size))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_alone_everything_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    rows, parameter = torch.randn(3, 2), nn.Parameter(torch.ones(1))
    with joined_processes() as processes:
        assert processes is ALONE
    assert ALONE.gather(rows, rows)[0] is rows
    assert ALONE.total(1, 2.5) == [1, 2.5]
    assert ALONE.mean({"loss": 0.1}) == {"loss": 0.1}
    assert ALONE.from_first("value") == "value"
    ALONE.average_gradients([parameter])
    ALONE.wait()
    with ALONE.first_goes_ahead():
        pass
    assert parameter.grad is None


def test_processes_that_do_not_find_each_other_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lonely:
        num_processes, process_index = 1, 0

        def __init__(self, **options: Any) -> None:
            assert options["cpu"] is not torch.cuda.is_available()

    monkeypatch.setattr("accelerate.PartialState", Lonely)
    for name, value in {"WORLD_SIZE": 3, "RANK": 1, "LOCAL_RANK": 1, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with (
        pytest.raises(ConfigError, match=r"announced 3 processes .* and 1 came together.*torchrun"),
        joined_processes(),
    ):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"3 processes were started on a machine with 2 GPUs"), joined_processes():
        pass
    monkeypatch.delenv("RANK")
    with pytest.raises(ConfigError, match="RANK, LOCAL_RANK or MASTER_ADDR is not set"), joined_processes():
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 'two'"), joined_processes():
        pass


def test_more_processes_than_edits_in_a_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes 5 edits a step and there are 6 processes"):
        Trainer(tmp_path, config_of(("only", 5)), SlopeTask(), processes=Processes(0, 6))
    Trainer(tmp_path, config_of(("only", 0)), SlopeTask(), processes=Processes(0, 6))


def test_a_process_that_is_not_the_first_reports_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    for rank in (0, 1):
        config = config_of(("only", 5))
        trainer = Trainer(tmp_path, config, SlopeTask(), lambda what, *_: told.append(what), Processes(rank, 2))
        trainer.report(f"rank {rank}", 0, 1, {})
    assert told == ["rank 0"]
