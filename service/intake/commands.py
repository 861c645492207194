"""What can be done with jobs: submit, stop, delete. The API and the tests call these; each is one transaction."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete as sql_delete
from sqlmodel import Session, col, select

from jobs.states import TERMINAL, Desired, JobState, Reason
from service.builds.look import ImageLook
from service.contract.errors import Problem
from service.intake.submission import Submission, Submissions, Submitted
from service.settings import Settings
from service.store.database import Database
from service.store.events import record_job, transition
from service.store.rows import find_job
from service.store.tables import Artifact, Attempt, Idempotency, Job, JobInput, Replica

Wake = Callable[[str], None]
_REMOVAL_POLL_S = 0.05


class Jobs:
    """The application's functions on jobs."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        submitted: Wake = lambda _: None,
        stopping: Wake = lambda _: None,
        patience_s: float = 0.0,
        images: ImageLook | None = None,
    ) -> None:
        """`patience_s`: how long a deletion waits for containers that the controller is removing."""
        self._database = database
        self._settings = settings
        self._submitted, self._stopping, self._patience_s = submitted, stopping, patience_s
        self._submissions = Submissions(database, settings, images)

    def submit(self, document: Mapping[str, Any], *, actor: str = "", idempotency_key: str | None = None) -> Submitted:
        """Accepts a job. Raises Problem when it can't ever run or the Idempotency-Key was used for another one."""
        result = self.submit_many([Submission(document, actor, idempotency_key)])[0]
        if isinstance(result, Exception):
            raise result
        return result

    def submit_many(self, submissions: Sequence[Submission]) -> list[Submitted | Exception]:
        """Accepts several jobs in one transaction; each is accepted or refused by itself, in the same order."""
        results = self._submissions.accept(submissions)
        for result in results:
            if isinstance(result, Submitted) and not result.replayed:
                self._submitted(result.job.id)
        return results

    def stop(self, id_or_name: str, *, actor: str = "") -> Job:
        """Asks a job to stop. Stopping one that has ended is no mistake: it stays as it is."""
        with self._database.write() as session:
            job = find_job(session, id_or_name)
            if JobState(job.state) not in TERMINAL and job.desired != Desired.STOP:
                job.desired = Desired.STOP
                record_job(
                    session, job, "job.stop_requested", f"{actor or 'a user'} asked {job.name} to stop", actor=actor
                )
                if job.state == JobState.QUEUED:
                    transition(
                        session,
                        job,
                        JobState.STOPPED,
                        "stopped on request, before it started",
                        reason=Reason.STOPPED_BY_USER,
                        actor=actor,
                    )
            session.flush()
        self._stopping(job.id)
        return job

    def delete(self, id_or_name: str, *, actor: str = "") -> None:
        """Forgets a job that has ended, and its files. Raises Problem `job_active`, `artifact_in_use`.

        Containers that are on their way out are waited for: a job's rows stay until its containers are gone.
        """
        job_id = self._without_containers(id_or_name)
        with self._database.write() as session:
            job = find_job(session, job_id)
            if JobState(job.state) not in TERMINAL:
                raise Problem(
                    "job_active",
                    f"Job {job.name} is {job.state} and can't be deleted.",
                    f"Stop it first: `navarch stop {job.name}`.",
                )
            if _has_containers(session, job_id):
                raise Problem(
                    "job_active",
                    f"The containers of {job.name} are still to be removed.",
                    "See that its hosts answer (`navarch host ls`), then try again.",
                )
            own = str(self._settings.job_dir(job.id))
            if user := _user_of(session, [own], besides=job.id) or awaited_by(session, job.id):
                raise Problem(
                    "artifact_in_use",
                    f"What job {job.name} made is used by job {user}.",
                    f"Wait until {user} has ended, or stop it.",
                )
            record_job(session, job, "job.deleted", f"{job.name} was deleted", actor=actor)
            for table in (Artifact, JobInput, Replica, Attempt):
                session.exec(sql_delete(table).where(col(table.job_id) == job.id))
            session.exec(sql_delete(Idempotency).where(col(Idempotency.job_id) == job.id))
            session.delete(job)
        shutil.rmtree(self._settings.job_dir(job_id), ignore_errors=True)

    def _without_containers(self, id_or_name: str) -> str:
        """The job's id, once the containers of an ended one are gone or patience is over. Holds no transaction."""
        deadline = time.monotonic() + self._patience_s
        with self._database.read() as session:
            job_id = find_job(session, id_or_name).id
        waited = False
        while True:
            with self._database.read() as session:
                wait = JobState(find_job(session, job_id).state) in TERMINAL and _has_containers(session, job_id)
            if not wait or time.monotonic() >= deadline:
                return job_id
            if not waited:
                self._stopping(job_id)
                waited = True
            time.sleep(_REMOVAL_POLL_S)


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


def _has_containers(session: Session, job_id: str) -> bool:
    left = select(Replica.id).where(
        Replica.job_id == job_id, col(Replica.removed_at).is_(None), col(Replica.container_id).is_not(None)
    )
    return session.exec(left).first() is not None


def _user_of(session: Session, paths: Sequence[str], besides: str) -> str | None:
    """The name of an active job that mounts something under one of these paths."""
    active = select(Job).where(col(Job.finished_at).is_(None), col(Job.id) != besides)
    for job in session.exec(active):
        for mount in job.resolved.get("mounts", ()):
            if any(mount["source"] == path or mount["source"].startswith(path + "/") for path in paths):
                return job.name
    return None
