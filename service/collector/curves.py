"""What a job reported, as columns: kept in memory and grown by what was written since, cut to what a screen can show.

Cutting keeps, for each column of pixels, the first, the last, the smallest and the largest point (M4, Jugel et al.,
VLDB 2014): a line drawn through these is the line through all of them. Nothing is ever sampled at random. Values that
are no numbers, or not finite, are gaps with a mark.
"""

from __future__ import annotations

import math
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

Axis = Literal["step", "tokens", "time", "clock"]
TOKENS = "tokens"
"""The series that says how many tokens had been learned from; steps stand in for a job that does not report it."""
_CHUNK = 8 << 20
_MAX_SERIES = 1000
_KEPT = 64
"""Jobs in memory."""
_KEPT_POINTS = 20_000_000
_DELTA = 5000
"""A follower that is farther behind gets the whole curve anew."""


@dataclass
class Column:
    """One series. `values` holds NaN where there was no finite number; `marks` says what it was."""

    steps: array[float] = field(default_factory=lambda: array("d"))
    times: array[float] = field(default_factory=lambda: array("d"))
    tokens: array[float] = field(default_factory=lambda: array("d"))
    attempts: array[int] = field(default_factory=lambda: array("i"))
    values: array[float] = field(default_factory=lambda: array("d"))


@dataclass(frozen=True)
class Cut:
    """A part of one series as a screen can show it."""

    x: list[float]
    y: list[float | None]
    times: list[float]
    marks: list[float]
    """Where on the axis a value was not finite."""
    total: int
    cursor: str
    delta: bool
    """These points come behind those that the cursor's answer had."""


class Curves:
    """The series of one job."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._inode, self._read = -1, 0
        self._columns: dict[str, Column] = {}
        self._attempt_starts: dict[int, tuple[float, float, float]] = {}
        """Attempt → (step, time, tokens) of its first figure."""

    @property
    def points(self) -> int:
        return sum(len(column.values) for column in self._columns.values())

    def refresh(self) -> None:
        """Takes in what was written since."""
        with self._lock:
            try:
                with self._path.open("rb") as file:
                    facts = os.fstat(file.fileno())
                    if facts.st_ino != self._inode or facts.st_size < self._read:
                        self._inode, self._read = facts.st_ino, 0
                        self._columns, self._attempt_starts = {}, {}
                    file.seek(self._read)
                    rest = b""
                    while block := file.read(_CHUNK):
                        lines = (rest + block).split(b"\n")
                        rest = lines.pop()
                        for line in lines:
                            self._take(line)
                        self._read = file.tell() - len(rest)
            except FileNotFoundError:
                return

    def _take(self, line: bytes) -> None:
        try:
            event = from_json(line)
        except (ValueError, RecursionError):
            return
        values = event.get("values") if isinstance(event, dict) else None
        if not isinstance(values, dict):
            return
        step, time, attempt = _number(event.get("step")), _number(event.get("time")), event.get("attempt")
        tried = attempt if isinstance(attempt, int) else 1
        tokens = _number(values.get(TOKENS))
        if tried not in self._attempt_starts:
            self._attempt_starts[tried] = (step, time, tokens)
        for name, value in values.items():
            column = self._columns.get(name)
            if column is None:
                if len(self._columns) >= _MAX_SERIES:
                    continue
                column = self._columns[name] = Column()
            column.steps.append(len(column.steps) if math.isnan(step) else step)
            column.times.append(time)
            column.tokens.append(tokens)
            column.attempts.append(tried)
            column.values.append(_number(value))

    def names(self) -> list[tuple[str, int, float | None, float | None, float | None]]:
        """(name, points, smallest, largest, last) of each series."""
        with self._lock:
            return [(name, *_extremes(column)) for name, column in sorted(self._columns.items())]

    def restarts(self, axis: Axis) -> list[tuple[int, float]]:
        """(attempt, where it began on the axis) of every attempt but the first."""
        with self._lock:
            begun = min((start[1] for start in self._attempt_starts.values()), default=0.0)
            places = {
                attempt: {"step": step, "tokens": step if math.isnan(tokens) else tokens, "time": time - begun}.get(
                    axis, time
                )
                for attempt, (step, time, tokens) in sorted(self._attempt_starts.items())
            }
        return [(attempt, place) for attempt, place in list(places.items())[1:] if math.isfinite(place)]

    def cut(
        self, name: str, axis: Axis, width: int, low: float | None, high: float | None, after: str | None
    ) -> Cut | None:
        """A series between two places of the axis in at most `width` columns of pixels; None when there is none.

        With `after`, the cursor of an earlier answer, only what came since, unless that is too much.
        """
        with self._lock:
            column = self._columns.get(name)
            if column is None:
                return None
            count = len(column.values)
            cursor = f"{self._inode}-{count}"
            seen = _seen(after, self._inode)
            delta = seen is not None and seen <= count and count - seen <= _DELTA and low is None and high is None
            first = seen or 0 if delta else 0
            x = self._axis(column, axis)
            y = np.frombuffer(column.values, np.float64)
            times = np.frombuffer(column.times, np.float64)
            chosen = np.arange(first, count) if delta else _ascending(x)
            if low is not None or high is not None:
                chosen = _between(x, chosen, low, high)
            kept = chosen if delta else chosen[m4(x[chosen], y[chosen], width)]
            gaps = chosen[~np.isfinite(y[chosen])]
            return Cut(
                x=x[kept].tolist(),
                y=[value if math.isfinite(value) else None for value in y[kept].tolist()],
                times=times[kept].tolist(),
                marks=x[gaps[:: max(1, len(gaps) // 500)]].tolist(),
                total=count,
                cursor=cursor,
                delta=delta,
            )

    def _axis(self, column: Column, axis: Axis) -> npt.NDArray[np.float64]:
        steps = np.frombuffer(column.steps, np.float64)
        if axis == "step":
            return steps
        if axis == "tokens":
            tokens = np.frombuffer(column.tokens, np.float64)
            return steps if np.isnan(tokens).all() else np.where(np.isnan(tokens), steps, tokens)
        times = np.frombuffer(column.times, np.float64)
        if axis == "clock":
            return times
        begun = min((start[1] for start in self._attempt_starts.values()), default=0.0)
        return times - begun


def m4(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.int64]:
    """Indices of the points to draw: of each of `width` columns the first, the last, the smallest and the largest.

    `x` ascends. NaN in `y` is never the smallest or largest, but a gap's first and last point stay.
    """
    count = len(x)
    if count <= 4 * width:
        return np.arange(count)
    span = x[-1] - x[0]
    place = np.arange(count) / count if span <= 0 else (x - x[0]) / span
    pixel = np.minimum((place * width).astype(np.int64), width - 1)
    starts = np.flatnonzero(np.concatenate([[True], pixel[1:] != pixel[:-1]]))
    ends = np.concatenate([starts[1:], [count]]) - 1
    column = np.cumsum(np.concatenate([[0], pixel[1:] != pixel[:-1]]))
    low = np.where(np.isnan(y), np.inf, y)
    high = np.where(np.isnan(y), -np.inf, y)
    smallest, largest = np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)
    at_low, at_high = np.flatnonzero(low == smallest[column]), np.flatnonzero(high == largest[column])
    at_low = at_low[np.unique(column[at_low], return_index=True)[1]]
    at_high = at_high[np.unique(column[at_high], return_index=True)[1]]
    return np.unique(np.concatenate([starts, ends, at_low, at_high]))


def _ascending(x: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Indices of the points that count: what a resumed attempt repeats replaces what was there from that place on."""
    later = np.minimum.accumulate(np.where(np.isnan(x), np.inf, x)[::-1])[::-1]
    following = np.concatenate([later[1:], [np.inf]])
    return np.flatnonzero(x < following) if len(x) else np.empty(0, np.int64)


def _between(
    x: npt.NDArray[np.float64], chosen: npt.NDArray[np.int64], low: float | None, high: float | None
) -> npt.NDArray[np.int64]:
    """What lies between two places, with one point on either side so that lines reach the border."""
    places = x[chosen]
    first = 0 if low is None else max(0, int(np.searchsorted(places, low, "left")) - 1)
    last = len(places) if high is None else int(np.searchsorted(places, high, "right")) + 1
    return chosen[first:last]


def _extremes(column: Column) -> tuple[int, float | None, float | None, float | None]:
    values = np.frombuffer(column.values, np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return len(values), None, None, None
    return len(values), float(finite.min()), float(finite.max()), float(finite[-1])


def _seen(cursor: str | None, inode: int) -> int | None:
    head, _, count = (cursor or "").partition("-")
    return int(count) if head == str(inode) and count.isascii() and count.isdigit() and len(count) < 16 else None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


class CurvesCache:
    """The series of the jobs that are looked at; the one that was not asked for longest goes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[Path, Curves] = OrderedDict()

    def of(self, path: Path) -> Curves:
        with self._lock:
            found = self._known.pop(path, None) or Curves(path)
            self._known[path] = found
        found.refresh()
        with self._lock:
            while len(self._known) > 1 and (len(self._known) > _KEPT or _points(self._known.values()) > _KEPT_POINTS):
                self._known.popitem(last=False)
        return found


def _points(all_of: Iterable[Curves]) -> int:
    return sum(one.points for one in all_of)
