"""Where a job's containers go: a pure function of the job's demand and what the hosts have free."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobs.units import format_size

SOME_DAY = 1e15
"""When something ends that will end, but nobody knows when."""
NEVER = math.inf
"""When something ends that is meant to stay, such as a model server."""
_TINY = 1e-6
"""Shares of CPUs are added up as floats."""


@dataclass(frozen=True)
class Room:
    """An amount of what hosts have; a need, or what is free."""

    gpus: int = 0
    cpus: float = 0.0
    memory: int = 0
    containers: int = 0

    def holds(self, need: "Room") -> bool:
        """Whether the need fits in. What isn't needed may be short."""
        return (
            need.gpus <= max(self.gpus, 0)
            and need.cpus <= max(self.cpus, 0.0) + _TINY
            and need.memory <= max(self.memory, 0)
            and need.containers <= max(self.containers, 0)
        )

    def plus(self, other: "Room", times: int = 1) -> "Room":
        return Room(
            self.gpus + times * other.gpus,
            self.cpus + times * other.cpus,
            self.memory + times * other.memory,
            self.containers + times * other.containers,
        )

    def short_of(self, need: "Room") -> tuple[int, int, float, int]:
        """How much is missing of each; equal tuples compare as equally far away."""
        return (
            max(need.gpus - self.gpus, 0),
            max(need.memory - self.memory, 0),
            max(need.cpus - self.cpus, 0.0),
            max(need.containers - self.containers, 0),
        )


@dataclass(frozen=True)
class Need:
    """Something that only some hosts have: a folder, an artifact."""

    what: str
    hosts: tuple[str, ...]
    """Their ids."""


@dataclass(frozen=True)
class Demand:
    """What one job needs; everything but `nodes` and `lasts` is per node."""

    nodes: int = 1
    gpus: int = 0
    fixed_ports: tuple[int, ...] = ()
    """Host ports that the user named: rank 0 gets them."""
    pool_ports: int = 0
    """How many ports from the host's pool."""
    cpus: float | None = None
    memory: int | None = None
    lasts: float | None = None
    """Seconds after which an attempt has ended at the latest; None when nobody knows, infinite when it stays."""
    spread: bool = False
    """Whether each node is to be on a host of its own."""
    labels: tuple[tuple[str, str], ...] = ()
    """What a host must be labelled with."""
    avoid: frozenset[str] = frozenset()
    """Ids of hosts that are not to be used as long as others can do it."""
    needs: tuple[Need, ...] = ()
    """Every node's host has to have all of them."""

    def has_its_needs(self, host_id: str) -> bool:
        return all(host_id in need.hosts for need in self.needs)

    @property
    def key(self) -> str:
        """A short digest: jobs that need the same have the same one."""
        told = repr(replace(self, avoid=frozenset())) + repr(sorted(self.avoid))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def room(self) -> Room:
        """What each node takes."""
        return Room(self.gpus, self.cpus or 0.0, self.memory or 0, 1)

    def ends(self, start: float) -> float:
        return SOME_DAY if self.lasts is None else start + self.lasts


@dataclass(frozen=True)
class Holding:
    """What one container has of a host, and when it gives it back at the latest."""

    room: Room
    ends: float = SOME_DAY


@dataclass(frozen=True)
class HostCapacity:
    """What a host has, and what of it is taken."""

    id: str
    name: str
    gpus: tuple[str, ...] = ()
    """UUIDs, in the order of their index."""
    taken_gpus: frozenset[str] = frozenset()
    sick_gpus: Mapping[str, str] = field(default_factory=dict)
    """GPUs that nobody gets, with what is wrong."""
    first_port: int = 20000
    last_port: int = 21999
    taken_ports: Mapping[int, str] = field(default_factory=dict)
    """Host port → who has it, such as `job NAME`."""
    holdings: tuple[Holding, ...] = ()
    max_containers: int = 8
    cpus: float = 1.0
    memory: int = 1 << 62
    unusable: str = ""
    """Why nothing may be placed here now; empty when something may."""
    models: Mapping[str, str] = field(default_factory=dict)
    """GPU → its model, where that is known."""
    labels: Mapping[str, str] = field(default_factory=dict)
    alone: bool = False
    """Whether other hosts can't reach it: its address is one of the loopback."""

    @property
    def free_gpus(self) -> tuple[str, ...]:
        return tuple(uuid for uuid in self.gpus if uuid not in self.taken_gpus and uuid not in self.sick_gpus)

    @property
    def whole(self) -> Room:
        """What there is when nothing is taken."""
        return Room(len(self.gpus), self.cpus, self.memory, self.max_containers)

    @property
    def free(self) -> Room:
        """Which GPUs are taken is known by their UUIDs, of everything else how much."""
        free = self.whole
        for holding in self.holdings:
            free = free.plus(holding.room, -1)
        return replace(free, gpus=len(self.free_gpus))


@dataclass(frozen=True)
class Kept:
    """What is kept of a host for the job that is ahead in the queue."""

    job: str
    spare: Room
    """What others may take: the job will have enough without it."""
    until: float
    """Who ends by then may take anything: the job can't start earlier."""
    ports: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Placed:
    """Where one container goes and what it gets."""

    node_rank: int
    host_id: str
    gpus: tuple[str, ...]
    pool_ports: tuple[int, ...]
    fixed_ports: tuple[int, ...]


@dataclass(frozen=True)
class Placement:
    replicas: tuple[Placed, ...]
    master_port: int | None
    """A port of rank 0's host for torchrun's rendezvous; only gangs of several containers need one."""


@dataclass(frozen=True)
class Waits:
    """Why a job can't start now."""

    why: str
    for_room: bool = False
    """Whether GPUs, CPUs, memory or places for containers are short, of which others may give some back."""


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def in_words(need: Room) -> str:
    """ "8 GPUs, 4 CPUs and 16 GB of memory"; empty when there is nothing but the container itself."""
    parts = [plural(need.gpus, "GPU")] if need.gpus else []
    parts += [f"{need.cpus:g} CPU" + ("" if need.cpus == 1 else "s")] if need.cpus else []
    parts += [f"{format_size(need.memory)} of memory"] if need.memory else []
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


class _Bin:
    """A host while a plan is made on it."""

    def __init__(self, host: HostCapacity, seed: int, kept: Kept | None, in_time: bool) -> None:
        self.host = host
        self.gpus = list(host.free_gpus)
        self.free = host.free
        self.kept = None if kept is None or in_time else kept
        self.spare = kept.spare if kept is not None else Room()
        self.keeps = kept is not None
        self.taken = set(host.taken_ports)
        self.used = 0
        self.size = max(0, host.last_port - host.first_port + 1)
        self.next_port = seed % self.size if self.size else 0

    def pool(self, count: int, fixed: Sequence[int]) -> tuple[int, ...] | None:
        found: list[int] = []
        for step in range(self.size):
            if len(found) == count:
                break
            port = self.host.first_port + (self.next_port + step) % self.size
            if port not in self.taken and port not in fixed:
                found.append(port)
        return tuple(found) if len(found) == count else None

    def lacks(self, demand: Demand, fixed: Sequence[int], pool: int) -> Waits | None:
        """What keeps one more replica from this host."""
        host, name, need = self.host, self.host.name, demand.room
        if host.unusable:
            return Waits(f"{name} {host.unusable}")
        if missing := [f"{key}={value}" for key, value in demand.labels if host.labels.get(key) != value]:
            return Waits(f"{name} has no label {missing[0]}")
        if demand.spread and self.used:
            return Waits(f"{name} has one of the nodes already")
        for wanted in demand.needs:
            if host.id not in wanted.hosts:
                return Waits(f"{name} does not have {wanted.what}")
        if host.cpus + _TINY < need.cpus:
            return Waits(f"{name} has {host.cpus:g} CPUs")
        if host.memory < need.memory:
            return Waits(f"{name} has {format_size(host.memory)} of memory")
        if len(self.gpus) < need.gpus:
            of = f"of {len(host.gpus)} free" if host.gpus else "GPUs"
            bad = [uuid for uuid in host.gpus if uuid in host.sick_gpus]
            sick = "; ".join(f"{uuid[:12]} is not used: {host.sick_gpus[uuid]}" for uuid in bad)
            usable = len(host.gpus) - len(bad)
            return Waits(f"{name} has {len(self.gpus)} {of}" + (f" ({sick})" if sick else ""), usable >= need.gpus)
        if self.free.cpus + _TINY < need.cpus:
            return Waits(f"{name} has {max(self.free.cpus, 0.0):g} of {host.cpus:g} CPUs free", for_room=True)
        if self.free.memory < need.memory:
            free = format_size(max(self.free.memory, 0))
            return Waits(f"{name} has {free} of {format_size(host.memory)} of memory free", for_room=True)
        if self.free.containers < 1:
            running = host.max_containers - self.free.containers
            return Waits(f"{name} runs {plural(running, 'container')} already, its limit", for_room=True)
        for port in fixed:
            if port in host.taken_ports:
                return Waits(f"port {port} of {name} belongs to {host.taken_ports[port]}")
        if self.kept is not None and not (self.spare.holds(need) and self.kept.ports.isdisjoint(fixed)):
            return Waits(f"{name} is kept for job {self.kept.job}, which is ahead in the queue")
        if self.pool(pool, fixed) is None:
            return Waits(f"the port pool of {name} is used up")
        return None

    def take(self, demand: Demand, fixed: Sequence[int], pool: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """GPUs and ports of the pool for one more replica, which must fit."""
        ports = self.pool(pool, fixed)
        assert ports is not None
        self.taken.update(fixed, ports)
        gpus = tuple(self.gpus[: demand.gpus])
        del self.gpus[: demand.gpus]
        self.free = self.free.plus(demand.room, -1)
        self.spare = self.spare.plus(demand.room, -1)
        self.used += 1
        return gpus, ports


def place(
    demand: Demand,
    hosts: Sequence[HostCapacity],
    seed: int = 0,
    kept: Mapping[str, Kept] | None = None,
    ends: float = SOME_DAY,
) -> Placement | Waits:
    """A place for every replica, or why there is none.

    The replicas of a gang get GPUs of one model, and share hosts as far as they fit there; with `spread` each has a
    host of its own. Among hosts that fit, the one with the fewest free GPUs wins, so that large gaps stay for large
    jobs. Where several groups of hosts could do it, the first that fits is taken. `seed` says where in a host's port
    pool to start looking: another attempt tries other ports. `kept` says what of which host is for another job, and
    `ends` when this one would be gone.
    """
    answers: list[Waits] = []
    for group in groups(demand, hosts):
        answer = _place(demand, group, seed, kept or {}, ends)
        if isinstance(answer, Placement):
            return answer
        answers.append(answer)
    return next((answer for answer in answers if answer.for_room), answers[0])


def groups(demand: Demand, hosts: Sequence[HostCapacity]) -> list[list[HostCapacity]]:
    """The sets of hosts, the better ones first, of which one may run all of a job; never none.

    The members of a gang must reach each other, and have GPUs of one model.
    """
    found = [[host for host in hosts if host.id not in demand.avoid], list(hosts)] if demand.avoid else [list(hosts)]
    if demand.nodes == 1:
        return found
    if any(host.alone for host in hosts) and len(hosts) > 1:
        apart = [[host for host in group if not host.alone] for group in found]
        found = [group for group in apart if group] + [[host] for host in hosts if host.alone]
    if not demand.gpus:
        return found
    models = sorted({host.models.get(gpu, "") for host in hosts for gpu in host.gpus})
    if len(models) < 2:
        return found
    return [[_of_model(host, model) for host in group] for group in found for model in models]


def _of_model(host: HostCapacity, model: str) -> HostCapacity:
    """The host as if it had no other GPUs."""
    return replace(host, gpus=tuple(gpu for gpu in host.gpus if host.models.get(gpu, "") == model))


def _place(
    demand: Demand, hosts: Sequence[HostCapacity], seed: int, kept: Mapping[str, Kept], ends: float
) -> Placement | Waits:
    bins = []
    for host in hosts:
        keeping = kept.get(host.id)
        bins.append(_Bin(host, seed, keeping, keeping is not None and ends <= keeping.until))
    replicas: list[Placed] = []
    master_port: int | None = None
    for rank in range(demand.nodes):
        leads = rank == 0 and demand.nodes > 1
        fixed = demand.fixed_ports if rank == 0 else ()
        pool = demand.pool_ports + (1 if leads else 0)
        lacks = [box.lacks(demand, fixed, pool) for box in bins]
        fitting = [box for box, lack in zip(bins, lacks, strict=True) if lack is None]
        if not fitting:
            return _sentence(demand, rank, [lack for lack in lacks if lack is not None])
        box = min(fitting, key=lambda b: (-b.used, b.keeps, len(b.gpus), -b.free.containers, b.host.name))
        gpus, ports = box.take(demand, fixed, pool)
        if leads:
            master_port, ports = ports[-1], ports[:-1]
        replicas.append(Placed(rank, box.host.id, gpus, ports, fixed))
    return Placement(tuple(replicas), master_port)


def _sentence(demand: Demand, rank: int, lacks: Sequence[Waits]) -> Waits:
    if not lacks:
        return Waits("there is no host")
    each = in_words(demand.room)
    needs = f"needs {each} on one host" if each else "needs a host"
    if demand.nodes > 1:
        needs = f"needs {demand.nodes} nodes" + (f" with {each} each" if each else "")
        needs += f", has room for {rank}"
    shown = "; ".join(lack.why for lack in lacks[:6])
    more = f"; and {len(lacks) - 6} more hosts" if len(lacks) > 6 else ""
    return Waits(f"{needs}: {shown}{more}", any(lack.for_room for lack in lacks))
