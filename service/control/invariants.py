"""What must always hold between the database and the backends, checked for real: `navarch doctor` shows it."""

from collections.abc import Iterable

from sqlmodel import Session, col, select

from jobs.states import PLACED, TERMINAL, JobState
from jobs.workspace_states import AT_REST
from service.backends.base import Backend
from service.backends.errors import EngineError
from service.contract.schemas import Check
from service.store.database import Database
from service.store.tables import Attempt, GpuLease, Holder, Job, PortLease, Workspace


def examine(database: Database, backends: Iterable[Backend]) -> list[Check]:
    """One check for each invariant; a failed one names the rows or containers. Changes nothing."""
    with database.read() as session:
        checks = [
            _check("leases", _leases_of_ended_attempts(session), "every lease belongs to an attempt under way"),
            _check("workspaces", _wrong_workspaces(session), "workspaces have their ports, and GPUs only at work"),
            _check("attempts", _wrong_attempts(session), "placed jobs have one attempt under way, others none"),
        ]
    for backend in backends:
        for place, strays in backend.strays():
            name = f"containers on {place}"
            if isinstance(strays, EngineError):
                checks.append(Check(name=name, ok=False, detail=str(strays)))
            else:
                checks.append(_check(name, strays, "every running container belongs to an attempt or a workspace"))
    return checks


def _check(name: str, wrong: list[str], holds: str) -> Check:
    shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
    return Check(name=name, ok=not wrong, detail=shown or holds)


def _leases_of_ended_attempts(session: Session) -> list[str]:
    live = {attempt.holder for attempt in session.exec(select(Attempt).where(col(Attempt.finished_at).is_(None)))}
    ended = {h.id: h for h in session.exec(select(Holder).where(Holder.kind == "job")) if h.id not in live}
    gpus = session.exec(select(GpuLease).where(col(GpuLease.holder_id).in_(ended)))
    ports = session.exec(select(PortLease).where(col(PortLease.holder_id).in_(ended)))
    return [
        *(f"{holder.id} of job {holder.name} has ended, but is still a holder" for holder in ended.values()),
        *(f"GPU {lease.gpu} is leased to {lease.holder_id}, which has ended" for lease in gpus),
        *(f"port {lease.port} is leased to {lease.holder_id}, which has ended" for lease in ports),
    ]


def _wrong_workspaces(session: Session) -> list[str]:
    wrong = []
    rows = {row.holder: row for row in session.exec(select(Workspace))}
    for holder in session.exec(select(Holder).where(Holder.kind == "workspace")):
        if holder.id not in rows:
            wrong.append(f"workspace {holder.name} is gone, but is still a holder")
    for row in rows.values():
        ports = {lease.port for lease in session.exec(select(PortLease).where(PortLease.holder_id == row.holder))}
        gpus = {lease.gpu for lease in session.exec(select(GpuLease).where(GpuLease.holder_id == row.holder))}
        if ports != set(row.ports.values()):
            wrong.append(f"workspace {row.name} has the ports {sorted(row.ports.values())}, but leases {sorted(ports)}")
        if gpus != (set() if row.state in AT_REST else set(row.gpus)):
            wrong.append(f"workspace {row.name} is {row.state} and leases the GPUs {sorted(gpus)}")
    return wrong


def _wrong_attempts(session: Session) -> list[str]:
    wrong = []
    open_jobs = list(session.exec(select(Attempt.job_id).where(col(Attempt.finished_at).is_(None))))
    for job in session.exec(select(Job).where(col(Job.state).in_([state.value for state in PLACED]))):
        if open_jobs.count(job.id) != 1:
            wrong.append(f"job {job.name} is {job.state} with {open_jobs.count(job.id)} attempts under way")
    idle = [JobState.QUEUED, *TERMINAL]
    for job in session.exec(
        select(Job).where(col(Job.id).in_(open_jobs), col(Job.state).in_([state.value for state in idle]))
    ):
        wrong.append(f"job {job.name} is {job.state}, but an attempt is under way")
    return wrong
