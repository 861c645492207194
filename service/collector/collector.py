"""Collects logs: one thread follows each running container; an ended one is read to its end before it is removed."""

import threading
from collections.abc import Callable

from service.collector.figures import Figures
from service.collector.follower import Follower, LogSource
from service.collector.hub import Hub
from service.collector.log_end import LogEnd
from service.settings import Settings
from service.store.database import Database
from service.store.tables import Replica

_GLANCE_S = 0.3
"""Most logs end within that time, and then one step of the controller is enough."""


class Collector:
    """All followers of this control plane."""

    def __init__(
        self,
        source: LogSource,
        database: Database,
        settings: Settings,
        hub: Hub,
        ended: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._source, self._database, self._settings, self._hub = source, database, settings, hub
        self._ended = ended
        self.figures = Figures()
        self._lock = threading.Lock()
        self._running: dict[int, Follower] = {}
        self._stopped = False

    def follow(self, replica: Replica, attempt: int) -> None:
        """Sees to it that a thread follows this replica's log."""
        self._follower(replica, attempt)

    def drain(self, replica: Replica, attempt: int, patience_s: float) -> LogEnd | None:
        """The log of an ended container is in its file when this returns; None: not yet, `ended` will be called.

        What can't be read within `patience_s` is left out, all but its end. Raises EngineError.
        """
        follower = self._follower(replica, attempt)
        follower.finish(patience_s)
        if not follower.done.wait(_GLANCE_S):
            return None
        with self._lock:
            if self._running.get(replica.id or 0) is follower:
                del self._running[replica.id or 0]
        if follower.failure is not None:
            raise follower.failure
        return follower.result

    def stop(self) -> None:
        """Ends all threads; the next start goes on where they are."""
        with self._lock:
            self._stopped = True
            followers = list(self._running.values())
            self._running.clear()
        for follower in followers:
            follower.stop()
        for follower in followers:
            follower.done.wait(2.0)

    def _follower(self, replica: Replica, attempt: int) -> Follower:
        assert replica.id is not None
        with self._lock:
            known = self._running.get(replica.id)
            gone = known is not None and known.done.is_set() and known.result is None
            if known is not None and not gone:
                return known
            follower = Follower(
                self._source, self._database, self._settings, self._hub, replica, attempt, self.figures, self._ended
            )
            self._running[replica.id] = follower
        follower.start()
        return follower
