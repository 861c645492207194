"""What runs gangs of containers: the one interface that control works with, whatever is behind it.

Written for more than Docker: a batch system lets a gang wait in a queue of its own, chooses hosts and ports itself,
forgets ids and gives them again. So a gang has a name of its own (`Gang.holder`), hosts are known when a reservation
stands, and `Phase.UNKNOWN` is an answer: it is neither success nor failure, and the gang keeps all it has meanwhile.

**Who may launch.** Any holder of leases: an attempt at a job, a workspace. It makes its rows, a `Holder` and the leases
in one transaction; then a `Gang` with the holder's id, the owner's id and a seat for each container; then it calls
`reserve` until that is no `Waiting`, `plan_containers` (jobs/launch.py) with the addresses in it, `launch`, and looks
with `observe`. `spec` is whatever the containers are to be, as far as an image has to fit it (`Asked`). A workspace's
plans carry the label `navarch.workspace` with its id instead of the three of an attempt: by the labels containers are
recognised (`owner_of`), the listener is told whose they are, and they are left alone as long as the holder's row is
there. When that is deleted (and its leases with it), whatever still runs of the gang is swept.

**Another backend** (Slurm, Kubernetes): a class with the methods of `Backend`, and its name in service/runtime.py.
**Another host** under the backend of plain Docker hosts is no new backend: it is a row of the table `host`; its engine
is made from the row's url in docker/hosts.py (`DockerHosts`), and watched from the next `sweep` on. Whatever speaks the
interface of engines.py will do as an engine. What lies on another machine than this one is behind `run_folder`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self

from jobs.launch import Address, Asked, ContainerPlan
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

    @classmethod
    def of(cls, replica: Replica) -> Self:
        return cls(replica.node_rank, replica.container_name, replica.host_id, replica.container_id)


@dataclass(frozen=True)
class Gang:
    """The containers of one holder, all or none: an attempt at a job, or a workspace."""

    holder: str
    """By which a backend recognises what it runs for this holder and no other: the id of its row, never given again."""
    owner: str
    """The id of the job or the workspace: whom the listener is told, and whose run folder the containers see."""
    seats: tuple[Seat, ...]

    @classmethod
    def of(cls, attempt: Attempt, replicas: Sequence[Replica]) -> Self:
        return cls(attempt.holder, attempt.job_id, tuple(Seat.of(replica) for replica in replicas))

    def only(self, ranks: Collection[int]) -> "Gang":
        """The same gang, but only these ranks of it."""
        return Gang(self.holder, self.owner, tuple(seat for seat in self.seats if seat.rank in ranks))


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
    """The run folder of a gang's containers on the control plane's machine; on others a launch makes them."""

    @property
    def path(self) -> Path:
        """Its name on its host."""
        ...

    def make(self) -> None: ...

    def hand_over(self, image: str, folder: Path) -> None:
        """Makes all that containers wrote below it the property of this process's account, by means of an image.

        `folder` is the run folder, or one to which it was moved.
        """
        ...


class Listener(Protocol):
    """Who is told what happened. Any thread may call; the methods return at once."""

    def wake(self, owner: str) -> None:
        """Something happened to the containers of this job or workspace."""
        ...

    def look(self, host_id: str) -> None:
        """A host answers again, or doesn't any more: whoever has containers there wants to know."""
        ...

    def room(self) -> None:
        """There may be room for those that wait."""
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

    def reserve(self, gang: Gang, spec: Asked) -> Reserved | Waiting:
        """Sees to it that the gang can be launched: its place in a queue, its images. Asked again until it stands."""
        ...

    def withdraw(self, gang: Gang) -> None:
        """Nobody is going to launch the gang any more: what is under way for it alone ends."""
        ...

    def launch(
        self,
        gang: Gang,
        spec: Asked,
        plans: Sequence[ContainerPlan],
        reserved: Reserved,
        cancelled: Callable[[], bool],
    ) -> list[Launched]:
        """Makes and starts every container that was never started; one that has run is left as it is.

        Raises Cancelled between two of its deeds when `cancelled` says so.
        """
        ...

    def resume(self, gang: Gang, plans: Sequence[ContainerPlan]) -> None:
        """Starts again what has run and was kept: a workspace's container. Its mounts are looked up as for a launch."""
        ...

    def observe(self, gang: Gang) -> list[Sight]:
        """Every container of the gang, in the order of the ranks; UNKNOWN where nothing is known. Raises nothing."""
        ...

    def release(self, gang: Gang) -> None:
        """Opens the barrier at which the ranks wait for each other."""
        ...

    def put(self, gang: Gang, files: Mapping[str, bytes]) -> None:
        """Writes files into /run/navarch of every container, whether or not it runs."""
        ...

    def signal(self, gang: Gang, ranks: Sequence[int], name: str) -> None:
        """Sends a signal to those that run."""
        ...

    def logs(self, seat: Seat, since: int, *, wait: bool, ended: bool = False, tail: int | None = None) -> LogStream:
        """The log of one container, as `Engine.follow` gives it. Raises ContainerGone."""
        ...

    def remove(self, gang: Gang) -> list[int]:
        """Removes the containers, running or not; the ranks whose container is gone now."""
        ...

    def forget_volumes(self, gang: Gang, names: Sequence[str]) -> None:
        """Removes volumes that outlived the gang's containers; nothing happens where there are none."""
        ...

    def run_folder(self, gang: Gang) -> RunFolder: ...

    def sweep(self) -> None:
        """Looks for what was missed: new hosts, containers that nobody wants any more. The first time at once."""
        ...

    def strays(self) -> Iterator[tuple[str, list[str] | EngineError]]:
        """For each place that is in use: what runs there although nobody holds it, or why it doesn't answer."""
        ...
