"""`/artifacts/{ref}/lineage | preview`: where an artifact came from, what was made of it, and what is in it."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from service.api.bodies import BoundedRoute
from service.api.problems import RESPONSES
from service.api.state import state_of
from service.artifacts import lineage
from service.artifacts.lineage import Node
from service.artifacts.versions import find_artifact
from service.contract import pages
from service.store.tables import Job

router = APIRouter(route_class=BoundedRoute, tags=["artifacts"], responses=RESPONSES)
Ref = Annotated[str, Path(max_length=200, description="NAME, NAME@VERSION or an id.")]
_ROWS = 5
_ROW_BYTES = 4000
_DATA = (".jsonl", ".json", ".txt", ".csv")


@router.get("/artifacts/{ref}/lineage", response_model=pages.Lineage, summary="Where it came from, and what came of it")
def artifact_lineage(request: Request, ref: Ref) -> pages.Lineage:
    """Artifacts and the jobs between them, sources first: all that it was made of, and all that was made of it."""
    with state_of(request).database.read() as session:
        return pages.Lineage(items=[_item(node) for node in lineage.lineage(session, find_artifact(session, ref))])


def _item(node: Node) -> pages.LineageItem:
    row = node.row
    kind, name, what = (
        ("job", row.name, row.type) if isinstance(row, Job) else ("artifact", f"{row.name}@{row.version}", row.kind)
    )
    return pages.LineageItem(kind=kind, id=row.id, name=name, type=what, depth=node.depth, sources=list(node.sources))


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
