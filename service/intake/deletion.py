"""How ended jobs are deleted: their files and rows go, what they left stays unless it is to go, too.

Rows go last. Whenever the control plane dies, or a file can't be removed, the job is still there to be deleted again,
and the rows of its artifacts name places where their files are.
"""

import os
import shlex
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy import delete as sql_delete
from sqlalchemy import update as sql_update
from sqlmodel import Session, col, select

from jobs.states import TERMINAL, JobState
from service.access.paths import open_below, remove_tree
from service.access.principals import Principal, only_own
from service.artifacts.elsewhere import Elsewhere
from service.artifacts.keeping import Kept, Shelf, size_of
from service.artifacts.users import users_of
from service.backends.errors import EngineError
from service.contract.errors import Problem
from service.settings import Settings
from service.store.database import Database
from service.store.events import record, record_job
from service.store.faults import of_storage
from service.store.places import is_remote
from service.store.rows import find_jobs
from service.store.tables import Artifact, Attempt, Host, Idempotency, Job, JobInput, Replica

HandOver = Callable[[Job, Path], None]
"""Makes all that is in a job's run folder this account's own. Raises EngineError."""
Value = TypeVar("Value")
_REMOVAL_POLL_S = 0.05
_CHUNK = 50
"""Jobs that are deleted together: others want to write, too."""


@dataclass
class Deleted:
    """A job as it was, and what has become of its artifacts."""

    job: Job
    kept: list[Artifact] = field(default_factory=list)
    gone: list[Artifact] = field(default_factory=list)


@dataclass
class _Leaving:
    """A job on its way out: for each artifact where it is now, or None for one that goes."""

    job: Job
    artifacts: list[tuple[Artifact, Kept | None]]


class Deletions:
    """Deletes jobs. Two that are asked for the same job at once don't come into each other's way."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        wake: Callable[[str], None],
        patience_s: float,
        hand_over: HandOver | None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        """`patience_s`: how long containers are waited for that the controller (`wake`) is removing."""
        self._database, self._settings = database, settings
        self._wake, self._patience_s, self._hand_over = wake, patience_s, hand_over
        self._elsewhere = elsewhere
        self._shelf = Shelf(settings.data_dir)
        self._lock = threading.Lock()
        self._under_way: set[str] = set()

    def delete(self, refs: Sequence[str], actor: Principal, keep: bool) -> list[Deleted | Problem]:
        """For each job what came of it, or why it stays."""
        self._await_removals(refs, actor)
        with self._database.read() as session:
            meant = only_own(session, actor, find_jobs(session, refs, actor.id))
        outcome: dict[str, Deleted | Problem] = {}
        with self._claimed({job.id for job in meant if isinstance(job, Job)}) as ids:
            for start in range(0, len(ids), _CHUNK):
                outcome.update(self._delete(ids[start : start + _CHUNK], actor, keep))
        busy = "It is being deleted already."
        return [
            (outcome.get(job.id) or Problem("job_active", f"Job {job.name} can't be deleted twice.", busy))
            if isinstance(job, Job)
            else job
            for job in meant
        ]

    def _delete(self, ids: Sequence[str], actor: Principal, keep: bool) -> dict[str, Deleted | Problem]:
        with self._database.read() as session:
            jobs, refused = _refusals(session, ids)
            left = _artifacts_of(session, ids)
        outcome: dict[str, Deleted | Problem] = {**refused}
        leaving: list[_Leaving] = []
        for job in jobs:
            with _noted(outcome, job):
                leaving.append(self._made_ready(job, left[job.id], keep))
        if any(one.artifacts for one in leaving):
            with self._database.write() as session:
                refused = _refusals(session, [one.job.id for one in leaving])[1]
                outcome.update(refused)
                leaving = [one for one in leaving if one.job.id not in refused]
                rows = _artifacts_of(session, [one.job.id for one in leaving])
                for one in leaving:
                    _move_artifacts(session, one, rows[one.job.id], actor)
        going = []
        for one in leaving:
            with _noted(outcome, one.job):
                self._as_owner(one.job, partial(self._remove_files, one))
                going.append(one)
        with self._database.write() as session:
            _forget(session, [one.job for one in going], actor)
        outcome.update({one.job.id: _deleted(one) for one in going})
        return outcome

    def _made_ready(self, job: Job, rows: Sequence[Artifact], keep: bool) -> _Leaving:
        """What can fail about the artifacts, before anything has gone. Raises Problem, OSError."""
        run_dir = self._run_dir(job)
        found: list[tuple[Artifact, Kept | None]] = []
        for row in rows:
            if keep and row.run_path is None:  # it is at home already
                found.append((row, Kept(Path(row.path), row.size)))
            elif keep:
                found.append((row, self._kept(job, row)))
            else:
                if row.size is None and row.run_path is not None and row.host_id is None:
                    with suppress(Problem, OSError):
                        row.size = self._as_owner(job, partial(_size_below, run_dir, row.run_path))
                found.append((row, None))
        return _Leaving(job, found)

    def _kept(self, job: Job, row: Artifact) -> Kept | None:
        """Where an artifact can stay; None when its files are gone already. Raises Problem `artifact_not_kept`."""
        if row.host_id is not None and self._elsewhere is not None:
            return self._elsewhere(row.host_id).keep(row)
        try:
            return self._as_owner(job, lambda: self._shelf.keep(row, self._run_dir(job)))
        except OSError as error:
            raise of_storage(error) or Problem(
                "artifact_not_kept",
                f"Job {job.name} stays: its artifact {row.name}@{row.version} can't be kept "
                f"({error.filename}: {error.strerror}).",
                f"To delete the artifact, too: `navarch rm --artifacts {job.name}`.",
            ) from error

    def _remove_files(self, one: _Leaving) -> None:
        for row, kept in one.artifacts:
            if kept is None and row.host_id is not None and row.run_path is None and self._elsewhere is not None:
                self._elsewhere(row.host_id).remove(row)
            elif kept is None and self._shelf.holds(row):
                self._shelf.remove(row)
        with self._database.read() as session:
            hosts = _remote_hosts(session, one.job.id)
        for host_id in hosts:
            assert self._elsewhere is not None
            self._elsewhere(host_id).remove_job(one.job.id)
        remove_tree(self._settings.job_dir(one.job.id))

    def _as_owner(self, job: Job, act: Callable[[], Value]) -> Value:
        """Does something with a job's files; once more as their owner when they are another account's.

        What containers write is root's, and this may be an ordinary account.
        """
        try:
            return act()
        except PermissionError as error:
            folder = self._run_dir(job)
            try:
                if self._hand_over is None or os.geteuid() == 0:
                    raise _left(job, folder, f"{error.strerror}: {error.filename}") from error
                self._hand_over(job, folder)
                return act()
            except EngineError as refused:
                raise _left(job, folder, str(refused)) from refused
            except PermissionError as again:
                raise _left(job, folder, f"{again.strerror}: {again.filename}") from again

    def _run_dir(self, job: Job) -> Path:
        return self._settings.job_dir(job.id) / "run"

    @contextmanager
    def _claimed(self, ids: set[str]) -> Iterator[list[str]]:
        """Those that nobody else is deleting now."""
        with self._lock:
            mine = ids - self._under_way
            self._under_way |= mine
        try:
            yield sorted(mine)
        finally:
            with self._lock:
                self._under_way -= mine

    def _await_removals(self, refs: Sequence[str], actor: Principal) -> None:
        """Returns when the containers of those that have ended are gone, or patience is over. Holds no transaction."""
        deadline = time.monotonic() + self._patience_s
        with self._database.read() as session:
            ids = [job.id for job in find_jobs(session, refs, actor.id) if isinstance(job, Job)]
            left = _ended_with_containers(session, ids)
        for job_id in left:
            self._wake(job_id)
        while left and time.monotonic() < deadline:
            time.sleep(_REMOVAL_POLL_S)
            with self._database.read() as session:
                left = _ended_with_containers(session, left)


@contextmanager
def _noted(outcome: dict[str, Deleted | Problem], job: Job) -> Iterator[None]:
    """What goes wrong with one job is its own outcome, and no matter of the others."""
    try:
        yield
    except Problem as problem:
        outcome[job.id] = problem
    except OSError as error:
        outcome[job.id] = of_storage(error) or Problem(
            "files_left",
            f"Job {job.name} stays: its files can't be removed ({error.strerror}: {error.filename}).",
            f"See to that, then try again: `navarch rm {job.name}`.",
        )


def _size_below(run_dir: Path, path: str) -> int:
    with open_below(run_dir, path) as opened:
        return size_of(opened, run_dir)


def _left(job: Job, folder: Path, said: str) -> Problem:
    owner = f"{os.geteuid()}:{os.getegid()}"
    return Problem(
        "files_left",
        f"Job {job.name} stays: its containers left files of another account in {folder}, which could not be taken "
        f"over ({said}).",
        f"Type `sudo chown -hR {owner} {shlex.quote(str(folder))}`, then `navarch rm {job.name}` again.",
    )


def _deleted(one: _Leaving) -> Deleted:
    kept = [row for row, place in one.artifacts if place is not None]
    return Deleted(one.job, kept, [row for row, place in one.artifacts if place is None])


def _refusals(session: Session, ids: Sequence[str]) -> tuple[list[Job], dict[str, Problem]]:
    """Those that may be deleted; why the others may not."""
    jobs = list(session.exec(select(Job).where(col(Job.id).in_(ids))))
    present, users = _with_containers(session, ids), users_of(session, ids)
    refused: dict[str, Problem] = {}
    for job in jobs:
        if JobState(job.state) not in TERMINAL:
            detail = f"Job {job.name} is {job.state} and can't be deleted."
            refused[job.id] = Problem("job_active", detail, f"Stop it first: `navarch stop {job.name}`.")
        elif job.id in present:
            detail = f"The containers of {job.name} are still to be removed."
            hint = "See that its hosts answer (`navarch host ls`), then try again."
            refused[job.id] = Problem("job_active", detail, hint)
        elif (user := users.get(job.id)) is not None:
            detail = f"What job {job.name} made is used by job {user}."
            refused[job.id] = Problem("artifact_in_use", detail, f"Wait until {user} has ended, or stop it.")
    return [job for job in jobs if job.id not in refused], refused


def _artifacts_of(session: Session, ids: Sequence[str]) -> dict[str, list[Artifact]]:
    found: dict[str, list[Artifact]] = defaultdict(list)
    query = select(Artifact).where(col(Artifact.job_id).in_(ids)).order_by(col(Artifact.created_at))
    for row in session.exec(query):
        found[row.job_id or ""].append(row)
    return found


def _move_artifacts(session: Session, one: _Leaving, rows: Sequence[Artifact], actor: Principal) -> None:
    """From here on nobody uses the run folder: kept artifacts are where they will be, the others are gone."""
    present = {row.id: row for row in rows}
    for row, kept in one.artifacts:
        name = f"{row.name}@{row.version}"
        now = present.get(row.id)
        if now is None:
            continue
        if kept is None:
            session.delete(now)
            said = f"{name} was deleted with job {one.job.name}"
            record(session, "artifact.deleted", f"artifact/{row.name}", said, actor=actor.id)
        elif row.run_path is not None:
            now.path = row.path = str(kept.path)
            now.run_path = row.run_path = None
            now.size = row.size = kept.size
            said = f"{name} stays after job {one.job.name}: it is {row.path} now"
            record(session, "artifact.kept", f"artifact/{row.name}", said, actor=actor.id)


def _forget(session: Session, jobs: Sequence[Job], actor: Principal) -> None:
    """The rows of jobs whose files are gone."""
    ids = [job.id for job in jobs]
    for job in jobs:
        record_job(session, job, "job.deleted", f"{job.name} was deleted", actor=actor.id)
    own = sql_update(Artifact).where(col(Artifact.job_id).in_(ids)).values(job_id=None)
    session.exec(own.execution_options(synchronize_session=False))
    for table in (JobInput, Replica, Attempt, Idempotency):
        session.exec(sql_delete(table).where(col(table.job_id).in_(ids)))
    session.exec(sql_delete(Job).where(col(Job.id).in_(ids)).execution_options(synchronize_session=False))


def _remote_hosts(session: Session, job_id: str) -> list[str]:
    """The remote hosts on which a job has a run folder, as far as they are hosts still."""
    query = select(Host).join(Replica, col(Replica.host_id) == col(Host.id)).where(Replica.job_id == job_id).distinct()
    return [host.id for host in session.exec(query) if is_remote(host) and host.lifecycle != "removed"]


def _with_containers(session: Session, ids: Sequence[str]) -> set[str]:
    """Those of whose containers some are still there."""
    left = select(Replica.job_id).where(
        col(Replica.job_id).in_(ids), col(Replica.removed_at).is_(None), col(Replica.container_id).is_not(None)
    )
    return set(session.exec(left))


def _ended_with_containers(session: Session, ids: Sequence[str]) -> list[str]:
    ended = select(Job.id).where(col(Job.id).in_(ids), col(Job.state).in_([state.value for state in TERMINAL]))
    return list(_with_containers(session, list(session.exec(ended))))
