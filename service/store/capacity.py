"""Reads what every host has and what of it is taken, as placement wants it."""

from collections import defaultdict
from typing import Any

from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from jobs.placement import NEVER, Demand, Holding, HostCapacity, Need, Room
from jobs.units import parse_size
from jobs.workspace_states import AT_WORK
from service.store.tables import LOCAL, Attempt, GpuLease, Holder, Host, Job, PortLease, Replica, Workspace


def capacities(session: Session) -> list[HostCapacity]:
    """All hosts that aren't removed, with their leases; five queries, whatever there is."""
    gpus: dict[str, set[str]] = defaultdict(set)
    for lease in session.exec(select(GpuLease)):
        gpus[lease.host_id].add(lease.gpu)
    ports: dict[str, dict[int, str]] = defaultdict(dict)
    held = select(PortLease.host_id, PortLease.port, Holder).join(Holder, col(Holder.id) == col(PortLease.holder_id))
    for host_id, port, holder in session.exec(held):
        ports[host_id][port] = f"{holder.kind} {holder.name}"
    holdings: dict[str, list[Holding]] = defaultdict(list)
    running = (
        select_columns(
            *(col(Replica.host_id), col(Attempt.created_at)),
            *(col(Job.gpus), col(Job.cpus), col(Job.memory), col(Job.lasts)),
        )
        .join(Attempt, col(Attempt.id) == col(Replica.attempt_id))
        .join(Job, col(Job.id) == col(Attempt.job_id))
        .where(col(Attempt.finished_at).is_(None), col(Replica.host_id).is_not(None))
    )
    for row in session.connection().execute(running):
        demand = Demand(gpus=row.gpus, cpus=row.cpus, memory=row.memory, lasts=row.lasts)
        holdings[row.host_id].append(Holding(demand.room, demand.ends(row.created_at)))
    at_work = select(Workspace).where(col(Workspace.state).in_([state.value for state in AT_WORK]))
    for workspace in session.exec(at_work):
        resources = workspace.document.get("resources") or {}
        memory = resources.get("memory")
        room = Room(
            gpus=len(workspace.gpus),
            cpus=float(resources.get("cpus") or 0.0),
            memory=parse_size(memory) if memory else 0,
            containers=1,
        )
        holdings[workspace.host_id].append(Holding(room, workspace.runs_until or NEVER))
    hosts = session.exec(select(Host).where(Host.lifecycle != "removed").order_by(col(Host.name)))
    return [
        HostCapacity(
            id=host.id,
            name=host.name,
            gpus=tuple(str(gpu["uuid"]) for gpu in host.facts.get("gpus", ())),
            taken_gpus=frozenset(gpus[host.id]),
            sick_gpus={str(one["gpu"]): str(one["name"]) for one in host.findings if one.get("gpu")},
            first_port=host.first_port,
            last_port=host.last_port,
            taken_ports=ports[host.id],
            holdings=tuple(holdings[host.id]),
            max_containers=host.max_containers,
            cpus=float(host.facts.get("cpus", 1)),
            memory=int(host.facts.get("memory_bytes", 1 << 62)),
            unusable=_unusable(host),
            models={str(gpu["uuid"]): str(gpu.get("name", "")) for gpu in host.facts.get("gpus", ())},
            labels=host.labels,
            alone=_is_loopback(host.cluster_address or host.address),
        )
        for host in hosts
    ]


def demand_of_row(row: Any) -> Demand:
    """What a queued job needs, as its row (or the columns of one) has it."""
    ports, placing = row.ports, row.placing
    return Demand(
        nodes=row.nodes,
        gpus=row.gpus,
        fixed_ports=tuple(ports["fixed"]),
        pool_ports=ports["pool"],
        cpus=row.cpus,
        memory=row.memory,
        lasts=row.lasts,
        spread=bool(placing.get("spread")),
        labels=tuple(sorted(placing.get("labels", {}).items())),
        avoid=frozenset(placing.get("avoid", ())),
        needs=tuple(Need(need["what"], tuple(need["hosts"])) for need in row.needs),
    )


def kind_of(demand: Demand, owner_id: str) -> str:
    """`Job.demand`: what it needs, and whose it is where people have quotas."""
    return demand.key if owner_id == LOCAL else f"{demand.key}/{owner_id}"


def _is_loopback(address: str) -> bool:
    return address == "localhost" or address.startswith("127.") or address == "::1"


def _unusable(host: Host) -> str:
    if host.lifecycle != "active":
        return f"is {host.lifecycle}"
    if not host.reachable:
        return "can't be reached now"
    return ""
