"""Lists of jobs as people look for them: by state, type, owner and words; in the order that they like."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Query
from sqlalchemy import ColumnElement, and_, func, or_
from sqlmodel import Session, col, select

from service.contract.errors import Problem
from service.store.tables import Job, Principal

Sort = Literal["created", "name", "state", "duration"]
Text = Annotated[str | None, Query(max_length=100, description="Only jobs with this in their name, id or image.")]
Owner = Annotated[str | None, Query(max_length=100, description="Only jobs of this person.")]
Order = Annotated[Sort, Query(description="What comes first: newest, name, state, or what ran longest.")]


@dataclass(frozen=True)
class Filters:
    states: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    text: str | None = None
    owner: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        wanted: list[ColumnElement[bool]] = []
        if self.states:
            wanted.append(col(Job.state).in_(self.states))
        if self.types:
            wanted.append(col(Job.type).in_(self.types))
        if self.owner:
            whose = select(Principal.id).where(Principal.name == self.owner).scalar_subquery()
            wanted.append(col(Job.owner_id) == whose)
        if self.text:
            like = "%" + self.text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
            image = func.json_extract(col(Job.document), "$.image")
            wanted.append(
                or_(
                    col(Job.name).like(like, escape="\\"),
                    col(Job.id).like(like, escape="\\"),
                    image.like(like, escape="\\"),
                )
            )
        return wanted


def counts(session: Session, filters: Filters) -> dict[str, int]:
    """Jobs by state."""
    found = session.exec(select(Job.state, func.count()).where(*filters.conditions()).group_by(col(Job.state))).all()
    return {state: count for state, count in found}


def page(
    session: Session, filters: Filters, sort: Sort, limit: int, cursor: str | None
) -> tuple[Sequence[Job], str | None]:
    """The rows of one page in the order of `sort`, then newest first, and the cursor of the next page."""
    key, descending = _key(sort)
    order = [key.desc() if descending else key.asc(), col(Job.id).desc()]
    wanted = filters.conditions()
    if cursor is not None:
        value, identifier = _parse(cursor, sort)
        beyond = key < value if descending else key > value
        wanted.append(or_(beyond, and_(key == value, col(Job.id) < identifier)))
    ids = select(Job.id, key.label("key")).where(*wanted).order_by(*order).limit(limit + 1)
    found = session.exec(ids).all()
    rows = {row.id: row for row in session.exec(select(Job).where(col(Job.id).in_([one[0] for one in found])))}
    shown = [rows[one[0]] for one in found[:limit] if one[0] in rows]
    following = _text(sort, found[limit - 1][1], found[limit - 1][0]) if len(found) > limit else None
    return shown, following


def _key(sort: Sort) -> tuple[Any, bool]:
    if sort == "name":
        return func.lower(col(Job.name)), False
    if sort == "state":
        return col(Job.state), False
    if sort == "duration":
        ended = func.coalesce(col(Job.finished_at), func.unixepoch())
        return func.coalesce(ended - col(Job.started_at), -1.0), True
    return col(Job.created_at), True


def _text(sort: Sort, value: Any, identifier: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([sort, value, identifier]).encode()).decode().rstrip("=")


def _parse(cursor: str, sort: Sort) -> tuple[str | float, str]:
    try:
        found = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        of, value, identifier = found
        if of != sort or not isinstance(value, str | int | float) or not isinstance(identifier, str):
            raise ValueError
        return value, identifier
    except (ValueError, TypeError, binascii.Error) as error:
        hint = "Use the `next_cursor` of the page before, with the same `sort`, or leave it out for the first page."
        raise Problem("invalid_cursor", f"{cursor[:60]!r} is not a cursor of this list.", hint) from error
