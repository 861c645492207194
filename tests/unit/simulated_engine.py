"""A machine and its engine in memory, behind the real Engine interface, on which a controller can be made to crash.

As nasty as Docker: it starts an ended container again when asked to, its disk gets full, its answers get lost when the
deed is done, its streams break off. Only for exploring what a real engine can't be brought to at will; tests/docker
runs the same code on a real one.
"""

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue

from sqlmodel import Session

from jobs.launch import LABEL_ATTEMPT, LABEL_JOB, LABEL_REPLICA, ContainerPlan
from jobs.workspace_launch import LABEL_MADE, LABEL_WORKSPACE
from service.backends.engines import (
    ContainerFacts,
    Created,
    EngineEvent,
    EngineFacts,
    Examination,
    Gpu,
    ImageFacts,
    LogStream,
    Stream,
)
from service.backends.errors import ContainerGone, EngineError, ImageMissing, NameTaken, NoSpace, PortTaken, Unreachable
from service.store.database import Database

OURS = frozenset({"navarch/cpu"})
IN_REGISTRY = frozenset({"debian:trixie", *(f"slow:{number}" for number in range(12))})


class Crash(BaseException):
    """The controller's process is dead from here on: nothing may catch this."""


@dataclass
class Fuse:
    """Kills a controller at its n-th effect. A dead one can't have any more effects."""

    left: int | None = None
    dead: bool = False

    def spark(self) -> None:
        if self.dead:
            raise Crash
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.dead = True
                raise Crash


class FusedDatabase(Database):
    """The real database of a process that may die before, in the middle of, or after each write."""

    def __init__(self, url: str, fuse: Fuse) -> None:
        super().__init__(url)
        self.fuse = fuse

    @contextmanager
    def write(self) -> Iterator[Session]:
        self.fuse.spark()
        with super().write() as session:
            yield session
            self.fuse.spark()
        self.fuse.spark()


@dataclass(frozen=True)
class LogRecord:
    """One line of a container's log. `time` is RFC 3339 with nanoseconds, as engines write it."""

    time: str
    text: str

    @property
    def line(self) -> bytes:
        return f"{self.time} {self.text}\n".encode()


@dataclass
class Printed:
    """A log stream out of memory, which may break off."""

    batches: Sequence[list[bytes]]
    broken: Exception | None = None

    def __iter__(self) -> Iterator[list[bytes]]:
        yield from (batch for batch in self.batches if batch)
        if self.broken is not None:
            raise self.broken

    def close(self) -> None:
        pass


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@dataclass
class Container:
    id: str
    plan: ContainerPlan
    created_at: float
    running: bool = False
    started_at: float | None = None
    finished_at: float | None = None
    exit_code: int | None = None
    oom_killed: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    log: list[LogRecord] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
    ignores_term: bool = False


@dataclass
class Machine:
    """What outlives every controller."""

    clock: Callable[[], float]
    gpus: tuple[str, ...] = ()
    reachable: bool = True
    disk_full: bool = False
    lost_answers: int = 0
    """How many of the next deeds are done, but their answer never arrives."""
    broken_streams: int = 0
    """How many of the next logs break off in the middle."""
    answering: threading.Event = field(default_factory=lambda: _set_event())
    """While it isn't set, whoever asks something waits for an answer."""
    pulling: threading.Event = field(default_factory=lambda: _set_event())
    """While it isn't set, pulls make no progress."""
    listeners: list["SimulatedEvents"] = field(default_factory=list)
    runs: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """How often a container of (job, attempt, rank) was started, whatever became of it."""
    engine_started_at: float = 0.0
    foreign_ports: set[int] = field(default_factory=set)
    images: set[str] = field(default_factory=lambda: {*OURS, "debian"})
    containers: dict[str, Container] = field(default_factory=dict)
    volumes: set[str] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def end(self, container: Container, code: int, *, oom: bool = False) -> None:
        if container.running:
            container.running, container.exit_code, container.oom_killed = False, code, oom
            container.finished_at = self.clock()
            event = EngineEvent("die", container.id, container.plan.labels.get(LABEL_JOB, ""), self.clock())
            for listener in self.listeners:
                listener.queue.put(event)

    def restart_engine(self) -> None:
        for container in list(self.containers.values()):
            self.end(container, 137)
        self.engine_started_at = self.clock()

    def be_nice(self) -> None:
        self.reachable, self.disk_full, self.lost_answers, self.broken_streams = True, False, 0, 0
        self.foreign_ports.clear()

    def need_space(self) -> None:
        if self.disk_full:
            raise NoSpace("no space left on device")

    def find(self, name_or_id: str) -> Container | None:
        for container in list(self.containers.values()):
            if name_or_id in (container.id, container.plan.name):
                return container
        return None


class SimulatedPull:
    def __init__(self, engine: "SimulatedEngine", machine: Machine, reference: str) -> None:
        self._engine, self._machine, self._reference = engine, machine, reference
        self.closed = False

    def __iter__(self) -> Iterator[str]:
        while not self._machine.pulling.wait(0.01):
            if self.closed:
                raise EngineError(f"the pull of {self._reference} broke off")
        yield from self._engine.pulled(self._reference)

    def close(self) -> None:
        self.closed = True


class SimulatedEvents:
    def __init__(self, machine: Machine) -> None:
        self.queue: Queue[EngineEvent | None] = Queue()
        self._machine = machine
        machine.listeners.append(self)

    def __iter__(self) -> Iterator[EngineEvent]:
        while (event := self.queue.get()) is not None:
            yield event

    def close(self) -> None:
        self._machine.listeners.remove(self)
        self.queue.put(None)


def _run(labels: Mapping[str, str]) -> tuple[str, str, str]:
    if LABEL_WORKSPACE in labels:
        return labels[LABEL_WORKSPACE], labels[LABEL_MADE], ""
    return labels[LABEL_JOB], labels[LABEL_ATTEMPT], labels[LABEL_REPLICA]


class SimulatedEngine:
    """One controller's connection to a machine."""

    def __init__(self, machine: Machine, fuse: Fuse) -> None:
        self._machine, self._fuse = machine, fuse

    @contextmanager
    def _effect(self) -> Iterator[Machine]:
        self._machine.answering.wait()
        self._fuse.spark()
        if not self._machine.reachable:
            raise Unreachable("connection refused")
        yield self._machine
        self._fuse.spark()
        if self._machine.lost_answers > 0:
            self._machine.lost_answers -= 1
            raise Unreachable("read timed out")

    def facts(self) -> EngineFacts:
        with self._effect() as machine:
            return EngineFacts("1", 4, 1 << 34, "boot-1", machine.engine_started_at)

    def examine(self, deployment: str) -> Examination:
        with self._effect():
            return Examination()

    def strangers(self, deployment: str) -> list[str]:
        return []

    def reaches(self, address: str, port: int) -> str | None:
        return None

    def ping(self) -> None:
        with self._effect():
            pass

    def gpus(self, deployment: str, image: str | None = None) -> list[Gpu]:
        with self._effect() as machine:
            return [Gpu(uuid, "sim", 1000, index) for index, uuid in enumerate(machine.gpus)]

    def image(self, reference: str) -> ImageFacts | None:
        with self._effect() as machine:
            if reference not in machine.images:
                return None
            return ImageFacts("sha256:1", reference, {"navarch.recipe": "cpu"} if reference in OURS else {})

    def holding(self, image_id: str, paths: tuple[str, ...]) -> frozenset[str]:
        with self._effect():
            return frozenset(paths)

    def offered(self, reference: str) -> None:
        with self._effect():
            if reference not in IN_REGISTRY:
                raise ImageMissing("no such host")

    def pull(self, reference: str) -> "SimulatedPull":
        with self._effect():
            if reference not in IN_REGISTRY:
                raise ImageMissing("no such host")
        return SimulatedPull(self, self._machine, reference)

    def copy(self, source: object, reference: str, spool: object, name: str) -> "SimulatedPull":
        return SimulatedPull(self, self._machine, reference)

    def pulled(self, reference: str) -> Iterator[str]:
        for part in ("Pulling fs layer", "Downloading", "Extracting"):
            with self._effect() as machine:
                machine.need_space()
            yield part
        self._machine.images.add(reference)

    def create(self, plan: ContainerPlan) -> Created:
        with self._effect() as machine:
            machine.need_space()
            if plan.image not in machine.images:
                raise ImageMissing("no such image")
            found = machine.find(plan.name)
            if found is None:
                found = Container(f"c{next(machine.numbers)}", plan, machine.clock())
                machine.containers[found.id] = found
                machine.volumes.update(plan.volumes.values())
            elif dict(found.plan.labels) != dict(plan.labels):
                raise NameTaken("name taken", found.id)
        started = found.started_at is not None
        if not started:
            self.put(found.id, plan.files)
        return Created(found.id, started)

    def start(self, container_id: str) -> None:
        with self._effect() as machine:
            machine.need_space()
            container = machine.containers.get(container_id)
            if container is None:
                raise ContainerGone("No such container")
            if container.running:
                return
            for other in list(machine.containers.values()):
                if other.running and set(other.plan.gpus) & set(container.plan.gpus):
                    raise AssertionError(f"{other.plan.name} and {container.plan.name} share a GPU")
                if other.running and set(other.plan.ports.values()) & set(container.plan.ports.values()):
                    raise AssertionError(f"{other.plan.name} and {container.plan.name} share a port")
            taken = machine.foreign_ports & set(container.plan.ports.values())
            if taken:
                raise PortTaken("port is already allocated", min(taken))
            machine.runs[_run(container.plan.labels)] += 1
            container.running, container.started_at = True, machine.clock()
            container.finished_at = container.exit_code = None
            container.log.append(LogRecord(f"2026-01-01T00:00:{len(container.log):02d}.000000000Z", "started"))

    def resume(self, container_id: str, plan: ContainerPlan) -> None:
        self.put(container_id, plan.files)
        self.start(container_id)

    def remove_volume(self, name: str) -> None:
        with self._effect() as machine:
            machine.volumes.discard(name)

    def put(self, container_id: str, files: Mapping[str, bytes]) -> None:
        with self._effect() as machine:
            machine.need_space()
            if container_id not in machine.containers:
                raise ContainerGone("No such container")
            machine.containers[container_id].files.update(files)

    def inspect(self, name_or_id: str) -> ContainerFacts | None:
        with self._effect() as machine:
            found = machine.find(name_or_id)
            return None if found is None else self._facts(found)

    def containers(self, deployment: str) -> list[ContainerFacts]:
        with self._effect() as machine:
            return [self._facts(container) for container in list(machine.containers.values())]

    def signal(self, container_id: str, name: str) -> None:
        with self._effect() as machine:
            container = machine.find(container_id)
            if container is None or not container.running:
                return
            container.signals.append(name)
            if name == "SIGKILL":
                machine.end(container, 137)
            elif not container.ignores_term:
                machine.end(container, 143)

    def remove(self, container_id: str) -> None:
        with self._effect() as machine:
            found = machine.find(container_id)
            if found is not None:
                del machine.containers[found.id]

    def hand_over(self, folder: Path, image_id: str, deployment: str) -> None:
        with self._effect():
            pass

    def follow(
        self, container_id: str, since: int, *, wait: bool, ended: bool = False, tail: int | None = None
    ) -> LogStream:
        with self._effect() as machine:
            found = machine.find(container_id)
            if found is None:
                raise ContainerGone("No such container")
            lines = [record.line for record in found.log]
            if machine.broken_streams > 0:
                machine.broken_streams -= 1
                return Printed([lines[: len(lines) // 2]], Unreachable("connection broken: incomplete read"))
            return Printed([lines])

    def events(self, deployment: str) -> Stream[EngineEvent]:
        with self._effect() as machine:
            return SimulatedEvents(machine)

    def close(self) -> None:
        pass

    @staticmethod
    def _facts(found: Container) -> ContainerFacts:
        return ContainerFacts(
            id=found.id,
            name=found.plan.name,
            labels=found.plan.labels,
            running=found.running,
            started=found.started_at is not None,
            exit_code=found.exit_code,
            oom_killed=found.oom_killed,
            started_at=found.started_at,
            finished_at=found.finished_at,
            created_at=found.created_at,
        )
