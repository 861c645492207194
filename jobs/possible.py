"""Whether a job could ever run on the hosts that there are, however empty they became."""

from collections.abc import Callable, Sequence

from jobs.placement import Demand, HostCapacity, Room, in_words, plural
from jobs.units import format_size


def impossible(demand: Demand, hosts: Sequence[HostCapacity], shm: int | None = None) -> tuple[str, str] | None:
    """(problem code, sentence) when no emptying of the hosts could ever make room; None when it could.

    `shm`: bytes of shared memory that each container may fill.
    """
    if not hosts:
        return "not_enough_hosts", "needs a host, but there is none"
    for code, need, has in _kinds(demand):
        if _room_for(need, hosts, demand.nodes) < demand.nodes:
            each = in_words(need)
            needs = f"needs {each} on one host"
            if demand.nodes > 1:
                needs = f"needs {demand.nodes} nodes with {each} each"
            return code, f"{needs}, but {_listed(hosts, has)}"
    most = sum(host.max_containers for host in hosts)
    if demand.nodes > most:
        return "not_enough_hosts", f"needs {plural(demand.nodes, 'container')}, but the hosts run {most:,} at once"
    if _room_for(demand.room, hosts, demand.nodes) < demand.nodes:
        each, nodes = in_words(demand.room), f"on each of {demand.nodes} nodes" if demand.nodes > 1 else "on one host"
        return "not_enough_hosts", f"needs {each} together {nodes}, but {_listed(hosts, lambda h: in_words(h.whole))}"
    largest = max(host.memory for host in hosts)
    if shm is not None and shm > largest:
        limit = f"the largest host has {format_size(largest)} of memory"
        return "not_enough_memory", f"needs {format_size(shm)} of shared memory (`resources.shm`), but {limit}"
    pool = max(host.last_port - host.first_port + 1 for host in hosts)
    if demand.pool_ports > pool:
        return "not_enough_ports", f"needs {plural(demand.pool_ports, 'port')} of one host's pool, which has {pool:,}"
    return None


Has = Callable[[HostCapacity], str]


def _kinds(demand: Demand) -> list[tuple[str, Room, Has]]:
    """Each thing that is asked for by itself: the code when it is short, how much, and what a host has of it."""
    return [
        ("not_enough_gpus", Room(gpus=demand.gpus), lambda host: plural(len(host.gpus), "GPU")),
        ("not_enough_cpus", Room(cpus=demand.cpus or 0.0), lambda host: in_words(Room(cpus=host.cpus))),
        ("not_enough_memory", Room(memory=demand.memory or 0), lambda host: format_size(host.memory)),
    ]


def _room_for(need: Room, hosts: Sequence[HostCapacity], nodes: int) -> int:
    """How many nodes (of so many) the empty hosts have room for."""
    found = 0
    for host in hosts:
        here = 0
        while found < nodes and host.whole.holds(Room().plus(need, here + 1)):
            found, here = found + 1, here + 1
    return found


def _listed(hosts: Sequence[HostCapacity], has: Has) -> str:
    more = f"; and {len(hosts) - 8} more hosts" if len(hosts) > 8 else ""
    return "; ".join(f"{host.name} has {has(host)}" for host in hosts[:8]) + more
