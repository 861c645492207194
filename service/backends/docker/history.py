"""What is known of a host over time: its engine's facts, its GPUs, whether it answers; and what that says of an end."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from jobs.states import Reason
from service.backends.engines import ContainerFacts, Engine, EngineFacts
from service.store.database import Database
from service.store.events import record
from service.store.tables import Host

_INTERRUPTED = frozenset({75, 128 + 1, 128 + 2, 128 + 9, 128 + 15, 255})
"""Exit codes of a container that an engine took down with itself."""
_RESTART_WINDOW_S = 120.0


@dataclass(frozen=True)
class HostHistory:
    """When the host's engine and the host itself were last started, as far as known."""

    name: str
    engine_started_at: float | None = None
    booted_at: float | None = None

    @classmethod
    def of(cls, host: Host) -> "HostHistory":
        return cls(host.name, host.facts.get("engine_started_at"), host.facts.get("booted_at"))


def may_be_interrupted(end: ContainerFacts) -> bool:
    """Whether the end looks like one that came from outside."""
    return end.exit_code in _INTERRUPTED and end.started_at is not None


def interruption(end: ContainerFacts, host: HostHistory) -> tuple[Reason, str] | None:
    """An end that came with the engine's or the machine's. Pure."""
    if not may_be_interrupted(end) or end.started_at is None:
        return None
    if host.booted_at is not None and end.started_at < host.booted_at:
        return Reason.HOST_REBOOTED, f"{host.name} was rebooted under the job"
    engine = host.engine_started_at
    if engine is not None and end.started_at < engine and (end.finished_at or engine) > engine - _RESTART_WINDOW_S:
        return Reason.ENGINE_RESTARTED, f"the Docker Engine of {host.name} was restarted under the job"
    return None


class Hosts:
    """Writes down what is seen of hosts; a write only where something changed."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def row(self, host_id: str) -> Host | None:
        with self._database.read() as session:
            return session.get(Host, host_id)

    def note_facts(self, host_id: str, facts: EngineFacts, *, back_at: float | None = None) -> Host | None:
        """Stores what the engine says of itself. `back_at`: when it answered again after having been lost."""
        known = self.row(host_id)
        if known is None or not _news(known, facts, back_at):
            return known
        with self._database.write() as session:
            host = session.get(Host, host_id)
            if host is None:
                return None
            host.facts = _with(host.facts, facts, back_at)
            if facts.boot_id is not None:
                if host.boot_id not in (None, facts.boot_id):
                    host.facts = {**host.facts, "booted_at": self._clock()}
                    record(session, "host.rebooted", f"host/{host.name}", f"{host.name} was rebooted")
                host.boot_id = facts.boot_id
        return host

    def note_gpus(self, host_id: str, engine: Engine, deployment: str) -> None:
        """Looks for the host's GPUs and stores them; a host without any is a host for work on the CPU."""
        found = [asdict(gpu) for gpu in engine.gpus(deployment)]
        known = self.row(host_id)
        if known is None or known.facts.get("gpus") == found:
            return
        with self._database.write() as session:
            host = session.get(Host, host_id)
            if host is not None:
                before = host.facts.get("gpus")
                host.facts = {**host.facts, "gpus": found}
                if found or before:
                    record(session, "host.gpus", f"host/{host.name}", f"{host.name} has {len(found)} GPUs")

    def note_reachable(self, host_id: str, reachable: bool, message: str | None = None) -> None:
        """Stores whether the engine answers, with an event when that changed."""
        now, known = self._clock(), self.row(host_id)
        if known is None or (not reachable and not known.reachable and known.message == message):
            return
        with self._database.write() as session:
            host = session.get(Host, host_id)
            if host is None:
                return
            if reachable:
                host.seen_at = now
            if host.reachable != reachable:
                kind = "host.reachable" if reachable else "host.unreachable"
                text = f"{host.name} answers" if reachable else f"{host.name} doesn't answer: {message}"
                record(session, kind, f"host/{host.name}", text)
                host.unreachable_since = None if reachable else now
                host.checked_at = None if reachable else host.checked_at  # a closer look is due
            host.reachable, host.message = reachable, message


def _with(known: dict[str, Any], facts: EngineFacts, back_at: float | None) -> dict[str, Any]:
    new = {**known, "cpus": facts.cpus, "memory_bytes": facts.memory_bytes, "engine_version": facts.version}
    started = facts.started_at or back_at or known.get("engine_started_at")
    if started is not None and abs(started - known.get("engine_started_at", 0.0)) > 1.0:
        new["engine_started_at"] = started
    return new


def _news(host: Host, facts: EngineFacts, back_at: float | None) -> bool:
    same_boot = facts.boot_id is None or host.boot_id == facts.boot_id
    return not same_boot or _with(host.facts, facts, back_at) != host.facts
