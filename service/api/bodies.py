"""What comes first in every operation: whose it is to do, and its body, JSON or YAML, read within bounds."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from jobs.documents import DocumentError, read_json, read_yaml
from service.api.roles import check_role
from service.contract.errors import Problem

_Value = TypeVar("_Value")
_JSON = "application/json"
_AT_ONCE = 2048
"""Bytes of JSON that are read at once: 0.02 ms for a job, and 2 ms for the worst that fits; a thread costs 0.3 ms."""


def read_body(content_type: str | None, body: bytes) -> Any:
    """The value in a body; JSON unless the content type says YAML. Raises Problem `malformed_body`."""
    if not body.strip():
        raise Problem("malformed_body", "The body is empty.", "Send JSON or YAML.")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Problem("malformed_body", "The body is not UTF-8 text.", "Send JSON or YAML in UTF-8.") from error
    try:
        return read_json(text) if _is_json(content_type) else read_yaml(text)
    except DocumentError as error:
        raise Problem("malformed_body", f"The body can't be read: {error}.", "See /docs for what is taken.") from None


def read_spec(content_type: str | None, body: bytes) -> dict[str, Any]:
    """The mapping in a body that describes a job. Raises Problem `malformed_body`."""
    document = read_body(content_type, body)
    if not isinstance(document, dict):
        raise Problem("malformed_body", "The body is no mapping of keys to values.", "Send a job's spec.")
    return document


async def spec_of(request: Request) -> dict[str, Any]:
    """The spec in a request's body."""
    return await _reading(read_spec, request.headers.get("content-type"), await request.body())


async def _reading(read: Callable[[str | None, bytes], _Value], content_type: str | None, body: bytes) -> _Value:
    """What `read` makes of a body: away from the event loop, unless it is short."""
    if len(body) <= _AT_ONCE and _is_json(content_type):
        return read(content_type, body)
    return await run_in_threadpool(read, content_type, body)


def _is_json(content_type: str | None) -> bool:
    return (content_type or _JSON).partition(";")[0].strip().lower() == _JSON


class _ReadRequest(Request):
    """A request whose body has been read: FastAPI gets the value that was found in it, JSON or YAML."""

    def __init__(self, request: Request, raw: bytes, value: Any) -> None:
        headers = [(name, text) for name, text in request.scope["headers"] if name != b"content-type"]
        super().__init__({**request.scope, "headers": [*headers, (b"content-type", _JSON.encode())]}, request.receive)
        self._raw, self._value = raw, value

    async def body(self) -> bytes:
        return self._raw

    async def json(self) -> Any:
        return self._value


class BoundedRoute(APIRoute):
    """Asks whether it is somebody's to do, and reads its body before FastAPI does; all routers are made of these."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        method, path, summary = min(self.methods or ()), self.path, self.summary or self.name

        async def bounded(request: Request) -> Response:
            check_role(request.state.principal, method, path, summary)
            if self.body_field is None:
                return await handle(request)
            raw = await request.body()
            if not raw and not self.body_field.field_info.is_required():
                return await handle(request)
            value = await _reading(read_body, request.headers.get("content-type"), raw)
            return await handle(_ReadRequest(request, raw, value))

        return bounded
