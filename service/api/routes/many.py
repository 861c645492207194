"""`/jobs/counts` and `/jobs/{ref}/retry | plan`: what pages need beside the jobs themselves."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.api import lists, views
from service.api.bodies import BoundedRoute
from service.api.parameters import JobRef, States, Types
from service.api.problems import RESPONSES
from service.api.state import job_of, principal_of, state_of
from service.contract import pages, schemas
from service.contract.errors import Problem

router = APIRouter(route_class=BoundedRoute, tags=["jobs"], responses=RESPONSES)


@router.get("/jobs/counts", response_model=pages.JobCounts, summary="How many jobs there are in each state")
def counts(
    request: Request, type: Types = None, q: lists.Text = None, owner: lists.Owner = None, state: States = None
) -> pages.JobCounts:
    """With the list's other filters; `state` is taken and does not matter."""
    with state_of(request).database.read() as session:
        return pages.JobCounts(states=lists.counts(session, lists.Filters((), tuple(type or ()), q, owner)))


@router.post("/jobs/{ref}/retry", response_model=schemas.Job, status_code=201, summary="Submit a job's spec again")
def retry(request: Request, ref: JobRef) -> Response:
    """A new job with the spec of this one. One with secrets must be submitted with them again (`invalid_spec`)."""
    state = state_of(request)
    with state.database.read() as session:
        row = job_of(request, session, ref)
        document, secrets = dict(row.document), row.secrets is not None
    if secrets:
        raise Problem(
            "invalid_spec",
            f"Job {ref} has secrets, which are shown to nobody and so can't be copied.",
            "Submit its YAML again, with the secrets.",
        )
    try:
        answer = state.jobs.submit(document, actor=principal_of(request))
    except Problem as problem:
        raise problem.about_the_body() from None
    body = views.new_job(answer.job, answer.inputs, principal_of(request))
    return Response(body.model_dump_json(), 201, media_type="application/json")


@router.get("/jobs/{ref}/plan", response_model=schemas.Plan, summary="The exact containers of a job")
def plan(request: Request, ref: JobRef) -> schemas.Plan:
    """What would run if its spec were submitted now: image, command, environment and mounts of each container."""
    state = state_of(request)
    with state.database.read() as session:
        document = dict(job_of(request, session, ref).document)
    document.pop("after", None)
    return state.plans.plan(document, principal_of(request))
