"""Hosts are added, changed, drained and removed: what an admin may do with the machines that jobs run on."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable

import asyncssh
from sqlmodel import Session, col, select

from service.access.principals import Principal, check_admin
from service.access.secrets import SecretBox
from service.backends.docker.hosts import LOCAL, DockerHosts
from service.backends.docker.onboarding import Met, meet, shown_key
from service.backends.docker.wires import Route
from service.backends.errors import EngineError
from service.contract.errors import Problem
from service.contract.hosts import HostChange, HostRequest, HostSettings
from service.contract.ssh_keys import PublicKey
from service.settings import Settings
from service.store.database import Database
from service.store.events import record
from service.store.tables import Artifact, Holder, Host, PortLease, Replica, Workspace

_LISTED = 5


class Hosts:
    """The hosts of a deployment. Every change is an event; only admins make any."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        engines: DockerHosts,
        own_line: Callable[[], str],
        changed: Callable[[], None],
        look: Callable[[str, bool], None],
    ) -> None:
        """`own_line`: the control plane's own public key. `changed`: told when there is another host, or one less.

        `look`: looks closely at a host, and writes down what it finds.
        """
        self._database, self._settings, self._engines = database, settings, engines
        self._own_line, self._changed, self._look = own_line, changed, look
        self._secrets = SecretBox(settings.data_dir)

    def add(self, asked: HostRequest, actor: Principal) -> Host:
        """Raises Problem with what to do about a host that can't be used."""
        check_admin(actor, "change hosts")
        self._is_free(asked)
        key = _usable(asked.key) if asked.key is not None else None
        try:
            route = Route.parse(asked.url, key or self._engines.own_key())
        except ValueError as error:
            raise Problem("invalid_request", f"{error}.", "Such as ssh://root@10.0.0.2.") from error
        met = meet(self._engines.wires, route, self._own_line(), asked.fingerprint)
        first, last = self._settings.port_range
        host = Host(
            id=uuid.uuid4().hex[:12],
            name=asked.name,
            url=asked.url,
            address=route.address,
            first_port=first,
            last_port=last,
            max_containers=max(8, 4 * met.cpus),
            host_key=met.host_key,
            private_key=self._secrets.seal({"key": key}) if key is not None else None,
            cluster_address=_numeric(route),
            facts={
                "cpus": met.cpus,
                "memory_bytes": met.memory_bytes,
                "engine_version": met.version,
                "engine_id": met.engine_id,
            },
            message=_about_others(met),
        )
        _apply(host, asked)
        with self._database.write() as session:
            self._is_new(session, asked.name, met)
            session.add(host)
            said = f"{asked.url} is the host {host.name}, its key is {_fingerprint(host)}"
            record(session, "host.added", f"host/{host.name}", said, actor=actor.id)
        self._changed()
        return host

    def change(self, ref: str, change: HostChange, actor: Principal) -> Host:
        """What was sent of it becomes so."""
        check_admin(actor, "change hosts")
        with self._database.read() as session:
            host = find_host(session, ref)
        line = self._new_key(host, change.fingerprint) if change.fingerprint is not None else None
        with self._database.write() as session:
            host = find_host(session, host.id)
            before = host.lifecycle
            _apply(host, change)
            if change.state is not None and change.state != before:
                host.lifecycle = change.state
                said = "gets nothing new" if change.state == "draining" else "is used again"
                record(session, f"host.{change.state}", f"host/{host.name}", f"{host.name} {said}", actor=actor.id)
            if line is not None:
                host.host_key = line
                said = f"the key {_fingerprint(host)} of {host.name} is pinned"
                record(session, "host.trusted", f"host/{host.name}", said, actor=actor.id)
            others = sorted(change.model_fields_set - {"state", "fingerprint"})
            if others:
                said = f"{host.name}: {', '.join(others)} changed"
                record(session, "host.changed", f"host/{host.name}", said, actor=actor.id)
        if line is not None:
            self._engines.forget(host.id)
        self._changed()
        return host

    def check(self, ref: str, accept: bool, actor: Principal) -> Host:
        """Looks closely at a host now. `accept`: the GPUs and the driver that it has are the right ones."""
        check_admin(actor, "change hosts")
        with self._database.read() as session:
            host = find_host(session, ref)
        try:
            self._look(host.id, accept)
        except EngineError as error:
            hint = "See that it is on and that its sshd and Docker run."
            raise Problem("host_unreachable", f"{host.name} can't be looked at: {error}.", hint) from error
        return host

    def remove(self, ref: str, actor: Principal) -> Host:
        """Raises Problem `host_in_use` with what runs or lies there."""
        check_admin(actor, "change hosts")
        with self._database.write() as session:
            host = find_host(session, ref)
            if host.id == LOCAL:
                raise Problem(
                    "host_in_use",
                    "local is the control plane's own machine.",
                    "Drain it instead: `navarch host drain local`.",
                )
            users = _users(session, host.id)
            if users:
                more = f" and {len(users) - _LISTED} more" if len(users) > _LISTED else ""
                raise Problem(
                    "host_in_use",
                    f"{host.name} can't be removed, it has {', '.join(users[:_LISTED])}{more}.",
                    f"`navarch host drain {host.name}` lets it run empty; stop and remove what is to go.",
                )
            name = host.name
            host.lifecycle, host.reachable, host.private_key = "removed", False, None
            host.name = f"{name}#{host.id}"  # the name is free again; rows of the past still refer to the host
            record(session, "host.removed", f"host/{name}", f"{name} is no host any more", actor=actor.id)
        self._engines.forget(host.id)
        self._changed()
        return host

    def _new_key(self, host: Host, fingerprint: str) -> str:
        if host.host_key is None:
            raise Problem("invalid_request", f"{host.name} isn't reached over SSH: it has no host key.")
        route = Route.parse(host.url, self._engines.key_of(host))
        return shown_key(self._engines.wires, route, self._own_line(), fingerprint)

    def _is_free(self, asked: HostRequest) -> None:
        with self._database.read() as session:
            self._is_new(session, asked.name, None)

    @staticmethod
    def _is_new(session: Session, name: str, met: Met | None) -> None:
        for host in session.exec(select(Host).where(Host.lifecycle != "removed")):
            if host.name == name:
                hint = f"`navarch host rm {name}` removes it; or choose another name."
                raise Problem("host_exists", f"There is a host {name} already: {host.url}.", hint)
            if met is not None and met.engine_id and host.facts.get("engine_id") == met.engine_id:
                detail = f"This is the engine that is the host {host.name} already ({host.url})."
                raise Problem("host_exists", detail, "Its GPUs would be given away twice: use that host.")


def find_host(session: Session, ref: str) -> Host:
    """The host of this id or name. Raises Problem `host_not_found`."""
    found = session.get(Host, ref) or session.exec(select(Host).where(Host.name == ref)).first()
    if found is None or found.lifecycle == "removed":
        raise Problem("host_not_found", f"There is no host {ref!r}.", "`navarch host ls` lists them.")
    return found


def _apply(host: Host, given: HostSettings) -> None:
    sent = given.model_fields_set
    if "cluster_address" in sent:
        host.cluster_address = str(given.cluster_address) if given.cluster_address is not None else None
    if "interface" in sent:
        host.interface = given.interface
    if "labels" in sent:
        host.labels = dict(given.labels)
    if "shared_root" in sent:
        host.shared_root = given.shared_root
    if given.ports is not None:
        if given.ports[0] > given.ports[1]:
            raise Problem(
                "invalid_request", f"Ports {given.ports[0]} to {given.ports[1]} are none.", "The first comes first."
            )
        host.first_port, host.last_port = given.ports


def _users(session: Session, host_id: str) -> list[str]:
    """What keeps a host from being removed, in words."""
    holders = (
        select(Holder).join(PortLease, col(PortLease.holder_id) == col(Holder.id)).where(PortLease.host_id == host_id)
    )
    found = {f"{holder.kind} {holder.name}" for holder in session.exec(holders)}
    containers = select(Replica.container_name).where(Replica.host_id == host_id, col(Replica.removed_at).is_(None))
    found |= {f"container {name}" for name in session.exec(containers)}
    found |= {f"workspace {name}" for name in session.exec(select(Workspace.name).where(Workspace.host_id == host_id))}
    artifacts = session.exec(select(Artifact).where(Artifact.host_id == host_id))
    found |= {f"artifact {artifact.name}@{artifact.version}" for artifact in artifacts}
    return sorted(found)


def _numeric(route: Route) -> str | None:
    """An address that needs no name service: the other hosts may have another one, or none."""
    try:
        return str(socket.getaddrinfo(route.address, route.port, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def _usable(key: str) -> str:
    try:
        asyncssh.import_private_key(key)
    except asyncssh.KeyEncryptionError as error:
        hint = "Nobody types a passphrase in: give a key without one, or none and use the control plane's own."
        raise Problem("invalid_key", "The private key has a passphrase.", hint) from error
    except (asyncssh.KeyImportError, ValueError) as error:
        hint = "Give the private key's file, such as ~/.ssh/id_ed25519, not its .pub."
        raise Problem("invalid_key", f"This is no private SSH key: {error}.", hint) from error
    return key


def _fingerprint(host: Host) -> str:
    return PublicKey.parse(host.host_key or "").fingerprint


def _about_others(met: Met) -> str | None:
    return f"{len(met.foreign)} containers of other control planes are there" if met.foreign else None
