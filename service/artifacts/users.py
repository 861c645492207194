"""Which jobs use an artifact, or are about to: as long as they do it stays."""

from collections.abc import Sequence

from sqlmodel import Session, col, select

from jobs.states import JobState
from service.contract.errors import Problem
from service.store.tables import Artifact, Job, JobInput


def check_unused(session: Session, row: Artifact) -> None:
    """Raises Problem `artifact_in_use` when an active job uses this version, or is about to take it."""
    users = select(Job.name).join(JobInput, col(JobInput.job_id) == col(Job.id))
    user = session.exec(users.where(JobInput.artifact_id == row.id, col(Job.finished_at).is_(None))).first()
    if user is None and row.job_id:
        user = awaited_by(session, row.job_id, row.name)
    if user is not None:
        detail = f"Artifact {row.name}@{row.version} is used by job {user}."
        raise Problem("artifact_in_use", detail, f"Wait for {user} to end.")


def users_of(session: Session, makers: Sequence[str]) -> dict[str, str]:
    """Of each job the name of an active one that uses what it has left, or is about to."""
    inputs = (
        select(JobInput.maker_id, JobInput.name, JobInput.version, Job.name)
        .join(Job, col(JobInput.job_id) == col(Job.id))
        .where(col(JobInput.maker_id).in_(makers), col(Job.finished_at).is_(None))
    )
    users: dict[str, str] = {}
    for maker, artifact, version, user in session.exec(inputs):
        if maker is None or maker in users:
            continue
        if artifact and version is not None:
            users[maker] = user
        elif version is None and (waiting := awaited_by(session, maker)) is not None:
            users[maker] = waiting
    return users


def awaited_by(session: Session, maker_id: str, artifact: str | None = None) -> str | None:
    """The name of a job that is about to take what this one has left (an artifact of this name)."""
    maker = session.get(Job, maker_id)
    left = set(session.exec(select(Artifact.name).where(Artifact.job_id == maker_id)))
    waiting = (
        select(Job.name, JobInput.name)
        .join(JobInput, col(JobInput.job_id) == col(Job.id))
        .where(JobInput.maker_id == maker_id, col(JobInput.version).is_(None), col(Job.finished_at).is_(None))
    )
    for user, name in session.exec(waiting):
        there = name in left if name else maker is not None and maker.state == JobState.SUCCEEDED
        if there and artifact in (None, name):
            return user
    return None
