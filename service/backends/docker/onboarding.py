"""Whether a host can be used, before it becomes one: SSH, login, the engine and its version, whose it is already."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

import docker
import docker.errors

from jobs.launch import LABEL_DEPLOYMENT
from service.backends.docker.refusals import engine_errors
from service.backends.docker.wires import CONNECT_S, HostKeyChanged, LoginRefused, Route, Wire, Wires
from service.backends.errors import EngineError, Unreachable
from service.contract.errors import Problem
from service.contract.ssh_keys import PublicKey

OLDEST_API = (1, 41)
"""Docker 20.10: nothing older knows the requests for GPUs by their UUID that jobs make."""
_LOOK = 'if [ ! -e "{0}" ]; then echo missing; elif [ ! -w "{0}" ]; then echo forbidden; id -un; else echo there; fi'


@dataclass(frozen=True)
class Met:
    """A host that can be used."""

    host_key: str
    engine_id: str
    version: str
    cpus: int
    memory_bytes: int
    foreign: tuple[str, ...]
    """Containers of other control planes that are there."""


def meet(wires: Wires, route: Route, own_line: str, expected: str | None = None) -> Met:
    """Connects for a moment. Raises Problem with what to do, where."""
    route = replace(route, host_key=shown_key(wires, route, own_line, expected))
    name = f"new-{uuid.uuid4().hex[:12]}"
    wire = wires.open(name, route)
    try:
        wire.check()
        return _look(wire)
    except Unreachable as error:
        raise unreachable(route, error) from error
    finally:
        wires.drop(name)


def shown_key(wires: Wires, route: Route, own_line: str, expected: str | None) -> str:
    """The line of the host key that a host shows to whoever may log in. Raises Problem."""
    try:
        line = wires.try_out(route)
    except HostKeyChanged as error:
        raise Problem("host_key_changed", f"{error}.") from error
    except LoginRefused as error:
        raise Problem("host_login_refused", f"{error}.", _how_to_let_in(route, own_line)) from error
    except EngineError as error:
        raise unreachable(route, error) from error
    found = PublicKey.parse(line)
    if expected is not None and expected != found.fingerprint:
        raise Problem(
            "host_key_changed",
            f"{route.address}:{route.port} shows the host key {found.fingerprint}, not {expected}.",
            "Compare with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` says on the host itself.",
        )
    return line


def unreachable(route: Route, error: Exception) -> Problem:
    return Problem(
        "host_unreachable",
        f"{error}.",
        f"See that sshd runs there and that port {route.port} can be reached from the control plane's machine: "
        f"`ssh -p {route.port} {route.user}@{route.address}`.",
    )


def _how_to_let_in(route: Route, own_line: str) -> str:
    home = "/root" if route.user == "root" else f"~{route.user}"
    return f"Append this line to {home}/.ssh/authorized_keys on {route.address}, then try again: {own_line.strip()}"


def _look(wire: Wire) -> Met:
    try:
        with engine_errors("its Docker Engine doesn't answer"):
            client = docker.APIClient(base_url=wire.url, version=".".join(map(str, OLDEST_API)), timeout=int(CONNECT_S))
            try:
                found = client.version(api_version=False)
                _new_enough(wire.route, str(found.get("Version")), str(found.get("ApiVersion")))
                info = client.info()
                others = client.containers(all=True, filters={"label": LABEL_DEPLOYMENT})
            finally:
                client.close()
    except EngineError as error:
        raise _no_engine(wire, error) from error
    return Met(
        host_key=wire.route.host_key or "",
        engine_id=str(info.get("ID") or ""),
        version=str(info.get("ServerVersion")),
        cpus=int(info.get("NCPU") or 1),
        memory_bytes=int(info.get("MemTotal") or 0),
        foreign=tuple(f"{one['Labels'][LABEL_DEPLOYMENT]} {one['Names'][0].lstrip('/')}" for one in others),
    )


def _new_enough(route: Route, version: str, api: str) -> None:
    if tuple(int(part) for part in api.split(".")) < OLDEST_API:
        raise Problem(
            "host_unsuitable",
            f"Docker {version} on {route.address} is too old (API {api}): Navarch needs 20.10 or newer.",
            "Install a newer one there (`apt-get install docker.io` on Debian 12), then try again.",
        )


def _no_engine(wire: Wire, error: EngineError) -> Problem:
    """Why the socket doesn't answer, as the account that logs in sees it."""
    route = wire.route
    try:
        said = wire.run(_LOOK.format(route.socket)).output.decode("utf-8", "replace").split()
    except EngineError:
        said = []
    match said:
        case ["missing", *_]:
            detail = f"There is no {route.socket} on {route.address}: Docker isn't installed there, or doesn't run."
            hint = "Install it (`apt-get install docker.io`) or start it (`systemctl start docker`), then try again."
        case ["forbidden", *_]:
            detail = f"{route.user} may not use Docker on {route.address}: {route.socket} can't be written to."
            hint = f"On that host: `usermod -aG docker {route.user}`, then try again."
        case _:
            detail = f"Docker on {route.address} can't be used: {error}."
            hint = (
                "See that it runs there (`docker info`), and that its sshd lets sockets be forwarded "
                "(AllowStreamLocalForwarding)."
            )
    return Problem("host_unsuitable", detail, hint)
