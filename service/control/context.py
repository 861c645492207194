"""What every step works with: database, backends, collector, clock; and how it reads and writes its job."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from sqlmodel import Session, col, select

from jobs.mistakes import SpecError
from jobs.spec import JobSpec, parse_spec
from jobs.states import Desired
from jobs.stored import read_stored
from service.access.secrets import SecretBox
from service.backends.base import Backend, Gang
from service.collector.log_end import LogEnd as LogEnd
from service.control.figures import Figures
from service.settings import Settings
from service.store.database import Database
from service.store.tables import Attempt, Job, Replica
from service.workspaces.ide_check import LookIn

_KNOWN_SPECS = 1024


class Vanished(Exception):
    """The job's rows were deleted meanwhile: whatever this step found out is void."""


class LogCollector(Protocol):
    """The part of the collector that the controller needs."""

    def follow(self, replica: Replica, attempt: int) -> None:
        """Sees to it that the log of this replica is being collected."""
        ...

    def drain(self, replica: Replica, attempt: int, patience_s: float) -> LogEnd | None:
        """Collects the log of an ended container to its end, which may take `patience_s`; None while it does."""
        ...


@dataclass
class Work:
    """A job with its latest attempt, as they were when its step began. One step of a job is under way at a time."""

    job: Job
    attempt: Attempt | None
    replicas: list[Replica]

    @property
    def placed(self) -> Attempt:
        """The attempt of a job that has one under way."""
        assert self.attempt is not None
        return self.attempt

    @property
    def gang(self) -> Gang:
        return Gang.of(self.placed, self.replicas)

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset(replica.host_id for replica in self.replicas if replica.host_id is not None)


@dataclass(frozen=True)
class Next:
    """When the job wants to be looked at again; None: when something happens."""

    after_s: float | None = None


NOTHING = Next()


@dataclass
class Context:
    database: Database
    settings: Settings
    backends: Mapping[str, Backend]
    collector: LogCollector
    deployment: str
    clock: Callable[[], float]
    secrets: SecretBox
    handshake: Callable[[str, int, str], bool]
    figures: Figures = field(default_factory=Figures)
    own_key: Callable[[], str] = lambda: ""
    """The line of the control plane's own SSH key, which workspaces authorise."""
    look_in: LookIn = lambda *_: []
    """What an IDE would find in a workspace."""
    freed: Callable[[], None] = lambda: None
    """Told that leases were given back, or that a job is back in the queue."""
    changed: Callable[[str], None] = lambda _: None
    """Told the id of a job whose row changed."""
    ending: threading.Event = field(default_factory=threading.Event)
    """Set when the control plane ends: whatever is slow breaks off."""
    _specs: dict[str, JobSpec] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def spec(self, job: Job) -> JobSpec:
        """The job's spec, parsed once: it never changes. Raises SpecError when newer code refuses it."""
        found = self._specs.get(job.id)
        if found is None:
            found = read_stored(job.document, job.spec_version)
            with self._lock:
                if len(self._specs) >= _KNOWN_SPECS:
                    self._specs.clear()
                self._specs[job.id] = found
        return found

    def spec_to_end(self, work: Work) -> JobSpec:
        """The spec of a job that has containers. Where newer code refuses it, one that is enough to watch and end them.

        What runs is nobody's mistake: it goes on, without the limits and retries that can't be read any more.
        """
        try:
            return self.spec(work.job)
        except SpecError:
            ranks = {"nodes": len(work.replicas)}
            known = {"type": "command", "image": "unknown", "command": ["true"], "resources": ranks}
            return parse_spec(known, stored=True)

    def backend(self, work: Work) -> Backend:
        """What runs the job's attempt."""
        return self.backends[work.placed.backend]

    def wanted(self, work: Work) -> bool:
        """Whether nobody has asked the job to stop since its step began."""
        if self.ending.is_set():
            return False
        with self.database.read() as session:
            job = session.get(Job, work.job.id)
            return job is not None and job.desired != Desired.STOP

    def load(self, job_id: str) -> Work | None:
        """The job as it is now; None when it is gone."""
        with self.database.read() as session:
            job = session.get(Job, job_id)
            if job is None:
                return None
            attempt, replicas = latest_attempt(session, job)
            return Work(job, attempt, replicas)

    @contextmanager
    def writing(self, work: Work) -> Iterator[tuple[Session, Job]]:
        """A write transaction on a job. Raises Vanished when it is gone."""
        with self.database.write() as session:
            job = session.get(Job, work.job.id)
            if job is None:
                raise Vanished(work.job.id)
            yield session, job
        work.job = job
        self.changed(job.id)


Row = TypeVar("Row", Attempt, Replica)


def again(session: Session, row: Row) -> Row:
    """The row as it is now in this transaction: the collector may have written to it meanwhile."""
    found = session.get(type(row), row.id)
    if found is None:
        raise Vanished(f"{type(row).__name__} {row.id} is gone")
    return found


def latest_attempt(session: Session, job: Job) -> tuple[Attempt | None, list[Replica]]:
    """The newest attempt of a job and its replicas in the order of their ranks."""
    newest = select(Attempt).where(Attempt.job_id == job.id).order_by(col(Attempt.number).desc()).limit(1)
    attempt = session.exec(newest).first()
    if attempt is None:
        return None, []
    of_attempt = select(Replica).where(Replica.attempt_id == attempt.id).order_by(col(Replica.node_rank))
    return attempt, list(session.exec(of_attempt))
