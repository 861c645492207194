"""`/images`: build them from recipes, list, look at and remove them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import docker
from fastapi import APIRouter, Header, HTTPException, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from images.catalog import ImageInfo, list_images, remove, resolve
from images.errors import ImageError
from images.recipes import builtin_recipes
from service.api import views
from service.api.bodies import BoundedRoute
from service.api.build_log import read_build_log
from service.api.pages import newest
from service.api.parameters import Limit, PageCursor
from service.api.problems import RESPONSES, from_image_error
from service.api.sse import Follower, stream
from service.api.state import ApiState, principal_of, state_of
from service.contract import images as contract
from service.contract import schemas
from service.contract.errors import Problem
from service.store import tables
from service.store.events import record

router = APIRouter(route_class=BoundedRoute, tags=["images"], responses=RESPONSES)

ImageRef = Annotated[str, Path(description="A tag, recipe name, id or digest.", max_length=300)]
RegistryAddress = Annotated[str, Path(description="As it begins an image's name.", max_length=300)]
BuildId = Annotated[str, Path(description="A build's id.", max_length=100)]


def _no_build(ref: str) -> None:
    """What lies below /images/builds has operations of its own, and this is none of them."""
    if ref.partition("/")[0] == "builds":
        raise HTTPException(405)


@contextmanager
def _faults() -> Iterator[None]:
    """What goes wrong with an image as a problem."""
    try:
        yield
    except ImageError as error:
        raise from_image_error(error) from error
    except Problem as problem:
        raise problem.about_the_body() from None


@contextmanager
def _engine(state: ApiState) -> Iterator[Any]:
    """The local Docker Engine; its faults and those of images as problems."""
    try:
        client = docker.DockerClient(base_url=state.settings.engine_url, timeout=30)
    except docker.errors.DockerException as error:
        raise Problem(
            "engine_unreachable",
            f"The Docker Engine at {state.settings.engine_url} does not answer.",
            "Start it, or see `navarch doctor`.",
        ) from error
    try:
        yield client
    except ImageError as error:
        raise from_image_error(error) from error
    finally:
        client.close()


@router.post("/images/builds", response_model=contract.Build, status_code=202, summary="Build an image")
def build(request: Request, body: contract.BuildRequest) -> Response:
    """Start a build from a recipe (a built-in name, or the path of a YAML file on the control plane's machine)."""
    state = state_of(request)
    options = body.model_dump(exclude={"recipe", "tag"}, exclude_none=True, exclude_defaults=True)
    try:
        row = state.runtime.builds.submit(body.recipe, body.tag or "", options, principal_of(request))
    except ImageError as error:
        raise from_image_error(error) from error
    return Response(_find_build(state, row.id).model_dump_json(), 202, media_type="application/json")


@router.get("/images/builds", response_model=schemas.Page[contract.Build], summary="List builds")
def builds(request: Request, limit: Limit = 50, cursor: PageCursor = None) -> Response:
    """Builds, the newest first."""
    state = state_of(request)
    with state.database.read() as session:
        rows, following = newest(session, tables.ImageBuild, limit, cursor)
        items = [views.build(row, state.runtime.builds.ahead(session, row)) for row in rows]
    page = schemas.Page[contract.Build](items=items, next_cursor=following)
    return Response(page.model_dump_json(), media_type="application/json")


def _find_build(state: ApiState, build_id: str) -> contract.Build:
    with state.database.read() as session:
        row = session.get(tables.ImageBuild, build_id)
        if row is None:
            raise Problem("build_not_found", f"There is no build {build_id!r}.", "GET /images/builds lists them.")
        return views.build(row, state.runtime.builds.ahead(session, row))


@router.post(
    "/images/builds/{build_id}/cancel", response_model=contract.Build, status_code=202, summary="Cancel a build"
)
def cancel_build(request: Request, build_id: BuildId) -> Response:
    """End a build that waits or is under way (`build_finished` otherwise); its finished steps are kept for the next."""
    state = state_of(request)
    state.runtime.builds.cancel(build_id, principal_of(request))
    return Response(_find_build(state, build_id).model_dump_json(), 202, media_type="application/json")


@router.get("/images/builds/{build_id}", response_model=contract.Build, summary="Look at a build")
def get_build(request: Request, build_id: BuildId) -> Response:
    return Response(_find_build(state_of(request), build_id).model_dump_json(), media_type="application/json")


@router.get(
    "/images/builds/{build_id}/logs",
    response_model=None,
    summary="Read or follow a build's log",
    responses={
        200: {
            "description": "A page, or with `follow` a stream of `log`, `job` and `end` events whose ids are cursors",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/LogPage"}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
        }
    },
)
async def build_logs(
    request: Request,
    build_id: BuildId,
    cursor: Annotated[str | None, Query(max_length=40)] = None,
    limit: Annotated[int, Query(ge=1, le=5000)] = 500,
    follow: bool = False,
    last_event_id: Annotated[str | None, Header(max_length=40)] = None,
) -> Response:
    state = state_of(request)
    found = await run_in_threadpool(_find_build, state, build_id)
    file = state.settings.data_dir / "builds" / f"{found.id}.log"
    start = last_event_id or cursor
    lines, following = await run_in_threadpool(read_build_log, file, start, limit)
    if not follow:
        page = schemas.LogPage(items=lines, next_cursor=following, end=found.finished and not lines)
        return Response(page.model_dump_json(), media_type="application/json")

    def status() -> schemas.JobStatus:
        row = _find_build(state, build_id)
        return schemas.JobStatus(id=row.id, name=row.tag, state=row.state, message=row.message)

    follower = Follower(
        read=lambda after, count: read_build_log(file, after, count),
        status=status,
        subscribe=lambda wake: state.logs.subscribe(found.id, wake),
        cursor=start,
        shutdown=state.shutdown,
    )
    return stream(follower.events())


@router.post(
    "/images/commits", response_model=contract.Committed, status_code=201, summary="Keep a workspace as an image"
)
def commit(
    request: Request,
    body: contract.CommitRequest,
    dry_run: Annotated[bool, Query(description="Only say how much it would add at most.")] = False,
) -> Response:
    """The container is paused for a moment; nothing in it is changed. Keys, tokens and histories stay out."""
    commits, actor = state_of(request).runtime.commits, principal_of(request)
    with _faults():
        made = commits.look(body.workspace, actor) if dry_run else commits.commit(body.workspace, body.tag, actor)
    shown = contract.Committed(**asdict(made))
    return Response(shown.model_dump_json(), 201, media_type="application/json")


@router.post("/images/push", response_model=contract.Pushed, summary="Push an image to a registry")
def push(request: Request, body: contract.PushRequest) -> Response:
    """With the logins that admins gave; answers when it is there. What may pass is tried three times."""
    with _faults():
        digest = state_of(request).runtime.transfers.push(body.image, body.to, principal_of(request))
    return Response(contract.Pushed(digest=digest).model_dump_json(), media_type="application/json")


@router.post("/images/pull", response_model=contract.Image, summary="Pull an image from a registry")
def pull(request: Request, body: contract.PullRequest) -> Response:
    """Fetch it, or the state of it that its registry has now, onto the local engine."""
    with _faults():
        found = state_of(request).runtime.transfers.pull(body.image, principal_of(request))
    return get_image(request, found)


@router.post("/images/tag", response_model=contract.Image, summary="Give an image another name")
def tag(request: Request, body: contract.TagRequest) -> Response:
    with _faults():
        state_of(request).runtime.transfers.tag(body.image, body.tag, principal_of(request))
    return get_image(request, body.tag)


@router.post("/images/import", response_model=contract.Imported, summary="Load images from a file")
def import_images(request: Request, body: contract.ImportRequest) -> contract.Imported:
    """A .tar file on the control plane's machine, as an export or `docker save` writes it."""
    with _faults():
        names = state_of(request).runtime.transfers.import_file(body.path, principal_of(request))
    return contract.Imported(images=names)


@router.get("/images/export", response_class=StreamingResponse, summary="An image as a file")
def export(request: Request, image: Annotated[str, Query(max_length=400)]) -> StreamingResponse:
    """A .tar file, for machines without any registry: `navarch image import`, or `docker load`."""
    with _faults():
        blocks = state_of(request).runtime.transfers.export(image)
    return StreamingResponse(blocks, media_type="application/x-tar")


@router.get("/registries", response_model=schemas.Page[contract.Registry], summary="List logins at registries")
def registries(request: Request) -> Response:
    rows = state_of(request).runtime.registries_of_images.all()
    found = [contract.Registry(address=row.address, username=row.username, set_at=row.set_at) for row in rows]
    page = schemas.Page[contract.Registry](items=found)
    return Response(page.model_dump_json(), media_type="application/json")


@router.put("/registries/{address}", status_code=204, response_class=Response, summary="Log in to a registry")
def login(request: Request, address: RegistryAddress, body: contract.RegistryRequest) -> Response:
    """Tried by the engine first (`registry_refused`); used for every pull and push from then on."""
    with _faults():
        state_of(request).runtime.transfers.login(address, body.username, body.password, principal_of(request))
    return Response(status_code=204)


@router.delete("/registries/{address}", status_code=204, response_class=Response, summary="Log out of a registry")
def logout(request: Request, address: RegistryAddress) -> Response:
    if not state_of(request).runtime.registries_of_images.logout(address, principal_of(request)):
        raise Problem("not_found", f"There is no login at {address!r}.", "GET /registries lists them.")
    return Response(status_code=204)


@router.get("/images", response_model=schemas.Page[contract.Image], summary="List images")
def images(request: Request) -> Response:
    """Images that Navarch built on the local engine, the newest first."""
    with _engine(state_of(request)) as client:
        page = schemas.Page[contract.Image](items=[_image(info) for info in list_images(client)])
    return Response(page.model_dump_json(), media_type="application/json")


@router.get("/images/{ref:path}", response_model=contract.Image, summary="Look at an image")
def get_image(request: Request, ref: ImageRef) -> Response:
    _no_build(ref)
    with _engine(state_of(request)) as client:
        found = _image(_named(client, ref))
    return Response(found.model_dump_json(), media_type="application/json")


@router.delete("/images/{ref:path}", status_code=204, response_class=Response, summary="Remove an image")
def delete_image(request: Request, ref: ImageRef) -> Response:
    """Remove an image from the local engine, unless a container was made from it (`image_in_use`)."""
    _no_build(ref)
    state, actor = state_of(request), principal_of(request)
    with _engine(state) as client:
        _named(client, ref)
        remove(client, ref)
    with state.database.write() as session:
        record(session, "image.removed", f"image/{ref}", f"{actor.name} removed {ref}", actor=actor.id)
    return Response(status_code=204)


@router.get("/recipes", response_model=schemas.Page[contract.Recipe], summary="List the built-in recipes")
def recipes() -> Response:
    items = [
        contract.Recipe(name=recipe.name, base=recipe.base, description=recipe.description, tag=recipe.default_tag)
        for recipe in builtin_recipes().values()
    ]
    return Response(schemas.Page[contract.Recipe](items=items).model_dump_json(), media_type="application/json")


def _named(client: Any, ref: str) -> ImageInfo:
    """The image; one that isn't there is a 404 here, where it is what the request is about."""
    try:
        return resolve(client, ref)
    except ImageError as error:
        if error.code != "image_missing":
            raise
        raise Problem("image_not_found", error.message, error.hint or None) from error


def _image(info: ImageInfo) -> contract.Image:
    return contract.Image(
        id=info.image_id,
        tags=list(info.tags),
        recipe=info.recipe or None,
        size=info.size,
        created_at=datetime.fromisoformat(info.created).timestamp(),
        labels={"base": info.base, "target": info.target},
    )
