"""Finds rows by what users call them."""

from collections.abc import Sequence

from sqlalchemy import case
from sqlmodel import Session, col, select

from service.contract.errors import Problem
from service.store.tables import Job, Workspace


def find_job(session: Session, id_or_name: str, by: str) -> Job:
    """The job with this id, else the newest with this name: the one of the principal `by`, or if none is anybody's.

    Raises Problem `job_not_found`.
    """
    job = session.get(Job, id_or_name)
    if job is None:
        own_first = (case((col(Job.owner_id) == by, 0), else_=1), col(Job.created_at).desc())
        job = session.exec(select(Job).where(Job.name == id_or_name).order_by(*own_first).limit(1)).first()
    if job is None:
        raise Problem("job_not_found", f"There is no job {id_or_name!r}.", "`navarch ps -a` lists all jobs.")
    return job


def find_jobs(session: Session, refs: Sequence[str], by: str) -> list[Job | Problem]:
    """The jobs that are meant, by id or name; for each that isn't there the Problem of `find_job`."""
    by_id = {job.id: job for job in session.exec(select(Job).where(col(Job.id).in_(refs)))}
    found: list[Job | Problem] = []
    for ref in refs:
        try:
            found.append(by_id.get(ref) or find_job(session, ref, by))
        except Problem as problem:
            found.append(problem)
    return found


def find_workspace(session: Session, id_or_name: str, by: str) -> Workspace:
    """The workspace with this id or name: the one of the principal `by`, or if none is anybody's.

    Raises Problem `workspace_not_found`.
    """
    own_first = (case((col(Workspace.owner_id) == by, 0), else_=1), col(Workspace.created_at).desc())
    named = select(Workspace).where(Workspace.name == id_or_name).order_by(*own_first).limit(1)
    found = session.get(Workspace, id_or_name) or session.exec(named).first()
    if found is None:
        hint = "`navarch workspace ls` lists all workspaces."
        raise Problem("workspace_not_found", f"There is no workspace {id_or_name!r}.", hint)
    return found
