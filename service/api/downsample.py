"""Reduces a series to as many points as a screen can show, keeping its shape, its extremes and its gaps."""

from __future__ import annotations

from collections.abc import Sequence


def pick(values: Sequence[float | None], points: int) -> list[int]:
    """Indices of at most `points` values, ascending: first, last, and each bucket's minimum and maximum.

    A spike of a single step (a loss that jumps once) is always kept, which averaging would hide. None stands for what
    isn't finite: in each bucket that has one, the first is kept beside the extremes of the rest.
    """
    count = len(values)
    if points < 2:
        raise ValueError("a series needs at least two points")
    if count <= points:
        return list(range(count))
    chosen = {0, count - 1}
    buckets = (points - 2) // (3 if None in values else 2)
    for bucket in range(buckets):
        start = 1 + bucket * (count - 2) // buckets
        stop = 1 + (bucket + 1) * (count - 2) // buckets
        part = values[start:stop]
        finite = [(value, index) for index, value in enumerate(part, start) if value is not None]
        if finite:
            chosen.add(min(finite)[1])
            chosen.add(max(finite, key=lambda item: item[0])[1])
        if len(finite) < len(part):
            chosen.add(start + part.index(None))
    return sorted(chosen)
