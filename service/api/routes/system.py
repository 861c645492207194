"""`/keys`, `/health`, `/version`: how Navarch itself is, and whose keys it takes."""

from __future__ import annotations

import os
from importlib.metadata import version as installed

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from service.api.bodies import BoundedRoute
from service.api.problems import MEDIA_TYPE, RESPONSES
from service.api.state import state_of
from service.contract import schemas
from service.contract.errors import Problem

router = APIRouter(route_class=BoundedRoute, responses=RESPONSES)


@router.get(
    "/health",
    response_model=schemas.Health,
    tags=["control plane"],
    summary="Whether all is well",
    responses={503: {"description": "Something is wrong: see `checks`", "content": {MEDIA_TYPE: {}}}},
)
def health(request: Request) -> Response:
    """200 while the database can be written and controller and engine work; else 503 with the same `checks`."""
    checks = state_of(request).runtime.health()
    found = [schemas.Check(name=name, ok=ok, detail=detail) for name, (ok, detail) in checks.items()]
    if all(check.ok for check in found):
        return Response(schemas.Health(ok=True, checks=found).model_dump_json(), media_type="application/json")
    bad = "; ".join(f"{check.name}: {check.detail}" for check in found if not check.ok)
    first = next(check.name for check in found if not check.ok)
    problem = Problem(
        {"database": "database_unavailable", "engine": "engine_unreachable"}.get(first, "unhealthy"),
        f"Not all is well: {bad}.",
        "`navarch doctor` says what to do.",
        ok=False,
        checks=[check.model_dump() for check in found],
    )
    return JSONResponse(problem.document(request.url.path), 503, media_type=MEDIA_TYPE)


@router.get(
    "/consistency",
    response_model=schemas.Health,
    tags=["control plane"],
    summary="Whether database and engines agree",
)
def consistency(request: Request) -> schemas.Health:
    """Compares the rows with each other and with the engines' containers; changes nothing. 200 in any case."""
    checks = state_of(request).runtime.consistency()
    return schemas.Health(ok=all(check.ok for check in checks), checks=checks)


@router.get("/version", response_model=schemas.Version, tags=["control plane"], summary="Versions")
def version(request: Request) -> schemas.Version:
    return schemas.Version(version=installed("navarch"), deployment=state_of(request).runtime.deployment)


@router.get("/place", response_model=schemas.Place, tags=["control plane"], summary="Where the control plane runs")
def place(request: Request) -> schemas.Place:
    """For `navarch doctor` and `navarch down`, which look after the control plane that they are pointed at."""
    settings = state_of(request).settings
    return schemas.Place(
        data_dir=str(settings.data_dir),
        pid=os.getpid(),
        engine_url=settings.engine_url,
        mount_roots=[str(root) for root in settings.mount_roots],
    )
