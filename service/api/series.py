"""Reads what a job reported (metrics.jsonl, samples.jsonl) into series and samples for the API."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from service.api.downsample import pick
from service.contract import schemas


def read_series(file: Path, names: Sequence[str] | None, points: int) -> list[schemas.Series]:
    """The series in a job's metrics file by first appearance, each with at most `points` points."""
    wanted = set(names) if names else None
    collected: dict[str, tuple[list[int], list[float], list[float | None]]] = {}
    for event in _events(file):
        step, time, values = event.get("step"), event.get("time"), event.get("values")
        if not isinstance(values, dict):
            continue
        for name, value in values.items():
            if (wanted is not None and name not in wanted) or not isinstance(value, int | float):
                continue
            steps, times, found = collected.setdefault(name, ([], [], []))
            steps.append(int(step) if isinstance(step, int | float) else len(steps))
            times.append(float(time) if isinstance(time, int | float) else 0.0)
            found.append(float(value) if math.isfinite(value) else None)
    return [_series(name, *columns, points) for name, columns in collected.items()]


def _series(name: str, steps: list[int], times: list[float], values: list[float | None], points: int) -> schemas.Series:
    kept = pick(values, points)
    return schemas.Series(
        name=name,
        steps=[steps[index] for index in kept],
        times=[times[index] for index in kept],
        values=[values[index] for index in kept],
        total=len(values),
    )


def read_samples(file: Path, limit: int) -> list[schemas.Sample]:
    """The latest samples, latest first."""
    found = [_sample(event) for event in _events(file)]
    return found[::-1][:limit]


def _sample(event: dict[str, Any]) -> schemas.Sample:
    rows = [row if isinstance(row, list) else [row] for row in event.get("rows") or []]
    width = max((len(row) for row in rows), default=2)
    columns = [
        str(name) for name in event.get("columns") or ["prompt", "answer", *("" for _ in range(width - 2))][:width]
    ]
    return schemas.Sample(
        title=str(event.get("title") or ""),
        time=float(event.get("time") or 0.0),
        columns=columns,
        rows=[[str(cell) for cell in row] for row in rows],
    )


def _events(file: Path) -> Iterator[dict[str, Any]]:
    """One JSON object a line; a line that is being written is passed over."""
    try:
        with file.open("rb") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict):
                    yield event
    except FileNotFoundError:
        return
