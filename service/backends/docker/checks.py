"""Looks closely at a host: when it was added or is back, every hour, after a failure there, and when asked to."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog
from sqlmodel import Session, col, select

from jobs.launch import LABEL_DEPLOYMENT
from service.backends.docker.health import Expected, accepted, judge
from service.backends.engines import Engines
from service.backends.errors import EngineError
from service.contract.schemas import Finding
from service.store.database import Database
from service.store.events import record
from service.store.tables import GpuLease, Host, PortLease

log = structlog.get_logger("checks")
EVERY_S = 3600.0
_OTHERS = 32
"""Hosts whose reachability is tried in one check."""


@dataclass(frozen=True)
class _Way:
    """From one host to another."""

    source: Host
    target: Host
    port: int


class Checks:
    def __init__(self, engines: Engines, database: Database, deployment: str, clock: Callable[[], float]) -> None:
        self._engines, self._database = engines, database
        self._deployment, self._clock = deployment, clock

    def due(self) -> list[str]:
        """The reachable hosts that were not looked at for an hour, or not since something failed there."""
        before = self._clock() - EVERY_S
        query = select(Host).where(Host.lifecycle != "removed", col(Host.reachable).is_(True))
        with self._database.read() as session:
            return [host.id for host in session.exec(query) if (host.checked_at or 0.0) < before]

    def check(self, host_id: str, accept: bool = False) -> bool:
        """Looks, and writes down what was found; whether that changes what may be placed. Raises EngineError.

        `accept`: its GPUs and driver are as they should be.
        """
        with self._database.read() as session:
            host = session.get(Host, host_id)
            leased = set(session.exec(select(GpuLease.gpu).where(GpuLease.host_id == host_id)))
            ways = _ways(session, host) if host is not None else []
        if host is None:
            return False
        seen = self._engines.engine(host_id).examine(self._deployment)
        expected = accepted(seen) if accept else Expected.of(host.facts)
        found, expected = judge(host.name, seen, expected, leased)
        found += self._network(ways) + self._strangers(host_id)
        return self._write(host_id, found, expected)

    def _strangers(self, host_id: str) -> list[Finding]:
        """Containers of other control planes: their ports and GPUs are taken, though nobody here knows."""
        others = self._engines.engine(host_id).strangers(self._deployment)
        if not others:
            return []
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        detail = (
            f"Another control plane has containers here ({LABEL_DEPLOYMENT}={others[0].split()[0]}): {shown}. They are "
            "left alone. One of the two should use this host, or their GPUs and ports get into each other's way."
        )
        return [Finding(name="other control plane", level="warning", detail=detail)]

    def _network(self, ways: list[_Way]) -> list[Finding]:
        with ThreadPoolExecutor(max_workers=8) as pool:
            return [finding for finding in pool.map(self._way, ways) if finding is not None]

    def _way(self, way: _Way) -> Finding | None:
        target = way.target.cluster_address or way.target.address
        try:
            why = self._engines.engine(way.source.id).reaches(target, way.port)
        except EngineError as error:  # it says nothing of the network
            log.info("way not tried", source=way.source.name, target=way.target.name, error=str(error))
            return None
        if why is None:
            return None
        detail = (
            f"{way.source.name} can't reach {way.target.name} at {target}:{way.port}: {why}. Jobs of several nodes "
            f"would hang there. Open the ports {way.target.first_port}-{way.target.last_port} in the firewall of "
            f"{way.target.name}, or give its right address: `navarch host set {way.target.name} --cluster-address IP`."
        )
        return Finding(name="network", level="error", detail=detail)

    def _write(self, host_id: str, found: list[Finding], expected: Expected) -> bool:
        with self._database.write() as session:
            host = session.get(Host, host_id)
            if host is None:
                return False
            before, now = host.findings, [finding.model_dump() for finding in found]
            host.checked_at, host.findings = self._clock(), now
            if expected != Expected.of(host.facts):
                host.facts = {**host.facts, "expected": expected.stored()}
            known = {(finding["name"], finding["gpu"]) for finding in before}
            for finding in found:
                if finding.level != "note" and (finding.name, finding.gpu) not in known:
                    text = f"{host.name}: {finding.detail}"
                    record(session, "host.finding", f"host/{host.name}", text, level=finding.level)
            still = {(finding.name, finding.gpu) for finding in found}
            for name in sorted(
                {str(finding["name"]) for finding in before if (finding["name"], finding["gpu"]) not in still}
            ):
                record(session, "host.mended", f"host/{host.name}", f"{host.name}: {name} is well again")
        return before != now


def _ways(session: Session, host: Host) -> list[_Way]:
    """To and from the other hosts, each at a port of its pool that nobody has."""
    if _address(host) is None:
        return []
    query = select(Host).where(Host.lifecycle != "removed", col(Host.reachable).is_(True), Host.id != host.id)
    others = [other for other in session.exec(query) if _address(other) is not None]
    if len(others) > _OTHERS:
        others = random.sample(others, _OTHERS)
    taken = {(host_id, port) for host_id, port in session.exec(select(PortLease.host_id, PortLease.port))}

    def free(one: Host) -> int:
        pool = range(one.first_port, one.last_port + 1)
        return next((port for port in reversed(pool) if (one.id, port) not in taken), one.first_port)

    return [way for other in others for way in (_Way(host, other, free(other)), _Way(other, host, free(host)))]


def _address(host: Host) -> str | None:
    """Where other hosts find it; None for one that only its own machine finds."""
    address = host.cluster_address or host.address
    return None if address.startswith("127.") or address in ("localhost", "::1") else address
