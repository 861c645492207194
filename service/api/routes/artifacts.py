"""`/artifacts`: models and data sets that jobs can name."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from service.api import views
from service.api.bodies import BoundedRoute
from service.api.pages import newest
from service.api.parameters import Limit, PageCursor
from service.api.problems import RESPONSES
from service.api.state import principal_of, state_of
from service.artifacts.versions import find_artifact
from service.contract import schemas
from service.store import tables

router = APIRouter(route_class=BoundedRoute, tags=["artifacts"], responses=RESPONSES)

ArtifactName = Annotated[str, Path(description="NAME (the newest version), NAME@VERSION or an id.", max_length=200)]


@router.get("/artifacts", response_model=schemas.Page[schemas.Artifact], summary="List artifacts")
def artifacts(request: Request, limit: Limit = 50, cursor: PageCursor = None) -> Response:
    """Every version of every artifact, the newest first."""
    with state_of(request).database.read() as session:
        rows, following = newest(session, tables.Artifact, limit, cursor)
    page = schemas.Page[schemas.Artifact](items=[views.artifact(row) for row in rows], next_cursor=following)
    return Response(page.model_dump_json(), media_type="application/json")


@router.post("/artifacts", response_model=schemas.Artifact, status_code=201, summary="Register an artifact")
def add(request: Request, body: schemas.ArtifactRequest) -> Response:
    """Register a Hugging Face folder or a data set where it lies, or convert a GGUF file into a model folder."""
    artifacts = state_of(request).runtime.artifacts
    actor = principal_of(request)
    row = artifacts.add(body.path, name=body.name, kind=body.kind, new_version=body.new_version, actor=actor)
    made = views.artifact(row)
    headers = {"Location": f"/api/v1/artifacts/{made.name}@{made.version}"}
    return Response(made.model_dump_json(), 201, headers, media_type="application/json")


@router.get("/artifacts/{ref}", response_model=schemas.Artifact, summary="Look at an artifact")
def get(request: Request, ref: ArtifactName) -> Response:
    with state_of(request).database.read() as session:
        found = views.artifact(find_artifact(session, ref))
    return Response(found.model_dump_json(), media_type="application/json")


@router.delete("/artifacts/{ref}", status_code=204, response_class=Response, summary="Forget an artifact")
def delete(request: Request, ref: ArtifactName) -> Response:
    """Forget one version of an artifact; files that Navarch made are removed, those of others left alone."""
    state_of(request).runtime.artifacts.delete(ref, actor=principal_of(request))
    return Response(status_code=204)
