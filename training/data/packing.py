"""Decides which documents go into which micro-batch: pure functions of lengths, a seed and an epoch.

A *unit* is what stays together: a document, or the two documents of a pair. Every rank computes the same plan from the
same lengths, so that nothing has to be communicated.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heapreplace

import numpy as np


@dataclass(frozen=True)
class PackingRule:
    """How units become micro-batches.

    packed: fill `capacity` tokens (and at most `max_units` units); else exactly `batch_size` units. window: units
    that are packed together, in shuffled order. shuffle: False keeps the given order between windows and batches.
    """

    packed: bool
    capacity: int
    batch_size: int
    max_units: int
    window: int = 16384
    shuffle: bool = True
    seed: int = 0


def pack(lengths: np.ndarray, capacity: int, max_units: int) -> list[list[int]]:
    """Bins of units, each unit in one bin. Raises ValueError for a unit that is longer than the capacity.

    Where bins hold many units, these are dealt evenly over as few bins as will do: every bin then has about the same
    number of tokens and the same mixture of lengths. Where they hold few, best-fit decreasing wastes less.
    """
    longest = int(lengths.max(initial=0))
    if longest > capacity:
        raise ValueError(f"a unit of {longest} tokens does not fit into {capacity}")
    total = int(lengths.sum())
    fewest = max(-(-total // capacity), -(-len(lengths) // max_units))
    for count in range(fewest, fewest + 2 + fewest // 100):
        bins = deal_evenly(lengths, capacity, max_units, count)
        if bins is not None:
            return bins
    return best_fit(lengths, capacity, max_units)


def deal_evenly(lengths: np.ndarray, capacity: int, max_units: int, count: int) -> list[list[int]] | None:
    """`count` bins of about equal tokens: units, longest first, go to the emptiest bin. None when one does not fit.

    Lengths within an eighth of an octave count as equal, so that which of them meet changes with the units' order.
    """
    order = np.argsort(-np.floor(8 * np.log2(np.maximum(lengths, 1))), kind="stable").tolist()
    sizes = lengths.tolist()
    bins: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for unit in order:
        if not heap:
            return None
        filled, number = heap[0]
        filled += sizes[unit]
        if filled > capacity:
            return None
        bins[number].append(unit)
        if len(bins[number]) < max_units:
            heapreplace(heap, (filled, number))
        else:
            heappop(heap)
    return [units for units in bins if units]


def best_fit(lengths: np.ndarray, capacity: int, max_units: int) -> list[list[int]]:
    """Best-fit decreasing: each unit, longest first, goes where the least room remains."""
    sizes = lengths.tolist()
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, bin), sorted: the open bins
    for unit in np.argsort(-lengths, kind="stable").tolist():
        size = sizes[unit]
        place = bisect_left(room, (size, -1))
        if place < len(room):
            left, number = room.pop(place)
            bins[number].append(unit)
        else:
            left, number = capacity, len(bins)
            bins.append([unit])
        left -= size
        if left > 0 and len(bins[number]) < max_units:
            insort(room, (left, number))
    return bins


def epoch_bins(lengths: np.ndarray, order: np.ndarray, rule: PackingRule, epoch: int) -> list[np.ndarray]:
    """All micro-batches of an epoch as arrays of unit numbers. lengths: [units]; order: units in this epoch's order.

    Depends on nothing but its arguments: not on ranks, accumulation, or what was drawn before.
    """
    if not rule.packed:
        size = rule.batch_size
        return [order[i : i + size] for i in range(0, len(order), size)]
    bins: list[np.ndarray] = []
    for number, start in enumerate(range(0, len(order), rule.window)):
        window = order[start : start + rule.window]
        packed = [window[np.array(units)] for units in pack(lengths[window], rule.capacity, rule.max_units)]
        if rule.shuffle:
            generator = np.random.default_rng((rule.seed, epoch, number, 1))
            packed = [packed[i] for i in generator.permutation(len(packed))]
        bins += packed
    return bins


def epoch_order(units: int, weights: np.ndarray | None, rule: PackingRule, epoch: int) -> np.ndarray:
    """The units of an epoch in its order. weights: [units] passes per epoch, None = one each.

    A weight of 2.3 gives a unit twice, and in 30 % of the epochs a third time.
    """
    generator = np.random.default_rng((rule.seed, epoch, 0))
    numbers = np.arange(units)
    if weights is not None:
        whole = np.floor(weights).astype(np.int64)
        numbers = np.repeat(numbers, whole + (generator.random(units) < weights - whole))
    return generator.permutation(numbers) if rule.shuffle else numbers


def deal(costs: Sequence[int] | np.ndarray, ranks: int, per_rank: int) -> np.ndarray:
    """[ranks, per_rank] numbers of the ranks·per_rank items, so that ranks get about equal totals.

    Items of like cost meet in the same column: all ranks do long micro-batches at the same time.
    """
    order = np.argsort(-np.asarray(costs), kind="stable").reshape(per_rank, ranks)
    dealt = np.empty((ranks, per_rank), dtype=np.int64)
    totals = np.zeros(ranks, dtype=np.int64)
    for column, items in enumerate(order):  # longest first, to the rank that has the least so far
        ranks_by_load = np.argsort(totals, kind="stable")
        dealt[ranks_by_load, column] = items
        totals[ranks_by_load] += np.asarray(costs)[items]
    return dealt


def step_batches(
    bins: list[np.ndarray], lengths: np.ndarray, rule: PackingRule, step: int, ranks: int, accumulate: int
) -> list[list[np.ndarray]]:
    """[ranks][accumulate] micro-batches of one optimizer step of an epoch, with about equal work on every rank.

    The last step of an epoch may be short of bins: its units are then spread over all micro-batches. Without packing,
    the units of a step don't depend on how it is cut into ranks and micro-batches.
    """
    slots = ranks * accumulate
    mine = bins[step * slots : (step + 1) * slots]
    if len(mine) < slots or (not rule.packed and len(mine[-1]) < rule.batch_size):
        mine = spread(mine, lengths, rule, slots)
    elif not rule.packed:
        units = np.concatenate(mine)
        units = units[np.argsort(-lengths[units], kind="stable")]  # like lengths together: little padding
        mine = [units[i * rule.batch_size : (i + 1) * rule.batch_size] for i in range(slots)]
    dealt = deal([int(lengths[units].sum()) for units in mine], ranks, accumulate)
    return [[mine[i] for i in row] for row in dealt.tolist()]


def spread(bins: list[np.ndarray], lengths: np.ndarray, rule: PackingRule, slots: int) -> list[np.ndarray]:
    """The units of too few (or not full) bins over all `slots` micro-batches, as evenly as they go.

    Fewer units than slots are used more than once, so that no micro-batch is ever empty.
    """
    units = np.concatenate(bins)
    if len(units) < slots:
        units = np.resize(units, slots)
    limit = rule.max_units if rule.packed else rule.batch_size
    spread_out: list[list[int]] = [[] for _ in range(slots)]
    totals = [0] * slots
    for unit in units[np.argsort(-lengths[units], kind="stable")].tolist():
        size = int(lengths[unit])
        fits = [s for s in range(slots) if not rule.packed or totals[s] + size <= rule.capacity]
        open_slots = [s for s in fits if len(spread_out[s]) < limit]
        if not open_slots:  # can't be spread: keep the bins, fill up with their first units
            return [*bins, *(bins[s % len(bins)][:1] for s in range(slots - len(bins)))]
        target = min(open_slots, key=lambda s: (totals[s], s))
        spread_out[target].append(unit)
        totals[target] += size
    return [np.array(numbers) for numbers in spread_out]
