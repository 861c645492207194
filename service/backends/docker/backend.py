"""Gangs on plain Docker hosts: images are pulled, containers made, started, looked at, signalled and removed."""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
from sqlmodel import col, select

from jobs.launch import GO_FILE, LABEL_DEPLOYMENT, Address, Asked, ContainerPlan
from service.backends.base import Gang, InLane, Launched, Listener, Phase, Reserved, Seat, Sight, Waiting
from service.backends.docker.checks import Checks
from service.backends.docker.history import HostHistory, Hosts, interruption, may_be_interrupted
from service.backends.docker.hosts import LOCAL
from service.backends.docker.leftovers import Leftovers
from service.backends.docker.pulls import Pulls
from service.backends.docker.run_folder import LocalRunFolder
from service.backends.docker.spool import Spool
from service.backends.docker.watch import Watches
from service.backends.engines import Engine, Engines, ImageFacts, LogStream, Stream
from service.backends.errors import (
    Cancelled,
    ContainerGone,
    EngineError,
    ImageMissing,
    ImageUnsuitable,
    NameTaken,
)
from service.backends.fitness import LOOKED_FOR, is_root, misfit, started_in
from service.backends.references import find_image, how_to_get
from service.settings import Settings
from service.store.database import Database
from service.store.places import is_remote, remote_run
from service.store.tables import Host

log = structlog.get_logger("docker")
SWEEP_LANE, CHECK_LANE = "sweep", "check"
_AT_ONCE = 16
"""Containers of one gang that are worked on side by side."""
Answer = TypeVar("Answer")


class DockerBackend:
    """Implements `Backend`; nothing works before `start`.

    Placement has chosen the hosts, GPUs and ports already: they are leased to the attempt.
    """

    name = "docker"

    def __init__(
        self,
        engines: Engines,
        database: Database,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._engines, self._database, self._settings, self._clock = engines, database, settings, clock
        self._hosts = Hosts(database, clock)
        self._spool = Spool(settings.data_dir / "layers")

    def start(self, deployment: str, listener: Listener, in_lane: InLane) -> None:
        self._deployment, self._in_lane = deployment, in_lane
        self._leftovers = Leftovers(self._engines, self._database, deployment, self._clock)
        self._pulls = Pulls(self._engines, in_lane, listener.wake, self._copy)
        self._checks = Checks(self._engines, self._database, deployment, self._clock)
        self._room = listener.room
        self.watches = Watches(self._engines, self._database, self._hosts, self._leftovers, deployment, listener)

    def stop(self) -> None:
        self.watches.stop()
        self._pulls.close()

    def reserve(self, gang: Gang, spec: Asked) -> Reserved | Waiting:
        """Docker hosts have no queue of their own: what may be waited for is the image."""
        said: list[str] = []
        images: dict[str, ImageFacts] = {}
        for host_id in _hosts_of(gang):
            found = find_image(self._engines.engine(host_id), spec.image)
            if found is None:
                said.append(self._pull(host_id, spec.image, gang.owner))
            else:
                images[host_id] = found
        if said:
            return Waiting(said[0] if len(said) == 1 else f"{said[0]}; {len(said) - 1} more hosts pull it, too")
        hosts = self._rows(gang)
        at = [hosts[_host(seat)] for seat in gang.seats]
        return Reserved(tuple(self._address(host, gang.owner) for host in at), tuple(images[host.id] for host in at))

    def _address(self, host: Host, owner: str) -> Address:
        folder = str(remote_run(self._deployment, owner)) if is_remote(host) else ""
        return Address(host.id, host.name, _numeric(host), host.interface or "", folder)

    def withdraw(self, gang: Gang) -> None:
        self._pulls.leave(gang.owner)

    def launch(
        self,
        gang: Gang,
        spec: Asked,
        plans: Sequence[ContainerPlan],
        reserved: Reserved,
        cancelled: Callable[[], bool],
    ) -> list[Launched]:
        def begin(seat: Seat) -> Launched:
            image, plan = reserved.images[seat.rank], plans[seat.rank]
            return Launched(seat.rank, self._begin(gang, seat, spec, plan, image, cancelled))

        return _side_by_side(gang.seats, begin)

    def resume(self, gang: Gang, plans: Sequence[ContainerPlan]) -> None:
        _side_by_side(gang.seats, lambda seat: self._engines.engine(_host(seat)).resume(seat.key, plans[seat.rank]))

    def observe(self, gang: Gang) -> list[Sight]:
        hosts = self._rows(gang)
        return _side_by_side(gang.seats, lambda seat: self._look(seat, hosts[_host(seat)]))

    def release(self, gang: Gang) -> None:
        self.put(gang, {Path(GO_FILE).name: b""})

    def put(self, gang: Gang, files: Mapping[str, bytes]) -> None:
        for seat in gang.seats:
            self._engines.engine(_host(seat)).put(seat.key, files)

    def signal(self, gang: Gang, ranks: Sequence[int], name: str) -> None:
        seats = [seat for seat in gang.seats if seat.rank in ranks]
        _side_by_side(seats, lambda seat: self._engines.engine(_host(seat)).signal(seat.key, name))

    def logs(self, seat: Seat, since: int, *, wait: bool, ended: bool = False, tail: int | None = None) -> LogStream:
        return self._engines.engine(_host(seat)).follow(seat.key, since, wait=wait, ended=ended, tail=tail)

    def remove(self, gang: Gang) -> list[int]:
        def away(seat: Seat) -> int | None:
            try:
                self._engines.engine(_host(seat)).remove(seat.key)
            except EngineError as error:  # a sweep tries it again
                log.info("container stays for now", container=seat.container, error=str(error))
                return None
            return seat.rank

        return [rank for rank in _side_by_side(gang.seats, away) if rank is not None]

    def forget_volumes(self, gang: Gang, names: Sequence[str]) -> None:
        for host_id in _hosts_of(gang):
            for name in names:
                self._engines.engine(host_id).remove_volume(name)

    def run_folder(self, gang: Gang) -> LocalRunFolder:
        rows = self._rows(gang)
        here = [seat for seat in gang.seats if not is_remote(rows[_host(seat)])] or gang.seats
        engine = self._engines.engine(_host(here[0]))
        return LocalRunFolder(self._settings.job_dir(gang.owner), engine, self._deployment)

    def sweep(self) -> None:
        self.watches.look_for_hosts()
        for host_id in self.watches.connected():
            self._in_lane(SWEEP_LANE, host_id, partial(self._sweep, host_id))
        for host_id in self._checks.due():
            self._in_lane(CHECK_LANE, host_id, partial(self._check, host_id))

    def check(self, host_id: str, accept: bool = False) -> None:
        if self._checks.check(host_id, accept):
            self._room()

    def _check(self, host_id: str) -> None:
        try:
            self.check(host_id)
        except EngineError as error:  # its watch sees that, too
            log.info("check interrupted", host=host_id, error=str(error))

    def _sweep(self, host_id: str) -> None:
        try:
            self._leftovers.sweep(host_id)
        except EngineError as error:  # its watch sees that, too
            log.info("sweep interrupted", host=host_id, error=str(error))

    def strays(self) -> Iterator[tuple[str, list[str] | EngineError]]:
        with self._database.read() as session:
            hosts = list(session.exec(select(Host).where(Host.lifecycle != "removed", col(Host.reachable).is_(True))))
        for host in hosts:
            try:
                yield host.name, self._leftovers.strays(host)
            except EngineError as error:
                yield host.name, error

    def _pull(self, host_id: str, reference: str, owner: str) -> str:
        try:
            return f"pulls {reference}: {self._pulls.want(host_id, reference, owner)}"
        except ImageMissing as error:
            words = f"image {reference} is not on the host and can't be pulled ({error}). {how_to_get(reference)}"
            raise ImageMissing(words) from error

    def _copy(self, host_id: str, reference: str) -> Stream[str] | None:
        """From a host that answers and has the image, this machine first; None where none has it."""
        with self._database.read() as session:
            others = session.exec(select(Host).where(Host.id != host_id, col(Host.reachable).is_(True))).all()
        for host in sorted(others, key=lambda host: (host.id != LOCAL, host.name)):
            try:
                source = self._engines.engine(host.id)
                found = find_image(source, reference)
            except EngineError:
                continue
            if found is not None:
                return self._engines.engine(host_id).copy(source, found.reference, self._spool, host.name)
        return None

    def _rows(self, gang: Gang) -> dict[str, Host]:
        with self._database.read() as session:
            found = session.exec(select(Host).where(col(Host.id).in_(_hosts_of(gang))))
            return {host.id: host for host in found}

    def _begin(
        self,
        gang: Gang,
        seat: Seat,
        spec: Asked,
        plan: ContainerPlan,
        image: ImageFacts,
        cancelled: Callable[[], bool],
    ) -> str:
        """Makes and starts one container. One that has run is left: it may have ended since, and is harvested."""
        engine = self._engines.engine(_host(seat))
        programs = partial(engine.holding, image.id, LOOKED_FOR)
        wrong = misfit(spec, image, programs)
        if wrong is not None:
            raise ImageUnsuitable(f"{wrong.message} {wrong.hint}")
        if not is_root(image) and not is_remote(self._rows(gang)[_host(seat)]):  # there it is so from the start
            self.run_folder(gang).open_to_all()
        plan = started_in(plan, image, programs)
        if cancelled():
            raise Cancelled
        try:
            created = engine.create(plan)
        except NameTaken as error:
            self._make_room(engine, error)
            created = engine.create(plan)
        if not created.started:
            if cancelled():
                raise Cancelled
            engine.start(created.id)
        return created.id

    def _make_room(self, engine: Engine, taken: NameTaken) -> None:
        """Removes a container of ours that has the name still, though nobody holds it any more."""
        found = engine.inspect(taken.container_id)
        if found is None:
            return
        if found.labels.get(LABEL_DEPLOYMENT) != self._deployment or self._leftovers.is_held(found):
            raise EngineError(f"{taken}: remove that container, or rename the job") from taken
        engine.remove(taken.container_id)

    def _look(self, seat: Seat, host: Host) -> Sight:
        try:
            engine = self._engines.engine(host.id)
            found = engine.inspect(seat.key)
            if found is None:
                return Sight(seat.rank, Phase.GONE if seat.container_id else Phase.ABSENT, host.name)
            if found.running:
                return Sight(seat.rank, Phase.RUNNING, host.name, started_at=found.started_at)
            if may_be_interrupted(found):  # the engine may have come back only a moment ago
                host = self._hosts.note_facts(host.id, engine.facts()) or host
        except ContainerGone:
            return Sight(seat.rank, Phase.GONE, host.name)
        except EngineError as error:
            return Sight(seat.rank, Phase.UNKNOWN, host.name, says=str(error))
        return Sight(
            seat.rank,
            Phase.ENDED if found.started else Phase.CREATED,
            host.name,
            exit_code=found.exit_code,
            oom_killed=found.oom_killed,
            error=found.error,
            started_at=found.started_at,
            finished_at=found.finished_at,
            interruption=interruption(found, HostHistory.of(host)),
        )


def _host(seat: Seat) -> str:
    assert seat.host_id is not None, f"{seat.container} has no host"
    return seat.host_id


def _hosts_of(gang: Gang) -> list[str]:
    return sorted({_host(seat) for seat in gang.seats})


def _numeric(host: Host) -> str:
    """Where the other hosts find it, as a number: in a container its name may mean something else."""
    address = host.cluster_address or host.address
    try:
        return str(socket.getaddrinfo(address, None, proto=socket.IPPROTO_TCP)[0][4][0])
    except OSError as error:
        raise EngineError(f"the address {address} of {host.name} can't be resolved: {error}") from error


def _side_by_side(seats: Sequence[Seat], work: Callable[[Seat], Answer]) -> list[Answer]:
    """Does it for every seat, and then raises what was raised first."""
    if len(seats) == 1:
        return [work(seats[0])]
    with ThreadPoolExecutor(max_workers=min(_AT_ONCE, max(1, len(seats)))) as pool:
        return [done.result() for done in [pool.submit(work, seat) for seat in seats]]
