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
_CHUNK = 100
"""Jobs that one transaction stops or deletes: others want to write too."""
_Act = Callable[[Session, Sequence[Job]], dict[str, Problem]]
"""Does something with jobs in a transaction; why it could not be done with some."""


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
        """Asks a job to stop. Stopping one that has ended is no mistake: it stays as it is. Raises Problem."""
        return _only(self.stop_many([id_or_name], actor=actor))

    def stop_many(self, refs: Sequence[str], *, actor: str = "") -> list[Job | Problem]:
        """Asks several jobs to stop, some in each transaction; for each the job, or why not."""
        results = self._each(refs, lambda session, jobs: _stop(session, jobs, actor))
        for job in results:
            if isinstance(job, Job):  # one that had not started needs no step: only the queue has changed
                (self._submitted if job.attempts == 0 else self._stopping)(job.id)
        return results

    def delete(self, id_or_name: str, *, actor: str = "") -> None:
        """Forgets a job that has ended, and its files. Raises Problem `job_active`, `artifact_in_use`.

        Containers that are on their way out are waited for: a job's rows stay until its containers are gone.
        """
        _only(self.delete_many([id_or_name], actor=actor))

    def delete_many(self, refs: Sequence[str], *, actor: str = "") -> list[Job | Problem]:
        """Forgets several jobs, some in each transaction; for each what it was, or why it stays."""
        self._await_removals(refs)
        results = self._each(refs, lambda session, jobs: _delete(session, jobs, actor))
        for job in results:
            if isinstance(job, Job):
                shutil.rmtree(self._settings.job_dir(job.id), ignore_errors=True)
        return results

    def _each(self, refs: Sequence[str], act: _Act) -> list[Job | Problem]:
        """What comes of acting on each job; a Problem with one leaves the others as they are."""
        with self._database.read() as session:
            meant = _find(session, refs)
        ids = list(dict.fromkeys(job.id for job in meant if isinstance(job, Job)))
        outcome: dict[str, Job | Problem] = {}
        for start in range(0, len(ids), _CHUNK):
            some = ids[start : start + _CHUNK]
            with self._database.write() as session:
                jobs = list(session.exec(select(Job).where(col(Job.id).in_(some))))
                outcome.update({job.id: job for job in jobs})
                outcome.update(act(session, jobs))
        gone = "It has been deleted meanwhile."
        return [
            outcome.get(job.id) or Problem("job_not_found", f"There is no job {ref!r}.", gone)
            if isinstance(job, Job)
            else job
            for ref, job in zip(refs, meant, strict=True)
        ]

    def _await_removals(self, refs: Sequence[str]) -> None:
        """Returns when the containers of those that have ended are gone, or patience is over. Holds no transaction."""
        deadline = time.monotonic() + self._patience_s
        with self._database.read() as session:
            ids = [job.id for job in _find(session, refs) if isinstance(job, Job)]
            left = _ended_with_containers(session, ids)
        for job_id in left:
            self._stopping(job_id)
        while left and time.monotonic() < deadline:
            time.sleep(_REMOVAL_POLL_S)
            with self._database.read() as session:
                left = _ended_with_containers(session, left)


def _only(results: Sequence[Job | Problem]) -> Job:
    (result,) = results
    if isinstance(result, Problem):
        raise result
    return result


def _find(session: Session, refs: Sequence[str]) -> list[Job | Problem]:
    """The jobs that are meant, by id or name."""
    by_id = {job.id: job for job in session.exec(select(Job).where(col(Job.id).in_(refs)))}
    found: list[Job | Problem] = []
    for ref in refs:
        try:
            found.append(by_id.get(ref) or find_job(session, ref))
        except Problem as problem:
            found.append(problem)
    return found


def _stop(session: Session, jobs: Sequence[Job], actor: str) -> dict[str, Problem]:
    for job in jobs:
        if JobState(job.state) in TERMINAL or job.desired == Desired.STOP:
            continue
        job.desired = Desired.STOP
        record_job(session, job, "job.stop_requested", f"{actor or 'a user'} asked {job.name} to stop", actor=actor)
        if job.state == JobState.QUEUED:
            message = "stopped on request, before it started"
            transition(session, job, JobState.STOPPED, message, reason=Reason.STOPPED_BY_USER, actor=actor)
    return {}


def _delete(session: Session, jobs: Sequence[Job], actor: str) -> dict[str, Problem]:
    """Forgets those that may be; why the others stay."""
    ids = [job.id for job in jobs]
    present, users = _with_containers(session, ids), _users_of(session, ids)
    refused: dict[str, Problem] = {}
    for job in jobs:
        if JobState(job.state) not in TERMINAL:
            refused[job.id] = Problem(
                "job_active",
                f"Job {job.name} is {job.state} and can't be deleted.",
                f"Stop it first: `navarch stop {job.name}`.",
            )
        elif job.id in present:
            refused[job.id] = Problem(
                "job_active",
                f"The containers of {job.name} are still to be removed.",
                "See that its hosts answer (`navarch host ls`), then try again.",
            )
        elif (user := users.get(job.id)) is not None:
            refused[job.id] = Problem(
                "artifact_in_use",
                f"What job {job.name} made is used by job {user}.",
                f"Wait until {user} has ended, or stop it.",
            )
        else:
            record_job(session, job, "job.deleted", f"{job.name} was deleted", actor=actor)
    going = [job_id for job_id in ids if job_id not in refused]
    for table in (Artifact, JobInput, Replica, Attempt, Idempotency):
        session.exec(sql_delete(table).where(col(table.job_id).in_(going)))
    session.exec(sql_delete(Job).where(col(Job.id).in_(going)).execution_options(synchronize_session=False))
    return refused


def _with_containers(session: Session, ids: Sequence[str]) -> set[str]:
    """Those of whose containers some are still there."""
    left = select(Replica.job_id).where(
        col(Replica.job_id).in_(ids), col(Replica.removed_at).is_(None), col(Replica.container_id).is_not(None)
    )
    return set(session.exec(left))


def _ended_with_containers(session: Session, ids: Sequence[str]) -> list[str]:
    ended = select(Job.id).where(col(Job.id).in_(ids), col(Job.state).in_([state.value for state in TERMINAL]))
    return list(_with_containers(session, list(session.exec(ended))))


def _users_of(session: Session, makers: Sequence[str]) -> dict[str, str]:
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
