"""The order of the queue: who starts now, for whom room is kept, and who may go ahead meanwhile."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jobs.placement import NEVER, SOME_DAY, Demand, Holding, HostCapacity, Kept, Placement, Room, Waits, groups, place


@dataclass(frozen=True)
class Waiting:
    """A queued job, as the scheduling pass sees it."""

    id: str
    name: str
    demand: Demand
    seed: int = 0


class Queue:
    """One pass over the queue, in order: priority, then first come.

    For the first job that waits for room, the hosts where it can start soonest are kept, and no more than it needs.
    Jobs behind it go ahead wherever they can't delay it: on other hosts, on what it leaves, and anywhere if they end
    (by their `max_duration`) before it could start. What is kept never shrinks from one pass to the next, so small
    jobs can't starve a large one.
    """

    def __init__(self, hosts: Sequence[HostCapacity], now: float = 0.0) -> None:
        self._hosts = {host.id: host for host in hosts}
        self._now = now
        self._kept: dict[str, Kept] = {}
        self._known: dict[Demand, Waits] = {}

    def offer(self, job: Waiting) -> Placement | Waits:
        """Where this job goes now; the caller tells `took` when it really went there."""
        known = self._known.get(job.demand)
        if known is not None:
            return known
        hosts = tuple(self._hosts.values())
        answer = place(job.demand, hosts, job.seed, self._kept, job.demand.ends(self._now))
        if isinstance(answer, Waits):
            self._known[job.demand] = answer
            if answer.for_room and not self._kept:
                self._kept = reserve(job, hosts, self._now)
        return answer

    def took(self, job: Waiting, placement: Placement) -> None:
        """Counts a placement that was made."""
        ends = job.demand.ends(self._now)
        need = job.demand.room
        for placed in placement.replicas:
            host = self._hosts[placed.host_id]
            ports = dict(host.taken_ports)
            ports.update(dict.fromkeys((*placed.pool_ports, *placed.fixed_ports), f"job {job.name}"))
            if placed.node_rank == 0 and placement.master_port is not None:
                ports[placement.master_port] = f"job {job.name}"
            self._hosts[host.id] = replace(
                host,
                taken_gpus=host.taken_gpus | set(placed.gpus),
                taken_ports=ports,
                holdings=(*host.holdings, Holding(need, ends)),
            )
            kept = self._kept.get(host.id)
            if kept is not None and ends > kept.until:
                self._kept[host.id] = replace(kept, spare=kept.spare.plus(need, -1))


def reserve(job: Waiting, hosts: Sequence[HostCapacity], now: float) -> dict[str, Kept]:
    """The hosts on which the job can start soonest, and what of them is kept for it; none when room is not the matter.

    Hosts where its ports are free come first, then where enough is given back earliest, then where least is missing.
    Nobody is let on a kept host who would delay the job, so none of these grows there: the choice only gets better.
    """
    for group in groups(job.demand, hosts):
        if kept := _reserve(job, group, now):
            return kept
    return {}


def _reserve(job: Waiting, hosts: Sequence[HostCapacity], now: float) -> dict[str, Kept]:
    need, wanted = job.demand.room, frozenset(job.demand.fixed_ports)
    counts: dict[str, int] = {}
    start = now
    labels = job.demand.labels
    open_hosts = [
        host
        for host in hosts
        if not host.unusable
        and all(host.labels.get(key) == value for key, value in labels)
        and job.demand.has_its_needs(host.id)
    ]
    for _ in range(job.demand.nodes):
        options = []
        for host in open_hosts:
            if job.demand.spread and host.id in counts:
                continue
            claim = Room().plus(need, counts.get(host.id, 0) + 1)
            when = _soonest(host, claim, now)
            if when is not None:
                taken = not wanted.isdisjoint(host.taken_ports)
                options.append(((taken, when, host.free.short_of(claim), host.name), host.id))
        if not options:
            return {}
        (_, when, _, _), chosen = min(options)
        counts[chosen] = counts.get(chosen, 0) + 1
        start = max(start, when)
    chosen_hosts = [host for host in open_hosts if host.id in counts]
    if all(host.free.holds(Room().plus(need, counts[host.id])) for host in chosen_hosts):
        return {}
    return {
        host.id: Kept(
            job.name,
            _spare(host, Room().plus(need, counts[host.id]), start, now),
            start if start < SOME_DAY else -NEVER,
            wanted,
        )
        for host in chosen_hosts
    }


def _soonest(host: HostCapacity, claim: Room, now: float) -> float | None:
    """When the claim fits at the latest; None when it never does."""
    free = host.free
    if free.holds(claim):
        return now
    for holding in sorted(host.holdings, key=lambda holding: _ends(holding, now)):
        free = free.plus(holding.room)
        if free.holds(claim):
            return _ends(holding, now)
    return None


def _ends(holding: Holding, now: float) -> float:
    """Who should be gone already will go some day."""
    return holding.ends if holding.ends > now else SOME_DAY


def _spare(host: HostCapacity, claim: Room, start: float, now: float) -> Room:
    """What the job leaves of a host when it starts; as long as nobody knows when, of what is free now."""
    free = host.free
    if start < SOME_DAY:
        for holding in host.holdings:
            if _ends(holding, now) <= start:
                free = free.plus(holding.room)
    left = free.plus(claim, -1)
    return Room(max(left.gpus, 0), max(left.cpus, 0.0), max(left.memory, 0), max(left.containers, 0))
