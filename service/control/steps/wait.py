"""Jobs that wait for what others will leave: they join the queue when it is there, and fail when it won't come."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from jobs.awaited import describe_wait, wait_sentence
from jobs.spec import Mount
from jobs.states import TERMINAL, Desired, JobState, Reason
from service.control.context import Context
from service.store.capacity import demand_of_row, kind_of
from service.store.demands import artifact_need, stored
from service.store.events import record_job, transition
from service.store.tables import Artifact, Job, JobInput


@dataclass
class _Outlook:
    """How it stands with the missing inputs of one job."""

    there: list[tuple[JobInput, Artifact | None]] = field(default_factory=list)
    """With the artifact; None where only a job's success was waited for."""
    awaited: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


Failed = Callable[[Context, str, Exception, float], None]


def admit(context: Context, failed: Failed) -> None:
    """Looks at every job that waits for inputs, the oldest first: one that fails takes those behind it along."""
    with context.database.read() as session:
        query = (
            select(Job.id, Job.why)
            .join(JobInput, col(JobInput.job_id) == col(Job.id))
            .where(col(JobInput.version).is_(None), Job.state == JobState.QUEUED, Job.desired == Desired.RUN)
            .order_by(col(Job.created_at), col(Job.id))
            .distinct()
        )
        waiting = list(session.exec(query))
    for job_id, why in waiting:
        try:
            with context.database.read() as session:
                outlook = _outlook(session, job_id)
            if outlook.there or outlook.lost or wait_sentence(outlook.awaited) != why:
                _write(context, job_id)
        except Exception as error:  # one bad row must never stop the others
            failed(context, job_id, error, context.clock())


def _write(context: Context, job_id: str) -> None:
    with context.database.write() as session:
        job = session.get(Job, job_id, with_for_update=True)
        if job is None or job.state != JobState.QUEUED or job.desired != Desired.RUN:
            return
        outlook = _outlook(session, job_id)
        if outlook.lost:
            message = "; ".join(outlook.lost)
            transition(session, job, JobState.FAILED, message, reason=Reason.MISSING_INPUT, now=context.clock())
        else:
            _take(session, job, outlook)
    context.changed(job_id)


def _take(session: Session, job: Job, outlook: _Outlook) -> None:
    """Fixes the versions that are there now, for all attempts; with the last of them the job joins the queue."""
    mounts = {mount["target"]: mount for mount in job.resolved.get("mounts", ())}
    for wanted, artifact in outlook.there:
        if artifact is None:
            wanted.version = 0
            continue
        wanted.version, wanted.artifact_id, wanted.digest = artifact.version, artifact.id, artifact.digest
        mounts[wanted.target] = Mount(source=artifact.path, target=wanted.target, read_only=True).model_dump()
        if (need := artifact_need(session, artifact)) is not None:
            job.needs = [*job.needs, *stored([need])]
            job.demand = kind_of(demand_of_row(job), job.owner_id)
        record_job(session, job, "job.input", f"{job.name} uses {artifact.name}@{artifact.version} as {wanted.key}")
    job.resolved = {**job.resolved, "mounts": list(mounts.values())}
    job.why = wait_sentence(outlook.awaited)
    if not outlook.awaited:
        job.not_before = 0.0


def _outlook(session: Session, job_id: str) -> _Outlook:
    """The maker's state is read before its artifacts: what it leaves is registered before it ends."""
    outlook = _Outlook()
    maker = aliased(Job)
    missing = (
        select(JobInput, maker)
        .outerjoin(maker, col(maker.id) == col(JobInput.maker_id))
        .where(JobInput.job_id == job_id, col(JobInput.version).is_(None))
        .order_by(col(JobInput.id))
    )
    made: dict[str, list[Artifact]] = defaultdict(list)
    for wanted, job in list(session.exec(missing)):
        if job is None:
            outlook.lost.append(_lost(wanted, wanted.maker_name, "was deleted"))
        elif JobState(job.state) not in TERMINAL:
            outlook.awaited.append(describe_wait(wanted.name, job.name, job.state, job.progress))
        elif not wanted.name:
            if job.state == JobState.SUCCEEDED:
                outlook.there.append((wanted, None))
            else:
                outlook.lost.append(_lost(wanted, job.name, _ended(job)))
        else:
            if job.id not in made:
                made[job.id] = list(session.exec(select(Artifact).where(Artifact.job_id == job.id)))
            found = [artifact for artifact in made[job.id] if artifact.name == wanted.name]
            if found:
                outlook.there.append((wanted, found[0]))
            else:
                outlook.lost.append(_lost(wanted, job.name, _ended(job)))
    return outlook


def _lost(wanted: JobInput, maker: str | None, ended: str) -> str:
    if wanted.name:
        return f"artifact {wanted.name} won't come: job {maker} {ended}"
    return f"it was to follow job {maker}, which {ended}"


def _ended(job: Job) -> str:
    if job.state == JobState.STOPPED:
        return "was stopped"
    if job.state == JobState.SUCCEEDED:
        return "succeeded without it"
    if job.attempts == 0:  # it waited itself, and says for whom
        return "failed before it started"
    return f"failed: {job.message}"
