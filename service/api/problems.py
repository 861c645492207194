"""Turns every failure of a request into a problem document: our own, FastAPI's, and what nobody foresaw."""

from __future__ import annotations

import json
import re
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from images.errors import ImageError
from jobs.mistakes import dotted
from service.contract.errors import KINDS, Problem
from service.contract.schemas import ProblemDocument
from service.store.faults import of_storage

MEDIA_TYPE = "application/problem+json"
_CODES = {400: "malformed_body", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed"}
_IMAGE_CODES = {"unknown_recipe": "recipe_not_found", "bad_recipe": "invalid_recipe"}
log = structlog.get_logger(__name__)

#: For OpenAPI: what every operation may answer besides its own success.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
    }
    for status, description in {
        400: "The request can't be read",
        401: "A valid token is needed",
        403: "Not allowed from here",
        404: "No such thing",
        409: "Not possible in the present state",
        413: "The body is too large",
        415: "Send JSON or YAML",
        422: "The request is not valid",
        500: "Navarch made a mistake",
        502: "The Docker Engine refused",
        503: "What Navarch stands on does not answer",
        507: "No space left",
    }.items()
}


class ProblemResponse(Response):
    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, default=str).encode()


def respond(problem: Problem, path: str, headers: dict[str, str] | None = None) -> Response:
    if problem.status == 401:
        headers = {"WWW-Authenticate": "Bearer", **(headers or {})}
    return ProblemResponse(problem.document(instance=path), problem.status, headers)


def from_image_error(error: ImageError) -> Problem:
    """An image's problem; codes that this API doesn't list say what they are in `image_code`."""
    code = _IMAGE_CODES.get(error.code, error.code if error.code in KINDS else "image_build_failed")
    return Problem(code, _sentence(error.message), error.hint or None, image_code=error.code)


def install(app: FastAPI) -> None:
    """Register the handlers, and the problem document in the OpenAPI schema."""

    @app.exception_handler(Problem)
    def ours(request: Request, error: Problem) -> Response:
        return respond(error, request.url.path)

    @app.exception_handler(ImageError)
    def of_an_image(request: Request, error: ImageError) -> Response:
        return respond(from_image_error(error), request.url.path)

    @app.exception_handler(RequestValidationError)
    def of_parameters(request: Request, error: RequestValidationError) -> Response:
        errors = [
            {"path": dotted(part for part in item["loc"] if part != "body"), "message": _sentence(str(item["msg"]))}
            for item in error.errors()
        ]
        detail = "; ".join(
            f"`{item['path']}`: {item['message']}" if item["path"] else item["message"] for item in errors
        )
        malformed = any(item["type"] == "json_invalid" for item in error.errors())
        code = "malformed_body" if malformed else "invalid_request"
        return respond(
            Problem(code, detail, "See /docs for what this operation takes.", problems=errors), request.url.path
        )

    @app.exception_handler(HTTPException)
    def of_starlette(request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "invalid_request")
        headers = dict(error.headers or {})
        detail = _sentence(str(error.detail))
        if error.status_code == 404:
            detail = f"There is nothing at {request.url.path}."
        elif error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(app, request.url.path))
            detail = f"{request.method} does not work on {request.url.path}; {headers['Allow']} does."
        problem = Problem(code, detail, "See /docs for what the API offers.")
        return respond(problem, request.url.path, headers)


class Failures:
    """ASGI middleware around everything: what nobody foresaw becomes one log line and a problem document.

    Inside of the framework's own, which would log it a second time. A client that has gone is no failure.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except ClientDisconnect:
            return
        except Exception as error:
            answer = respond(_unforeseen(scope["method"], scope["path"], error), scope["path"])
            if not begun:  # else the broken answer is all that can be had
                await answer(scope, receive, send)


def _unforeseen(method: str, path: str, error: Exception) -> Problem:
    storage = of_storage(error)
    if storage is not None:
        log.error("the disk or the database refused", method=method, path=path[:500], error=storage.detail)
        return storage
    log.error("request failed", method=method, path=path[:500], exc_info=error)
    detail = f"{method} {path} failed inside Navarch ({type(error).__name__})."
    return Problem("internal", detail, "The control plane's log has the details.")


def _methods(app: FastAPI, path: str) -> list[str]:
    """What a path can do. (Routers answer 405 with the methods of the first operation only.)"""
    paths: dict[str, dict[str, Any]] = app.openapi()["paths"]
    fixed = {template: re.sub(r"{\w+}", "", template) for template in paths}
    for part in ("[^/]+", ".+"):  # names of images, and a few others, have slashes in them
        for template in sorted(paths, key=lambda template: -len(fixed[template])):
            if re.fullmatch(re.sub(r"\\{\w+\\}", part, re.escape(template)), path):
                return sorted(method.upper() for method in paths[template])
    return ["GET"]


def schema() -> dict[str, Any]:
    """ProblemDocument for the OpenAPI components, with all stable codes."""
    document = ProblemDocument.model_json_schema()
    document["properties"]["code"]["enum"] = sorted(KINDS)
    return document


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!", ")")) else ".")
