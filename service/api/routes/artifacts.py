"""`/artifacts`: models and data sets that jobs can name."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from sqlmodel import Session, col, or_, select

from service import schemas
from service.api import views
from service.api.cursors import Cursor
from service.api.parameters import Limit, PageCursor
from service.api.problems import RESPONSES
from service.api.state import actor_of, state_of
from service.errors import Problem
from service.store import tables

router = APIRouter(tags=["artifacts"], responses=RESPONSES)

ArtifactName = Annotated[str, Path(description="Its name or id.", max_length=200)]


def _find(session: Session, ref: str) -> tables.Artifact:
    query = select(tables.Artifact).where(or_(col(tables.Artifact.name) == ref, col(tables.Artifact.id) == ref))
    row = session.exec(query).first()
    if row is None:
        raise Problem("artifact_not_found", f"There is no artifact {ref!r}.", "`navarch artifact ls` lists them.")
    return row


@router.get("/artifacts", response_model=schemas.Page[schemas.Artifact], summary="List artifacts")
def artifacts(request: Request, limit: Limit = 50, cursor: PageCursor = None) -> Response:
    """Artifacts, the newest first."""
    with state_of(request).database.read() as session:
        query = select(tables.Artifact)
        if cursor is not None:
            after = Cursor.parse(cursor)
            created, identifier = col(tables.Artifact.created_at), col(tables.Artifact.id)
            query = query.where(views.before(created, after.time, identifier, after.id))
        order = (col(tables.Artifact.created_at).desc(), col(tables.Artifact.id).desc())
        rows = session.exec(query.order_by(*order).limit(limit + 1)).all()
        items = [views.artifact(row) for row in rows[:limit]]
    following = str(Cursor(items[-1].created_at, items[-1].id)) if len(rows) > limit else None
    page = schemas.Page[schemas.Artifact](items=items, next_cursor=following)
    return Response(page.model_dump_json(), media_type="application/json")


@router.post("/artifacts", response_model=schemas.Artifact, status_code=201, summary="Register an artifact")
def add(request: Request, body: schemas.ArtifactRequest) -> Response:
    """Register a Hugging Face folder or a data set where it lies, or convert a GGUF file into a model folder."""
    row = state_of(request).runtime.artifacts.add(body.path, name=body.name, kind=body.kind, actor=actor_of(request))
    made = views.artifact(row)
    headers = {"Location": f"/api/v1/artifacts/{made.name}"}
    return Response(made.model_dump_json(), 201, headers, media_type="application/json")


@router.get("/artifacts/{ref}", response_model=schemas.Artifact, summary="Look at an artifact")
def get(request: Request, ref: ArtifactName) -> Response:
    with state_of(request).database.read() as session:
        found = views.artifact(_find(session, ref))
    return Response(found.model_dump_json(), media_type="application/json")


@router.delete("/artifacts/{ref}", status_code=204, response_class=Response, summary="Forget an artifact")
def delete(request: Request, ref: ArtifactName) -> Response:
    """Forget an artifact; files that Navarch made are removed, those of others left alone."""
    state = state_of(request)
    with state.database.read() as session:
        name = _find(session, ref).name
    state.runtime.artifacts.delete(name, actor=actor_of(request))
    return Response(status_code=204)
