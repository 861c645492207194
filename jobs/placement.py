"""Where a job's containers go: a pure function of the job's demand and what the hosts have free."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jobs.units import format_size


@dataclass(frozen=True)
class Demand:
    """What one job needs; everything but `nodes` is per node."""

    nodes: int = 1
    gpus: int = 0
    fixed_ports: tuple[int, ...] = ()
    """Host ports that the user named: rank 0 gets them."""
    pool_ports: int = 0
    """How many ports from the host's pool."""
    cpus: float | None = None
    memory: int | None = None

    @property
    def key(self) -> str:
        """A short digest: jobs that need the same have the same one."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class HostCapacity:
    """What a host has, and what of it is taken."""

    id: str
    name: str
    gpus: tuple[str, ...] = ()
    """UUIDs, in the order of their index."""
    taken_gpus: frozenset[str] = frozenset()
    first_port: int = 20000
    last_port: int = 21999
    taken_ports: Mapping[int, str] = field(default_factory=dict)
    """Host port → name of the job that has it."""
    containers: int = 0
    max_containers: int = 8
    cpus: float = 1.0
    memory: int = 1 << 62
    unusable: str = ""
    """Why nothing may be placed here now; empty when something may."""

    @property
    def free_gpus(self) -> tuple[str, ...]:
        return tuple(uuid for uuid in self.gpus if uuid not in self.taken_gpus)


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
    for_gpus: bool = False


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def impossible(demand: Demand, hosts: Sequence[HostCapacity]) -> tuple[str, str] | None:
    """(problem code, sentence) when no emptying of the hosts could ever make room; None when it could."""
    if not hosts:
        return "not_enough_hosts", "there is no host; add one with `navarch host add`"
    if demand.gpus:
        largest = max(hosts, key=lambda host: len(host.gpus))
        have = "; ".join(f"{host.name} has {_plural(len(host.gpus), 'GPU')}" for host in hosts[:8])
        if len(largest.gpus) < demand.gpus:
            return "not_enough_gpus", f"needs {_plural(demand.gpus, 'GPU')} on one host, but {have}"
        room = sum(len(host.gpus) // demand.gpus for host in hosts)
        if room < demand.nodes:
            return "not_enough_gpus", f"needs {demand.nodes} nodes with {_plural(demand.gpus, 'GPU')} each, but {have}"
    most = sum(host.max_containers for host in hosts)
    if demand.nodes > most:
        return "not_enough_hosts", f"needs {demand.nodes} containers, but the hosts run {most} at once"
    if demand.cpus is not None and all(host.cpus < demand.cpus for host in hosts):
        large = max(hosts, key=lambda host: host.cpus)
        return (
            "not_enough_memory",
            f"needs {demand.cpus:g} CPUs, but the largest host, {large.name}, has {large.cpus:g}",
        )
    if demand.memory is not None and all(host.memory < demand.memory for host in hosts):
        large = max(hosts, key=lambda host: host.memory)
        return (
            "not_enough_memory",
            f"needs {format_size(demand.memory)} of memory, but the largest host, {large.name}, "
            f"has {format_size(large.memory)}",
        )
    return None


class _Bin:
    """A host while a plan is made on it."""

    def __init__(self, host: HostCapacity, seed: int) -> None:
        self.host = host
        self.gpus = list(host.free_gpus)
        self.containers = host.containers
        self.taken = set(host.taken_ports)
        self.used = 0
        size = host.last_port - host.first_port + 1
        self.next_port = seed % size if size > 0 else 0

    def pool(self, count: int) -> tuple[int, ...] | None:
        size = self.host.last_port - self.host.first_port + 1
        found: list[int] = []
        for step in range(size):
            if len(found) == count:
                break
            port = self.host.first_port + (self.next_port + step) % size
            if port not in self.taken:
                found.append(port)
        if len(found) < count:
            return None
        self.taken.update(found)
        return tuple(found)

    def lacks(self, demand: Demand, *, first: bool) -> Waits | None:
        """What keeps one more replica from this host."""
        host = self.host
        if host.unusable:
            return Waits(f"{host.name} {host.unusable}")
        if demand.cpus is not None and host.cpus < demand.cpus:
            return Waits(f"{host.name} has {host.cpus:g} CPUs")
        if demand.memory is not None and host.memory < demand.memory:
            return Waits(f"{host.name} has {format_size(host.memory)} of memory")
        if len(self.gpus) < demand.gpus:
            of = f"of {len(host.gpus)} free" if host.gpus else "GPUs"
            return Waits(f"{host.name} has {len(self.gpus)} {of}", for_gpus=len(host.gpus) >= demand.gpus)
        if self.containers >= host.max_containers:
            return Waits(f"{host.name} runs {_plural(self.containers, 'container')} already, its limit")
        if first:
            for port in demand.fixed_ports:
                if port in host.taken_ports:
                    return Waits(f"port {port} of {host.name} belongs to job {host.taken_ports[port]}")
        return None


def place(demand: Demand, hosts: Sequence[HostCapacity], seed: int = 0) -> Placement | Waits:
    """A place for every replica, or why there is none.

    Replicas spread over hosts before they share one. Among hosts that fit, the one with the fewest free GPUs wins, so
    that large gaps stay for large jobs. `seed` says where in a host's port pool to start looking: another attempt
    tries other ports.
    """
    bins = [_Bin(host, seed) for host in hosts]
    replicas: list[Placed] = []
    master_port: int | None = None
    for rank in range(demand.nodes):
        lacks = [box.lacks(demand, first=rank == 0) for box in bins]
        fitting = [box for box, lack in zip(bins, lacks, strict=True) if lack is None]
        if not fitting:
            return _sentence(demand, rank, [lack for lack in lacks if lack is not None])
        box = min(fitting, key=lambda b: (b.used, len(b.gpus), b.containers, b.host.name))
        fixed = demand.fixed_ports if rank == 0 else ()
        box.taken.update(fixed)
        wanted = demand.pool_ports + (1 if rank == 0 and demand.nodes > 1 else 0)
        ports = box.pool(wanted)
        if ports is None:
            return Waits(f"needs {_plural(wanted, 'port')}, but the port pool of {box.host.name} is used up")
        if rank == 0 and demand.nodes > 1:
            master_port, ports = ports[-1], ports[:-1]
        replicas.append(Placed(rank, box.host.id, tuple(box.gpus[: demand.gpus]), ports, fixed))
        del box.gpus[: demand.gpus]
        box.containers += 1
        box.used += 1
    return Placement(tuple(replicas), master_port)


def _sentence(demand: Demand, rank: int, lacks: Sequence[Waits]) -> Waits:
    if not lacks:
        return Waits("there is no host")
    needs = f"needs {_plural(demand.gpus, 'GPU')} on one host" if demand.gpus else "needs a host"
    if demand.nodes > 1:
        needs = f"needs {demand.nodes} nodes" + (f" with {_plural(demand.gpus, 'GPU')} each" if demand.gpus else "")
        needs += f", has room for {rank}"
    shown = "; ".join(lack.why for lack in lacks[:6])
    more = f"; and {len(lacks) - 6} more hosts" if len(lacks) > 6 else ""
    return Waits(f"{needs}: {shown}{more}", any(lack.for_gpus for lack in lacks))


@dataclass(frozen=True)
class Waiting:
    """A queued job, as the scheduling pass sees it."""

    id: str
    name: str
    demand: Demand
    seed: int = 0


class Queue:
    """One pass over the queue, in order: priority, then first come.

    A job that waits for GPUs keeps later jobs off the hosts that it could use, or small jobs would starve it for ever;
    jobs without GPUs go past it.
    """

    def __init__(self, hosts: Sequence[HostCapacity]) -> None:
        self._hosts = list(hosts)
        self._kept: dict[str, str] = {}
        self._known: dict[Demand, Waits] = {}

    def offer(self, job: Waiting) -> Placement | Waits:
        """Where this job goes now; the caller tells `took` when it really went there."""
        waits = self._known.get(job.demand)
        if waits is not None:
            return waits
        hosts = self._hosts
        if job.demand.gpus and self._kept:
            hosts = [h for h in hosts if h.id not in self._kept]
        placement = place(job.demand, hosts, job.seed)
        if isinstance(placement, Placement):
            return placement
        if len(hosts) < len(self._hosts) and isinstance(place(job.demand, self._hosts, job.seed), Placement):
            ahead = next(iter(self._kept.values()))
            placement = Waits(f"waits behind job {ahead}, which is ahead in the queue", for_gpus=True)
        elif len(hosts) < len(self._hosts):
            full = place(job.demand, self._hosts, job.seed)
            assert isinstance(full, Waits)
            placement = full
        self._known[job.demand] = placement
        if job.demand.gpus and placement.for_gpus:
            for host in self._hosts:
                if len(host.gpus) >= job.demand.gpus:
                    self._kept.setdefault(host.id, job.name)
        return placement

    def took(self, job: Waiting, placement: Placement) -> None:
        """Counts a placement that was made."""
        by_id = {host.id: index for index, host in enumerate(self._hosts)}
        for placed in placement.replicas:
            index = by_id[placed.host_id]
            host = self._hosts[index]
            ports = dict(host.taken_ports)
            ports.update(dict.fromkeys((*placed.pool_ports, *placed.fixed_ports), job.name))
            if placed.node_rank == 0 and placement.master_port is not None:
                ports[placement.master_port] = job.name
            self._hosts[index] = HostCapacity(
                host.id,
                host.name,
                host.gpus,
                host.taken_gpus | set(placed.gpus),
                host.first_port,
                host.last_port,
                ports,
                host.containers + 1,
                host.max_containers,
                host.cpus,
                host.memory,
                host.unusable,
            )
