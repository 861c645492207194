"""`/jobs`: submit, list, look at, stop and delete jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from jobs.spec import JobSpec, JobType
from service.api import lists, views
from service.api.bodies import BoundedRoute, spec_of
from service.api.parameters import JobRef, Limit, PageCursor, States, Types
from service.api.problems import RESPONSES
from service.api.state import job_of, principal_of, state_of
from service.contract import schemas
from service.contract.errors import Problem
from service.intake.submission import Submission

Result = TypeVar("Result")
router = APIRouter(route_class=BoundedRoute, tags=["jobs"], responses=RESPONSES)


def spec_schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON schema of a spec's common keys, and the definitions that it refers to."""
    schema = JobSpec.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    schema["properties"].pop("training", None)
    schema["additionalProperties"] = True
    schema["properties"]["type"] = {"enum": [kind.value for kind in JobType], "type": "string"}
    schema["description"] = "A job. Types other than `command` also take the sections of their stage (model, data, …)."
    return schema, definitions


_EXAMPLE = {"type": "command", "name": "hello", "image": "cpu", "command": ["echo", "hello"]}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {"schema": {"$ref": "#/components/schemas/JobSpec"}, "example": _EXAMPLE}
            for kind in ("application/json", "application/yaml")
        },
    }
}


@router.post(
    "/jobs",
    status_code=201,
    response_model=schemas.Job,
    summary="Submit a job",
    openapi_extra=_BODY,
    responses={
        200: {
            "description": "The plan (with `dry_run`), or the job that an earlier request with this key made",
            "content": {
                "application/json": {
                    "schema": {"anyOf": [{"$ref": "#/components/schemas/Job"}, {"$ref": "#/components/schemas/Plan"}]}
                }
            },
        }
    },
)
async def submit(
    request: Request,
    dry_run: Annotated[bool, Query(description="Answer with the plan; start nothing.")] = False,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=200,
            pattern=r"^[\x21-\x7e]+$",
            description="Makes repeating safe: the same key with the same body gives the same job.",
        ),
    ] = None,
) -> Response:
    """Queue a job from a JSON or YAML spec. With an Idempotency-Key a repeated request gives the first answer."""
    state = state_of(request)
    document = await spec_of(request)
    if dry_run:
        try:
            return _json(await run_in_threadpool(state.plans.plan, document, principal_of(request)))
        except Problem as problem:
            raise problem.about_the_body() from None
    submission = Submission(document, principal_of(request), idempotency_key)
    answer = await request.app.state.submits.submit(submission)
    if isinstance(answer, Exception):
        raise answer.about_the_body() if isinstance(answer, Problem) else answer
    job: schemas.Job = answer.job
    headers = {"Location": f"/api/v1/jobs/{job.id}"}
    if answer.replayed:
        headers["Idempotency-Replayed"] = "true"
    return _json(job, 200 if answer.replayed else 201, headers)


@router.get("/jobs", response_model=schemas.Page[schemas.Job], summary="List jobs")
def list_jobs(
    request: Request,
    state: States = None,
    type: Types = None,
    q: lists.Text = None,
    owner: lists.Owner = None,
    sort: lists.Order = "created",
    limit: Limit = 50,
    cursor: Annotated[str | None, Query(max_length=1000, description="`next_cursor` of the page before.")] = None,
) -> Response:
    """Jobs, the newest first unless `sort` says otherwise."""
    filters = lists.Filters(tuple(state or ()), tuple(type or ()), q, owner)
    with state_of(request).database.read() as session:
        rows, following = lists.page(session, filters, sort, limit, cursor)
        return _json(schemas.Page[schemas.Job](items=views.jobs(session, rows), next_cursor=following))


@router.post("/jobs/stop", response_model=schemas.BulkAnswer, summary="Stop several jobs")
def stop_jobs(request: Request, body: schemas.BulkRequest) -> Response:
    """Ask up to 1,000 jobs to stop. What can't be done with one is its `problem`, and no matter of the others."""
    results = state_of(request).jobs.stop_many(body.jobs, actor=principal_of(request))
    return _bulk(request, body, results, lambda job: {"job": views.job_status(job)})


@router.post("/jobs/delete", response_model=schemas.BulkAnswer, summary="Delete several finished jobs")
def delete_jobs(request: Request, body: schemas.DeleteRequest) -> Response:
    """Forget up to 1,000 finished jobs, their logs, metrics and files; active ones stay (`job_active`).

    Artifacts that they left stay, each in a folder of its own, unless `artifacts` is `delete`.
    """
    keep = body.artifacts == "keep"
    results = state_of(request).jobs.delete_many(body.jobs, actor=principal_of(request), keep_artifacts=keep)
    return _bulk(request, body, results, lambda found: dict(views.deleted(found)))


def _bulk(
    request: Request,
    body: schemas.BulkRequest,
    results: Sequence[Result | Problem],
    shown: Callable[[Result], dict[str, Any]],
) -> Response:
    items = []
    for ref, result in zip(body.jobs, results, strict=True):
        if isinstance(result, Problem):
            document = schemas.ProblemDocument.model_validate(result.document(request.url.path))
            items.append(schemas.BulkItem(ref=ref, problem=document))
        else:
            items.append(schemas.BulkItem(ref=ref, **shown(result)))
    return _json(schemas.BulkAnswer(items=items))


@router.get("/jobs/{ref}", response_model=schemas.Job, summary="Look at a job")
def get_job(request: Request, ref: JobRef) -> Response:
    with state_of(request).database.read() as session:
        return _json(views.job(session, job_of(request, session, ref)))


@router.post("/jobs/{ref}/stop", response_model=schemas.Job, status_code=202, summary="Stop a job")
def stop_job(request: Request, ref: JobRef) -> Response:
    """Ask a job to stop: its containers get SIGTERM and its grace period. Stopping twice, or late, is no mistake."""
    state = state_of(request)
    row = state.jobs.stop(ref, actor=principal_of(request))
    with state.database.read() as session:
        return _json(views.job(session, job_of(request, session, row.id)), 202)


@router.delete("/jobs/{ref}", response_model=schemas.Deleted, summary="Delete a finished job")
def delete_job(
    request: Request,
    ref: JobRef,
    artifacts: Annotated[
        schemas.ArtifactFate, Query(description="What becomes of what it left for others; the answer lists it.")
    ] = "keep",
) -> Response:
    """Forget a finished job, its logs, metrics and files. An active one must be stopped first (`job_active`).

    Artifacts that it left stay, each in a folder of its own, unless `artifacts=delete`.
    """
    found = state_of(request).jobs.delete(ref, actor=principal_of(request), keep_artifacts=artifacts == "keep")
    return _json(views.deleted(found))


@router.get("/jobs/{ref}/events", response_model=schemas.Page[schemas.Event], summary="What happened to a job")
def job_events(request: Request, ref: JobRef, limit: Limit = 50, cursor: PageCursor = None) -> Response:
    with state_of(request).database.read() as session:
        row = job_of(request, session, ref)
        return _json(views.event_page(session, row.id, limit, cursor))


@router.get("/events", response_model=schemas.Page[schemas.Event], tags=["events"], summary="What happened")
def events(request: Request, limit: Limit = 50, cursor: PageCursor = None) -> Response:
    """Events of all jobs, hosts, images and artifacts, the newest first."""
    with state_of(request).database.read() as session:
        return _json(views.event_page(session, None, limit, cursor))


def _json(model: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, media_type="application/json")
