"""Parts of the API that are functions of values: downsampling, cursors, bodies, series, batches, build logs."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.batch import Batcher
from service.api.bodies import read_spec
from service.api.build_log import read_build_log
from service.api.cursors import Cursor
from service.api.downsample import pick
from service.api.series import read_samples, read_series
from service.contract.errors import Problem

VALUES = st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), max_size=300)


@settings(deadline=None)
@given(VALUES, st.integers(2, 60))
def test_a_downsampled_series_is_small_ordered_and_keeps_its_ends(values: list[float | None], points: int) -> None:
    kept = pick(values, points)
    assert len(kept) <= points and kept == sorted(set(kept))
    if values:
        assert kept[0] == 0 and kept[-1] == len(values) - 1


@settings(deadline=None)
@given(st.integers(50, 3000), st.integers(4, 50), st.data())
def test_a_spike_of_one_step_is_never_lost(count: int, points: int, data: st.DataObject) -> None:
    values = [math.sin(index / 50) for index in range(count)]
    where = data.draw(st.integers(0, count - 1))
    values[where] = data.draw(st.sampled_from([-100.0, 100.0]))
    assert where in pick(values, points)


@settings(deadline=None)
@given(st.integers(50, 3000), st.integers(8, 50), st.data())
def test_a_value_that_is_not_finite_hides_neither_itself_nor_the_extremes_beside_it(
    count: int, points: int, data: st.DataObject
) -> None:
    values: list[float | None] = [math.sin(index / 50) for index in range(count)]
    gap, spike = data.draw(st.lists(st.integers(1, count - 2), min_size=2, max_size=2, unique=True))
    values[gap], values[spike] = None, 100.0
    kept = pick(values, points)
    assert gap in kept and spike in kept


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.text(min_size=1).filter(lambda t: t.isprintable()))
def test_a_cursor_comes_back_exactly(time: float, identifier: str) -> None:
    assert Cursor.parse(str(Cursor(time, identifier))) == Cursor(time, identifier)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_what_is_no_cursor_is_refused_not_misread(text: str) -> None:
    try:
        assert str(Cursor.parse(text))
    except Problem as problem:
        assert problem.code == "invalid_cursor"


def test_json_and_yaml_bodies_give_the_same_spec() -> None:
    spec = {"type": "command", "image": "cpu", "command": ["echo", "ä"], "env": {"A": "1"}}
    yaml = 'type: command\nimage: cpu\ncommand: [echo, "ä"]\nenv: {A: "1"}\n'
    assert read_spec("application/json", json.dumps(spec).encode()) == spec
    assert read_spec("application/yaml", yaml.encode()) == spec


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{"),
        ("application/json", b"[]"),
        ("application/json", b"\xff"),
        ("application/json", b'{"a": NaN}'),
        ("application/json", b""),
        ("application/json", b"[" * 100000),
        ("application/yaml", b"a: [1"),
        ("application/yaml", b"- 1"),
        ("application/yaml", b"a: .nan"),
        ("application/yaml", b"a: &x [*x]"),
    ],
)
def test_a_body_that_cannot_be_read_says_so(kind: str, body: bytes) -> None:
    with pytest.raises(Problem) as refused:
        read_spec(kind, body)
    assert refused.value.code == "malformed_body" and refused.value.hint


def test_series_are_read_by_name_and_a_half_written_line_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "time": 100.0 + step, "values": {"loss": 10.0 - step, "lr": 0.1}} for step in range(100)]
    lines[50]["values"] = {"loss": math.nan, "lr": 0.1}
    lines[51]["values"] = {"loss": "-Infinity", "lr": 0.1}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 100, "val')
    loss, lr = read_series(file, None, 1000)
    assert (loss.name, lr.name) == ("loss", "lr")
    assert loss.total == 100 and loss.values[50] is None and loss.steps[-1] == 99 and loss.times[0] == 100.0
    assert [(mark.index, mark.value) for mark in loss.marks] == [(50, "NaN"), (51, "-Infinity")]
    assert loss.not_finite == 2 and not lr.marks
    (short,) = read_series(file, ["loss"], 10)
    assert len(short.values) <= 10 and short.total == 100 and short.values[-1] == -89.0
    assert read_series(tmp_path / "none", None, 10) == []


def test_samples_come_latest_first(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    for title in ("before training", "after training"):
        with file.open("a") as out:
            out.write(
                json.dumps({"title": title, "time": 1.0, "columns": ["prompt", "answer"], "rows": [["q", title]]})
                + "\n"
            )
    assert [sample.title for sample in read_samples(file, 5)] == ["after training", "before training"]
    assert [sample.rows[0][1] for sample in read_samples(file, 1)] == ["after training"]


def test_a_build_log_is_read_by_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "b.log"
    assert read_build_log(log, None, 10) == ([], "0")
    log.write_bytes(b"one\ntwo \xff\nthr")
    lines, cursor = read_build_log(log, None, 10)
    assert [line.line for line in lines] == ["one", "two �"]
    with log.open("ab") as out:
        out.write(b"ee\n")
    assert [line.line for line in read_build_log(log, cursor, 10)[0]] == ["three"]
    first, cursor = read_build_log(log, None, 1)
    assert first[0].cursor == cursor == "4"
    with pytest.raises(Problem, match="not a cursor"):
        read_build_log(log, "-1", 10)


def test_what_arrives_during_a_batch_is_the_next_one_and_answers_stay_in_order() -> None:
    batches: list[list[int]] = []

    def work(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        return [item * 10 for item in items]

    async def run() -> list[int]:
        batcher: Batcher[int, int] = Batcher(work, limit=4)
        return await asyncio.gather(*(batcher.submit(number) for number in range(10)))

    assert asyncio.run(run()) == [number * 10 for number in range(10)]
    assert len(batches) < 10 and max(map(len, batches)) <= 4


def test_a_batch_that_fails_fails_its_items_and_no_others() -> None:
    def work(items: Sequence[int]) -> Sequence[int]:
        if 3 in items:
            raise ValueError("three")
        return items

    async def run() -> list[int | BaseException]:
        batcher: Batcher[int, int] = Batcher(work, limit=1)
        return await asyncio.gather(*(batcher.submit(number) for number in range(5)), return_exceptions=True)

    results = asyncio.run(run())
    assert [r for r in results if not isinstance(r, BaseException)] == [0, 1, 2, 4]
    assert isinstance(results[3], ValueError)
