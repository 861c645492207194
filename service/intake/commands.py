"""What can be done with jobs: submit, stop, delete. The API and the tests call these."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlmodel import Session, col, select

from jobs.states import TERMINAL, Desired, JobState, Reason
from service.access.principals import LOCAL, Principal, only_own
from service.artifacts.elsewhere import Elsewhere
from service.builds.look import ImageLook
from service.contract.errors import Problem
from service.intake.deletion import Deleted, Deletions, HandOver
from service.intake.submission import Submission, Submissions, Submitted
from service.settings import Settings
from service.store.database import Database
from service.store.events import record_job, transition
from service.store.rows import find_jobs
from service.store.tables import Job

Wake = Callable[[str], None]
Result = TypeVar("Result")
_CHUNK = 100
"""Jobs that one transaction stops: others want to write, too."""


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
        hand_over: HandOver | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """`patience_s`: how long a deletion waits for containers that the controller is removing."""
        self._database = database
        self._submitted, self._stopping = submitted, stopping
        self._deletions = Deletions(database, settings, stopping, patience_s, hand_over, elsewhere)
        self._submissions = Submissions(database, settings, images)

    def submit(
        self, document: Mapping[str, Any], *, actor: Principal = LOCAL, idempotency_key: str | None = None
    ) -> Submitted:
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

    def stop(self, id_or_name: str, *, actor: Principal = LOCAL) -> Job:
        """Asks a job to stop. Stopping one that has ended is no mistake: it stays as it is. Raises Problem."""
        return _only(self.stop_many([id_or_name], actor=actor))

    def stop_many(self, refs: Sequence[str], *, actor: Principal = LOCAL) -> list[Job | Problem]:
        """Asks several jobs to stop, some in each transaction; for each the job, or why not."""
        with self._database.read() as session:
            meant = only_own(session, actor, find_jobs(session, refs, actor.id))
        ids = list(dict.fromkeys(job.id for job in meant if isinstance(job, Job)))
        asked: dict[str, Job] = {}
        for start in range(0, len(ids), _CHUNK):
            some = ids[start : start + _CHUNK]
            with self._database.write() as session:
                for job in session.exec(select(Job).where(col(Job.id).in_(some))):
                    _stop(session, job, actor)
                    asked[job.id] = job
        for job in asked.values():  # one that had not started needs no step: only the queue has changed
            (self._submitted if job.attempts == 0 else self._stopping)(job.id)
        gone = "It has been deleted meanwhile."
        return [
            asked.get(job.id) or Problem("job_not_found", f"There is no job {ref!r}.", gone)
            if isinstance(job, Job)
            else job
            for ref, job in zip(refs, meant, strict=True)
        ]

    def delete(self, id_or_name: str, *, actor: Principal = LOCAL, keep_artifacts: bool = True) -> Deleted:
        """Forgets a job that has ended, and its files. Raises Problem `job_active`, `artifact_in_use`, …"""
        return _only(self.delete_many([id_or_name], actor=actor, keep_artifacts=keep_artifacts))

    def delete_many(
        self, refs: Sequence[str], *, actor: Principal = LOCAL, keep_artifacts: bool = True
    ) -> list[Deleted | Problem]:
        """Forgets several jobs; for each what came of it, or why it stays."""
        return self._deletions.delete(refs, actor, keep_artifacts)


def _only(results: Sequence[Result | Problem]) -> Result:
    (result,) = results
    if isinstance(result, Problem):
        raise result
    return result


def _stop(session: Session, job: Job, actor: Principal) -> None:
    if JobState(job.state) in TERMINAL or job.desired == Desired.STOP:
        return
    job.desired = Desired.STOP
    record_job(session, job, "job.stop_requested", f"{actor.name} asked {job.name} to stop", actor=actor.id)
    if job.state == JobState.QUEUED:
        message = "stopped on request, before it started"
        transition(session, job, JobState.STOPPED, message, reason=Reason.STOPPED_BY_USER, actor=actor.id)
