"""Following logs through everything that goes wrong: engines, the database, the disk, time; and how fast it is."""

from __future__ import annotations

import errno
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session

from service.backends.base import Seat
from service.backends.errors import ContainerGone, EngineError, Unreachable
from service.collector.collector import Collector
from service.collector.hub import Hub
from service.collector.log_file import path_of, read_lines
from service.collector.log_writer import LogWriter
from service.store.tables import Artifact, Replica
from tests.unit.simulated_engine import LogRecord
from tests.unit.simulation import World


def stamp(seconds: float) -> str:
    moment = time.gmtime(int(seconds))
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment) + f".{int(seconds % 1 * 1e9):09d}Z"


def event(**content: object) -> str:
    return "@navarch " + json.dumps(content)


@dataclass
class Stream:
    """A connection to the engine, on which what is in the log comes, and then what `then` says."""

    engine: FlakyEngine
    since: int
    wait: bool
    tail: int | None
    closed: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[list[bytes]]:
        sent, engine = 0, self.engine
        while True:
            lines = [line for line in list(engine.log) if line[:19].decode() >= stamp(self.since)[:19]]
            lines = lines[-self.tail :] if self.tail is not None else lines
            while sent < len(lines):
                if self.closed.wait(engine.pause_s):
                    return
                yield lines[sent : sent + engine.batch]
                sent += engine.batch
            sent = len(lines)
            if engine.trouble:
                raise engine.trouble.pop(0)
            if not self.wait or engine.ended or engine.short_streams:
                return
            if self.closed.wait(0.01):
                return

    def close(self) -> None:
        self.closed.set()


@dataclass
class FlakyEngine:
    """An engine with one container, whose log streams do what engines' log streams do."""

    log: list[bytes] = field(default_factory=list)
    trouble: list[Exception] = field(default_factory=list)
    """Raised by the streams, one each, behind what the log holds."""
    ended: bool = False
    short_streams: bool = False
    gone: bool = False
    batch: int = 100
    pause_s: float = 0.0
    """Before each batch."""
    opened: list[Stream] = field(default_factory=list)

    def logs(self, seat: Seat, since: int, *, wait: bool, ended: bool = False, tail: int | None = None) -> Stream:
        if self.gone:
            raise ContainerGone("no such container")
        self.opened.append(Stream(self, since, wait, tail))
        return self.opened[-1]

    def says(self, *texts: str, ago_s: float = 0.0) -> None:
        for text in texts:
            self.log.append(LogRecord(stamp(time.time() - ago_s), text).line)


@dataclass
class Scene:
    world: World
    engine: FlakyEngine
    collector: Collector
    woken: list[str]

    @property
    def replica(self) -> Replica:
        with self.world.database.read() as session:
            return session.get_one(Replica, 1)

    @property
    def path(self) -> Path:
        return path_of(self.world.settings.job_dir("j") / "logs", 1, 0)

    def stored(self) -> list[str]:
        return [line.text for line in read_lines(self.path, 0, 1 << 30)]

    def follow(self) -> None:
        self.collector.follow(self.replica, 1)

    def drained(self, patience_s: float = 30.0) -> Any:
        """As the controller does it: again and again, whatever the engine says."""
        self.engine.ended = True

        def drain() -> Any:
            try:
                return self.collector.drain(self.replica, 1, patience_s)
            except Unreachable:
                return None

        return until(drain)


def until(check: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    world = World(tmp_path)
    world.one_replica()
    engine, woken = FlakyEngine(), list[str]()
    collector = Collector(engine, world.database, world.settings, Hub(), woken.append)
    yield Scene(world, engine, collector, woken)
    collector.stop()


def test_a_passing_error_of_the_database_loses_no_event(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events once were lost for good: the collector moved past the line whose transaction had failed."""
    real, refused = scene.world.database.write, itertools.count()

    @contextmanager
    def failing() -> Iterator[Session]:
        with real() as session:
            yield session
            if next(refused) % 2 == 0:
                raise RuntimeError("the disk has no room for this transaction")

    monkeypatch.setattr(scene.world.database, "write", failing)
    scene.engine.says(event(event="artifact", path="model", kind="model"), event(event="progress", step=7))
    scene.engine.says(event(event="metrics", step=7, values={"loss": 1.5}), event(event="error", kind="no_space"))
    scene.follow()
    until(lambda: scene.replica.error_kind)
    end = scene.drained()
    assert end.error_kind == "no_space"
    job = scene.world.job("j")
    assert job.progress == {"step": 7, "loss": 1.5}
    assert len((scene.world.settings.job_dir("j") / "metrics.jsonl").read_text().splitlines()) == 1
    assert [artifact.run_path for artifact in scene.world.rows(Artifact)] == ["model"]
    assert len(scene.stored()) == 4 and next(refused) > 1


def test_a_full_disk_stops_the_log_until_there_is_room(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = LogWriter._write, [True]

    def write(self: LogWriter, data: bytes) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    monkeypatch.setattr(LogWriter, "_write", write)
    scene.engine.says("one", "two")
    scene.follow()
    until(lambda: len(scene.engine.opened) >= 3)
    assert scene.stored() == []
    full[0] = False
    assert scene.drained().last_line == "two"
    assert scene.stored() == ["one", "two"]


def test_a_stream_that_ends_early_is_followed_again_with_growing_pauses(scene: Scene) -> None:
    """It once was at once: 98 containers made 367 write transactions a second."""
    scene.engine.short_streams = True
    scene.engine.says("first")
    scene.follow()
    begun = time.monotonic()
    time.sleep(4)
    opened, took = len(scene.engine.opened), time.monotonic() - begun
    assert opened <= 3 + took, "0.2, 0.5, 1, 2, 5 … seconds lie between them"
    assert scene.woken and scene.world.database.writes < 10
    scene.engine.says("second")
    assert scene.drained().last_line == "second"
    assert scene.stored() == ["first", "second"]


def test_interruptions_lose_and_double_nothing(scene: Scene) -> None:
    scene.engine.trouble = [Unreachable("connection reset") for _ in range(4)]
    scene.follow()
    for number in range(60):
        scene.engine.says(f"line {number}")
        time.sleep(0.02)
    scene.drained()
    assert scene.stored() == [f"line {number}" for number in range(60)]


def test_a_container_that_is_gone_is_not_asked_for_again(scene: Scene) -> None:
    scene.engine.gone = True
    scene.follow()
    until(lambda: scene.woken)
    with pytest.raises(EngineError, match="no such container"):
        until(lambda: scene.collector.drain(scene.replica, 1, 5.0))


def test_a_stop_does_not_wait_for_a_log_that_takes_long(scene: Scene) -> None:
    """The end of the log is kept, and a line says what is left out."""
    scene.engine.says("begin", ago_s=100.0)
    scene.engine.says(*(f"line {number}" for number in range(20_000)), ago_s=50.0)
    scene.engine.says("the last line")
    scene.engine.batch, scene.engine.pause_s = 100, 0.1
    begun = time.monotonic()
    end = scene.drained(1.0)
    assert time.monotonic() - begun < 10 and end.last_line == "the last line"
    stored = scene.stored()
    assert stored[0] == "begin" and stored[-1] == "the last line" and stored[-2] == "line 19999"
    (note,) = [line for line in stored if line.startswith("[navarch]")]
    assert "are left out: the log took too long to be read" in note
    assert len(set(stored)) == len(stored) < 20_000


def test_a_log_that_falls_behind_is_read_in_passes_and_followed_again(scene: Scene) -> None:
    """Engines that rotate their files under a slow follower skip lines; what a pass began with stays there for it."""
    scene.engine.says(*(f"old {number}" for number in range(300)), ago_s=60.0)
    scene.follow()
    until(lambda: len(scene.stored()) == 300)
    until(lambda: len(scene.engine.opened) >= 3)
    assert [stream.wait for stream in scene.engine.opened[:3]] == [True, False, True]
    scene.engine.says("new")
    until(lambda: scene.stored()[-1] == "new")
    assert len(scene.engine.opened) <= 4
    scene.drained()
    assert scene.stored() == [*(f"old {number}" for number in range(300)), "new"]


def test_the_collector_ends_with_streams_that_wait(scene: Scene) -> None:
    scene.engine.says("one")
    scene.follow()
    until(scene.stored)
    begun = time.monotonic()
    scene.collector.stop()
    assert time.monotonic() - begun < 2
    names = [thread.name for thread in threading.enumerate()]
    assert "log-c" not in names


def test_plain_lines_need_no_transaction(scene: Scene) -> None:
    scene.follow()
    before = scene.world.database.writes
    for number in range(200):
        scene.engine.says(f"line {number}")
        time.sleep(0.005)
    until(lambda: len(scene.stored()) == 200)
    assert scene.world.database.writes - before <= 1
