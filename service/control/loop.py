"""The controller: wakes jobs that something happened to, hands their steps to workers, and isolates those that fail."""

import heapq
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog
from sqlmodel import col, select

from jobs.states import PLACED, JobState
from service.backends.errors import EngineError, Unreachable
from service.control import hosts as host_steps
from service.control.context import NOTHING, Context, Next, Vanished, Work
from service.control.steps.provision import provision
from service.control.steps.run import run
from service.control.steps.schedule import next_retry, schedule
from service.control.steps.stop import reap, stop
from service.store.tables import Host, Job, Replica

log = structlog.get_logger("controller")
_STEPS: dict[JobState, Callable[[Context, Work], Next]] = {
    JobState.PROVISIONING: provision,
    JobState.RUNNING: run,
    JobState.STOPPING: stop,
}
_SCHEDULE = "schedule"
_SWEEP = "sweep"
_PASS_GAP_S = 0.05
"""Submissions that pour in share scheduling passes."""
_BUSY_SHARE = 10
"""A scheduling pass that took t seconds is followed by at least that many times t without one."""


def step(context: Context, job_id: str) -> Next:
    """One step of one job. Everything that the controller does to a job goes through here."""
    work = context.load(job_id)
    if work is None:
        return NOTHING
    try:
        todo = _STEPS.get(JobState(work.job.state))
        if todo is None:
            return NOTHING if reap(context, work) else Next(5.0)
        result = todo(context, work)
        if work.job.failures:
            with context.writing(work) as (_, job):
                job.failures = 0
        return result
    except Vanished:
        return NOTHING
    except Unreachable as error:
        return _back_off(context, work, f"its host doesn't answer: {error}")
    except EngineError as error:
        return _back_off(context, work, f"the engine refused: {error}")
    except Exception as error:  # one bad row must never stop the others
        log.exception("step failed", job=job_id)
        return _back_off(context, work, f"Navarch failed at this job ({type(error).__name__}: {error})")


def _back_off(context: Context, work: Work, message: str) -> Next:
    """Shows the error at the job and tries again later: 1, 2, 4 … 60 s."""
    try:
        with context.writing(work) as (_, job):
            job.failures += 1
            delay = min(60.0, 2.0 ** min(job.failures - 1, 6))
            job.message = f"{message}; tries again in {delay:.0f} s"
    except Vanished:
        return NOTHING
    return Next(delay)


class Controller:
    """Threads around `step`: one dispatcher that sleeps until something is due, workers, and a watch for each host."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._condition = threading.Condition()
        self._due: list[tuple[float, str]] = []
        self._earliest: dict[str, float] = {}
        self._busy: set[str] = set()
        self._again: set[str] = set()
        self._stopping = False
        self._scheduled_until = 0.0
        self._pool = ThreadPoolExecutor(context.settings.workers, thread_name_prefix="step")
        self._dispatcher = threading.Thread(target=self._dispatch, name="dispatcher", daemon=True)
        self._watches: dict[str, host_steps.Watch] = {}

    def start(self) -> None:
        """Picks up everything that isn't finished, and starts to watch the hosts."""
        self._dispatcher.start()
        self.wake(_SWEEP)
        self.wake(_SCHEDULE)
        self.watch_hosts()

    def watch_hosts(self) -> None:
        """Watches hosts that aren't watched yet."""
        with self._context.database.read() as session:
            ids = list(session.exec(select(Host.id).where(Host.lifecycle != "removed")))
        for host_id in ids:
            if host_id not in self._watches:
                watch = host_steps.Watch(self._context, host_id, self.wake, lambda: self.wake(_SCHEDULE))
                self._watches[host_id] = watch
                watch.start()

    def stop(self) -> None:
        """Ends after the steps under way; containers are left as they are."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        for watch in self._watches.values():
            watch.stop()
        self._dispatcher.join(timeout=5)
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def alive(self) -> bool:
        return self._dispatcher.is_alive()

    def submitted(self) -> None:
        """There is something new in the queue."""
        self.wake(_SCHEDULE)

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
            with self._condition:
                while not self._stopping and (not self._due or self._due[0][0] > time.monotonic()):
                    wait = self._due[0][0] - time.monotonic() if self._due else None
                    self._condition.wait(wait)
                if self._stopping:
                    return
                moment, key = heapq.heappop(self._due)
                if self._earliest.get(key) != moment:
                    continue  # an earlier appointment has been kept already
                del self._earliest[key]
                if key in self._busy:
                    self._again.add(key)
                    continue
                self._busy.add(key)
            self._pool.submit(self._work, key)

    def _work(self, key: str) -> None:
        after: float | None = 1.0
        try:
            after = self._do(key)
        except Exception:
            log.exception("work failed", key=key)
        finally:
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
        if key == _SWEEP:
            self._sweep()
            return self._context.settings.sweep_s
        result = step(self._context, key)
        if result.after_s is None:
            self.wake(_SCHEDULE)  # it may have ended and given back what others wait for
        return result.after_s

    def _schedule(self) -> float | None:
        begun = time.monotonic()
        if begun < self._scheduled_until:
            return self._scheduled_until - begun
        for job_id in schedule(self._context):
            self.wake(job_id)
        took = time.monotonic() - begun
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
        for job_id in {*placed, *unreaped}:
            self.wake(job_id)
        self.wake(_SCHEDULE)
        self.watch_hosts()
