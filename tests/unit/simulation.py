"""A deployment in a folder: the real store, steps and log collection, over simulated machines and their clock."""

import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from sqlmodel import select

from jobs.states import JobState
from service.access.principals import Principal, Role, enter
from service.access.secrets import SecretBox
from service.backends.docker.backend import DockerBackend
from service.backends.engines import Engine
from service.backends.errors import EngineError
from service.collector.follower import Follower
from service.collector.hub import Hub
from service.control.context import Context, LogEnd
from service.control.step import step
from service.control.steps.schedule import schedule
from service.control.workspaces import step_workspace
from service.intake.commands import Jobs
from service.intake.plans import Plans
from service.intake.workspaces import Workspaces
from service.settings import Settings
from service.store.database import Database
from service.store.tables import Attempt, Event, Host, Job, Replica
from tests.unit.simulated_engine import Container, Fuse, FusedDatabase, Machine, SimulatedEngine


@cache
def _empty_database() -> Path:
    """A migrated database without rows, made once."""
    path = Path(mkdtemp(prefix="navarch-template-")) / "empty.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    with database.engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return path


def new_database(folder: Path) -> Database:
    """A migrated database in a data folder that has none."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(_empty_database(), folder / "navarch.db")
    return Database(f"sqlite:///{folder / 'navarch.db'}")


@dataclass
class InlineCollector:
    """Collects like the real one, but only when a container has ended, and in the caller's thread."""

    controller: "SimulatedController"

    def follow(self, replica: Replica, attempt: int) -> None:
        pass

    def drain(self, replica: Replica, attempt: int, patience_s: float) -> LogEnd:
        c = self.controller
        return Follower(c.backend, c.context.database, c.context.settings, Hub(), replica, attempt).end(patience_s)


class SimulatedController:
    """One controller process; dies when its fuse has burnt."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.fuse = Fuse()
        self._engines: dict[str, Engine] = {
            host_id: SimulatedEngine(machine, self.fuse) for host_id, machine in world.machines.items()
        }
        self.database = FusedDatabase(world.settings.url, self.fuse)
        self.in_lanes: deque[Callable[[], None]] = deque()
        """Work that was handed to lanes, and that nobody has done yet."""
        self.backend = DockerBackend(self, self.database, world.settings, world.clock)
        self.backend.start("deployment", self, lambda kind, place, work: self.in_lanes.append(work))
        self.context = Context(
            database=self.database,
            settings=world.settings,
            backends={"docker": self.backend},
            collector=InlineCollector(self),
            deployment="deployment",
            clock=world.clock,
            secrets=SecretBox(world.settings.data_dir),
            handshake=self._handshake,
        )

    def engine(self, host_id: str) -> Engine:
        return self._engines[host_id]

    def step(self, job_id: str) -> None:
        step(self.context, job_id)

    def step_workspace(self, key: str) -> float | None:
        return step_workspace(self.context, key).after_s

    def schedule(self) -> None:
        schedule(self.context)

    def watch(self, host_id: str) -> None:
        """What the watch of a host does when it has (or hasn't) connected."""
        watches = self.backend.watches
        try:
            watches.look(host_id, None)
        except EngineError as error:
            watches.lost(host_id, str(error))

    def work_lanes(self) -> None:
        """The workers of all lanes do what there is to do."""
        while self.in_lanes:
            self.in_lanes.popleft()()

    def wake(self, job_id: str) -> None:
        pass

    def look(self, host_id: str) -> None:
        pass

    def room(self) -> None:
        pass

    def close(self) -> None:
        self.database.close()

    def _handshake(self, address: str, port: int, host_key: str) -> bool:
        self.fuse.spark()
        return any(
            c.running and port in c.plan.ports.values() and c.files.get("ssh_host_ed25519_key.pub") == host_key.encode()
            for machine in self.world.machines.values()
            for c in machine.containers.values()
        )


@dataclass
class World:
    """Everything that is there whether or not a controller lives. A folder with a database in it is taken over."""

    folder: Path
    gpus: tuple[int, ...] = (2, 1)
    now: float = 1_800_000_000.0
    machines: dict[str, Machine] = field(default_factory=dict)
    settings: Settings = field(init=False)
    database: Database = field(init=False)
    jobs: Jobs = field(init=False)
    plans: Plans = field(init=False)
    workspaces: Workspaces = field(init=False)

    @property
    def shared(self) -> Path:
        """The folder that jobs may mount."""
        return self.folder / "shared"

    def __post_init__(self) -> None:
        data_dir = self.folder / "data"
        for folder in (data_dir, self.shared):
            folder.mkdir(parents=True, exist_ok=True)
        self.settings = Settings(data_dir=data_dir, mount_roots=[self.shared], unreachable_grace_s=600)
        file = data_dir / "navarch.db"
        is_new = not file.exists()
        self.database = new_database(data_dir) if is_new else Database(self.settings.url)
        self.database.migrate()
        if is_new:
            self._add_hosts()
        for host in self.rows(Host):
            self.machines[host.id] = Machine(self.clock, tuple(gpu["uuid"] for gpu in host.facts["gpus"]))
        self.jobs = Jobs(self.database, self.settings)
        self.workspaces = Workspaces(self.database, self.settings, self.clock)
        self.plans = Plans(self.database, self.settings, self)

    def principal(self, name: str, role: Role = Role.MEMBER) -> Principal:
        """Somebody else."""
        with self.database.write() as session:
            return enter(session, name, role)

    def one_replica(self) -> Replica:
        """A job `j` with one attempt and one container `c`, for whoever only needs something to hang a log on."""
        replica = Replica(id=1, attempt_id=1, job_id="j", node_rank=0, host_id="h1", container_name="c")
        with self.database.write() as session:
            for row in (
                Job(owner_id="local", id="j", name="demo", type="sft", document={}),
                Attempt(id=1, job_id="j", number=1),
                replica,
            ):
                session.add(row)
                session.flush()
        return replica

    def _add_hosts(self) -> None:
        with self.database.write() as session:
            for number, count in enumerate(self.gpus, start=1):
                name = f"h{number}"
                uuids = tuple(f"GPU-{name}-{index}" for index in range(count))
                facts = {
                    "cpus": 4,
                    "memory_bytes": 1 << 34,
                    "gpus": [{"uuid": u, "name": "sim", "memory_mib": 1, "index": i} for i, u in enumerate(uuids)],
                }
                session.add(
                    Host(
                        id=name,
                        name=name,
                        url=f"sim://{name}",
                        address=f"10.0.0.{number}",
                        reachable=True,
                        facts=facts,
                        max_containers=4,
                    )
                )

    def clock(self) -> float:
        return self.now

    def engine(self, host_id: str) -> Engine:
        """What somebody sees of a machine who is no controller."""
        return SimulatedEngine(self.machines[host_id], Fuse())

    def controller(self) -> SimulatedController:
        return SimulatedController(self)

    def close(self) -> None:
        self.database.close()

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            found = session.get(Job, job_id)
            assert found is not None
            return found

    def live_jobs(self) -> list[Job]:
        terminal = [JobState.SUCCEEDED.value, JobState.FAILED.value, JobState.STOPPED.value]
        with self.database.read() as session:
            return [job for job in session.exec(select(Job)) if job.state not in terminal]

    def rows(self, table: type) -> list:
        with self.database.read() as session:
            return list(session.exec(select(table)))

    def attempts(self, job_id: str) -> list[Attempt]:
        return sorted((a for a in self.rows(Attempt) if a.job_id == job_id), key=lambda a: a.number)

    def events(self, job_id: str) -> list[Event]:
        return [e for e in self.rows(Event) if e.job_id == job_id]

    def containers(self) -> list[Container]:
        return [c for machine in self.machines.values() for c in machine.containers.values()]

    def settle(self, controller: SimulatedController, rounds: int = 60) -> None:
        """Lets time pass, with hosts that answer and jobs that end, until nothing is left to do."""
        for machine in self.machines.values():
            machine.be_nice()
        for _ in range(rounds):
            for host_id in self.machines:
                controller.watch(host_id)
            controller.schedule()
            for job in self.rows(Job):
                controller.step(job.id)
            controller.work_lanes()
            for machine in self.machines.values():
                for container in machine.containers.values():
                    machine.end(container, 0)
            if not self.live_jobs() and not self.containers():
                return
            self.now += 60.0
