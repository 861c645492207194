"""`/artifacts/{ref}/lineage | preview`: where an artifact came from, what was made of it, and what is in it."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from sqlmodel import Session, col, select

from service.api.bodies import BoundedRoute
from service.api.problems import RESPONSES
from service.api.state import state_of
from service.artifacts.versions import find_artifact
from service.contract import pages
from service.store.tables import Artifact, Job, JobInput

router = APIRouter(route_class=BoundedRoute, tags=["artifacts"], responses=RESPONSES)
Ref = Annotated[str, Path(max_length=200, description="NAME, NAME@VERSION or an id.")]
_DEEPEST = 20
_MOST = 500
_ROWS = 5
_ROW_BYTES = 4000
_DATA = (".jsonl", ".json", ".txt", ".csv")


@router.get("/artifacts/{ref}/lineage", response_model=pages.Lineage, summary="Where it came from, and what came of it")
def lineage(request: Request, ref: Ref) -> pages.Lineage:
    """Artifacts and the jobs between them, from the first ancestor on; `depth` says what was made of what."""
    with state_of(request).database.read() as session:
        return pages.Lineage(items=_Tree(session).of(find_artifact(session, ref)))


class _Tree:
    """Walks up to the first ancestors, then down again through everything that was made of them."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._shown: set[tuple[str, str]] = set()
        self._items: list[pages.LineageItem] = []

    def of(self, artifact: Artifact) -> list[pages.LineageItem]:
        for root in self._roots(artifact):
            self._artifact(root, 0)
        return self._items[:_MOST]

    def _roots(self, artifact: Artifact) -> list[Artifact]:
        roots: dict[str, Artifact] = {}
        waiting, seen = [(artifact, 0)], {artifact.id}
        while waiting:
            one, depth = waiting.pop()
            parents = self._parents(one) if depth < _DEEPEST else []
            if not parents:
                roots[one.id] = one
            for parent in parents:
                if parent.id not in seen:
                    seen.add(parent.id)
                    waiting.append((parent, depth + 1))
        return sorted(roots.values(), key=lambda row: row.created_at)

    def _parents(self, artifact: Artifact) -> list[Artifact]:
        if artifact.job_id is None:
            return []
        used = select(JobInput.artifact_id).where(JobInput.job_id == artifact.job_id)
        return list(self._session.exec(select(Artifact).where(col(Artifact.id).in_(used))))

    def _artifact(self, row: Artifact, depth: int) -> None:
        if depth > 2 * _DEEPEST or len(self._items) >= _MOST:
            return
        again = ("artifact", row.id) in self._shown
        self._shown.add(("artifact", row.id))
        item = pages.LineageItem(
            kind="artifact", id=row.id, name=f"{row.name}@{row.version}", type=row.kind, depth=depth
        )
        self._items.append(item)
        if again:
            return
        used = select(JobInput.job_id).where(JobInput.artifact_id == row.id)
        for job in self._session.exec(select(Job).where(col(Job.id).in_(used)).order_by(col(Job.created_at))):
            self._job(job, depth + 1)

    def _job(self, row: Job, depth: int) -> None:
        if ("job", row.id) in self._shown or len(self._items) >= _MOST:
            return
        self._shown.add(("job", row.id))
        self._items.append(pages.LineageItem(kind="job", id=row.id, name=row.name, type=row.type, depth=depth))
        made = select(Artifact).where(Artifact.job_id == row.id).order_by(col(Artifact.created_at))
        for artifact in self._session.exec(made):
            self._artifact(artifact, depth + 1)


@router.get("/artifacts/{ref}/preview", response_model=pages.Preview, summary="The first rows of a data set")
def preview(request: Request, ref: Ref) -> pages.Preview:
    """As they are in its first file of text; nothing for models."""
    with state_of(request).database.read() as session:
        row = find_artifact(session, ref)
    if row.kind != "dataset":
        return pages.Preview()
    path = FilePath(row.path)
    try:
        files = sorted(one for one in path.iterdir() if one.suffix in _DATA) if path.is_dir() else [path]
        return pages.Preview(file=files[0].name, rows=_rows(files[0])) if files else pages.Preview()
    except OSError:
        return pages.Preview()


def _rows(file: FilePath) -> list[str]:
    with file.open("rb") as opened:
        head = opened.read(_ROWS * _ROW_BYTES * 4)
    text = head.decode("utf-8", "replace")
    if text.lstrip().startswith("["):
        return [json.dumps(row, ensure_ascii=False)[:_ROW_BYTES] for row in _objects(text)]
    return [line[:_ROW_BYTES] for line in text.splitlines()[:_ROWS] if line.strip()]


def _objects(text: str) -> list[Any]:
    """The first values of a JSON array that may go on far beyond this text."""
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    found: list[Any] = []
    while len(found) < _ROWS:
        while at < len(text) and text[at] in " \r\n\t,":
            at += 1
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            break
        found.append(value)
    return found
