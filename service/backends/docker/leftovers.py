"""Containers that nobody holds any more: those of ended attempts, and old ones that no row knows."""

from collections.abc import Callable

import structlog
from sqlmodel import Session, col, select

from jobs.launch import LABEL_ATTEMPT, LABEL_JOB, LABEL_REPLICA, LABEL_WORKSPACE, owner_of
from service.backends.engines import ContainerFacts, Engines
from service.backends.errors import EngineError
from service.store.database import Database
from service.store.events import record
from service.store.tables import Attempt, Holder, Host, Replica

log = structlog.get_logger("sweep")
ORPHAN_AGE_S = 600.0
"""A container with our label that no row knows is removed after that long."""


class Leftovers:
    def __init__(self, engines: Engines, database: Database, deployment: str, clock: Callable[[], float]) -> None:
        self._engines, self._database = engines, database
        self._deployment, self._clock = deployment, clock

    def sweep(self, host_id: str) -> list[str]:
        """Removes what is left over on a host, and returns its names. What somebody holds is not touched."""
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
        """What runs on a host although nobody holds it. Raises EngineError.

        Containers are listed before the rows are read, and looked at again after: work goes on meanwhile.
        """
        engine = self._engines.engine(host.id)
        found = []
        for container in engine.containers(self._deployment):
            if container.running and owner_of(container.labels) and not self.is_held(container):
                now = engine.inspect(container.id)
                if now is not None and now.running:
                    found.append(f"{container.name} runs on {host.name}, but nobody holds it")
        return found

    def is_held(self, container: ContainerFacts) -> bool:
        """Whether its holder is there still: an attempt under way, a workspace that has its leases."""
        workspace = container.labels.get(LABEL_WORKSPACE)
        with self._database.read() as session:
            if workspace is not None:
                return session.get(Holder, f"workspace/{workspace}") is not None
            return any(finished_at is None for finished_at in _ends(session, container))

    def _is_left_over(self, container: ContainerFacts) -> bool:
        if self.is_held(container):
            return False
        with self._database.read() as session:
            if _ends(session, container):
                return True
        return self._clock() - (container.created_at or self._clock()) > ORPHAN_AGE_S


def _ends(session: Session, container: ContainerFacts) -> list[float | None]:
    """When the attempt ended of which a container is; nothing when there is no such attempt."""
    labels = container.labels
    query = (
        select(Attempt.finished_at, Attempt.number, Replica.node_rank)
        .join(Replica, col(Replica.attempt_id) == col(Attempt.id))
        .where(Attempt.job_id == labels.get(LABEL_JOB, ""))
    )
    meant = labels.get(LABEL_ATTEMPT), labels.get(LABEL_REPLICA)
    return [finished_at for finished_at, number, rank in session.exec(query) if (str(number), str(rank)) == meant]
