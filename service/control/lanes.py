"""Workers by kind of work and place: what is slow in one lane delays no other."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from service.control.figures import Figures

log = structlog.get_logger("lanes")
IDLE_S = 30.0
"""A worker that has had nothing to do for so long ends."""


@dataclass
class _Lane:
    kind: str
    news: threading.Condition
    workers: int = 0
    idle: int = 0
    waiting: deque[Callable[[], None]] = field(default_factory=deque)


class Lanes:
    """Any thread may hand work in; each lane has workers of its own, made as they are needed."""

    def __init__(self, workers: int, figures: Figures) -> None:
        self._most, self._figures = workers, figures
        self._lock = threading.Lock()
        self._done = threading.Condition(self._lock)
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._ending = False

    def submit(self, kind: str, place: str, work: Callable[[], None]) -> None:
        """Has `work` done in the lane of this kind and place; an exception in it is logged, and ends nothing."""
        with self._lock:
            if self._ending:
                return
            lane = self._lanes.get((kind, place))
            if lane is None:
                lane = self._lanes[kind, place] = _Lane(kind, threading.Condition(self._lock))
            lane.waiting.append(work)
            self._figures.waiting.labels(kind).inc()
            if lane.idle >= len(lane.waiting):
                lane.news.notify()
            elif lane.workers < self._most:
                lane.workers += 1
                name = f"{kind}-{place}-{lane.workers}"
                threading.Thread(target=self._run, args=((kind, place), lane), name=name, daemon=True).start()

    def stop(self, timeout_s: float) -> None:
        """What waits is dropped; what is under way is waited for, but not for ever."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self._ending = True
            for lane in self._lanes.values():
                self._figures.waiting.labels(lane.kind).dec(len(lane.waiting))
                lane.waiting.clear()
                lane.news.notify_all()
            while self._lanes and time.monotonic() < deadline:
                self._done.wait(max(0.0, deadline - time.monotonic()))

    def _run(self, key: tuple[str, str], lane: _Lane) -> None:
        while True:
            work = self._next(key, lane)
            if work is None:
                return
            begun = time.monotonic()
            with self._figures.busy.labels(lane.kind).track_inprogress():
                try:
                    work()
                except Exception:
                    log.exception("work failed", lane=key)
                    self._figures.failures.labels("lane").inc()
            self._figures.seconds.labels(lane.kind).observe(time.monotonic() - begun)

    def _next(self, key: tuple[str, str], lane: _Lane) -> Callable[[], None] | None:
        """The next piece of work; None when this worker isn't needed any more."""
        deadline = time.monotonic() + IDLE_S
        with self._lock:
            lane.idle += 1
            try:
                while not lane.waiting and not self._ending and time.monotonic() < deadline:
                    lane.news.wait(deadline - time.monotonic())
                if lane.waiting:
                    self._figures.waiting.labels(lane.kind).dec()
                    return lane.waiting.popleft()
            finally:
                lane.idle -= 1
            lane.workers -= 1
            if lane.workers == 0 and self._lanes.get(key) is lane:
                del self._lanes[key]
                self._done.notify_all()
            return None
