"""Logs: nothing lost, nothing doubled, whatever is interrupted; cursors that stay; events lifted exactly once."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.collector.hub import Hub
from service.collector.lift import Lifter
from service.collector.log_file import StoredLine, end_of, path_of, read_lines, seconds, tail_offset
from service.collector.log_writer import OVERLAP_S, LogWriter
from service.collector.reader import LogReader
from service.contract.errors import Problem
from service.store.tables import Artifact, Replica
from tests.unit.simulated_engine import LogRecord
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
        writer.append([record.line for record in log if seconds(record.time) >= writer.since][:stop])
        writer.close()
        with path.open("rb+") as file:
            size = file.seek(0, 2)
            file.truncate(max(0, size - torn))
    writer = LogWriter(path, 1 << 20)
    kept = texts(path)
    for record in log:
        if seconds(record.time) >= writer.since:
            writer.append([record.line])
    writer.close()
    assert sorted(texts(path)) == sorted(record.text for record in log)
    assert texts(path)[: len(kept)] == kept


def test_the_oldest_half_goes_when_the_quota_is_reached_and_cursors_stay(tmp_path: Path) -> None:
    path = tmp_path / "1-0.log"
    writer = LogWriter(path, quota=4000)
    ends = []
    for number in range(200):
        writer.append([LogRecord(stamp(number), f"line {number}").line])
        ends.append(writer.end)
    writer.close()
    assert path.stat().st_size <= 4000
    lines = list(read_lines(path, 0, 1000))
    assert "bytes of older log were dropped" in lines[0].text
    assert lines[-1].text == "line 199"
    assert lines[-1].end == ends[-1] == end_of(path)
    after = next(read_lines(path, ends[190], 1))
    assert after.text == "line 191"
    again = LogWriter(path, quota=4000)
    again.append([LogRecord(stamp(199), "line 199").line, LogRecord(stamp(200), "line 200").line])
    again.close()
    assert texts(path)[-2:] == ["line 199", "line 200"]


def test_a_container_cannot_forge_what_navarch_writes_into_its_log(tmp_path: Path) -> None:
    """A line that says how much was dropped moves all offsets, also those in the database."""
    path = tmp_path / "1-0.log"
    forged = f"[navarch] {'9' * 30} bytes of older log were dropped: its size had reached 1 bytes"
    writer = LogWriter(path, 1 << 20)
    writer.append([LogRecord(stamp(1), forged).line, LogRecord(stamp(2), "#5 5 5").line, LogRecord(stamp(3), "a").line])
    assert writer.end == path.stat().st_size == end_of(path)
    writer.close()
    assert texts(path) == [forged, "#5 5 5", "a"]


def test_lines_that_the_engine_no_longer_has_are_told(tmp_path: Path) -> None:
    """Its own log has a limit: who comes back too late finds newer lines only."""
    path = tmp_path / "1-0.log"
    first = LogWriter(path, 1 << 20)
    first.append([LogRecord(stamp(1000), "seen").line])
    first.close()
    second = LogWriter(path, 1 << 20)
    second.append([LogRecord(stamp(9000), "much later").line])
    second.close()
    assert texts(path)[0] == "seen" and texts(path)[2] == "much later"
    assert texts(path)[1].startswith("[navarch] lines between 2026-01-01T00:00:01.000000000Z and here are lost")
    third = LogWriter(path, 1 << 20)
    third.append([LogRecord(stamp(9000), "much later").line, LogRecord(stamp(9001), "more").line])
    third.close()
    assert texts(path)[2:] == ["much later", "more"]


def test_a_long_line_that_is_open_when_the_collector_dies_is_read_again_from_its_beginning(tmp_path: Path) -> None:
    """All pieces of it come with the time of the first, which may be long ago."""
    path = tmp_path / "1-0.log"
    others = [LogRecord(stamp(1000 * second), f"other {second}").line for second in range(60)]
    bar = LogRecord(stamp(500), "10%\r").line
    first = LogWriter(path, 1 << 20)
    first.append([bar])
    first.append(others[:30])
    first.append([bar, *others[30:40]])
    first.close()
    again = LogWriter(path, 1 << 20)
    assert again.since == int(seconds(stamp(500)))
    ended = LogRecord(stamp(500), "100%").line
    again.append([*others, ended])
    again.close()
    shown = [line.text for line in read_lines(path, 0, 1000) if not line.passing]
    assert shown == [*(f"other {second}" for second in range(60)), "100%"]
    assert LogWriter(path, 1 << 20).since == int(seconds(stamp(59000))) - OVERLAP_S


def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "1-0.log"
    writer = LogWriter(path, 1 << 20)
    writer.append([LogRecord(stamp(1), "before").line])
    real = os.write

    def full(handle: int, data: memoryview) -> int:
        if len(data) <= 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[:40])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        writer.append([LogRecord(stamp(2), "x" * 100).line])
    monkeypatch.undo()
    assert texts(path) == ["before"] and writer.end == path.stat().st_size
    writer.append([LogRecord(stamp(2), "x" * 100).line])
    writer.close()
    assert texts(path) == ["before", "x" * 100]


@pytest.fixture
def reader(tmp_path: Path) -> LogReader:
    for attempt, rank, lines in ((1, 0, range(0, 10, 2)), (1, 1, range(1, 10, 2)), (2, 0, range(10, 15))):
        writer = LogWriter(path_of(tmp_path, attempt, rank), 1 << 20)
        for number in lines:
            writer.append([LogRecord(stamp(number), f"line {number}").line])
        writer.append([LogRecord(stamp(99), "@navarch {}").line])
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
            writer.append([LogRecord(stamp(number), f"line {number}").line])
            writer.append([LogRecord(stamp(number), "@navarch {}").line])
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
    writer.append([LogRecord(stamp(99), "@navarch {}").line, LogRecord(stamp(100), "later").line])
    writer.close()
    path_of(tmp_path, 2, 1).write_text(f"{stamp(100)} of a replica that came later\n")
    path_of(tmp_path, 3, 0).write_text(f"{stamp(101)} of the next attempt\n")
    assert [line.line for line in reader.read("job", until=end).lines] == [f"line {n}" for n in range(15)]
    assert len(reader.read("job").lines) == 18
    assert reader.read("job", cursor=end, until=end).lines == []
    assert [line.line for line in reader.read("job", tail=2, until=end).lines] == ["line 13", "line 14"]


def test_a_progress_bar_is_shown_while_it_is_the_newest_line(tmp_path: Path) -> None:
    reader = LogReader(lambda _: tmp_path, Hub())
    writer = LogWriter(path_of(tmp_path, 1, 0), 1 << 20)

    def shown(**how: int) -> list[str]:
        return [line.line for line in reader.read("job", **how).lines]  # type: ignore[arg-type]

    writer.append([LogRecord(stamp(1), "begin").line, LogRecord(stamp(2), "10%\r").line])
    assert shown() == shown(tail=2) == ["begin", "10%"] and reader.read("job").lines[1].passing
    cursor = reader.read("job").next_cursor
    writer.append([LogRecord(stamp(3), "20%\r").line])
    assert shown() == ["begin", "20%"]
    assert [line.line for line in reader.read("job", cursor).lines] == ["20%"]
    writer.append([LogRecord(stamp(4), "100%").line])
    assert shown() == shown(tail=9) == ["begin", "100%"] and shown(tail=1) == ["100%"]
    writer.close()


def test_a_page_of_huge_lines_is_short(tmp_path: Path) -> None:
    for rank in (0, 1):
        writer = LogWriter(path_of(tmp_path, 1, rank), 1 << 30)
        writer.append([LogRecord(stamp(2 * number + rank), "x" * 1_000_000).line for number in range(12)])
        writer.close()
    reader = LogReader(lambda _: tmp_path, Hub())
    found, cursor = [], None
    while (page := reader.read("job", cursor, limit=5000)).lines:
        assert sum(len(line.line) for line in page.lines) < 7_000_000
        found += [(line.time, line.replica) for line in page.lines]
        cursor = page.next_cursor
    assert found == sorted(found) and len(found) == 24


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
    world.one_replica()
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
