"""The experts in memory: rows that come, go and move, against a plain dictionary."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch

from liveedit.errors import InvalidInputError, NotFoundError
from liveedit.experts import Expert, ExpertRepository

RANK, WIDTH, FEATURE = 2, 3, 4


def make_expert(seed: int, rank: int = RANK) -> Expert:
    generator = torch.Generator().manual_seed(seed)
    return Expert(
        u=torch.randn(rank, WIDTH, generator=generator),
        v=torch.randn(rank, WIDTH, generator=generator),
        visual_feature=torch.randn(FEATURE, generator=generator),
        prompt_feature=torch.randn(FEATURE, generator=generator),
    )


def assert_equal(one: Expert, other: Expert) -> None:
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name


def assert_holds(repository: ExpertRepository, expected: dict[str, Expert]) -> None:
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


def test_any_sequence_of_adds_and_removes_agrees_with_a_dictionary() -> None:
    repository, expected, choice = ExpertRepository(), {}, random.Random(7)
    for step in range(400):
        if expected and choice.random() < 0.35:
            edit_id = choice.choice(sorted(expected))
            repository.remove(edit_id)
            del expected[edit_id]
        else:
            edit_id = f"edit{step}"
            expected[edit_id] = make_expert(step)
            repository.add(edit_id, expected[edit_id])
        if step % 40 == 0:
            assert_holds(repository, expected)
    assert len(expected) > 64, "the buffers should have grown at least once"
    assert_holds(repository, expected)


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


# A full buffer (64 rows) has to grow for the next expert; rank 1 would stretch over the new rank.
@pytest.mark.parametrize("count", [1, 63, 64, 65])
@pytest.mark.parametrize(("held", "other"), [(1, 2), (2, 1), (2, 3)])
def test_other_shapes_are_refused_and_change_nothing(count: int, held: int, other: int) -> None:
    repository = ExpertRepository()
    expected = {str(seed): make_expert(seed, held) for seed in range(count)}
    for edit_id, expert in expected.items():
        repository.add(edit_id, expert)
    message = rf"shape \({other}, 3\); this repository holds \({held}, 3\)"
    with pytest.raises(InvalidInputError, match=message):
        repository.add("other", make_expert(99, other))
    assert_holds(repository, expected)


def test_unknown_ids_are_named() -> None:
    repository = ExpertRepository()
    repository.add("a", make_expert(1))
    for call in (repository.get, repository.remove):
        with pytest.raises(NotFoundError, match=r"no edit 'b'\. 1 edits are in force"):
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
    numbers = torch.cat([expert.u.ravel(), expert.v.ravel(), expert.visual_feature, expert.prompt_feature])
    assert expert.digest == hashlib.sha256(numbers.numpy().tobytes()).hexdigest()
    assert expert.digest != make_expert(2).digest


def test_store_bytes_counts_every_number() -> None:
    assert make_expert(1).store_bytes == 4 * (2 * RANK * WIDTH + 2 * FEATURE)
