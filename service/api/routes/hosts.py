"""`/hosts`: the machines that jobs run on."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from service.api import views
from service.api.bodies import BoundedRoute
from service.api.problems import RESPONSES
from service.api.state import principal_of, state_of
from service.contract import schemas
from service.contract.hosts import HostChange, HostRequest
from service.contract.pages import HostKey
from service.intake.hosts import find_host

router = APIRouter(route_class=BoundedRoute, tags=["hosts"], responses=RESPONSES)
HostRef = Annotated[str, Path(max_length=200)]


@router.get("/hosts", response_model=schemas.Page[schemas.Host], summary="List hosts")
def hosts(request: Request) -> Response:
    """Docker hosts with their GPUs and who holds them."""
    with state_of(request).database.read() as session:
        page = schemas.Page[schemas.Host](items=views.hosts(session))
    return Response(page.model_dump_json(), media_type="application/json")


@router.get("/hosts/key", response_model=HostKey, summary="The control plane's own SSH key")
def own_key(request: Request) -> HostKey:
    """The public key with which it logs in on hosts: for authorized_keys there."""
    return HostKey(public_key=state_of(request).runtime.own_key.line.strip())


@router.post("/hosts", response_model=schemas.Host, status_code=201, summary="Add a host")
def add(request: Request, body: HostRequest) -> Response:
    """Log in, look at its engine, pin its SSH host key. Only admins may."""
    return _shown(request, state_of(request).runtime.hosts.add(body, principal_of(request)).id, 201)


@router.get("/hosts/{ref}", response_model=schemas.Host, summary="Look at a host")
def host(request: Request, ref: HostRef) -> Response:
    return _shown(request, ref)


@router.patch("/hosts/{ref}", response_model=schemas.Host, summary="Change a host")
def change(request: Request, ref: HostRef, body: HostChange) -> Response:
    """Drain it or use it again; its labels, ports, addresses; or the SSH host key that it has now. Only admins may."""
    return _shown(request, state_of(request).runtime.hosts.change(ref, body, principal_of(request)).id)


@router.post("/hosts/{ref}/check", response_model=schemas.Host, summary="Look closely at a host")
def check(
    request: Request,
    ref: HostRef,
    accept: Annotated[bool, Query(description="The GPUs and the driver that it has now are the right ones.")] = False,
) -> Response:
    """GPUs, driver, disk, clock, the way to and from the other hosts: see `findings`. Only admins may."""
    return _shown(request, state_of(request).runtime.hosts.check(ref, accept, principal_of(request)).id)


@router.delete("/hosts/{ref}", status_code=204, response_class=Response, summary="Remove a host")
def remove(request: Request, ref: HostRef) -> Response:
    """Refused (`host_in_use`) while anything runs or lies there. Only admins may."""
    state_of(request).runtime.hosts.remove(ref, principal_of(request))
    return Response(status_code=204)


def _shown(request: Request, ref: str, status: int = 200) -> Response:
    with state_of(request).database.read() as session:
        found = views.one_host(session, find_host(session, ref))
    return Response(found.model_dump_json(), status, media_type="application/json")
