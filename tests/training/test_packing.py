"""Packing: every unit once, within bounds, the same for all ranks, and the same documents however a step is cut."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.packing import (
    PackingRule,
    best_fit,
    deal,
    deal_evenly,
    epoch_bins,
    epoch_order,
    pack,
    step_batches,
)

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=200).map(lambda values: np.array(values))


def rule(**changes: object) -> PackingRule:
    return PackingRule(**{"packed": True, "capacity": 64, "batch_size": 4, "max_units": 16, "window": 50, **changes})  # type: ignore[arg-type]


@given(LENGTHS, st.integers(64, 300), st.integers(1, 40))
def test_each_unit_is_packed_once_and_within_bounds(lengths: np.ndarray, capacity: int, most: int) -> None:
    for bins in (pack(lengths, capacity, most), best_fit(lengths, capacity, most)):
        assert sorted(unit for units in bins for unit in units) == list(range(len(lengths)))
        assert all(units and lengths[units].sum() <= capacity and len(units) <= most for units in bins)


@given(LENGTHS)
def test_best_fit_is_within_the_known_bound(lengths: np.ndarray) -> None:
    """Best-fit decreasing uses at most 11/9 of the fewest bins, plus 4 (Johnson 1973)."""
    fewest = -(-int(lengths.sum()) // 64)
    assert len(best_fit(lengths, 64, 1000)) <= 11 / 9 * max(fewest, int((lengths > 32).sum())) + 4


def test_bins_of_many_units_are_full_and_alike() -> None:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5.4, 0.9, 4096), 32, 2048).astype(np.int64)
    bins = pack(lengths, 16384, 200)
    totals = np.array([lengths[units].sum() for units in bins])
    assert totals.sum() / (len(bins) * 16384) > 0.97
    assert totals.min() > 0.97 * totals.max()  # no bin of leftovers
    means = np.array([lengths[units].mean() for units in bins])
    assert means.min() > 0.8 * means.max()  # no bin of long documents only


def test_bins_of_few_units_waste_little() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.4, 0.9, 4096), 32, 2048).astype(np.int64)
    assert lengths.sum() / (len(pack(lengths, 2048, 200)) * 2048) > 0.97


def test_a_unit_over_the_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="65 tokens does not fit into 64"):
        pack(np.array([3, 65]), 64, 10)


def test_dealing_evenly_gives_up_when_it_cannot() -> None:
    assert deal_evenly(np.array([40, 40, 40]), 64, 10, 2) is None
    assert deal_evenly(np.array([1, 1, 1]), 64, 1, 2) is None


@given(LENGTHS, st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_is_a_function_of_its_number_and_seed(lengths: np.ndarray, seed: int, epoch: int) -> None:
    def bins(**changes: object) -> list[list[int]]:
        chosen = rule(seed=seed, **changes)
        return [b.tolist() for b in epoch_bins(lengths, epoch_order(len(lengths), None, chosen, epoch), chosen, epoch)]

    assert bins() == bins()
    assert sorted(chain.from_iterable(bins())) == list(range(len(lengths)))
    assert sorted(chain.from_iterable(bins(packed=False))) == list(range(len(lengths)))


def test_epochs_and_seeds_differ() -> None:
    orders = [epoch_order(50, None, rule(seed=seed), epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(5, None, rule(shuffle=False), 3).tolist() == [0, 1, 2, 3, 4]


def test_weights_are_passes_per_epoch() -> None:
    weights = np.array([2.0] * 100 + [0.25] * 400)
    orders = [epoch_order(500, weights, rule(), epoch) for epoch in range(40)]
    for order in orders:
        counts = np.bincount(order, minlength=500)
        assert (counts[:100] == 2).all() and counts[100:].max() <= 1
    share = np.mean([np.bincount(order, minlength=500)[100:].mean() for order in orders])
    assert 0.23 < share < 0.27
    assert set(orders[0].tolist()) != set(orders[1].tolist())  # another quarter each time


@given(LENGTHS, st.booleans(), st.integers(1, 4), st.integers(1, 3))
def test_every_step_serves_every_rank_and_loses_nothing(
    lengths: np.ndarray, packed: bool, ranks: int, accumulate: int
) -> None:
    chosen = rule(packed=packed)
    bins = epoch_bins(lengths, epoch_order(len(lengths), None, chosen, 0), chosen, 0)
    seen: list[int] = []
    for step in range(-(-len(bins) // (ranks * accumulate))):
        batches = step_batches(bins, lengths, chosen, step, ranks, accumulate)
        assert [len(row) for row in batches] == [accumulate] * ranks
        units = [u for row in batches for batch in row for u in batch.tolist()]
        assert all(len(batch) for row in batches for batch in row)
        if packed:
            assert all(lengths[batch].sum() <= chosen.capacity for row in batches for batch in row)
        else:
            assert all(len(batch) <= chosen.batch_size for row in batches for batch in row)
        if len(set(units)) >= ranks * accumulate:
            assert len(units) == len(set(units))
        seen += units
    assert set(seen) == set(range(len(lengths)))


@pytest.mark.parametrize("count", [64, 61])
def test_a_step_holds_the_same_documents_however_it_is_cut(count: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 64, count)

    def steps(batch_size: int, ranks: int, accumulate: int) -> list[list[int]]:
        chosen = rule(packed=False, batch_size=batch_size)
        bins = epoch_bins(lengths, epoch_order(count, None, chosen, 0), chosen, 0)
        cut = [step_batches(bins, lengths, chosen, step, ranks, accumulate) for step in range(-(-count // 8))]
        return [sorted(u for row in batches for batch in row for u in batch.tolist()) for batches in cut]

    assert steps(8, 1, 1) == steps(4, 1, 2) == steps(4, 2, 1) == steps(2, 2, 2)


def test_ranks_get_about_the_same_work() -> None:
    costs = np.random.default_rng(1).integers(100, 2000, 8 * 4)
    dealt = deal(costs, 8, 4)
    assert sorted(dealt.reshape(-1).tolist()) == list(range(32))
    totals = costs[dealt].sum(1)
    assert totals.max() - totals.min() < 0.15 * totals.mean()
    for column in range(4):  # like costs at the same time
        others = costs[dealt[:, :column]]
        assert column == 0 or others.min() >= costs[dealt[:, column]].max()
