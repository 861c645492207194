"""Finds rows by what users call them."""

from sqlmodel import Session, col, select

from service.contract.errors import Problem
from service.store.tables import Job


def find_job(session: Session, id_or_name: str) -> Job:
    """The job with this id, else the newest with this name. Raises Problem `job_not_found`."""
    job = session.get(Job, id_or_name)
    if job is None:
        newest = select(Job).where(Job.name == id_or_name).order_by(col(Job.created_at).desc()).limit(1)
        job = session.exec(newest).first()
    if job is None:
        raise Problem("job_not_found", f"There is no job {id_or_name!r}.", "`navarch ps -a` lists all jobs.")
    return job
