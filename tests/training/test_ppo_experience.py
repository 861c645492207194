"""Packing a rollout: states come before their actions, bins hold every row once, tables go back to their places."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.batch import IGNORE
from training.ppo.experience import (
    ActionBatch,
    Completions,
    FixedShapes,
    balanced,
    by_budget,
    evaluate_actions,
    evaluate_rows,
    pack,
)

SHAPES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 7)), min_size=1, max_size=9)


def completions(shapes: list[tuple[int, int]], seed: int = 0) -> Completions:
    """Rows whose tokens are all different numbers; padding is −7, which no index may ever meet."""
    width = max(p + r for p, r in shapes)
    tokens = torch.full((len(shapes), width), -7)
    for i, (prompt, response) in enumerate(shapes):
        tokens[i, : prompt + response] = 1000 * i + torch.arange(prompt + response)
    finished = torch.arange(len(shapes)) % 2 == 0
    prompts, responses = zip(*shapes, strict=True)
    return Completions(tokens, prompts, responses, finished, tuple(f"row:{i}" for i in range(len(shapes))))


@given(SHAPES, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_states_precede_actions_and_places_are_theirs(shapes: list[tuple[int, int]], random: object) -> None:
    data = completions(shapes)
    order = list(range(len(shapes)))
    random.shuffle(order)  # type: ignore[attr-defined]
    batch = pack(data, order)
    assert (batch.packed.tokens >= 0).all()
    assert torch.equal(batch.packed.tokens[batch.states] + 1, batch.actions)  # the next token of the same row
    rows, columns = batch.places // data.width, batch.places % data.width
    prompts = torch.tensor([data.prompt_lengths[row] for row in rows.tolist()])
    assert torch.equal(batch.actions, data.tokens[rows, prompts + columns])
    assert batch.packed.num_targets == sum(data.response_lengths) == (batch.packed.labels != IGNORE).sum()
    assert batch.packed.rows == tuple(f"row:{i}" for i in order)
    for start, stop in zip(batch.packed.cu_seqlens[:-1].tolist(), batch.packed.cu_seqlens[1:].tolist(), strict=True):
        assert batch.packed.positions[start:stop].tolist() == list(range(stop - start))


@given(SHAPES, st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_tables_do_not_depend_on_the_budget_and_leave_padding_zero(shapes: list[tuple[int, int]], budget: int) -> None:
    data = completions(shapes)
    table = evaluate_actions(data, budget, lambda batch: batch.actions.float())
    for row, ids in enumerate(data.response_ids()):
        assert table[row, : len(ids)].tolist() == ids
    assert (table[~data.mask] == 0).all()
    scores = evaluate_rows(data, budget, lambda batch: batch.tokens[batch.last_tokens])
    assert scores.tolist() == [ids[-1] for ids in data.response_ids()]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_bins_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    bins = by_budget(lengths, budget)
    assert sorted(row for each in bins for row in each) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in each) <= budget or len(each) == 1 for each in bins)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.data())
@settings(max_examples=60, deadline=None)
def test_balanced_bins_are_all_used_and_about_equal(lengths: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(lengths)))
    bins = balanced(lengths, count)
    assert len(bins) == count and all(bins)
    assert sorted(row for each in bins for row in each) == list(range(len(lengths)))
    sums = [sum(lengths[row] for row in each) for each in bins]
    assert max(sums) <= sum(lengths) / count + max(lengths)


def test_more_bins_than_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="3 bins"):
        balanced([1, 2], 3)


@given(SHAPES, st.integers(4, 20), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_fixed_shapes_cover_every_token_and_change_no_result(
    shapes: list[tuple[int, int]], quantum: int, budget: int
) -> None:
    data = completions(shapes)
    fixed = FixedShapes(quantum, len(shapes) + quantum // 13 + 2, 13)
    filled = replace(data, shapes=fixed)
    batch = pack(filled, range(len(shapes)))
    packed = batch.packed
    assert packed.tokens.shape[0] % quantum == 0
    assert packed.cu_seqlens.shape[0] == fixed.segments + 1
    spans = packed.cu_seqlens.diff()
    assert (spans >= 0).all() and spans.max() <= 13 and spans.sum() == packed.tokens.shape[0]
    starts = packed.cu_seqlens[:-1][spans > 0].long()
    assert (packed.positions[starts] == 0).all() and (packed.positions == 0).sum() == len(starts)
    assert (packed.labels[packed.num_tokens :] == IGNORE).all()

    def value(each: ActionBatch) -> torch.Tensor:
        return each.actions.float()

    assert torch.equal(evaluate_actions(data, budget, value), evaluate_actions(filled, budget, value))


def test_fixed_shapes_hold_the_largest_batch_of_every_budget() -> None:
    fixed = FixedShapes.fitting(4, 50, 8192, 65_536)
    assert fixed.quantum == 1024
    filled = replace(completions([(20, 30), (1, 1), (9, 2), (3, 3)]), shapes=fixed)
    for budget, length in ((0, 1024), (8192, 1024), (65_536, 8192)):
        packed = pack(filled, range(4), budget=budget).packed
        assert packed.tokens.shape[0] == length
        assert packed.cu_seqlens.shape[0] == fixed.segments + 1
