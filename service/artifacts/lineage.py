"""Where an artifact came from and what came of it: artifacts and jobs as a graph, in layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlmodel import Session, col, select

from service.store.tables import Artifact, Job, JobInput

_Found = list[tuple[Artifact | Job, tuple[str, str]]]
"""Rows, each with an edge: the ids of what was used or worked, and of what came of it."""
_Following = Callable[[Artifact | Job], _Found]
_MOST = 200
"""Nodes of a graph that a person can look at; the nearest ones are kept."""


@dataclass(frozen=True)
class Node:
    row: Artifact | Job
    sources: tuple[str, ...]
    """Ids of what it was made of, or of the job that made it; only those that are in the graph."""
    depth: int
    """Its layer: one more than the deepest of its sources."""


def lineage(session: Session, artifact: Artifact) -> list[Node]:
    """All that the artifact was made of, all that was made of it, and what else those jobs used; sources first."""
    graph = _Graph(session)
    graph.add(artifact)
    graph.walk([artifact], graph.made_of)
    graph.walk([artifact], graph.came_of)
    graph.walk([row for row in graph.rows.values() if isinstance(row, Job)], graph.made_of, deep=False)
    return graph.nodes()


class _Graph:
    def __init__(self, session: Session) -> None:
        self._session = session
        self.rows: dict[str, Artifact | Job] = {}
        self._sources: dict[str, set[str]] = defaultdict(set)

    def add(self, row: Artifact | Job) -> bool:
        """Whether it is new; nothing is, once the graph is full."""
        if row.id in self.rows or len(self.rows) >= _MOST:
            return False
        self.rows[row.id] = row
        return True

    def walk(self, start: Iterable[Artifact | Job], following: _Following, *, deep: bool = True) -> None:
        """Takes in what `following` gives for each row, and for each of those, the nearest first."""
        waiting = list(start)
        for row in waiting:
            for other, (source, product) in following(row):
                new = self.add(other)
                if other.id in self.rows:
                    self._sources[product].add(source)
                if new and deep:
                    waiting.append(other)

    def made_of(self, row: Artifact | Job) -> _Found:
        """The job that made an artifact; the artifacts that a job used."""
        if isinstance(row, Artifact):
            job = self._session.get(Job, row.job_id) if row.job_id is not None else None
            return [(job, (job.id, row.id))] if job is not None else []
        used = select(JobInput.artifact_id).where(JobInput.job_id == row.id)
        found = self._session.exec(select(Artifact).where(col(Artifact.id).in_(used)).order_by(col(Artifact.id)))
        return [(one, (one.id, row.id)) for one in found]

    def came_of(self, row: Artifact | Job) -> _Found:
        """The jobs that used an artifact; the artifacts that a job made."""
        if isinstance(row, Artifact):
            users = select(JobInput.job_id).where(JobInput.artifact_id == row.id)
            jobs = self._session.exec(select(Job).where(col(Job.id).in_(users)).order_by(col(Job.created_at)))
            return [(job, (row.id, job.id)) for job in jobs]
        made = select(Artifact).where(Artifact.job_id == row.id).order_by(col(Artifact.created_at))
        return [(one, (row.id, one.id)) for one in self._session.exec(made)]

    def nodes(self) -> list[Node]:
        depths: dict[str, int] = {}
        order: list[str] = []
        waiting = dict.fromkeys(self.rows)
        while waiting:
            ready = [one for one in waiting if all(source in depths for source in self._sources[one])]
            for one in ready or list(waiting):  # nothing is made of itself; if rows say so, all the same each is shown
                depths[one] = 1 + max((depths.get(source, -1) for source in self._sources[one]), default=-1)
                order.append(one)
                del waiting[one]
        return [Node(self.rows[one], tuple(sorted(self._sources[one])), depths[one]) for one in order]
