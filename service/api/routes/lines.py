"""`/jobs/{ref}/lines | search | log`: any line of a log by its number, whatever the log's length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from service.api.bodies import BoundedRoute
from service.api.parameters import JobRef
from service.api.problems import RESPONSES
from service.api.state import ApiState, job_of, state_of
from service.collector.line_index import LineIndex
from service.contract import pages

router = APIRouter(route_class=BoundedRoute, tags=["jobs"], responses=RESPONSES)
_FILE = re.compile(r"(\d{1,9})-(\d{1,9})\.log")

AttemptNumber = Annotated[int | None, Query(ge=1, le=10**9, description="Of this attempt; default: the newest.")]
Replica = Annotated[int | None, Query(ge=0, le=10**9, description="Of this replica only; default: all, by time.")]


def _files(request: Request, ref: str, attempt: int | None, replica: int | None) -> list[tuple[int, int, Path]]:
    """(attempt, rank, file) of the chosen attempt, by rank."""
    state = state_of(request)
    with state.database.read() as session:
        job_id = job_of(request, session, ref).id
    folder = state.settings.job_dir(job_id) / "logs"
    try:
        names = [(match, path) for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))]
    except FileNotFoundError:
        names = []
    found = sorted((int(match.group(1)), int(match.group(2)), path) for match, path in names)
    chosen = attempt if attempt is not None else max((number for number, _, _ in found), default=1)
    return [item for item in found if item[0] == chosen and replica in (None, item[1])]


def _index(state: ApiState, files: list[tuple[int, int, Path]]) -> LineIndex:
    return state.lines.of([(rank, path) for _, rank, path in files])


@router.get("/jobs/{ref}/lines", response_model=pages.LinePage, summary="Lines of a job's log by their numbers")
def lines(
    request: Request,
    ref: JobRef,
    first: Annotated[int, Query(ge=0, le=10**12, description="The first line's number; they count from 0.")] = 0,
    count: Annotated[int, Query(ge=1, le=1000, description="How many.")] = 200,
    at: Annotated[
        float | None, Query(ge=0, le=1e11, description="Begin with the first line of this second since the epoch.")
    ] = None,
    attempt: AttemptNumber = None,
    replica: Replica = None,
) -> Response:
    """Lines of one attempt, those of several replicas in the order of time."""
    state = state_of(request)
    files = _files(request, ref, attempt, replica)
    number = files[0][0] if files else 1
    index = _index(state, files)
    total = index.refresh()
    first = index.at(at) if at is not None else first
    items = [
        pages.NumberedLine(time=line.time, attempt=number, replica=line.rank, text=line.text, length=line.length)
        for line in index.lines(first, count)
    ]
    page = pages.LinePage(first=first, total=total, items=items)
    return Response(page.model_dump_json(), media_type="application/json")


@router.get("/jobs/{ref}/search", response_model=pages.Found, summary="Search a job's log")
def search(
    request: Request,
    ref: JobRef,
    q: Annotated[str, Query(min_length=1, max_length=500, description="What to look for; case does not matter.")],
    regex: Annotated[bool, Query(description="It is a regular expression (RE2).")] = False,
    first: Annotated[int, Query(ge=-1, le=10**12, description="The line to begin with.")] = 0,
    back: Annotated[bool, Query(description="Towards the beginning.")] = False,
    attempt: AttemptNumber = None,
    replica: Replica = None,
) -> pages.Found:
    """The number of the nearest line that matches, in the whole log of the attempt."""
    state = state_of(request)
    index = _index(state, _files(request, ref, attempt, replica))
    index.refresh()
    return pages.Found(line=index.search(q, regex=regex, first=first, back=back))


@router.get(
    "/jobs/{ref}/log",
    response_class=StreamingResponse,
    summary="A job's log as one file",
    responses={
        200: {"description": "Each line with its time", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
def whole(request: Request, ref: JobRef, attempt: AttemptNumber = None, replica: Replica = None) -> StreamingResponse:
    """The stored lines of one attempt, replica after replica."""
    files = _files(request, ref, attempt, replica)
    name = f"{re.sub(r'[^A-Za-z0-9._-]', '_', ref)}-{files[0][0] if files else 1}.log"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(_blocks([path for _, _, path in files]), media_type="text/plain", headers=headers)


def _blocks(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                yield block
