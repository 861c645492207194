"""Curves for a screen: exact in every column of pixels, whatever was reported and however it is zoomed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.collector.curves import Curves, m4


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def row(step: int, loss: Any, attempt: int = 1, **more: Any) -> dict[str, Any]:
    return {"time": 1000.0 + step, "step": step, "attempt": attempt, "values": {"loss": loss, **more}}


@settings(max_examples=200, deadline=None)
@given(
    y=st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan)), min_size=1, max_size=400), width=st.integers(1, 40)
)
def test_each_column_of_pixels_keeps_first_last_smallest_and_largest(y: list[float], width: int) -> None:
    x, values = np.arange(len(y), dtype=np.float64), np.array(y)
    kept = m4(x, values, width)
    assert list(kept) == sorted(set(kept))
    assert len(kept) <= max(4 * width, len(y) if len(y) <= 4 * width else 0)
    if len(y) <= 4 * width:
        return
    pixel = np.minimum((x / x[-1] * width).astype(int), width - 1)
    for column in set(pixel.tolist()):
        inside = np.flatnonzero(pixel == column)
        chosen = [index for index in kept if pixel[index] == column]
        assert chosen[0] == inside[0] and chosen[-1] == inside[-1]
        finite = values[inside][~np.isnan(values[inside])]
        if len(finite):
            assert np.nanmin(values[chosen]) == finite.min()
            assert np.nanmax(values[chosen]) == finite.max()


def test_one_spike_in_a_million_points_is_kept(tmp_path: Path) -> None:
    y = np.full(1_000_000, 1.0)
    y[654_321] = 99.0
    assert 654_321 in m4(np.arange(1_000_000, dtype=np.float64), y, 500)


def test_zooming_fetches_every_point_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [row(step, float(step % 97)) for step in range(5000)])
    curves = Curves(path)
    curves.refresh()
    whole = curves.cut("loss", "step", 100, None, None, None)
    part = curves.cut("loss", "step", 100, 1000.0, 1100.0, None)
    assert whole is not None and part is not None
    assert len(whole.x) <= 400 and whole.total == 5000
    assert part.x == [float(step) for step in range(999, 1102)], "one point beyond each border, so that lines reach it"


def test_what_is_not_a_number_is_a_gap_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [row(1, 1.0), row(2, "NaN"), row(3, "Infinity"), row(4, 2.0)])
    curves = Curves(path)
    curves.refresh()
    cut = curves.cut("loss", "step", 100, None, None, None)
    assert cut is not None
    assert (cut.x, cut.y, cut.marks) == ([1, 2, 3, 4], [1.0, None, None, 2.0], [2.0, 3.0])


def test_a_follower_gets_only_what_came_since(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [row(step, 1.0) for step in range(3)])
    curves = Curves(path)
    curves.refresh()
    first = curves.cut("loss", "step", 100, None, None, None)
    assert first is not None and not first.delta
    write(path, [row(3, 3.0), row(4, 4.0)])
    curves.refresh()
    more = curves.cut("loss", "step", 100, None, None, first.cursor)
    assert more is not None and more.delta
    assert (more.x, more.y) == ([3.0, 4.0], [3.0, 4.0])
    same = curves.cut("loss", "step", 100, None, None, more.cursor)
    assert same is not None and same.delta and same.x == []


@pytest.mark.parametrize("cursor", ["", "x", "1-2", "-5", "99999999999999999999-1", "0-²"])
def test_a_cursor_that_is_none_gets_the_whole_curve(tmp_path: Path, cursor: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [row(1, 1.0)])
    curves = Curves(path)
    curves.refresh()
    cut = curves.cut("loss", "step", 100, None, None, cursor)
    assert cut is not None and not cut.delta and cut.x == [1.0]


def test_a_resumed_attempt_replaces_what_it_repeats_and_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [row(step, 1.0) for step in range(1, 6)])
    write(path, [{**row(step, 2.0, attempt=2), "time": 2000.0 + step} for step in range(4, 8)])
    curves = Curves(path)
    curves.refresh()
    cut = curves.cut("loss", "step", 100, None, None, None)
    assert cut is not None
    assert cut.x == [1, 2, 3, 4, 5, 6, 7]
    assert cut.y == [1, 1, 1, 2, 2, 2, 2]
    assert curves.restarts("step") == [(2, 4.0)]
    assert curves.restarts("time") == [(2, 1003.0)]


def test_axes_are_steps_tokens_time_since_the_start_and_the_clock(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [row(step, 1.0, tokens=step * 4096) for step in range(1, 4)])
    curves = Curves(path)
    curves.refresh()
    places = {}
    for axis in ("step", "tokens", "time", "clock"):
        cut = curves.cut("loss", axis, 100, None, None, None)  # type: ignore[arg-type]
        assert cut is not None
        places[axis] = cut.x
    assert places == {
        "step": [1, 2, 3],
        "tokens": [4096, 8192, 12288],
        "time": [0, 1, 2],
        "clock": [1001, 1002, 1003],
    }


def test_lines_that_are_none_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('not json\n[1]\n{"values": 3}\n{"step": "x", "values": {"loss": true}}\n')
    write(path, [row(1, 1.0)])
    with path.open("a") as file:
        file.write('{"step": 2, "values": {"lo')
    curves = Curves(path)
    curves.refresh()
    assert [name for name, *_ in curves.names()] == ["loss"]
    with path.open("a") as file:
        file.write('ss": 5.0}}\n')
    curves.refresh()
    cut = curves.cut("loss", "step", 100, None, None, None)
    assert cut is not None and cut.y[-1] == 5.0


def test_names_come_with_their_extremes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [row(1, 3.0), row(2, 1.0), row(3, "NaN", acc=0.5)])
    curves = Curves(path)
    curves.refresh()
    assert curves.names() == [("acc", 1, 0.5, 0.5, 0.5), ("loss", 3, 1.0, 3.0, 1.0)]
