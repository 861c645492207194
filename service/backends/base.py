"""What runs gangs of containers: the one interface that control works with, whatever is behind it.

Written for more than Docker: a batch system lets a gang wait in a queue of its own, chooses hosts and ports itself,
forgets ids and gives them again. So a gang has a token of its own, hosts are known when a reservation stands, and
`Phase.UNKNOWN` is an answer: it is neither success nor failure, and the job keeps all it has meanwhile.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self

from jobs.launch import Address, ContainerPlan
from jobs.spec import JobSpec
from jobs.states import Reason
from service.backends.engines import ImageFacts, LogStream
from service.backends.errors import EngineError
from service.store.tables import Attempt, Replica


@dataclass(frozen=True)
class Seat:
    """One container of a gang, as the database has it."""

    rank: int
    container: str
    """Its name, which is decided before it is made."""
    host_id: str | None
    container_id: str | None

    @property
    def key(self) -> str:
        return self.container_id or self.container


@dataclass(frozen=True)
class Gang:
    """One attempt at a job, as a backend sees it."""

    job_id: str
    attempt: int
    seats: tuple[Seat, ...]

    @classmethod
    def of(cls, attempt: Attempt, replicas: Sequence[Replica]) -> Self:
        seats = tuple(Seat(r.node_rank, r.container_name, r.host_id, r.container_id) for r in replicas)
        return cls(attempt.job_id, attempt.number, seats)

    def only(self, ranks: Collection[int]) -> "Gang":
        """The same gang, but only these ranks of it."""
        return Gang(self.job_id, self.attempt, tuple(seat for seat in self.seats if seat.rank in ranks))

    @property
    def token(self) -> str:
        """By which a backend recognises what it runs for this attempt and no other."""
        return f"{self.job_id}.{self.attempt}"


class Phase(StrEnum):
    ABSENT = "absent"
    """It was never made, as far as the backend knows."""
    CREATED = "created"
    """It is there, and was never started."""
    RUNNING = "running"
    ENDED = "ended"
    GONE = "gone"
    """It was there, and somebody else removed it."""
    UNKNOWN = "unknown"
    """The backend can't tell now: its host doesn't answer, or it lost sight of it."""


@dataclass(frozen=True)
class Sight:
    """What a backend sees of one container."""

    rank: int
    phase: Phase
    place: str = ""
    """Where it runs, as people call it."""
    says: str = ""
    """Why nothing is known."""
    exit_code: int | None = None
    """None while it runs, or when it never ran."""
    oom_killed: bool = False
    error: str = ""
    """The backend's own words about its end."""
    started_at: float | None = None
    finished_at: float | None = None
    interruption: tuple[Reason, str] | None = None
    """What took it down together with everything around it."""

    @property
    def over(self) -> bool:
        """Whether it doesn't run and never will."""
        return self.phase in (Phase.ABSENT, Phase.CREATED, Phase.ENDED, Phase.GONE)


@dataclass(frozen=True)
class Waiting:
    """A reservation that doesn't stand yet; the job is woken when there is more to say."""

    says: str


@dataclass(frozen=True)
class Reserved:
    """Everything that a launch needs is there."""

    addresses: tuple[Address, ...]
    """Where each rank is reached by the others, in their order."""
    images: tuple[ImageFacts, ...]
    """The image as it is where each rank runs."""


@dataclass(frozen=True)
class Launched:
    rank: int
    container_id: str


class RunFolder(Protocol):
    """A job's run folder, where its containers see it; it may lie on another machine than the control plane."""

    @property
    def path(self) -> Path:
        """Its name on its host."""
        ...

    def make(self) -> None: ...


class Listener(Protocol):
    """Who is told what happened."""

    def wake(self, job_id: str) -> None:
        """Something happened to this job."""
        ...

    def room(self) -> None:
        """There may be room for jobs that wait."""
        ...


InLane = Callable[[str, str, Callable[[], None]], None]
"""Has a kind of work done for a host (or whatever else can be slow by itself) by the workers of that lane."""


class Backend(Protocol):
    """Runs gangs. What it is asked it answers at once or within seconds; every method may be repeated after a crash.

    Methods may raise the errors of service.backends.errors: `Unreachable` when nothing is known, others when the gang
    can't be had.
    """

    def start(self, deployment: str, listener: Listener, in_lane: InLane) -> None:
        """Called once, before anything else: whose gangs, whom to tell what happens, who does what is slow."""
        ...

    def stop(self) -> None:
        """Ends that; the gangs run on."""
        ...

    def reserve(self, gang: Gang, spec: JobSpec) -> Reserved | Waiting:
        """Sees to it that the gang can be launched: its place in a queue, its images. Asked again until it stands."""
        ...

    def withdraw(self, gang: Gang) -> None:
        """Nobody is going to launch the gang any more: what is under way for it alone ends."""
        ...

    def launch(
        self,
        gang: Gang,
        spec: JobSpec,
        plans: Sequence[ContainerPlan],
        reserved: Reserved,
        cancelled: Callable[[], bool],
    ) -> list[Launched]:
        """Makes and starts every container that was never started; one that has run is left as it is.

        Raises Cancelled between two of its deeds when `cancelled` says so.
        """
        ...

    def observe(self, gang: Gang) -> list[Sight]:
        """Every container of the gang, in the order of the ranks; UNKNOWN where nothing is known. Raises nothing."""
        ...

    def release(self, gang: Gang) -> None:
        """Opens the barrier at which the ranks wait for each other."""
        ...

    def signal(self, gang: Gang, ranks: Sequence[int], name: str) -> None:
        """Sends a signal to those that run."""
        ...

    def logs(
        self, replica: Replica, since: int, *, wait: bool, ended: bool = False, tail: int | None = None
    ) -> LogStream:
        """The log of one container, as `Engine.follow` gives it. Raises ContainerGone."""
        ...

    def remove(self, gang: Gang) -> list[int]:
        """Removes the containers, running or not; the ranks whose container is gone now."""
        ...

    def run_folder(self, job_id: str) -> RunFolder: ...

    def hand_over(self, gang: Gang, image: str, folder: Path) -> None:
        """Makes all that the gang's containers wrote into a run folder the property of this process's account."""
        ...

    def sweep(self) -> None:
        """Looks for what was missed: new hosts, containers that nobody wants any more. The first time at once."""
        ...

    def strays(self) -> Iterator[tuple[str, list[str] | EngineError]]:
        """For each place that is in use: what runs there although no attempt has it, or why it doesn't answer."""
        ...
