"""`/workspaces`: long-lived containers for people."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from jobs.workspace import WorkspaceSpec
from service.access.principals import check_owner
from service.api import workspaces as views
from service.api.bodies import BoundedRoute, spec_of
from service.api.pages import newest
from service.api.parameters import Limit, PageCursor
from service.api.problems import RESPONSES
from service.api.state import principal_of, state_of
from service.api.views import event_page
from service.contract import workspaces as contract
from service.contract.errors import Problem
from service.contract.schemas import Event, Health, Page
from service.store import tables
from service.store.rows import find_workspace
from service.workspaces.ide import ide_blocks

router = APIRouter(route_class=BoundedRoute, tags=["workspaces"], responses=RESPONSES)

WorkspaceRef = Annotated[str, Path(description="A workspace's name or id.", max_length=100)]
EXAMPLE = {"type": "workspace", "name": "colossal_env", "image": "cpu", "resources": {"gpus": "all"}, "ports": [7000]}


def spec_schema() -> dict[str, Any]:
    """What a workspace's document may hold."""
    return WorkspaceSpec.model_json_schema(ref_template="#/components/schemas/WorkspaceSpec/$defs/{model}")


@router.post(
    "/workspaces",
    response_model=contract.Workspace,
    status_code=201,
    summary="Create a workspace",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                kind: {"schema": {"$ref": "#/components/schemas/WorkspaceSpec"}, "example": EXAMPLE}
                for kind in ("application/json", "application/yaml")
            },
        }
    },
)
async def create(request: Request) -> Response:
    """Make a workspace and start it. It does not wait in the queue: without room now it is refused (`no_room`)."""
    document = await spec_of(request)
    try:
        row = await run_in_threadpool(state_of(request).workspaces.create, document, actor=principal_of(request))
    except Problem as problem:
        raise problem.about_the_body() from None
    return await run_in_threadpool(_shown, request, row, 201)


@router.get("/workspaces", response_model=Page[contract.Workspace], summary="List workspaces")
def list_workspaces(request: Request, limit: Limit = 50, cursor: PageCursor = None) -> Response:
    """All workspaces, the newest first."""
    with state_of(request).database.read() as session:
        rows, following = newest(session, tables.Workspace, limit, cursor)
        return _json(Page[contract.Workspace](items=views.workspaces(session, rows), next_cursor=following))


@router.get("/workspaces/{ref}", response_model=contract.Workspace, summary="Look at a workspace")
def get(request: Request, ref: WorkspaceRef) -> Response:
    with state_of(request).database.read() as session:
        return _json(views.workspace(session, find_workspace(session, ref, principal_of(request).id)))


@router.post("/workspaces/{ref}/start", response_model=contract.Workspace, summary="Start a workspace")
def start(
    request: Request, ref: WorkspaceRef, body: Annotated[contract.StartRequest | None, Body()] = None
) -> Response:
    """Start its container again, with what was installed in it; or, with `switch`, a new one.

    Without free GPUs it is refused (`no_room`) with who holds them.
    """
    how = body or contract.StartRequest()
    row = state_of(request).workspaces.start(ref, image=how.image, switch=how.switch, actor=principal_of(request))
    return _shown(request, row)


@router.post("/workspaces/{ref}/restart", response_model=contract.Workspace, summary="Restart a workspace")
def restart(
    request: Request, ref: WorkspaceRef, body: Annotated[contract.StartRequest | None, Body()] = None
) -> Response:
    """Stop and start it; it keeps its GPUs meanwhile."""
    how = body or contract.StartRequest()
    row = state_of(request).workspaces.restart(ref, image=how.image, switch=how.switch, actor=principal_of(request))
    return _shown(request, row)


@router.post("/workspaces/{ref}/stop", response_model=contract.Workspace, summary="Stop a workspace")
def stop(request: Request, ref: WorkspaceRef) -> Response:
    """Stop what runs in it and give back its GPUs. Its container, address and home stay."""
    return _shown(request, state_of(request).workspaces.stop(ref, actor=principal_of(request)))


@router.post("/workspaces/{ref}/extend", response_model=contract.Workspace, summary="Let a workspace run longer")
def extend(request: Request, ref: WorkspaceRef, body: contract.ExtendRequest) -> Response:
    """Move the time at which its `max` stops it."""
    return _shown(request, state_of(request).workspaces.extend(ref, body.by, actor=principal_of(request)))


@router.delete("/workspaces/{ref}", response_model=contract.Workspace, summary="Remove a workspace")
def remove(
    request: Request,
    ref: WorkspaceRef,
    home: Annotated[contract.Fate, Query(description="Whether the volume of its home is kept.")] = "keep",
) -> Response:
    """Remove its container and free its address. A kept home is that of the next workspace of this name and owner."""
    workspaces = state_of(request).workspaces
    return _shown(request, workspaces.remove(ref, home=home == "delete", actor=principal_of(request)))


@router.get("/workspaces/{ref}/events", response_model=Page[Event], summary="What happened to a workspace")
def events(request: Request, ref: WorkspaceRef, limit: Limit = 50, cursor: PageCursor = None) -> Response:
    with state_of(request).database.read() as session:
        row = find_workspace(session, ref, principal_of(request).id)
        return _json(event_page(session, None, limit, cursor, subject=row.holder))


@router.post("/workspaces/{ref}/check", response_model=Health, summary="Try what an IDE does")
def check(request: Request, ref: WorkspaceRef) -> Response:
    """Over SSH: a login, a command without noise, sftp both ways, forwards both ways, the image's variables, glibc."""
    state = state_of(request)
    with state.database.read() as session:
        row = find_workspace(session, ref, principal_of(request).id)
        check_owner(session, principal_of(request), row.owner_id, f"Workspace {row.name}")
        found = views.workspace(session, row)
    if found.state != "running":
        said = f": {found.message}" if found.message else ""
        raise Problem("no_ssh", f"{found.name} is {found.state}{said}.", f"navarch workspace start {found.name}")
    checks = state.runtime.look_in(found.ssh.host, found.ssh.port, found.ssh.host_key or "")
    return _json(Health(ok=all(check.ok for check in checks), checks=checks))


@router.get("/workspaces/{ref}/ide", response_model=contract.IdeBlocks, summary="How to connect an IDE")
def ide(request: Request, ref: WorkspaceRef) -> Response:
    """What to type into PyCharm, VS Code, Cursor and Gateway, or to open."""
    with state_of(request).database.read() as session:
        found = views.workspace(session, find_workspace(session, ref, principal_of(request).id))
    return _json(contract.IdeBlocks(items=ide_blocks(found)))


def _shown(request: Request, row: tables.Workspace, status: int = 200) -> Response:
    with state_of(request).database.read() as session:
        headers = {"Location": f"/api/v1/workspaces/{row.id}"} if status == 201 else None
        return _json(views.workspace(session, row), status, headers)


def _json(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(model.model_dump_json(), status, headers, media_type="application/json")
