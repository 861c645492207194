"""Puts the REST API together: routers, the gate before them, problem documents, OpenAPI, start and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware

from service.access.sessions import Sessions
from service.api import problems, views
from service.api.batch import Batcher
from service.api.metrics import Meter, exposition
from service.api.roles import PREFIX, members_may
from service.api.routes import (
    artifacts,
    follow,
    hosts,
    images,
    jobs,
    lineage,
    lines,
    live,
    many,
    overview,
    people,
    proxy,
    series,
    session,
    system,
    workspaces,
)
from service.api.security import OPEN_PATHS, Gate
from service.api.sse import Shutdown
from service.api.state import ApiState, state_of
from service.contract import schemas
from service.dashboard import site
from service.intake.submission import Submission, Submitted
from service.runtime import Runtime

ROUTERS = (
    many,
    jobs,
    follow,
    lines,
    series,
    proxy,
    workspaces,
    images,
    lineage,
    artifacts,
    hosts,
    system,
    overview,
    people,
    session,
    live,
)
"""In this order: `/jobs/counts` must be known before `/jobs/{ref}`."""
DESCRIPTION = """Launches LLM post-training into GPU containers.

Lists come in pages: pass `next_cursor` as `cursor` for the next one. Errors are problem documents (RFC 9457) with a
stable `code` and a `hint`. Bodies are JSON or YAML. Requests carry `Authorization: Bearer TOKEN`; the token of the
account that runs the control plane is in the file `token` of its data folder."""


def create_app(runtime: Runtime) -> FastAPI:
    """The application around a control plane that has been started (and is stopped) by the caller."""
    settings = runtime.settings
    shutdown = Shutdown()
    meter = Meter()
    app = FastAPIOffline(
        title="Navarch",
        version="1",
        description=DESCRIPTION,
        redirect_slashes=False,
        redoc_url=None,  # it asks its maker's host for a logo
        swagger_ui_parameters={"validatorUrl": None},  # and this would ask swagger.io, away from loopback
    )
    sessions = Sessions(settings.data_dir, runtime.tokens)
    app.state.navarch = ApiState(runtime, settings, sessions, shutdown)
    app.state.submits = Batcher(lambda items: _submit(runtime, items))
    app.state.shutdown = shutdown
    problems.install(app)
    api = APIRouter(prefix=PREFIX)
    for module in ROUTERS:
        api.include_router(module.router)
    app.include_router(api)
    app.add_api_route("/metrics", _metrics(meter), include_in_schema=False)
    site.install(app)
    kept = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "application/x-tar")  # images, whose layers are large
    app.add_middleware(GZipMiddleware, minimum_size=1400, compresslevel=5, exclude_content_types=kept)
    app.add_middleware(Gate, tokens=runtime.tokens, sessions=sessions)
    app.add_middleware(problems.Failures)
    app.add_middleware(meter.middleware)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _submit(runtime: Runtime, submissions: Sequence[Submission]) -> list[_Answer | Exception]:
    """Accept a batch, and show each job while its transaction's row is at hand."""
    results = runtime.jobs.submit_many(submissions)
    return [_answer(runtime, sent, result) for sent, result in zip(submissions, results, strict=True)]


class _Answer:
    """A job that was accepted, as the client sees it."""

    __slots__ = ("job", "replayed")

    def __init__(self, job: schemas.Job, replayed: bool) -> None:
        self.job = job
        self.replayed = replayed


def _answer(runtime: Runtime, sent: Submission, result: Submitted | Exception) -> _Answer | Exception:
    if isinstance(result, Exception):
        return result
    if not result.replayed:
        return _Answer(views.new_job(result.job, result.inputs, sent.actor), replayed=False)
    with runtime.database.read() as session:
        return _Answer(views.job(session, result.job), replayed=True)


def _metrics(meter: Meter) -> Callable[[Request], Response]:
    def metrics(request: Request) -> Response:
        state = state_of(request)
        text = exposition(meter, state.database, *state.runtime.registries)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return metrics


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's schema with problem documents, the job's spec and the token in it."""
    if app.openapi_schema:
        return app.openapi_schema
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = made.setdefault("components", {}).setdefault("schemas", {})
    components["ProblemDocument"] = problems.schema()
    spec, definitions = jobs.spec_schema()
    components["JobSpec"] = spec
    components["WorkspaceSpec"] = workspaces.spec_schema()
    components.update(definitions)
    for model in (schemas.LogPage, schemas.Plan):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
        components.update(schema.pop("$defs", {}))
        components[model.__name__] = schema
    components.pop("HTTPValidationError", None)
    components.pop("ValidationError", None)
    made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    made["security"] = [{"token": []}]
    for path in OPEN_PATHS & made["paths"].keys():
        for operation in made["paths"][path].values():
            operation["security"] = []
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            operation["x-navarch-role"] = "member" if members_may(method.upper(), path) else "admin"
    app.openapi_schema = made
    return made
