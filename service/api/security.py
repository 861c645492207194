"""Who may ask: tokens, and on a loopback address without tokens the checks that keep web pages out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.tokens import Tokens
from service.api.problems import respond
from service.contract.errors import Problem

#: Answers that are needed before one can have a token, and tell nothing of anybody's work.
OPEN_PATHS = frozenset({"/api/v1/health", "/api/v1/version"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
BODY_TYPES = frozenset(
    {"application/json", "application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "application/vnd.yaml"}
)
MAX_BODY = 1 << 20


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to which a server is bound."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(host: str, tokens: Tokens) -> None:
    """Refuse to serve an address that others can reach while nobody needs a token. Raises Problem `forbidden`."""
    if not is_loopback(host) and not tokens.all():
        raise Problem(
            "forbidden",
            f"Navarch does not listen on {host} without a token: whoever reaches it could run containers here.",
            "Make one with `navarch token new NAME` (or set NAVARCH_TOKEN), or stay on 127.0.0.1.",
        )


@dataclass(frozen=True)
class Asking:
    """The parts of a request by which it is judged."""

    method: str
    path: str
    host: str
    origin: str | None
    fetch_site: str | None
    content_type: str | None
    has_body: bool
    authorization: str | None


def judge(asking: Asking, tokens: Tokens) -> str:
    """The name of who asks. Raises Problem when the request must not pass.

    Without tokens only loopback is served, so the danger is a web page in a browser on this machine: it is kept out
    by the Host header (DNS rebinding), the Origin header and the content type (forms can't send JSON or YAML).
    """
    if tokens.all():
        return _by_token(asking, tokens)
    name = _hostname(asking.host)
    if not is_loopback(name):
        raise Problem(
            "forbidden_host",
            f"The Host header names {name or 'nothing'!r}; without a token only localhost is served.",
            "Use http://127.0.0.1 or http://localhost, or give the control plane a token.",
        )
    foreign = asking.origin is not None and not is_loopback(urlsplit(asking.origin).hostname or "")
    if foreign or asking.fetch_site == "cross-site":
        raise Problem(
            "forbidden_origin",
            f"A page of {asking.origin or 'another site'} may not use this API.",
            "Give the control plane a token and send it as `Authorization: Bearer …`.",
        )
    return "local"


def check_body_type(asking: Asking) -> None:
    """Mutations carry JSON or YAML. Raises Problem `unsupported_media_type`."""
    if asking.method in SAFE_METHODS or not asking.has_body:
        return
    kind = (asking.content_type or "").partition(";")[0].strip().lower()
    if kind not in BODY_TYPES:
        raise Problem(
            "unsupported_media_type",
            f"The body's Content-Type is {kind or 'missing'!r}.",
            "Send application/json or application/yaml.",
        )


def _by_token(asking: Asking, tokens: Tokens) -> str:
    if asking.path in OPEN_PATHS:
        return "anonymous"
    scheme, _, token = (asking.authorization or "").partition(" ")
    owner = tokens.owner(token.strip()) if scheme.lower() == "bearer" and token.strip() else None
    if owner is None:
        said = "The token is not one of this control plane's." if token.strip() else "The request carries no token."
        raise Problem("unauthorized", said, "Send `Authorization: Bearer TOKEN`; the CLI takes it from NAVARCH_TOKEN.")
    return owner


def _hostname(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


class Gate:
    """ASGI middleware: judges each request, puts the actor into its state, and bounds its body."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _headers(scope["headers"])
        asking = Asking(
            method=scope["method"],
            path=scope["path"],
            host=headers.get("host", ""),
            origin=headers.get("origin"),
            fetch_site=headers.get("sec-fetch-site"),
            content_type=headers.get("content-type"),
            has_body=headers.get("content-length", "0") != "0" or "transfer-encoding" in headers,
            authorization=headers.get("authorization"),
        )
        try:
            scope.setdefault("state", {})["actor"] = judge(asking, self._tokens)
            check_body_type(asking)
            length = headers.get("content-length", "0")
            if not length.isdigit() or int(length) > MAX_BODY:
                raise _too_large()
        except Problem as problem:
            await respond(problem, asking.path)(scope, receive, send)
            return
        if "transfer-encoding" in headers:
            receive = _bounded(receive)
        await self._app(scope, receive, send)


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}


def _too_large() -> Problem:
    return Problem(
        "body_too_large", f"The body is larger than {MAX_BODY >> 20} MiB.", "Put data into files, not specs."
    )


def _bounded(receive: Receive) -> Receive:
    """`receive` for a body that doesn't say how long it is."""
    got = 0

    async def counted() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > MAX_BODY:
            raise _too_large()
        return message

    return counted
