"""`/jobs/{ref}/series`: curves for a screen, exact at every zoom, and grown by what came since."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlmodel import select

from service.api.bodies import BoundedRoute
from service.api.parameters import JobRef
from service.api.problems import RESPONSES
from service.api.state import ApiState, job_of, state_of
from service.collector.curves import Axis, Curves
from service.contract import pages
from service.contract.errors import Problem
from service.store.tables import Attempt

router = APIRouter(route_class=BoundedRoute, tags=["jobs"], responses=RESPONSES)
Place = Annotated[float | None, Query(allow_inf_nan=False)]


def _curves(request: Request, ref: str) -> tuple[str, Curves]:
    state = state_of(request)
    with state.database.read() as session:
        job_id = job_of(request, session, ref).id
    return job_id, state.curves.of(state.settings.job_dir(job_id) / "metrics.jsonl")


@router.get("/jobs/{ref}/series/names", response_model=pages.SeriesNames, summary="The metrics that a job reported")
def names(request: Request, ref: JobRef) -> Response:
    """Every metric with its number of points and its smallest, largest and last value."""
    _, curves = _curves(request, ref)
    items = [
        pages.SeriesName(name=name, points=points, min=low, max=high, last=last)
        for name, points, low, high, last in curves.names()
    ]
    return Response(pages.SeriesNames(items=items).model_dump_json(), media_type="application/json")


@router.get("/jobs/{ref}/series", response_model=pages.SeriesData, summary="One metric of a job, for a screen")
def series(
    request: Request,
    ref: JobRef,
    name: Annotated[str, Query(min_length=1, max_length=500)],
    axis: Annotated[Axis, Query(description="step, tokens, time (seconds since the start) or clock.")] = "step",
    width: Annotated[int, Query(ge=1, le=5000, description="Columns of pixels that there are to draw in.")] = 700,
    low: Annotated[Place, Query(alias="from", description="Only from here on the axis on.")] = None,
    high: Annotated[Place, Query(alias="to", description="Only up to here.")] = None,
    after: Annotated[str | None, Query(max_length=100, description="Only what came after this cursor.")] = None,
    times: Annotated[bool, Query(description="Also when each point was reported.")] = False,
) -> Response:
    """Of every column of pixels the first, last, smallest and largest point: a line through them is the line through
    all. What a resumed attempt repeats replaces what was there."""
    state = state_of(request)
    job_id, curves = _curves(request, ref)
    cut = curves.cut(name, axis, width, low, high, after)
    if cut is None:
        raise Problem("not_found", f"The job reported no {name[:60]!r}.", "…/series/names lists what it did report.")
    begun = curves.restarts(axis)
    reasons = _reasons(state, job_id) if begun else {}
    body = pages.SeriesData(
        name=name,
        x=cut.x,
        y=[value if value is None else float(f"{value:.7g}") for value in cut.y],
        times=[round(time, 1) for time in cut.times] if times else None,
        marks=cut.marks,
        restarts=[pages.Restart(x=x, attempt=number, reason=reasons.get(number - 1)) for number, x in begun],
        total=cut.total,
        cursor=cut.cursor,
        delta=cut.delta,
    )
    return Response(body.model_dump_json(), media_type="application/json")


def _reasons(state: ApiState, job_id: str) -> dict[int, str | None]:
    with state.database.read() as session:
        rows = session.exec(select(Attempt.number, Attempt.reason).where(Attempt.job_id == job_id)).all()
    return {number: reason for number, reason in rows}
