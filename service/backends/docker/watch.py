"""Watches hosts' engines: their facts, whether they answer, their events. One thread a host, which nothing ends."""

import threading
import time

import structlog
from sqlmodel import select

from service.backends.base import Listener
from service.backends.docker.history import Hosts
from service.backends.docker.leftovers import Leftovers
from service.backends.engines import EngineEvent, Engines, Stream
from service.backends.errors import EngineError
from service.store.database import Database
from service.store.tables import Host

log = structlog.get_logger("watch")
_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)
_STEADY_S = 5.0
"""A connection that lasted so long was a good one: the next one is tried at once again."""
_PULSE_S = 5.0
"""How often an engine is asked whether it is well, while nothing happens in it."""
_WAKING = frozenset({"die", "oom", "destroy", "kill", "stop"})


class Watches:
    """The watches of all hosts."""

    def __init__(
        self,
        engines: Engines,
        database: Database,
        hosts: Hosts,
        leftovers: Leftovers,
        deployment: str,
        listener: Listener,
    ) -> None:
        self._engines, self._database, self._hosts = engines, database, hosts
        self._leftovers, self._deployment, self._listener = leftovers, deployment, listener
        self._watches: dict[str, Watch] = {}
        self._lock = threading.Lock()

    def look_for_hosts(self) -> None:
        """Watches hosts that aren't watched yet, and those no more that were removed."""
        with self._database.read() as session:
            ids = list(session.exec(select(Host.id).where(Host.lifecycle != "removed")))
        with self._lock:
            for host_id in self._watches.keys() - set(ids):
                self._watches.pop(host_id).stop()
            for host_id in ids:
                if host_id not in self._watches:
                    self._watches[host_id] = Watch(self, host_id)
                    self._watches[host_id].start()

    def connected(self) -> list[str]:
        """The hosts that answer now."""
        with self._lock:
            return [host_id for host_id, watch in self._watches.items() if watch.connected]

    def stop(self) -> None:
        with self._lock:
            for watch in self._watches.values():
                watch.stop()

    def look(self, host_id: str, lost_at: float | None) -> None:
        """What a fresh connection is for: the engine's facts, what is left over, the GPUs, who has containers there."""
        engine = self._engines.engine(host_id)
        self._hosts.note_facts(host_id, engine.facts(), back_at=time.time() if lost_at is not None else None)
        self._leftovers.sweep(host_id)
        self._hosts.note_gpus(host_id, engine, self._deployment)
        self._hosts.note_reachable(host_id, True)
        self._listener.look(host_id)
        self._listener.room()

    def ping(self, host_id: str) -> None:
        self._engines.engine(host_id).ping()

    def events(self, host_id: str) -> Stream[EngineEvent]:
        return self._engines.engine(host_id).events(self._deployment)

    def heard(self, event: EngineEvent) -> None:
        if event.action in _WAKING and event.owner:
            self._listener.wake(event.owner)

    def lost(self, host_id: str, says: str) -> None:
        self._hosts.note_reachable(host_id, False, says)
        self._listener.look(host_id)


class Watch:
    """A thread for one host: connects, looks, follows events; again and again, whatever goes wrong."""

    def __init__(self, watches: Watches, host_id: str) -> None:
        self._watches, self._host_id = watches, host_id
        self._ending = threading.Event()
        self._stream: Stream[EngineEvent] | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch-{host_id}", daemon=True)
        self.connected = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns at once; the thread ends with its connection."""
        self._ending.set()
        if self._stream is not None:
            self._stream.close()

    def _run(self) -> None:
        failures, lost_at = 0, None
        while not self._ending.is_set():
            begun = time.monotonic()
            says = self._connection(lost_at)
            if self._ending.is_set():
                return
            if self.connected or lost_at is None:
                lost_at = time.time()
            self.connected = False
            if time.monotonic() - begun > _STEADY_S:
                failures = 0
            try:
                self._watches.lost(self._host_id, says)
            except Exception:  # a full disk, say: it is written down the next time
                log.exception("could not write down that a host is lost", host=self._host_id)
            self._ending.wait(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
            failures += 1

    def _connection(self, lost_at: float | None) -> str:
        """Stays as long as the engine answers; why it doesn't any more."""
        over, silent = threading.Event(), list[str]()
        try:
            self._stream = self._watches.events(self._host_id)
            self._watches.look(self._host_id, lost_at)
            self.connected = True
            pulse = threading.Thread(
                target=self._feel, args=(self._stream, over, silent), name=f"pulse-{self._host_id}", daemon=True
            )
            pulse.start()
            for event in self._stream:
                self._watches.heard(event)
            return silent[0] if silent else "the connection to the engine was closed"
        except EngineError as error:
            return silent[0] if silent else str(error)
        except Exception as error:
            log.exception("watch failed", host=self._host_id)
            return f"{type(error).__name__}: {error}"
        finally:
            over.set()

    def _feel(self, stream: Stream[EngineEvent], over: threading.Event, silent: list[str]) -> None:
        """Ends the stream of an engine that is there and says nothing: the stream alone would never tell."""
        while not over.wait(_PULSE_S):
            try:
                self._watches.ping(self._host_id)
            except EngineError as error:
                silent.append(str(error))
                stream.close()
                return
            except Exception:
                log.exception("pulse failed", host=self._host_id)
