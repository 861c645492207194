"""Containers that nobody wants any more: those of ended attempts, and old ones that no row knows."""

from collections.abc import Callable

import structlog
from sqlmodel import col, select

from jobs.launch import LABEL_ATTEMPT, LABEL_JOB, LABEL_REPLICA
from service.backends.engines import ContainerFacts, Engines
from service.backends.errors import EngineError
from service.store.database import Database
from service.store.events import record
from service.store.tables import Attempt, Host, Replica

log = structlog.get_logger("sweep")
ORPHAN_AGE_S = 600.0
"""A container with our label that no row knows is removed after that long."""


class Leftovers:
    def __init__(self, engines: Engines, database: Database, deployment: str, clock: Callable[[], float]) -> None:
        self._engines, self._database = engines, database
        self._deployment, self._clock = deployment, clock

    def sweep(self, host_id: str) -> list[str]:
        """Removes what is left over on a host, and returns its names. A container of a live attempt is not touched."""
        engine = self._engines.engine(host_id)
        removed = []
        for container in engine.containers(self._deployment):
            if not self._is_left_over(container):
                continue
            try:
                engine.remove(container.id)
            except EngineError as error:  # one that can't be removed must not keep the others
                log.warning("left-over container stays", container=container.name, error=str(error))
                continue
            removed.append(container.name)
            with self._database.write() as session:
                for replica in session.exec(
                    select(Replica).where(Replica.container_name == container.name, col(Replica.removed_at).is_(None))
                ):
                    if replica.harvested_at is not None:
                        replica.removed_at = self._clock()
                text = f"removed the left-over container {container.name}"
                record(session, "container.swept", f"host/{host_id}", text)
        return removed

    def strays(self, host: Host) -> list[str]:
        """What runs on a host although no attempt has it. Raises EngineError.

        Containers are listed before the rows are read, and looked at again after: work goes on meanwhile.
        """
        engine = self._engines.engine(host.id)
        listed = [container for container in engine.containers(self._deployment) if LABEL_JOB in container.labels]
        with self._database.read() as session:
            known = {
                (replica.job_id, str(number), str(replica.node_rank))
                for replica, number in session.exec(
                    select(Replica, Attempt.number)
                    .join(Attempt, col(Attempt.id) == col(Replica.attempt_id))
                    .where(col(Attempt.finished_at).is_(None))
                )
            }
        found = []
        for container in listed:
            if container.running and _key(container) not in known:
                now = engine.inspect(container.id)
                if now is not None and now.running:
                    found.append(f"{container.name} runs on {host.name}, but no attempt has it")
        return found

    def _is_left_over(self, container: ContainerFacts) -> bool:
        job_id, number, rank = _key(container)
        with self._database.read() as session:
            query = (
                select(Attempt.finished_at, Attempt.number, Replica.node_rank)
                .join(Replica, col(Replica.attempt_id) == col(Attempt.id))
                .where(Attempt.job_id == job_id)
            )
            rows = [row for row in session.exec(query) if (str(row[1]), str(row[2])) == (number, rank)]
        if rows:
            return rows[0][0] is not None
        return self._clock() - (container.created_at or self._clock()) > ORPHAN_AGE_S


def _key(container: ContainerFacts) -> tuple[str, str, str]:
    labels = container.labels
    return labels.get(LABEL_JOB, ""), labels.get(LABEL_ATTEMPT, ""), labels.get(LABEL_REPLICA, "")
