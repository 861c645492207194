"""The lists of blocks that the attention kernels run over: every block once, the longest first, of a fixed length."""

from __future__ import annotations

import pytest
import torch

from training.models.attention_kernels import PLANS, list_blocks, list_work

ROWS = ([1, 63, 64, 65, 2048, 0, 0], [0, 7, 0, 130, 0], [512], [0, 0, 3])


def bounds_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


@pytest.mark.parametrize("lengths", ROWS)
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("of_keys", [False, True])
def test_every_block_is_listed_once_and_those_with_most_to_do_first(
    lengths: list[int], block: int, of_keys: bool
) -> None:
    bounds, tokens = bounds_of(lengths), sum(lengths)
    work = list_blocks(bounds, tokens, block, of_keys=of_keys)
    assert work.shape == (tokens // block + len(lengths), 3) and work.dtype == torch.int32
    real = [tuple(entry) for entry in work.tolist() if entry[1]]
    wanted = {
        (int(start), length, number)
        for start, length in zip(bounds[:-1], lengths, strict=True)
        for number in range(-(-length // block))
    }
    assert len(real) == len(wanted) and set(real) == wanted
    assert work[len(real) :].eq(0).all(), "what fills the list up is at its end and empty"
    costs = [length - number * block if of_keys else number for _, length, number in real]
    assert costs == sorted(costs, reverse=True)


def test_length_of_the_lists_depends_on_shapes_alone() -> None:
    shapes = {
        tuple(tuple(work.shape) for work in list_work(bounds_of(lengths), 600, 64))
        for lengths in ([600, 0, 0, 0], [100, 200, 100, 200], [1, 1, 1, 597])
    }
    assert len(shapes) == 1


@pytest.mark.parametrize("size", sorted(PLANS))
def test_tiles_of_a_plan_fit_the_kernels(size: int) -> None:
    plan = PLANS[size]
    for tiles in (plan.forward, plan.query_gradient, plan.key_gradient):
        assert tiles.queries % 16 == 0 and tiles.keys % 16 == 0 and tiles.warps in (4, 8)
    assert plan.key_gradient.keys % plan.key_gradient.queries == 0
