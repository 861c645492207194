"""The engines of all hosts, by the id of the host's row."""

import threading

from sqlmodel import select

from service.access.mounts import MountRules
from service.backends.docker.engine import DockerHost
from service.backends.engines import Engine
from service.backends.errors import EngineError
from service.settings import Settings
from service.store.database import Database
from service.store.events import record
from service.store.tables import Host

LOCAL = "local"


class DockerHosts:
    """One connected engine for each host; made when it is first asked for."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}

    def engine(self, host_id: str) -> Engine:
        """Raises EngineError when there is no such host."""
        with self._lock:
            found = self._engines.get(host_id)
            if found is None:
                found = self._engines[host_id] = self._connect(host_id)
            return found

    def close(self) -> None:
        with self._lock:
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()

    def _connect(self, host_id: str) -> Engine:
        with self._database.read() as session:
            host = session.get(Host, host_id)
        if host is None:
            raise EngineError(f"there is no host {host_id}")
        return DockerHost(host.url, MountRules.of(self._settings), self._settings.bind_address)


def ensure_local_host(database: Database, settings: Settings, cpus: int) -> None:
    """The row of this machine's own engine; follows the settings when they change."""
    first, last = settings.port_range
    with database.write() as session:
        host = session.exec(select(Host).where(Host.id == LOCAL)).first()
        if host is None:
            host = Host(id=LOCAL, name=LOCAL, url=settings.engine_url, address=settings.host_address)
            session.add(host)
            record(session, "host.added", f"host/{LOCAL}", f"{settings.engine_url} is the host {LOCAL}")
        host.url, host.address = settings.engine_url, settings.host_address
        host.first_port, host.last_port = first, last
        host.max_containers = settings.max_containers or max(8, 4 * cpus)
