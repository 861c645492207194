"""The pass over the queue: who can start now starts, and everybody else learns what they wait for."""

import zlib
from typing import Any

from sqlalchemy import bindparam, update
from sqlalchemy import select as select_columns
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from jobs.launch import container_name, port_map
from jobs.placement import Demand, Placement, Queue, Waiting
from jobs.states import Desired, JobState
from jobs.units import parse_size
from service.controller.context import Context
from service.store.capacity import capacities
from service.store.events import transition
from service.store.tables import Attempt, GpuLease, Host, Job, PortLease, Replica


def schedule(context: Context) -> list[str]:
    """Places what can be placed, in order; returns the ids of the jobs that are to be provisioned now."""
    now = context.clock()
    with context.database.read() as session:
        waiting = _queued(session, now)
        hosts = capacities(session) if waiting else []
    queue = Queue(hosts)
    placed: list[str] = []
    reasons: list[dict[str, Any]] = []
    for job, why in waiting:
        answer = queue.offer(job)
        if isinstance(answer, Placement):
            if _commit(context, job, answer):
                queue.took(job, answer)
                placed.append(job.id)
        elif answer.why != why:
            reasons.append({"job_id": job.id, "new_why": answer.why})
    if reasons:
        statement = (
            update(Job)
            .where(col(Job.id) == bindparam("job_id"), col(Job.state) == JobState.QUEUED.value)
            .values(why=bindparam("new_why"))
        )
        with context.database.write() as session:
            session.connection().execute(statement, reasons)
        for reason in reasons[:100]:
            context.changed(reason["job_id"])
    return placed


def next_retry(context: Context) -> float | None:
    """When the next waiting retry may be placed."""
    with context.database.read() as session:
        query = (
            select(col(Job.not_before))
            .where(Job.state == JobState.QUEUED, Job.not_before > context.clock())
            .order_by(col(Job.not_before))
            .limit(1)
        )
        return session.exec(query).first()


def _queued(session: Session, now: float) -> list[tuple[Waiting, str | None]]:
    job = Job.__table__.c  # type: ignore[attr-defined]
    columns = (
        job.id,
        job.name,
        job.nodes,
        job.gpus,
        job.ports,
        job.attempts,
        job.why,
        job.document["resources"].label("resources"),
    )
    query = (
        select_columns(*columns)
        .where(job.state == JobState.QUEUED.value, job.desired == Desired.RUN.value, job.not_before <= now)
        .order_by(job.priority.desc(), job.created_at, job.id)
    )
    return [
        (Waiting(row.id, row.name, _demand(row), _seed(row)), row.why) for row in session.connection().execute(query)
    ]


def _seed(row: Any) -> int:
    """Where to start in the port pool: elsewhere for each job, and for each attempt."""
    return zlib.crc32(f"{row.id}/{row.attempts}".encode())


def _demand(row: Any) -> Demand:
    resources = row.resources or {}
    limits = _limits(resources.get("cpus"), resources.get("memory"))
    return Demand(row.nodes, row.gpus, tuple(row.ports["fixed"]), row.ports["pool"], *limits)


def _limits(cpus: object, memory: object) -> tuple[float | None, int | None]:
    return (
        float(cpus) if isinstance(cpus, int | float) else None,
        parse_size(memory) if memory is not None else None,
    )


def _commit(context: Context, waiting: Waiting, placement: Placement) -> bool:
    """Attempt, replicas and leases in one transaction; False when somebody was quicker, here or on a lease."""
    try:
        with context.database.write() as session:
            job = session.get(Job, waiting.id)
            if job is None or job.state != JobState.QUEUED or job.desired != Desired.RUN:
                return False
            _place(session, context, job, placement)
    except IntegrityError:
        return False
    context.changed(waiting.id)
    return True


def _place(session: Session, context: Context, job: Job, placement: Placement) -> None:
    spec = context.spec(job)
    master = session.get(Host, placement.replicas[0].host_id)
    job.attempts += 1
    attempt = Attempt(
        job_id=job.id,
        number=job.attempts,
        master_address=master.address if master and spec.host_network else "127.0.0.1",
        master_port=placement.master_port,
        created_at=context.clock(),
    )
    session.add(attempt)
    session.flush()
    assert attempt.id is not None
    if placement.master_port is not None:
        session.add(PortLease(host_id=placement.replicas[0].host_id, port=placement.master_port, attempt_id=attempt.id))
    names = []
    for placed in placement.replicas:
        replica = Replica(
            attempt_id=attempt.id,
            job_id=job.id,
            node_rank=placed.node_rank,
            host_id=placed.host_id,
            container_name=container_name(context.deployment, job.name, job.attempts, placed.node_rank),
            gpus=list(placed.gpus),
            ports={},
        )
        session.add(replica)
        replica.ports = {str(inside): outside for inside, outside in port_map(spec, placed).items()}
        for gpu in placed.gpus:
            session.add(GpuLease(gpu=gpu, host_id=placed.host_id, attempt_id=attempt.id))
        for port in (*placed.pool_ports, *placed.fixed_ports):
            session.add(PortLease(host_id=placed.host_id, port=port, attempt_id=attempt.id))
        host = session.get(Host, placed.host_id)
        names.append(host.name if host else placed.host_id)
    session.flush()
    where = ", ".join(sorted(set(names)))
    transition(
        session, job, JobState.PROVISIONING, f"attempt {job.attempts} is being started on {where}", now=context.clock()
    )
