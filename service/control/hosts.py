"""Watches one host's engine: its facts, whether it answers, its events; and sweeps what was left over there."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from sqlmodel import col, select

from jobs.launch import LABEL_ATTEMPT, LABEL_JOB, LABEL_REPLICA
from jobs.states import PLACED
from service.backends.base import ContainerFacts, EngineFacts
from service.backends.errors import EngineError
from service.control.context import Context
from service.store.events import record
from service.store.tables import Attempt, Host, Job, Replica

ORPHAN_AGE_S = 600.0
"""A container with our label that no row knows is removed after that long."""
_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)
_WAKING = frozenset({"die", "oom", "destroy", "kill", "stop"})


def note_facts(context: Context, host_id: str, facts: EngineFacts, *, back_at: float | None) -> None:
    """Stores what the engine says of itself. `back_at`: when it answered again after having been lost."""
    with context.database.write() as session:
        host = session.get(Host, host_id)
        if host is None:
            return
        known: dict[str, Any] = dict(host.facts)
        known.update(cpus=facts.cpus, memory_bytes=facts.memory_bytes, engine_version=facts.version)
        started = facts.started_at or back_at or known.get("engine_started_at")
        if started is not None and abs(started - known.get("engine_started_at", 0.0)) > 1.0:
            known["engine_started_at"] = started
        if facts.boot_id is not None:
            if host.boot_id not in (None, facts.boot_id):
                known["booted_at"] = context.clock()
                record(session, "host.rebooted", f"host/{host.name}", f"{host.name} was rebooted")
            host.boot_id = facts.boot_id
        host.facts = known


def note_gpus(context: Context, host_id: str) -> None:
    """Looks for the host's GPUs and stores them; a host without any is a host for work on the CPU."""
    gpus = context.engines.engine(host_id).gpus(context.deployment)
    with context.database.write() as session:
        host = session.get(Host, host_id)
        if host is None:
            return
        found = [asdict(gpu) for gpu in gpus]
        before = host.facts.get("gpus")
        if before != found:
            host.facts = {**host.facts, "gpus": found}
            if found or before:
                record(session, "host.gpus", f"host/{host.name}", f"{host.name} has {len(found)} GPUs")


def note_reachable(context: Context, host_id: str, reachable: bool, message: str | None = None) -> None:
    """Stores whether the engine answers, with an event when that changed."""
    now = context.clock()
    with context.database.write() as session:
        host = session.get(Host, host_id)
        if host is None:
            return
        if reachable:
            host.seen_at = now
        if host.reachable == reachable and host.message == message:
            return
        if host.reachable != reachable:
            kind = "host.reachable" if reachable else "host.unreachable"
            text = f"{host.name} answers" if reachable else f"{host.name} doesn't answer: {message}"
            record(session, kind, f"host/{host.name}", text)
            host.unreachable_since = None if reachable else now
        host.reachable, host.message = reachable, message


def jobs_on(context: Context, host_id: str) -> list[str]:
    """Ids of the jobs that have an attempt on a host."""
    with context.database.read() as session:
        query = (
            select(Job.id)
            .join(Replica, col(Replica.job_id) == col(Job.id))
            .where(Replica.host_id == host_id, col(Job.state).in_([state.value for state in PLACED]))
            .distinct()
        )
        return list(session.exec(query))


def sweep(context: Context, host_id: str) -> list[str]:
    """Removes containers whose attempt has ended, and old ones that no row knows; returns what it removed.

    A container of a live attempt is never touched.
    """
    engine = context.engines.engine(host_id)
    removed = []
    for container in engine.containers(context.deployment):
        if not _is_left_over(context, container):
            continue
        engine.remove(container.id)
        removed.append(container.name)
        with context.database.write() as session:
            for replica in session.exec(
                select(Replica).where(Replica.container_id == container.id, col(Replica.removed_at).is_(None))
            ):
                replica.removed_at = context.clock()
            record(session, "container.swept", f"host/{host_id}", f"removed the left-over container {container.name}")
    return removed


def _is_left_over(context: Context, container: ContainerFacts) -> bool:
    labels = container.labels
    with context.database.read() as session:
        query = (
            select(Attempt.finished_at)
            .join(Replica, col(Replica.attempt_id) == col(Attempt.id))
            .where(
                Attempt.job_id == labels.get(LABEL_JOB, ""),
                Attempt.number == int(labels.get(LABEL_ATTEMPT, "0") or 0),
                Replica.node_rank == int(labels.get(LABEL_REPLICA, "0") or 0),
            )
        )
        rows = list(session.exec(query))
    if rows:
        return rows[0] is not None
    return context.clock() - (container.created_at or context.clock()) > ORPHAN_AGE_S


class Watch:
    """A thread for one host: connects, learns, sweeps, follows events; again and again."""

    def __init__(self, context: Context, host_id: str, wake: Callable[[str], None], freed: Callable[[], None]) -> None:
        self._context = context
        self._host_id = host_id
        self._wake = wake
        self._freed = freed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{host_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns at once; the thread ends with its connection."""
        self._stop.set()

    def _run(self) -> None:
        failures, lost_at = 0, None
        while not self._stop.is_set():
            try:
                self._connected(lost_at)
                failures, lost_at = 0, time.time()
                note_reachable(self._context, self._host_id, False, "the connection to the engine was closed")
            except EngineError as error:
                if self._stop.is_set():
                    return
                if lost_at is None and failures == 0:
                    lost_at = time.time()
                note_reachable(self._context, self._host_id, False, str(error))
            except Exception as error:  # the watch must outlive whatever goes wrong in it
                note_reachable(self._context, self._host_id, False, f"{type(error).__name__}: {error}")
            for job_id in jobs_on(self._context, self._host_id):
                self._wake(job_id)
            self._stop.wait(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
            failures += 1

    def _connected(self, lost_at: float | None) -> None:
        """Returns when the event stream ends."""
        context, host_id = self._context, self._host_id
        engine = context.engines.engine(host_id)
        stream = engine.events(context.deployment)
        next(stream)
        note_facts(context, host_id, engine.facts(), back_at=time.time() if lost_at is not None else None)
        sweep(context, host_id)
        note_gpus(context, host_id)
        note_reachable(context, host_id, True)
        for job_id in jobs_on(context, host_id):
            self._wake(job_id)
        self._freed()
        for event in stream:
            if self._stop.is_set():
                return
            if event is not None and event.action in _WAKING and event.job_id:
                self._wake(event.job_id)
