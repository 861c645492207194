"""The controller: wakes jobs that something happened to, and hands their steps to the lanes."""

import heapq
import threading
import time
from collections import defaultdict
from functools import partial

import structlog
from sqlmodel import col, select

from jobs.states import PLACED, JobState
from jobs.workspace_states import AT_WORK, WorkspaceState
from service.control.context import Context
from service.control.lanes import Lanes
from service.control.live_keys import LiveKeys
from service.control.step import step
from service.control.steps.schedule import next_retry, schedule
from service.control.workspaces import step_workspace
from service.store.ids import WORKSPACE
from service.store.tables import Attempt, Job, Replica, Workspace

log = structlog.get_logger("controller")
_SCHEDULE, _SWEEP, _KEYS = "schedule", "sweep", "keys"
_WHOLE = (_SCHEDULE, _SWEEP, _KEYS)
"""What is no job or workspace."""
_LANES = {JobState.PROVISIONING: "start", JobState.RUNNING: "watch", JobState.STOPPING: "stop"}
_TIDY = "tidy"
_WORKSPACE_LANES = {
    WorkspaceState.STARTING: "start",
    WorkspaceState.RUNNING: "watch",
    WorkspaceState.STOPPING: "stop",
    WorkspaceState.REMOVING: "stop",
}
_PASS_GAP_S = 0.05
"""Submissions that pour in share scheduling passes."""
_BUSY_SHARE = 10
"""A scheduling pass that took t seconds is followed by at least that many times t without one."""
_AFTER_A_MISHAP_S = 5.0
_PATIENCE_S = 10.0
"""How long an end waits for steps under way. What they would have written is found out again at the next start."""


class Controller:
    """One dispatcher that sleeps until something is due, and lanes of workers for each kind of work and each host."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._condition = threading.Condition()
        self._due: list[tuple[float, str]] = []
        self._earliest: dict[str, float] = {}
        self._busy: set[str] = set()
        """One step of a job is under way at a time: this is what sees to it."""
        self._again: set[str] = set()
        self._stopping = False
        self._scheduled_until = 0.0
        self._lanes = Lanes(context.settings.workers, context.figures)
        self._dispatcher = threading.Thread(target=self._dispatch, name="dispatcher", daemon=True)
        self._keys = LiveKeys(context, self._lanes.submit)
        context.freed = self.room

    def start(self) -> None:
        """Picks up everything that isn't finished, and has the backends watch what they run."""
        self._dispatcher.start()
        for backend in self._context.backends.values():
            backend.start(self._context.deployment, self, self._lanes.submit)
        self.wake(_SWEEP)
        self.wake(_SCHEDULE)

    def stop(self) -> None:
        """Ends soon: what is slow breaks off; containers are left as they are."""
        self._context.ending.set()
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        for backend in self._context.backends.values():
            backend.stop()
        self._dispatcher.join(timeout=5)
        self._lanes.stop(_PATIENCE_S)

    @property
    def alive(self) -> bool:
        return self._dispatcher.is_alive()

    def room(self) -> None:
        """Something waits in the queue, or there may be room for it."""
        self.wake(_SCHEDULE)

    def look_at_hosts(self) -> None:
        """There is another host, or one less, or one may be used again."""
        self.wake(_SWEEP)

    def keys_changed(self) -> None:
        """Containers that run have to authorise others from now on."""
        self.wake(_KEYS)

    def look(self, host_id: str) -> None:
        """Wakes all jobs and workspaces that have containers on a host."""
        with self._context.database.read() as session:
            query = (
                select(Job.id)
                .join(Replica, col(Replica.job_id) == col(Job.id))
                .where(Replica.host_id == host_id, col(Job.state).in_([state.value for state in PLACED]))
                .distinct()
            )
            ids = list(session.exec(query))
            ids += session.exec(select(Workspace.id).where(Workspace.host_id == host_id))
        for owner in ids:
            self.wake(owner)

    def wake(self, key: str, after_s: float = 0.0) -> None:
        """Has a job (or the queue, or the sweep) looked at; an earlier appointment stays."""
        moment = time.monotonic() + after_s
        with self._condition:
            if key in self._busy and after_s == 0.0:
                self._again.add(key)
                return
            if self._earliest.get(key, float("inf")) <= moment:
                return
            self._earliest[key] = moment
            heapq.heappush(self._due, (moment, key))
            self._condition.notify()

    def _dispatch(self) -> None:
        while True:
            keys = self._all_due()
            if keys is None:
                return
            try:
                places = self._places([key for key in keys if key not in _WHOLE])
            except Exception:  # the database doesn't answer: it may do so soon
                log.exception("could not look up where jobs are")
                self._context.figures.failures.labels("dispatch").inc()
                for key in keys:
                    self._done(key, _AFTER_A_MISHAP_S)
                continue
            for key in keys:
                kind, place = (key, "") if key in _WHOLE else places.get(key, (_TIDY, ""))
                self._lanes.submit(kind, place, partial(self._work, key))

    def _all_due(self) -> list[str] | None:
        """Sleeps until something is due, and marks it as busy; None at the end."""
        with self._condition:
            keys: list[str] = []
            while not keys:
                while not self._stopping and (not self._due or self._due[0][0] > time.monotonic()):
                    self._condition.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._stopping:
                    return None
                while self._due and self._due[0][0] <= time.monotonic():
                    moment, key = heapq.heappop(self._due)
                    if self._earliest.get(key) != moment:
                        continue  # an earlier appointment has been kept already
                    del self._earliest[key]
                    if key in self._busy:
                        self._again.add(key)
                    else:
                        self._busy.add(key)
                        keys.append(key)
            return keys

    def _places(self, job_ids: list[str]) -> dict[str, tuple[str, str]]:
        """For each job or workspace the kind of work that is next, and the hosts that it is done on."""
        if not job_ids:
            return {}
        with self._context.database.read() as session:
            states = dict(session.exec(select(Job.id, Job.state).where(col(Job.id).in_(job_ids))).all())
            hosts: dict[str, set[str]] = defaultdict(set)
            query = (
                select(Replica.job_id, Replica.host_id)
                .join(Attempt, col(Attempt.id) == col(Replica.attempt_id))
                .join(Job, (col(Job.id) == col(Replica.job_id)) & (col(Job.attempts) == col(Attempt.number)))
                .where(col(Replica.job_id).in_(job_ids))
            )
            for job_id, host_id in session.exec(query):
                hosts[job_id].add(host_id or "")
            ids = [key for key in job_ids if key.startswith(WORKSPACE)]
            workspaces = list(session.exec(select(Workspace).where(col(Workspace.id).in_(ids)))) if ids else []
        return {
            **{row.id: (_WORKSPACE_LANES.get(WorkspaceState(row.state), _TIDY), row.host_id) for row in workspaces},
            **{
                job_id: (_LANES.get(JobState(state), _TIDY), "+".join(sorted(hosts[job_id])))
                for job_id, state in states.items()
            },
        }

    def _work(self, key: str) -> None:
        after: float | None = _AFTER_A_MISHAP_S
        try:
            after = self._do(key)
        except Exception:
            log.exception("work failed", key=key)
            self._context.figures.failures.labels("work").inc()
        finally:
            self._done(key, after)

    def _done(self, key: str, after: float | None) -> None:
        with self._condition:
            self._busy.discard(key)
            again = key in self._again
            self._again.discard(key)
        if again:
            after = 0.0 if key != _SCHEDULE else max(0.0, self._scheduled_until - time.monotonic())
        if after is not None:
            self.wake(key, after)

    def _do(self, key: str) -> float | None:
        if key == _SCHEDULE:
            return self._schedule()
        if key == _KEYS:
            self._keys.look()
            return None
        if key == _SWEEP:
            self._sweep()
            return self._context.settings.sweep_s
        return (step_workspace if key.startswith(WORKSPACE) else step)(self._context, key).after_s

    def _schedule(self) -> float | None:
        begun = time.monotonic()
        if begun < self._scheduled_until:
            return self._scheduled_until - begun
        for job_id in schedule(self._context):
            self.wake(job_id)
        took = time.monotonic() - begun
        self._context.figures.passes.observe(took)
        self._scheduled_until = time.monotonic() + max(_PASS_GAP_S, _BUSY_SHARE * took)
        retry = next_retry(self._context)
        return max(0.05, retry - self._context.clock()) if retry is not None else None

    def _sweep(self) -> None:
        """Finds what a missed wake-up, or a restart, left behind."""
        with self._context.database.read() as session:
            placed = list(session.exec(select(Job.id).where(col(Job.state).in_([state.value for state in PLACED]))))
            unreaped = list(
                session.exec(
                    select(Replica.job_id)
                    .where(col(Replica.harvested_at).is_not(None), col(Replica.removed_at).is_(None))
                    .distinct()
                )
            )
            at_work = select(Workspace).where(col(Workspace.state).in_([state.value for state in AT_WORK]))
            workspaces = [row.id for row in session.exec(at_work)]
        for key in {*placed, *unreaped, *workspaces}:
            self.wake(key)
        self.wake(_SCHEDULE)
        self.wake(_KEYS)
        for backend in self._context.backends.values():
            backend.sweep()
