"""The pass over the queue: who can start now starts, and everybody else learns what they wait for."""

import heapq
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from sqlalchemy import ColumnElement, and_, bindparam, func, or_, update
from sqlalchemy import select as select_columns
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from jobs.awaited import NOT_BEFORE_ITS_INPUTS
from jobs.launch import container_name, port_map
from jobs.mistakes import SpecError
from jobs.placement import Placement, Waits
from jobs.queue import Queue, Waiting
from jobs.states import Desired, JobState, Reason
from service.access.quotas import limited, over
from service.control.context import Context
from service.control.steps.wait import admit
from service.store.capacity import capacities, demand_of_row
from service.store.events import transition
from service.store.tables import Attempt, GpuLease, Holder, Host, Job, PortLease, Replica

log = structlog.get_logger("scheduler")
BUDGET = 6
"""How often Navarch may fail at a queued job, one time after the other, before the job fails."""
_CHUNK = 500
"""How many rows one transaction tells what they wait for: others want to write too."""
_JOB = Job.__table__.c  # type: ignore[attr-defined]


@dataclass(frozen=True, order=True)
class _Head:
    """The first of the queued jobs that need the same; heads compare in the order of the queue."""

    rank: tuple[int, float, str]
    row: Any = field(compare=False)
    demand: str = field(compare=False)


def schedule(context: Context) -> list[str]:
    """Places what can be placed, in order; returns the ids of the jobs that are to be provisioned now.

    When one job has to wait, all that need the same and are behind it wait too: a pass reads the first of each kind,
    and the next of a kind only when one was placed. Its cost grows with the kinds of jobs, not with their number.
    """
    admit(context, give_up_on)
    now = context.clock()
    with context.database.read() as session:
        line = _heads(session, now)
        if not line:
            return []
        queue = Queue(capacities(session), now)
        told = _told(session, now)
        with_quota = limited(session)
    heapq.heapify(line)
    placed: list[str] = []
    waits: dict[str, str] = {}
    while line:
        head = heapq.heappop(line)
        try:
            job = _read(head)
            limit = _over_quota(context, head.row) if head.row.owner_id in with_quota else None
            if limit is not None:
                waits[head.demand] = limit
                continue
            answer = queue.offer(job)
            if isinstance(answer, Waits):
                waits[head.demand] = answer.why
                continue
            if _commit(context, job, answer, now):
                queue.took(job, answer)
                placed.append(job.id)
        except SpecError as error:  # of an older or newer Navarch: no matter of the others
            _refuse(context, head.rank[2], f"its stored spec is refused: {error}", now)
        except Exception as error:  # one bad row must never stop the others
            give_up_on(context, head.rank[2], error, now)
        following = _following(context, head, now)
        if following is not None:
            heapq.heappush(line, following)
    _tell(context, waits, told, now)
    return placed


def _over_quota(context: Context, row: Any) -> str | None:
    """What a job's owner has too much of for it to start; others of its kind are others' or wait for the same."""
    with context.database.read() as session:
        said = over(session, row.owner_id, gpus=row.gpus * row.nodes, jobs=1)
    return f"would be {said}" if said is not None else None


def next_retry(context: Context) -> float | None:
    """When the next waiting retry may be placed."""
    with context.database.read() as session:
        query = (
            select(col(Job.not_before))
            .where(
                Job.state == JobState.QUEUED,
                Job.not_before > context.clock(),
                Job.not_before < NOT_BEFORE_ITS_INPUTS,
            )
            .order_by(col(Job.not_before))
            .limit(1)
        )
        return session.exec(query).first()


def give_up_on(context: Context, job_id: str, error: Exception, now: float) -> None:
    """A queued job at which Navarch failed is left alone for a while; when that has happened too often, it fails."""
    log.error("queued job failed", job=job_id, exc_info=error)
    context.figures.failures.labels("schedule").inc()
    said = f"Navarch failed at this job ({type(error).__name__}: {error})"
    with context.database.write() as session:
        job = session.get(Job, job_id)
        if job is None or job.state != JobState.QUEUED:
            return
        job.failures += 1
        if job.failures >= BUDGET:
            message = f"given up after {BUDGET} tries: {said}"
            transition(session, job, JobState.FAILED, message, reason=Reason.INTERNAL_ERROR, now=now)
        else:
            delay = 2.0 ** (job.failures - 1)
            job.not_before = max(job.not_before, now + delay)
            job.why = f"{said}; tries again in {delay:.0f} s"
    context.changed(job_id)


def _waiting(now: float) -> tuple[ColumnElement[bool], ...]:
    """Which jobs are in the queue."""
    return (_JOB.state == JobState.QUEUED.value, _JOB.desired == Desired.RUN.value, _JOB.not_before <= now)


def _columns() -> tuple[Any, ...]:
    return (
        *(_JOB.id, _JOB.name, _JOB.nodes, _JOB.gpus, _JOB.cpus, _JOB.memory, _JOB.lasts, _JOB.ports),
        *(_JOB.placing, _JOB.needs),
        *(_JOB.attempts, _JOB.demand, _JOB.priority, _JOB.created_at, _JOB.owner_id),
    )


def _head(row: Any) -> _Head:
    return _Head((-row.priority, row.created_at, row.id), row, row.demand)


def _read(head: _Head) -> Waiting:
    row = head.row
    return Waiting(row.id, row.name, demand_of_row(row), _seed(row))


def _heads(session: Session, now: float) -> list[_Head]:
    """The first job of each demand; the index has the queue in this order already."""
    order = (_JOB.priority.desc(), _JOB.created_at, _JOB.id)
    place = func.row_number().over(partition_by=_JOB.demand, order_by=order).label("place")
    numbered = select_columns(_JOB.id, place).where(*_waiting(now)).subquery()
    query = select_columns(*_columns()).join(numbered, _JOB.id == numbered.c.id).where(numbered.c.place == 1)
    return [_head(row) for row in session.connection().execute(query)]


def _following(context: Context, head: _Head, now: float) -> _Head | None:
    """The next job that needs the same."""
    priority, created, identifier = -head.rank[0], head.rank[1], head.rank[2]
    later = or_(_JOB.created_at > created, and_(_JOB.created_at == created, _JOB.id > identifier))
    query = (
        select_columns(*_columns())
        .where(*_waiting(now), _JOB.demand == head.demand)
        .where(or_(_JOB.priority < priority, and_(_JOB.priority == priority, later)))
        .order_by(_JOB.priority.desc(), _JOB.created_at, _JOB.id)
        .limit(1)
    )
    with context.database.read() as session:
        row = session.connection().execute(query).first()
    return _head(row) if row is not None else None


def _told(session: Session, now: float) -> list[tuple[str, str | None]]:
    """What the queued jobs say that they wait for: each demand with each of its sentences."""
    query = select_columns(_JOB.demand, _JOB.why).where(*_waiting(now)).distinct()
    return [(row.demand, row.why) for row in session.connection().execute(query)]


def _tell(context: Context, waits: Mapping[str, str], told: Sequence[tuple[str, str | None]], now: float) -> None:
    """Writes what jobs wait for, where that has changed: a few rows a transaction, found before it begins."""
    changed = {(demand, old): waits[demand] for demand, old in told if waits.get(demand, old) != old}
    if not changed:
        return
    query = select_columns(_JOB.id, _JOB.demand, _JOB.why).where(*_waiting(now))
    old_ones = {old for _, old in changed}
    if len(old_ones) <= _CHUNK:  # mostly one: that of the jobs that have just been submitted
        query = query.where(or_(_JOB.why.in_(old_ones - {None}), _JOB.why.is_(None)))
    with context.database.read() as session:
        found = session.connection().execute(query).all()
    stale = [
        {"job_id": row.id, "new_why": changed[row.demand, row.why]} for row in found if (row.demand, row.why) in changed
    ]
    statement = (
        update(Job)
        .where(col(Job.id) == bindparam("job_id"), col(Job.state) == JobState.QUEUED.value)
        .values(why=bindparam("new_why"))
    )
    for start in range(0, len(stale), _CHUNK):
        rows = stale[start : start + _CHUNK]
        with context.database.write() as session:
            session.connection().execute(statement, rows)
        for row in rows:
            context.changed(row["job_id"])


def _seed(row: Any) -> int:
    """Where to start in the port pool: elsewhere for each job, and for each attempt."""
    return zlib.crc32(f"{row.id}/{row.attempts}".encode())


def _commit(context: Context, waiting: Waiting, placement: Placement, now: float) -> bool:
    """Attempt, replicas and leases in one transaction; False when somebody was quicker, here or on a lease."""
    try:
        with context.database.write() as session:
            job = session.get(Job, waiting.id)
            if job is None or job.state != JobState.QUEUED or job.desired != Desired.RUN:
                return False
            if over(session, job.owner_id, gpus=job.gpus * job.nodes, jobs=1) is not None:
                return False
            _place(session, context, job, placement, now)
    except IntegrityError:
        return False
    context.changed(waiting.id)
    return True


def _refuse(context: Context, job_id: str, message: str, now: float) -> None:
    with context.database.write() as session:
        job = session.get(Job, job_id)
        if job is not None and job.state == JobState.QUEUED:
            transition(session, job, JobState.FAILED, message, reason=Reason.BAD_CONFIG, now=now)
    context.changed(job_id)


def _place(session: Session, context: Context, job: Job, placement: Placement, now: float) -> None:
    """`now` is that of the pass: from then on others may count on the end of a job with a `max_duration`."""
    spec = context.spec(job)
    job.attempts, job.failures = job.attempts + 1, 0
    attempt = Attempt(job_id=job.id, number=job.attempts, master_port=placement.master_port, created_at=now)
    session.add(attempt)
    session.flush()
    assert attempt.id is not None
    session.add(Holder(id=attempt.holder, kind="job", name=job.name))
    session.flush()  # leases refer to it
    if placement.master_port is not None:
        first = placement.replicas[0].host_id
        session.add(PortLease(host_id=first, port=placement.master_port, holder_id=attempt.holder))
    names = []
    for placed in placement.replicas:
        replica = Replica(
            attempt_id=attempt.id,
            job_id=job.id,
            node_rank=placed.node_rank,
            host_id=placed.host_id,
            container_name=container_name(context.deployment, job.name, job.attempts, placed.node_rank, job.namespace),
            gpus=list(placed.gpus),
            ports={},
        )
        session.add(replica)
        replica.ports = {str(inside): outside for inside, outside in port_map(spec, placed).items()}
        for gpu in placed.gpus:
            session.add(GpuLease(gpu=gpu, host_id=placed.host_id, holder_id=attempt.holder))
        for port in (*placed.pool_ports, *placed.fixed_ports):
            session.add(PortLease(host_id=placed.host_id, port=port, holder_id=attempt.holder))
        host = session.get(Host, placed.host_id)
        names.append(host.name if host else placed.host_id)
    session.flush()
    where = ", ".join(sorted(set(names)))
    transition(session, job, JobState.PROVISIONING, f"attempt {job.attempts} is being started on {where}", now=now)
