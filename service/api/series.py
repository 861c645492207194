"""Reads what a job reported (metrics.jsonl, samples.jsonl) into series and samples for the API."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from service.api.downsample import pick
from service.api.tolerant import mapping, number, whole
from service.collector.events import figure
from service.contract import schemas

_MAX_SERIES = 1000


@dataclass
class _Columns:
    steps: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    marks: dict[int, Any] = field(default_factory=dict)
    """Of the points that aren't finite: index → what they are."""

    def add(self, step: Any, time: Any, value: Any) -> None:
        known = whole(step)
        self.steps.append(len(self.steps) if known is None else known)
        self.times.append(float(number(time) or 0.0))
        if isinstance(value, float):
            self.values.append(value)
        else:
            self.marks[len(self.values)] = value
            self.values.append(None)


def read_series(file: Path, names: Sequence[str] | None, points: int) -> list[schemas.Series]:
    """The series in a job's metrics file by first appearance, each with at most `points` points."""
    wanted = set(names) if names else None
    collected: dict[str, _Columns] = {}
    for event in _events(file):
        for name, given in mapping(event.get("values")).items():
            value = figure(given)
            if (wanted is not None and name not in wanted) or value is None:
                continue
            if name not in collected and len(collected) >= _MAX_SERIES:
                continue
            collected.setdefault(name, _Columns()).add(event.get("step"), event.get("time"), value)
    return [_series(name, columns, points) for name, columns in collected.items()]


def _series(name: str, columns: _Columns, points: int) -> schemas.Series:
    kept = pick(columns.values, points)
    return schemas.Series(
        name=name,
        steps=[columns.steps[index] for index in kept],
        times=[columns.times[index] for index in kept],
        values=[columns.values[index] for index in kept],
        marks=[
            schemas.Mark(index=place, value=columns.marks[index])
            for place, index in enumerate(kept)
            if index in columns.marks
        ],
        total=len(columns.values),
        not_finite=len(columns.marks),
    )


def read_samples(file: Path, limit: int) -> list[schemas.Sample]:
    """The latest samples, latest first."""
    return [_sample(event) for event in reversed(deque(_events(file), limit))]


def _sample(event: dict[str, Any]) -> schemas.Sample:
    given = event.get("rows")
    rows = [row if isinstance(row, list) else [row] for row in given] if isinstance(given, list) else []
    width = max((len(row) for row in rows), default=2)
    named = event.get("columns")
    columns = named if isinstance(named, list) and named else ["prompt", "answer", *("" for _ in range(width - 2))]
    return schemas.Sample(
        title=str(event.get("title") or ""),
        time=float(number(event.get("time")) or 0.0),
        columns=[str(name) for name in columns[:width]],
        rows=[[str(cell) for cell in row] for row in rows],
    )


def _events(file: Path) -> Iterator[dict[str, Any]]:
    """One JSON object a line; a line that is being written, or that an older version wrote badly, is passed over."""
    try:
        with file.open("rb") as lines:
            for line in lines:
                try:
                    event = from_json(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(event, dict):
                    yield event
    except FileNotFoundError:
        return
