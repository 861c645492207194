"""Query and path parameters that several operations share."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from jobs.spec import JobType
from jobs.states import JobState
from service.api.views import MAX_PAGE

_TEXT = r"^[^\x00]+$"

JobRef = Annotated[str, Path(description="A job's id, or its name (the newest job of that name).", max_length=100)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Items on a page.")]
PageCursor = Annotated[
    str | None, Query(max_length=200, description="`next_cursor` of the page before; leave out for the first.")
]
States = Annotated[list[JobState] | None, Query(alias="state", description="Only jobs in these states.")]
Types = Annotated[list[JobType] | None, Query(alias="type", description="Only jobs of these types.")]
