"""Logs: nothing lost, nothing doubled, whatever is interrupted; cursors that stay; events lifted exactly once."""

import json
import struct
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.backends.base import LogRecord
from service.backends.docker.log_frames import records
from service.collector.hub import Hub
from service.collector.lift import Lifter
from service.collector.log_file import LogWriter, StoredLine, end_of, path_of, read_lines, tail_offset
from service.collector.reader import LogReader
from service.contract.errors import Problem
from service.store.tables import Artifact, Attempt, Job, Replica
from tests.unit.simulation import World


def stamp(milliseconds: int) -> str:
    return f"2026-01-01T00:{milliseconds // 60000:02d}:{milliseconds // 1000 % 60:02d}.{milliseconds % 1000:03d}000000Z"


def texts(path: Path) -> list[str]:
    return [line.text for line in read_lines(path, 0, 1 << 30)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 900), st.sampled_from(["a", "b", "same"])), max_size=40),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), max_size=4),
)
def test_interrupted_anywhere_nothing_is_lost_or_doubled(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]], cuts: list[tuple[int, int]]
) -> None:
    """The engine's log is read from the start of a second on, with times slightly out of order, and writes are torn."""
    path = tmp_path_factory.mktemp("log") / "1-0.log"
    now, log = 5000, []
    for step, text in steps:
        now += step - 100 if log else step
        log.append(LogRecord(stamp(max(5000, now)), text))
    for stop, torn in cuts:
        writer = LogWriter(path, 1 << 20)
        for record in [r for r in log if r.time >= stamp(writer.since % 86400 * 1000 if writer.since else 0)][:stop]:
            writer.append(record)
        writer.close()
        with path.open("rb+") as file:
            size = file.seek(0, 2)
            file.truncate(max(0, size - torn))
    writer = LogWriter(path, 1 << 20)
    kept = texts(path)
    for record in log:
        writer.append(record)
    writer.close()
    assert sorted(texts(path)) == sorted(record.text for record in log)
    assert texts(path)[: len(kept)] == kept


def test_the_oldest_half_goes_when_the_quota_is_reached_and_cursors_stay(tmp_path: Path) -> None:
    path = tmp_path / "1-0.log"
    writer = LogWriter(path, quota=4000)
    ends = [writer.append(LogRecord(stamp(n), f"line {n}")) for n in range(200)]
    writer.close()
    assert path.stat().st_size <= 4000
    lines = list(read_lines(path, 0, 1000))
    assert "bytes of older log were dropped" in lines[0].text
    assert lines[-1].text == "line 199"
    assert lines[-1].end == ends[-1] == end_of(path)
    after = next(read_lines(path, ends[190] or 0, 1))
    assert after.text == "line 191"
    again = LogWriter(path, quota=4000)
    assert again.append(LogRecord(stamp(199), "line 199")) is None
    assert again.append(LogRecord(stamp(200), "line 200")) is not None
    again.close()


def test_frames_of_long_lines_and_two_streams_become_whole_lines() -> None:
    def frame(stream: int, payload: bytes) -> bytes:
        return struct.pack(">BxxxL", stream, len(payload)) + payload

    class Stream:
        def __init__(self, data: bytes) -> None:
            self.data = data

        def read(self, amount: int) -> bytes:
            part, self.data = self.data[: min(amount, 3)], self.data[min(amount, 3) :]
            return part

    data = frame(1, b"T1 long ") + frame(2, b"T2 error\n") + frame(1, b"T1 line\n") + frame(1, b"T3 no end")
    assert list(records(Stream(data))) == [
        LogRecord("T2", "error"),
        LogRecord("T1", "long line"),
        LogRecord("T3", "no end"),
    ]


@pytest.fixture
def reader(tmp_path: Path) -> LogReader:
    for attempt, rank, lines in ((1, 0, range(0, 10, 2)), (1, 1, range(1, 10, 2)), (2, 0, range(10, 15))):
        writer = LogWriter(path_of(tmp_path, attempt, rank), 1 << 20)
        for number in lines:
            writer.append(LogRecord(stamp(number), f"line {number}"))
        writer.append(LogRecord(stamp(99), "@navarch {}"))
        writer.close()
    return LogReader(lambda _: tmp_path, Hub())


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_pages_join_without_gap_or_overlap_in_the_order_of_time(reader: LogReader, limit: int) -> None:
    found, cursor = [], None
    while True:
        page = reader.read("job", cursor, limit)
        found += page.lines
        if not page.lines:
            break
        assert page.lines[-1].cursor == page.next_cursor or limit > len(page.lines)
        cursor = page.next_cursor
    assert [line.line for line in found] == [f"line {n}" for n in range(15)]
    for line in found:
        follows = reader.read("job", line.cursor, 100).lines
        assert [x.line for x in follows] == [x.line for x in found[found.index(line) + 1 :]]


def test_tail_and_one_replica(reader: LogReader) -> None:
    page = reader.read("job", tail=2)
    assert [line.line for line in page.lines] == ["line 13", "line 14"]
    assert reader.read("job", page.next_cursor).lines == []
    assert [line.line for line in reader.read("job", replica=1).lines] == [f"line {n}" for n in range(1, 10, 2)]


def test_a_tail_is_read_in_pages_and_over_replicas_in_the_order_of_time(tmp_path: Path) -> None:
    for rank in (0, 1):
        writer = LogWriter(path_of(tmp_path, 1, rank), 1 << 20)
        for number in range(rank, 20, 2):
            writer.append(LogRecord(stamp(number), f"line {number}"))
            writer.append(LogRecord(stamp(number), "@navarch {}"))
        writer.close()
    reader = LogReader(lambda _: tmp_path, Hub())
    found, cursor = [], None
    while (page := reader.read("job", cursor, limit=3, tail=7)).lines:
        found += [line.line for line in page.lines]
        cursor = page.next_cursor
    assert found == [f"line {number}" for number in range(13, 20)]


def test_what_comes_after_a_cursor_can_be_left_out(reader: LogReader, tmp_path: Path) -> None:
    end = reader.read("job", tail=0).next_cursor
    writer = LogWriter(path_of(tmp_path, 2, 0), 1 << 20)
    writer.append(LogRecord(stamp(100), "later"))
    writer.close()
    path_of(tmp_path, 2, 1).write_text(f"{stamp(100)} of a replica that came later\n")
    path_of(tmp_path, 3, 0).write_text(f"{stamp(101)} of the next attempt\n")
    assert [line.line for line in reader.read("job", until=end).lines] == [f"line {n}" for n in range(15)]
    assert len(reader.read("job").lines) == 18
    assert reader.read("job", cursor=end, until=end).lines == []


def test_a_foreign_cursor_is_refused(reader: LogReader) -> None:
    for wrong in ("x", "1:2", "1-0:-3", "1-0:1;drop"):
        with pytest.raises(Problem) as refused:
            reader.read("job", wrong)
        assert refused.value.code == "invalid_cursor"


def test_tail_offset_counts_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"T line {n}\n" for n in range(20000)))
    last = [line.text for line in read_lines(path, tail_offset(path, 3), 10)]
    assert last == ["line 19997", "line 19998", "line 19999"]
    assert tail_offset(path, 100000) == 0
    assert [line.text for line in read_lines(path, tail_offset(path, 9000), 1)] == ["line 11000"]


def test_a_waiting_reader_learns_at_once_that_there_is_more(reader: LogReader) -> None:
    hub = Hub()
    woken: list[float] = []
    waiter = threading.Thread(target=lambda: woken.append(time.monotonic()) if hub.wait("job", 5) else None)
    waiter.start()
    time.sleep(0.1)
    told = time.monotonic()
    hub.notify("job")
    waiter.join()
    assert woken[0] - told < 0.1
    assert not hub.wait("job", 0.05)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    with world.database.write() as session:
        session.add(Job(id="j", name="demo", type="sft", document={}))
        session.flush()
        session.add(Attempt(id=1, job_id="j", number=1))
        session.flush()
        session.add(Replica(id=1, attempt_id=1, job_id="j", node_rank=0, host_id="h1", container_name="c"))
    (world.settings.job_dir("j") / "run").mkdir(parents=True)
    return world


def event(**content: object) -> str:
    return "@navarch " + json.dumps(content)


def test_events_are_lifted_once_however_often_the_collector_starts(world: World) -> None:
    lines = [
        event(event="metrics", time=1.0, step=1, total_steps=9, values={"loss": 2.0, "name": "x"}),
        event(event="eval", time=2.0, step=1, total_steps=9, values={"eval/loss": 3.0}),
        event(event="sample", time=2.5, title="before", columns=["prompt"], rows=[["hi"]]),
        event(event="progress", step=2, total_steps=9, eta_s=7.5),
        event(event="artifact", path="model", kind="model", metrics={"loss": 1.0}),
        event(event="artifact", path="../../etc", kind="model"),
        event(event="error", kind="nan_loss", message="the loss is NaN"),
        event(event="error", kind="rank_failed", message="rank 1 failed"),
    ]
    stored = [StoredLine("T", text, (number + 1) * 100) for number, text in enumerate(lines)]
    for cut in (3, 5, len(stored), len(stored)):
        with world.database.read() as session:
            replica = session.get(Replica, 1)
        assert replica is not None
        lifter = Lifter(world.database, world.settings.job_dir("j"), replica, 1, 1 << 20)
        for line in stored[:cut]:
            lifter.feed(line)
        if cut == len(stored):
            lifter.flush(stored[-1].end)
    metrics = [json.loads(line) for line in (world.settings.job_dir("j") / "metrics.jsonl").read_text().splitlines()]
    assert [(m["step"], m["values"]) for m in metrics] == [(1, {"loss": 2.0}), (1, {"eval/loss": 3.0})]
    assert len((world.settings.job_dir("j") / "samples.jsonl").read_text().splitlines()) == 1
    job = world.job("j")
    assert job.progress == {"step": 2, "total_steps": 9, "eta_s": 7.5, "loss": 2.0}
    (artifact,) = world.rows(Artifact)
    assert (artifact.name, artifact.kind, artifact.metrics) == ("demo-model", "model", {"loss": 1.0})
    (replica,) = world.rows(Replica)
    assert (replica.error_kind, replica.error_message) == ("nan_loss", "the loss is NaN")
    assert replica.dropped == {
        "metrics: a value is not a number": 1,
        "artifact: `path` is not a path below the run folder": 1,
    }
