"""The engines of all hosts, by the id of the host's row."""

import threading
from functools import partial
from pathlib import Path

from sqlmodel import select

from service.access.mounts import MountRules
from service.access.registries import Registries
from service.access.secrets import SecretBox
from service.backends.docker.engine import DockerHost
from service.backends.docker.mounting import Mounting
from service.backends.docker.remote_files import RemoteFiles
from service.backends.docker.remote_machine import RemoteMachine
from service.backends.docker.remote_mounting import RemoteMounting
from service.backends.docker.wires import Route, Wires
from service.backends.engines import Engine
from service.backends.errors import EngineError
from service.contract.errors import Problem
from service.settings import Settings
from service.store.database import Database
from service.store.events import record
from service.store.places import shared_folders
from service.store.tables import Host, Meta
from service.workspaces.own_key import OwnKey

LOCAL = "local"


class DockerHosts:
    """One connected engine for each host; made when it is first asked for."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._own_key = OwnKey(settings.data_dir)
        self._secrets = SecretBox(settings.data_dir)
        self._registries = Registries(database, self._secrets)
        self.wires = Wires(settings.data_dir / "wires")
        self._lock = threading.Lock()
        self._engines: dict[str, Engine] = {}

    def files(self, host_id: str) -> RemoteFiles:
        """What jobs left on a remote host. Raises Problem `files_elsewhere` when there is no such host."""
        with self._database.read() as session:
            host, deployment = session.get(Host, host_id), session.get(Meta, "deployment")
        try:
            engine = self.engine(host_id)
        except EngineError as error:
            raise Problem("files_elsewhere", f"{error}.") from error
        assert isinstance(engine, DockerHost) and host is not None and deployment is not None
        return RemoteFiles(engine, host.name, deployment.value)

    def engine(self, host_id: str) -> Engine:
        """Raises EngineError when there is no such host."""
        with self._lock:
            found = self._engines.get(host_id)
            if found is None:
                found = self._engines[host_id] = self._connect(host_id)
            return found

    def forget(self, host_id: str) -> None:
        """Ends the connection to a host: it was removed, or is reached in another way from now on."""
        with self._lock:
            engine = self._engines.pop(host_id, None)
        self.wires.drop(host_id)
        if engine is not None:
            engine.close()

    def close(self) -> None:
        with self._lock:
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
        self.wires.close()

    def own_key(self) -> str:
        """The private key of the control plane itself."""
        return self._own_key.text

    def key_of(self, host: Host) -> str:
        """The private key that logs in on a host: the control plane's own, where it was given no other."""
        return self._secrets.open(host.private_key).get("key") or self._own_key.text

    def _connect(self, host_id: str) -> Engine:
        with self._database.read() as session:
            host = session.get(Host, host_id)
        if host is None or host.lifecycle == "removed":
            raise EngineError(f"there is no host {host_id}")
        rules, logins = MountRules.of(self._settings), self._registries.tell
        if host.url.startswith("ssh:"):
            wire = self.wires.open(host.id, Route.parse(host.url, self.key_of(host), host.host_key))
            mounting = RemoteMounting(host.name, partial(self._shared, host.id))
            return DockerHost(wire.url, mounting, remote=RemoteMachine(wire), logins=logins)
        return DockerHost(host.url, Mounting(rules), self._settings.bind_address, logins=logins)

    def _shared(self, host_id: str) -> list[Path]:
        """What jobs may mount on a remote host: what is shared, as far as it lies in a mount root here."""
        with self._database.read() as session:
            host = session.get(Host, host_id)
        if host is None or host.shared_root is None:
            return []
        return shared_folders(Path(host.shared_root), self._settings.mount_roots)


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
