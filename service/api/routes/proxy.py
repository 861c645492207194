"""`/jobs/{ref}/proxy/…`: a served model's API through the control plane, so that a page may speak to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import httpx
from fastapi import APIRouter, Path, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from service.api import views
from service.api.bodies import BoundedRoute
from service.api.parameters import JobRef
from service.api.problems import RESPONSES
from service.api.state import job_of, state_of
from service.contract.errors import Problem

router = APIRouter(route_class=BoundedRoute, tags=["jobs"], responses=RESPONSES)
_TIMEOUT = httpx.Timeout(600.0, connect=5.0)
Route = Annotated[str, Path(pattern=r"^(v1/(chat/completions|completions|models)|score)$", max_length=60)]


def _url(request: Request, ref: str) -> str:
    with state_of(request).database.read() as session:
        job = views.job(session, job_of(request, session, ref))
    if job.url is None:
        said = f"Job {job.name} is {job.state} and serves no model" + ("." if job.finished else " yet.")
        raise Problem("job_not_serving", said, "Only jobs of type serve do, once their model is loaded.")
    return str(httpx.URL(job.url).join("/"))  # the URL that people are shown goes on with /v1 or /score


@router.post("/jobs/{ref}/proxy/{path:path}", response_class=StreamingResponse, summary="Ask a served model")
async def ask(request: Request, ref: JobRef, path: Route) -> StreamingResponse:
    """Passes the body on to the job's model server (`v1/chat/completions`, `v1/completions`, `score`) and streams its
    answer back."""
    url = await run_in_threadpool(_url, request, ref)
    body = await request.body()
    client = httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False)
    try:
        asked = client.build_request("POST", url + path, content=body, headers={"Content-Type": "application/json"})
        answer = await client.send(asked, stream=True)
    except httpx.HTTPError as error:
        await client.aclose()
        said = f"The model server does not answer: {error!r}."
        raise Problem("job_not_serving", said, "See the job's log.") from None

    async def blocks() -> AsyncIterator[bytes]:
        try:
            async for block in answer.aiter_raw():
                yield block
        finally:
            await answer.aclose()
            await client.aclose()

    kind = answer.headers.get("Content-Type", "application/json")
    return StreamingResponse(blocks(), answer.status_code, media_type=kind, headers={"Cache-Control": "no-store"})
