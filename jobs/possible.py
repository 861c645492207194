"""Whether a job could ever run on the hosts that there are, however empty they became."""

from collections.abc import Callable, Sequence

from jobs.placement import Demand, HostCapacity, Room, groups, in_words, plural
from jobs.units import format_size


def impossible(demand: Demand, hosts: Sequence[HostCapacity], shm: int | None = None) -> tuple[str, str] | None:
    """(problem code, sentence) when no emptying of the hosts could ever make room; None when it could.

    `shm`: bytes of shared memory that each container may fill.
    """
    labelled = [host for host in hosts if all(host.labels.get(key) == value for key, value in demand.labels)]
    if hosts and not labelled:
        wanted = ", ".join(f"{key}={value}" for key, value in demand.labels)
        return "not_enough_hosts", f"needs hosts with the label {wanted}, but none has it"
    refusals = [_impossible(demand, group, shm) for group in groups(demand, labelled)]
    if None in refusals:
        return None
    code, sentence = refusals[0] or ("", "")
    if demand.nodes > 1 and len({model for host in labelled for model in host.models.values()}) > 1:
        sentence += " of one model"
    if demand.nodes > 1 and len(labelled) > 1 and (alone := [host.name for host in labelled if host.alone]):
        sentence += f" ({alone[0]} is left out: other hosts can't reach 127.0.0.1; give it an address, --host-address)"
    return code, sentence


def _impossible(demand: Demand, hosts: Sequence[HostCapacity], shm: int | None) -> tuple[str, str] | None:
    if not hosts:
        return "not_enough_hosts", "needs a host, but there is none"
    if demand.spread and demand.nodes > len(hosts):
        return "not_enough_hosts", f"needs {demand.nodes} hosts (`spread`), but there {_are(len(hosts))}"
    for code, need, has in _kinds(demand):
        if _room_for(need, hosts, demand) < demand.nodes:
            each = in_words(need)
            needs = f"needs {each} on one host"
            if demand.nodes > 1:
                needs = f"needs {demand.nodes} nodes with {each} each"
            return code, f"{needs}, but {_listed(hosts, has)}"
    most = sum(host.max_containers for host in hosts)
    if demand.nodes > most:
        return "not_enough_hosts", f"needs {plural(demand.nodes, 'container')}, but the hosts run {most:,} at once"
    if _room_for(demand.room, hosts, demand) < demand.nodes:
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


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"


Has = Callable[[HostCapacity], str]


def _kinds(demand: Demand) -> list[tuple[str, Room, Has]]:
    """Each thing that is asked for by itself: the code when it is short, how much, and what a host has of it."""
    return [
        ("not_enough_gpus", Room(gpus=demand.gpus), lambda host: plural(len(host.gpus), "GPU")),
        ("not_enough_cpus", Room(cpus=demand.cpus or 0.0), lambda host: in_words(Room(cpus=host.cpus))),
        ("not_enough_memory", Room(memory=demand.memory or 0), lambda host: format_size(host.memory)),
    ]


def _room_for(need: Room, hosts: Sequence[HostCapacity], demand: Demand) -> int:
    """How many nodes the empty hosts have room for, up to those that are asked for."""
    found = 0
    for host in hosts:
        here, most = 0, 1 if demand.spread else demand.nodes
        while found < demand.nodes and here < most and host.whole.holds(Room().plus(need, here + 1)):
            found, here = found + 1, here + 1
    return found


def _listed(hosts: Sequence[HostCapacity], has: Has) -> str:
    more = f"; and {len(hosts) - 8} more hosts" if len(hosts) > 8 else ""
    return "; ".join(f"{host.name} has {has(host)}" for host in hosts[:8]) + more
