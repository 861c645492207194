"""Reduces a series to as many points as a screen can show, keeping its shape and its extremes."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pick(values: Sequence[float | None], points: int) -> list[int]:
    """Indices of at most `points` values, ascending: first, last, and each bucket's minimum and maximum.

    A spike of a single step (a loss that jumps once) is always kept, which averaging would hide. Missing and
    non-finite values count as extremes, so that a NaN stays visible.
    """
    count = len(values)
    if points < 2:
        raise ValueError("a series needs at least two points")
    if count <= points:
        return list(range(count))
    chosen = {0, count - 1}
    buckets = (points - 2) // 2
    for bucket in range(buckets):
        start = 1 + bucket * (count - 2) // buckets
        stop = 1 + (bucket + 1) * (count - 2) // buckets
        chosen.add(min(range(start, stop), key=lambda index: _rank(values[index], -math.inf)))
        chosen.add(max(range(start, stop), key=lambda index: _rank(values[index], -math.inf)))
    return sorted(chosen)


def _rank(value: float | None, missing: float) -> float:
    return missing if value is None or math.isnan(value) else value
