"""Pages of rows, the newest first: by the time of their making, then by id."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import ColumnElement, and_, or_
from sqlmodel import Session, col, select

from service.api.cursors import Cursor
from service.store import tables

Row = TypeVar("Row", tables.Job, tables.ImageBuild, tables.Artifact, tables.Workspace)


def newest(
    session: Session, table: type[Row], limit: int, cursor: str | None, *wanted: ColumnElement[bool]
) -> tuple[list[Row], str | None]:
    """The rows of one page, and the cursor of the next; None on the last."""
    created, identifier = col(table.created_at), col(table.id)
    query = select(table.id).where(*wanted)
    if cursor is not None:
        after = Cursor.parse(cursor)
        query = query.where(or_(created < after.time, and_(created == after.time, identifier < after.id)))
    order = (created.desc(), identifier.desc())
    ids = query.order_by(*order).limit(limit + 1).subquery()  # sorts ids, not whole rows with their documents
    rows = list(session.exec(select(table).join(ids, identifier == ids.c.id).order_by(*order)))
    last = rows[limit - 1] if len(rows) > limit else None
    return rows[:limit], str(Cursor(last.created_at, last.id)) if last is not None else None
