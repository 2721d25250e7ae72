"""The experts in memory: rows that come, go and move, against a plain dictionary."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import resident_experts
import torch

from liveedit.errors import InvalidInputError, NotFoundError, StoreError
from liveedit.experts import ExpertRepository, LowRankExpert, blocks
from liveedit.experts.blocks import Products
from liveedit.experts.repository import FEATURES

RANK, WIDTH, FEATURE = 2, 3, 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """64, 64, 128, then 128 rows each, so that a few hundred experts fill several."""
    monkeypatch.setattr(blocks, "FIRST_ROWS", 64)
    for largest in ("LARGEST_BLOCK_BYTES", "LARGEST_FILE_BYTES"):
        monkeypatch.setattr(blocks, largest, 128 * make_expert(0).store_bytes)


@pytest.fixture(params=["device", "host"])
def new(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], ExpertRepository]:
    """Makes repositories, once of each kind."""
    return lambda: ExpertRepository(experts_on=request.param, folder=tmp_path)


def make_expert(seed: int, rank: int = RANK) -> LowRankExpert:
    generator = torch.Generator().manual_seed(seed)
    return LowRankExpert(
        u=torch.randn(rank, WIDTH, generator=generator),
        v=torch.randn(rank, WIDTH, generator=generator),
        visual_feature=torch.randn(FEATURE, generator=generator),
        prompt_feature=torch.randn(FEATURE, generator=generator),
        query_feature=torch.randn(FEATURE, generator=generator),
    )


def assert_equal(one: LowRankExpert, other: LowRankExpert) -> None:
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name


def assert_holds(repository: ExpertRepository, expected: dict[str, LowRankExpert]) -> None:
    assert len(repository) == len(expected)
    assert set(repository.ids) == set(expected)
    for row, edit_id in enumerate(repository.ids):
        expert = expected[edit_id]
        assert edit_id in repository
        assert repository.id_of(row) == edit_id
        assert repository.digest_of(row) == expert.digest
        assert torch.equal(repository.u[row], expert.u)
        assert torch.equal(repository.v[row], expert.v)
        assert torch.equal(repository.visual_features[row], expert.visual_feature)
        assert torch.equal(repository.prompt_features[row], expert.prompt_feature)
        assert_equal(repository.get(edit_id), expert)
    query = torch.randn(2, FEATURE, generator=torch.Generator().manual_seed(9))
    found, bounds = (torch.cat(parts, 1) for parts in zip(*products_of(repository, query), strict=True))
    assert ((found - query @ repository.visual_features.T).abs() <= bounds + 1e-5).all()
    assert bounds.mean() < 0.2, "the bounds decide nothing"


def products_of(repository: ExpertRepository, query: torch.Tensor) -> Iterator[Products]:
    """Of each block, with a bound for each product."""
    for products, bounds in repository.products(query):
        yield products, bounds.expand_as(products)


def test_any_sequence_of_adds_and_removes_agrees_with_a_dictionary(new: Callable[[], ExpertRepository]) -> None:
    repository, expected, choice = new(), {}, random.Random(7)
    for step in range(1500):
        if expected and choice.random() < 0.35:
            edit_id = choice.choice(sorted(expected))
            repository.remove(edit_id)
            del expected[edit_id]
        else:
            edit_id = f"edit{step}"
            expected[edit_id] = make_expert(step)
            repository.add(edit_id, expected[edit_id])
        if step % 150 == 0:
            assert_holds(repository, expected)
    assert len(expected) > 64 + 64 + 128, "the repository should have grown several times"
    assert_holds(repository, expected)
    for edit_id in choice.sample(sorted(expected), len(expected) - 3):
        repository.remove(edit_id)
        del expected[edit_id]
    assert_holds(repository, expected)


def test_an_edit_moves_and_copies_nothing_that_is_there(new: Callable[[], ExpertRepository]) -> None:
    repository = new()
    for seed in range(500):
        repository.add(str(seed), make_expert(seed))
        if seed == 10:
            places = {name: next(repository.parts(name)).data_ptr() for name in FEATURES}
    parts = {name: list(repository.parts(name)) for name in FEATURES}
    assert all([len(part) for part in found] == [64, 64, 128, 128, 116] for found in parts.values())
    assert {name: found[0].data_ptr() for name, found in parts.items()} == places
    assert all(part.is_contiguous() for found in parts.values() for part in found)


@pytest.mark.parametrize("count", [1, 64, 65, 300])
def test_gathered_rows_are_those_asked_for_in_their_order(new: Callable[[], ExpertRepository], count: int) -> None:
    repository = new()
    for seed in range(count):
        repository.add(str(seed), make_expert(seed))
    rows = torch.randint(count, (7, 100), generator=torch.Generator().manual_seed(1))
    (feature,), (u, _) = repository.gather(rows, "prompt_feature"), repository.gather_matrices(rows)
    assert u.shape == (7, 100, RANK, WIDTH) and feature.shape == (7, 100, FEATURE)
    for place in ((0, 0), (3, 50), (6, 99)):
        expert = make_expert(int(rows[place]))
        assert torch.equal(u[place], expert.u) and torch.equal(feature[place], expert.prompt_feature)
    assert torch.equal(repository.gather_matrices([count - 1, 0])[1], repository.v[[count - 1, 0]])
    assert repository.gather([], "query_feature")[0].shape == (0, FEATURE)


def test_empty_blocks_are_given_back_but_for_one(new: Callable[[], ExpertRepository]) -> None:
    repository = new()
    for seed in range(500):
        repository.add(str(seed), make_expert(seed))
    for seed in range(500):
        repository.remove(str(seed))
        assert repository._keys.capacity < len(repository) + 2 * 128
    assert len(repository.u) == 0 and repository.visual_features.shape == (0, FEATURE)
    repository.add("again", make_expert(1))
    assert_holds(repository, {"again": make_expert(1)})


def open_bytes(folder: Path) -> int:
    """What the files of this process take in a folder, those without a name as well."""
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    return sum(int(end, 16) - int(start, 16) for start, end in (parts[0].split("-") for parts in maps))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_experts_on_the_host_take_no_memory_of_the_process(tmp_path: Path) -> None:
    """In fresh processes: this one may have memory to use again."""

    def grown(place: str) -> int:
        command = [sys.executable, resident_experts.__file__, place, str(tmp_path), "600", "4096"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    pool = 600 * 2 * 4 * 4096 * 4
    assert grown("device") > 0.9 * pool and grown("host") < 0.1 * pool


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_files_on_the_host_have_no_names_and_go_with_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # Blocks of their usual size.
    repository = ExpertRepository(experts_on="host", folder=tmp_path)
    factors, feature = torch.randn(2, 4, 4096), torch.randn(32)
    for number in range(300):
        repository.add(str(number), LowRankExpert(factors[0], factors[1], feature, feature, feature))
    pool = 300 * 2 * 4 * 4096 * 4
    assert open_bytes(tmp_path) >= pool and list(tmp_path.iterdir()) == []
    assert len({repository.get(str(number)).digest for number in range(300)}) == 1
    del repository
    assert open_bytes(tmp_path) == 0


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    repository = ExpertRepository(experts_on="host", folder=tmp_path / "missing")
    with pytest.raises(StoreError, match=r"bytes more in the folder .*missing.*No such file.* keep experts on the"):
        repository.add("a", make_expert(1))
    assert len(repository) == 0
    (tmp_path / "missing").mkdir()
    repository.add("a", make_expert(2, rank=5))
    assert len(repository) == 1


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve space")
def test_a_full_disk_is_said_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = ExpertRepository(experts_on="host", folder=tmp_path)
    expected = {str(seed): make_expert(seed) for seed in range(64)}
    for edit_id, expert in expected.items():
        repository.add(edit_id, expert)
    taken = os.posix_fallocate
    left = [1]

    def allocate(descriptor: int, offset: int, size: int) -> None:
        if not left:  # Room for u, none for v.
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()
        taken(descriptor, offset, size)

    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", allocate)
        with pytest.raises(StoreError, match="No space left on device"):
            repository.add("more", make_expert(99))
    assert_holds(repository, expected)
    for seed in range(64, 200):
        expected[str(seed)] = make_expert(seed)
        repository.add(str(seed), expected[str(seed)])
    assert_holds(repository, expected)


def test_files_larger_than_allowed_are_refused_and_nothing_breaks(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    repository = ExpertRepository(experts_on="host", folder=tmp_path)
    expected = {str(seed): make_expert(seed) for seed in range(64)}
    for edit_id, expert in expected.items():
        repository.add(edit_id, expert)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(StoreError, match="too large"):
            repository.add("more", make_expert(99))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_holds(repository, expected)


def test_full_blocks_on_the_host_are_compared_without_reading_them(tmp_path: Path) -> None:
    repository = ExpertRepository(experts_on="host", folder=tmp_path)
    for seed in range(64 + 63):
        repository.add(str(seed), make_expert(seed))
    query = torch.ones(1, FEATURE)
    assert [bool(bounds.any()) for _, bounds in products_of(repository, query)] == [True, False]
    repository.add("last of its block", make_expert(1000))
    assert [bool(bounds.any()) for _, bounds in products_of(repository, query)] == [True, True]


def test_other_places_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"'disk'\. Give device or host"):
        ExpertRepository(experts_on="disk")  # type: ignore[arg-type]


def test_shapes_have_one_row_per_edit() -> None:
    repository = ExpertRepository()
    for seed in range(65):
        repository.add(str(seed), make_expert(seed))
    assert repository.u.shape == repository.v.shape == (65, RANK, WIDTH)
    assert repository.visual_features.shape == repository.prompt_features.shape == (65, FEATURE)


def test_adding_then_removing_leaves_the_others_to_the_bit() -> None:
    repository = ExpertRepository()
    repository.add("a", make_expert(1))
    before = repository.u.clone()
    repository.add("b", make_expert(2))
    repository.remove("b")
    assert torch.equal(repository.u, before)
    assert repository.ids == ("a",)


def test_a_copy_does_not_follow_the_repository() -> None:
    repository = ExpertRepository()
    repository.add("a", make_expert(1))
    repository.add("b", make_expert(2))
    copy = repository.get("a")
    repository.remove("a")
    assert_equal(copy, make_expert(1))


def test_known_ids_are_refused_and_change_nothing() -> None:
    repository = ExpertRepository()
    repository.add("a", make_expert(1))
    with pytest.raises(InvalidInputError, match="'a' is already there"):
        repository.add("a", make_expert(2))
    assert_holds(repository, {"a": make_expert(1)})


# A full block (64 rows) makes room for the next expert.
@pytest.mark.parametrize("count", [1, 63, 64, 65])
def test_other_widths_are_refused_and_change_nothing(count: int) -> None:
    repository = ExpertRepository()
    expected = {str(seed): make_expert(seed) for seed in range(count)}
    for edit_id, expert in expected.items():
        repository.add(edit_id, expert)
    wide = replace(make_expert(99), u=torch.ones(RANK, WIDTH + 1))
    with pytest.raises(InvalidInputError, match=r"shape \(2, 4\); this repository holds \(2, 3\)"):
        repository.add("other", wide)
    assert_holds(repository, expected)


def test_experts_of_any_rank_come_and_go(new: Callable[[], ExpertRepository]) -> None:
    repository, expected, choice = new(), {}, random.Random(3)
    for step in range(600):
        if expected and choice.random() < 0.4:
            edit_id = choice.choice(sorted(expected))
            repository.remove(edit_id)
            del expected[edit_id]
        else:
            expected[f"edit{step}"] = make_expert(step, choice.choice((1, 2, 5)))
            repository.add(f"edit{step}", expected[f"edit{step}"])
    assert {len(expert.u) for expert in expected.values()} == {1, 2, 5}
    assert set(repository.ids) == set(expected)
    for edit_id, expert in expected.items():
        assert_equal(repository.get(edit_id), expert)
    rows = torch.arange(len(repository)).reshape(-1, 1)
    u, v = repository.gather_matrices(rows)
    assert u.shape == v.shape == (len(expected), 1, 5, WIDTH)
    for row, edit_id in enumerate(repository.ids):
        rank = len(expected[edit_id].u)
        assert torch.equal(u[row, 0, :rank], expected[edit_id].u) and not u[row, 0, rank:].any()
        assert torch.equal(v[row, 0, :rank], expected[edit_id].v) and not v[row, 0, rank:].any()


def test_the_newest_is_known_whatever_its_row() -> None:
    repository = ExpertRepository()
    for seed in range(5):
        repository.add(str(seed), make_expert(seed))
    repository.remove("1")
    repository.add("1", make_expert(1))
    assert by_age(repository) == ["0", "2", "3", "4", "1"]


def test_an_expert_that_comes_back_is_as_new_as_its_number() -> None:
    repository = ExpertRepository()
    for seed in range(4):
        repository.add(str(seed), make_expert(seed))
    repository.number({"0": 10, "1": 11, "2": 12, "3": 13})
    repository.remove("1")
    repository.add("1", make_expert(1))
    assert by_age(repository) == ["0", "2", "3", "1"], "newer than every number until it has its own"
    repository.number({"1": 11})
    assert by_age(repository) == ["0", "1", "2", "3"]
    repository.remove("0")
    assert by_age(repository) == ["1", "2", "3"]
    with pytest.raises(NotFoundError, match="no edit '0'"):
        repository.number({"0": 1})


def by_age(repository: ExpertRepository) -> list[str]:
    return [repository.id_of(row) for row in repository.rows_by_age]


def test_unknown_ids_are_named() -> None:
    repository = ExpertRepository()
    repository.add("a", make_expert(1))
    for call in (repository.get, repository.remove):
        with pytest.raises(NotFoundError, match=r"no edit 'b'\. 1 edits are active"):
            call("b")
    assert "b" not in repository


def test_an_empty_repository_has_no_tensors() -> None:
    with pytest.raises(NotFoundError, match="empty"):
        _ = ExpertRepository().u


def test_after_clear_another_editors_experts_fit() -> None:
    repository = ExpertRepository()
    repository.add("a", make_expert(1))
    repository.clear()
    assert len(repository) == 0
    repository.add("a", make_expert(2, rank=5))
    assert repository.u.shape == (1, 5, WIDTH)


def test_inference_mode_may_begin_and_end_between_calls() -> None:
    repository = ExpertRepository()
    with torch.inference_mode():
        repository.add("a", make_expert(1))
        repository.add("b", make_expert(2))
    repository.add("c", make_expert(3))
    repository.remove("a")
    assert_holds(repository, {"b": make_expert(2), "c": make_expert(3)})


def test_experts_that_carry_gradients_are_stored_without_them() -> None:
    expert = make_expert(1)
    expert.u.requires_grad_()
    repository = ExpertRepository()
    repository.add("a", expert)
    assert not repository.u.requires_grad


def test_the_digest_is_of_the_contents_in_order() -> None:
    expert = make_expert(1)
    numbers = torch.cat(
        [expert.u.ravel(), expert.v.ravel(), expert.visual_feature, expert.prompt_feature, expert.query_feature]
    )
    assert expert.digest == hashlib.sha256(numbers.numpy().tobytes()).hexdigest()
    assert expert.digest != make_expert(2).digest


def test_store_bytes_counts_every_number() -> None:
    assert make_expert(1).store_bytes == 4 * (2 * RANK * WIDTH + 3 * FEATURE)
