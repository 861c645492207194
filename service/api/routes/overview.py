"""`/system` and `/specs`: how the control plane is, and what a job of each type can be told."""

from __future__ import annotations

import shutil
from importlib.metadata import version as installed
from typing import Any

from fastapi import APIRouter, Request

from jobs.schema import schema_of
from jobs.spec import JobType
from service.api.bodies import BoundedRoute
from service.api.problems import RESPONSES
from service.api.state import state_of
from service.contract import pages, schemas

router = APIRouter(route_class=BoundedRoute, responses=RESPONSES, tags=["control plane"])


@router.get("/system", response_model=pages.System, summary="How the control plane is, and what room it has")
def system(request: Request) -> pages.System:
    state = state_of(request)
    checks = state.runtime.health()
    disk = shutil.disk_usage(state.settings.data_dir)
    return pages.System(
        version=installed("navarch"),
        deployment=state.runtime.deployment,
        checks=[schemas.Check(name=name, ok=ok, detail=detail) for name, (ok, detail) in checks.items()],
        disk_total=disk.total,
        disk_free=disk.free,
    )


@router.get("/specs/{type}", response_model=dict[str, Any], summary="What a job of one type can be told")
def spec(type: JobType) -> dict[str, Any]:
    """A JSON schema with help, defaults and units."""
    return schema_of(type)
