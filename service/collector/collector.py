"""Collects logs: one thread follows each running container; an ended one is read to its end before it is removed."""

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import structlog

from service.backends.base import Engines
from service.backends.errors import EngineError
from service.collector.events import PREFIX
from service.collector.hub import Hub
from service.collector.lift import Lifter
from service.collector.log_file import LogWriter, StoredLine, path_of, read_lines
from service.control.context import LogEnd
from service.settings import Settings
from service.store.database import Database
from service.store.tables import Replica

log = structlog.get_logger("collector")
_DRAIN_TIMEOUT_S = 20.0


class Follower:
    """Brings one replica's log from its engine into its file, and its events to where they belong."""

    def __init__(
        self, engines: Engines, database: Database, settings: Settings, hub: Hub, replica: Replica, attempt: int
    ) -> None:
        self._engines, self._database, self._hub = engines, database, hub
        self._quota = settings.log_quota_bytes
        self._job_dir: Path = settings.job_dir(replica.job_id)
        self._replica, self._attempt = replica, attempt
        self.path = path_of(self._job_dir / "logs", attempt, replica.node_rank)
        self.thread: threading.Thread | None = None

    def collect(self, *, wait: bool) -> LogEnd:
        """Reads from where the file ends to the end of the log. Raises EngineError."""
        replica = self._replica
        with self._database.read() as session:
            replica = session.get(Replica, replica.id) or replica
        writer = LogWriter(self.path, self._quota)
        lifter = Lifter(self._database, self._job_dir, replica, self._attempt, self._quota)
        try:
            for line in read_lines(self.path, lifter.lifted, 1 << 60):
                lifter.feed(line)
            engine = self._engines.engine(replica.host)
            name = replica.container_id or replica.container_name
            for record in engine.follow(name, writer.since, wait=wait):
                end = writer.append(record)
                if end is None:
                    continue
                if record.text.startswith(PREFIX):
                    lifter.feed(StoredLine(record.time, record.text, end))
                self._hub.notify(replica.job_id)
        finally:
            lifter.flush(writer.end)
            writer.close()
            self._hub.notify(replica.job_id)
        kind, message = lifter.error or (None, None)
        return LogEnd(_last_line(self.path), kind, message)


class Collector:
    """All followers of this control plane."""

    def __init__(
        self,
        engines: Engines,
        database: Database,
        settings: Settings,
        hub: Hub,
        ended: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._engines, self._database, self._settings, self._hub = engines, database, settings, hub
        self._ended = ended
        self._lock = threading.Lock()
        self._running: dict[int, Follower] = {}

    def follow(self, replica: Replica, attempt: int) -> None:
        """Sees to it that a thread follows this replica's log."""
        assert replica.id is not None
        with self._lock:
            if replica.id in self._running:
                return
            follower = self._follower(replica, attempt)
            follower.thread = threading.Thread(
                target=self._run, args=(follower, replica), name=f"log-{replica.container_name}", daemon=True
            )
            self._running[replica.id] = follower
        follower.thread.start()

    def drain(self, replica: Replica, attempt: int) -> LogEnd:
        """The log of an ended container is in its file when this returns. Raises EngineError."""
        with self._lock:
            follower = self._running.get(replica.id or 0)
        if follower is not None and follower.thread is not None:
            follower.thread.join(_DRAIN_TIMEOUT_S)
            if follower.thread.is_alive():
                raise EngineError(f"the log of {replica.container_name} does not end, although the container has")
        return self._follower(replica, attempt).collect(wait=False)

    def _follower(self, replica: Replica, attempt: int) -> Follower:
        return Follower(self._engines, self._database, self._settings, self._hub, replica, attempt)

    def _run(self, follower: Follower, replica: Replica) -> None:
        try:
            follower.collect(wait=True)
        except EngineError as error:
            log.info("log interrupted", container=replica.container_name, error=str(error))
        except Exception:
            log.exception("log collection failed", container=replica.container_name)
        finally:
            with self._lock:
                self._running.pop(replica.id or 0, None)
            self._ended(replica.job_id)


def _last_line(path: Path) -> str:
    """The last line that says something, for the reason of a failure."""
    from service.collector.log_file import tail_offset

    last: deque[str] = deque(maxlen=1)
    for line in read_lines(path, tail_offset(path, 50), 50):
        if line.text.strip() and not line.text.startswith((PREFIX, "navarch: ")):
            last.append(line.text.strip())
    return last[0][:1000] if last else ""
