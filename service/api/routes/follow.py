"""`/jobs/{ref}/logs | metrics | samples`: what a job says, page by page or as it comes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from service.api import views
from service.api.bodies import BoundedRoute
from service.api.parameters import JobRef
from service.api.problems import RESPONSES
from service.api.series import read_samples, read_series
from service.api.sse import Follower, stream
from service.api.state import ApiState, job_of, state_of
from service.contract import schemas
from service.store import tables

router = APIRouter(route_class=BoundedRoute, tags=["jobs"], responses=RESPONSES)

LogCursor = Annotated[
    str | None, Query(max_length=4000, description="Continue after this; leave out to start at the beginning.")
]
_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page, or with `follow` a stream of `log`, `job` and `end` events whose ids are cursors",
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/LogPage"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}


def _find(request: Request, ref: str) -> tables.Job:
    with state_of(request).database.read() as session:
        return job_of(request, session, ref)


def _status(state: ApiState, job_id: str) -> schemas.JobStatus | None:
    with state.database.read() as session:
        row = session.get(tables.Job, job_id)
        return views.job_status(row) if row is not None else None


@router.get("/jobs/{ref}/logs", response_model=None, responses=_EVENTS, summary="Read or follow a job's log")
async def logs(
    request: Request,
    ref: JobRef,
    cursor: LogCursor = None,
    limit: Annotated[int, Query(ge=1, le=5000, description="Lines on a page.")] = 500,
    replica: Annotated[int | None, Query(ge=0, le=1023, description="Of this replica only.")] = None,
    tail: Annotated[int | None, Query(ge=0, le=100000, description="Start with the last N lines.")] = None,
    until: Annotated[
        str | None, Query(max_length=4000, description="Stop at this cursor; `tail=0` gives that of the end.")
    ] = None,
    events: Annotated[bool, Query(description="Also the lines in which the training reports its figures.")] = False,
    follow: Annotated[bool, Query(description="Stream server-sent events until the job ends.")] = False,
    last_event_id: Annotated[str | None, Header(max_length=4000, description="Resume a stream after this.")] = None,
) -> Response:
    """Lines in the order in which they were stored. A cursor stays good after the job's end."""
    state = state_of(request)
    job = await run_in_threadpool(_find, request, ref)
    cursor = last_event_id or cursor
    if not follow:
        page = await run_in_threadpool(
            state.logs.read,
            job.id,
            cursor=cursor,
            limit=limit,
            replica=replica,
            tail=None if cursor else tail,
            events=events,
            until=until,
        )
        end = job.finished_at is not None and not page.lines
        body = schemas.LogPage(
            items=[views.log_line(line) for line in page.lines], next_cursor=page.next_cursor, end=end
        )
        return Response(body.model_dump_json(), media_type="application/json")
    left = {"tail": None if cursor else tail}

    def read(after: str | None, count: int) -> tuple[list[schemas.LogLine], str]:
        found = state.logs.read(
            job.id, cursor=after, limit=count, replica=replica, tail=left.pop("tail", None), events=events
        )
        return [views.log_line(line) for line in found.lines], found.next_cursor

    follower = Follower(
        read=read,
        status=lambda: _status(state, job.id),
        subscribe=lambda wake: state.logs.subscribe(job.id, wake),
        cursor=cursor,
        shutdown=state.shutdown,
    )
    return stream(follower.events())


@router.get("/jobs/{ref}/metrics", response_model=schemas.Metrics, summary="The figures that a job reported")
def metrics(
    request: Request,
    ref: JobRef,
    points: Annotated[int, Query(ge=2, le=10000, description="At most so many points of each series.")] = 1000,
    name: Annotated[list[str] | None, Query(max_length=100, description="Only these series.")] = None,
) -> Response:
    """Series of values by step. Downsampling keeps the first, the last and every extreme."""
    state = state_of(request)
    job = _find(request, ref)
    series = read_series(state.settings.job_dir(job.id) / "metrics.jsonl", name, points)
    return Response(schemas.Metrics(job_id=job.id, series=series).model_dump_json(), media_type="application/json")


@router.get("/jobs/{ref}/samples", response_model=schemas.Samples, summary="What the model answered while training")
def samples(request: Request, ref: JobRef, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Response:
    """Answers to the spec's sample prompts, the latest first."""
    state = state_of(request)
    job = _find(request, ref)
    items = read_samples(state.settings.job_dir(job.id) / "samples.jsonl", limit)
    return Response(schemas.Samples(job_id=job.id, items=items).model_dump_json(), media_type="application/json")
