"""The one way to change a job's state, and the one way to write an event: both in the caller's transaction.

`actor` is the id of a principal; the controller acts when nobody else does.
"""

import time
from typing import Any

from sqlmodel import Session

from jobs.states import TERMINAL, JobState, Reason, check_move
from jobs.workspace_states import WorkspaceState, check_workspace_move
from service.store.tables import CONTROLLER, Event, Job, Workspace


def record(session: Session, kind: str, subject: str, message: str, *, actor: str = CONTROLLER, **data: Any) -> None:
    """Writes an event that is no change of a job's state."""
    session.add(Event(actor_id=actor, kind=kind, subject=subject, message=message, data=data))


def record_job(session: Session, job: Job, kind: str, message: str, *, actor: str = CONTROLLER, **data: Any) -> None:
    """Writes an event about a job."""
    session.add(
        Event(
            actor_id=actor,
            kind=kind,
            subject=f"job/{job.id}",
            job_id=job.id,
            job_name=job.name,
            message=message,
            data=data,
        )
    )


def transition(
    session: Session,
    job: Job,
    to: JobState,
    message: str,
    *,
    reason: Reason | None = None,
    actor: str = CONTROLLER,
    now: float | None = None,
) -> None:
    """Moves a job to another state with its reason, a sentence and an event. Raises IllegalTransition."""
    old = JobState(job.state)
    check_move(old, to)
    moment = time.time() if now is None else now
    job.state = to.value
    job.reason = reason.value if reason else None
    job.message = message
    if to is not JobState.QUEUED:
        job.why = None
    if to is JobState.RUNNING and job.started_at is None:
        job.started_at = moment
    if to in TERMINAL:
        job.finished_at = moment
    session.add(
        Event(
            time=moment,
            actor_id=actor,
            kind="job.state",
            subject=f"job/{job.id}",
            job_id=job.id,
            job_name=job.name,
            old=old.value,
            new=to.value,
            reason=job.reason,
            message=message,
        )
    )


def record_workspace(
    session: Session, workspace: Workspace, kind: str, message: str, *, actor: str = CONTROLLER, **data: Any
) -> None:
    """Writes an event about a workspace."""
    record(session, kind, workspace.holder, message, actor=actor, workspace=workspace.name, **data)


def move_workspace(
    session: Session,
    workspace: Workspace,
    to: WorkspaceState,
    message: str,
    *,
    reason: Reason | None = None,
    actor: str = CONTROLLER,
) -> None:
    """Moves a workspace to another state with its reason, a sentence and an event. Raises IllegalTransition."""
    old = WorkspaceState(workspace.state)
    check_workspace_move(old, to)
    workspace.state, workspace.message = to.value, message
    workspace.reason = reason.value if reason is not None else None
    session.add(
        Event(
            actor_id=actor,
            kind="workspace.state",
            subject=workspace.holder,
            old=old.value,
            new=to.value,
            reason=workspace.reason,
            message=f"{workspace.name}: {message}",
            data={"workspace": workspace.name},
        )
    )
