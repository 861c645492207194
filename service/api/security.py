"""Who may ask: whoever has a token; and the checks that keep web pages from using a person's browser for it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.principals import Kind, Principal, Role
from service.access.sessions import COOKIE, Sessions
from service.access.tokens import Tokens, digest
from service.api.problems import respond
from service.contract.errors import Problem

#: Answers that are needed before one can have a token, and tell nothing of anybody's work.
OPEN_PATHS = frozenset(
    {"/api/v1/session", "/api/v1/health", "/api/v1/version", "/openapi.json", "/docs", "/docs/oauth2-redirect"}
)
OPEN_FILES = "/static-offline-docs/"
ANONYMOUS = Principal("anonymous", "anonymous", Role.MEMBER, Kind.SYSTEM)
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
BODY_TYPES = frozenset(
    {"application/json", "application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml", "application/vnd.yaml"}
)
MAX_BODY = 1 << 20


def is_loopback(host: str) -> bool:
    """Whether an address is one that only this machine has."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


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
    from_here: bool = True
    """Whether it comes from this machine."""
    fetch_mode: str | None = None
    cookie: str | None = None
    """Of a browser that is signed in."""
    asked_by_page: bool = False
    """It has a header that forms and other sites can't send."""


def judge(asking: Asking, tokens: Tokens, sessions: Sessions) -> tuple[Principal, str]:
    """Who asks, and the hash of the token by which that is known. Raises Problem when the request must not pass.

    Everybody needs a token, other accounts of this machine, too; the local account's is in a file that only it can
    read. As long as no other token was given out, only this machine is served, whatever address is listened on.
    Browsers on this machine are kept from being used by web pages: by the Host header (DNS rebinding), by the Origin,
    which must be the very host and port that is served, and by the content type (forms can't send JSON or YAML).
    """
    if not tokens.all():
        _check_place(asking)
    _check_origin(asking)
    known = _known(asking, tokens, sessions)
    if known is not None:
        return known
    if asking.path in OPEN_PATHS or asking.path.startswith(OPEN_FILES) or _is_site(asking):
        return ANONYMOUS, ""
    token = (asking.authorization or "").partition(" ")[2]
    said = tokens.why_not(token) if token else "The request carries no token."
    raise Problem(
        "unauthorized",
        said,
        "Send `Authorization: Bearer TOKEN`. The command line takes it from NAVARCH_TOKEN or, for the account that "
        "started the control plane, from the file `token` in its data folder (NAVARCH_DATA_DIR). For a browser, "
        "`navarch dashboard` prints a link that signs in.",
    )


def _known(asking: Asking, tokens: Tokens, sessions: Sessions) -> tuple[Principal, str] | None:
    """Whose token or cookie it is."""
    scheme, _, token = (asking.authorization or "").partition(" ")
    token = token.strip()
    if scheme.lower() == "bearer" and token:
        found = tokens.principal(token, from_here=asking.from_here)
        return (found, digest(token)) if found is not None else None
    if asking.cookie is None:
        return None
    if asking.method not in SAFE_METHODS and not asking.asked_by_page:
        raise Problem(
            "forbidden_origin",
            "A signed-in browser's request that changes something needs the header X-Requested-With.",
            "Programs send `Authorization: Bearer TOKEN` instead of the cookie.",
        )
    return sessions.principal(asking.cookie, from_here=asking.from_here)


def _is_site(asking: Asking) -> bool:
    """The dashboard's own files, which hold nothing of anybody."""
    path = asking.path
    return asking.method in SAFE_METHODS and not path.startswith("/api/") and path != "/metrics"


def _check_place(asking: Asking) -> None:
    """Nobody was given a token: only this machine is served, under its own name."""
    if not asking.from_here:
        raise Problem(
            "forbidden",
            "This control plane has no token that could be used from another machine.",
            "Make one on its machine: `navarch token new NAME`, or `navarch user add NAME` for somebody else.",
        )
    name = _hostname(asking.host)
    if not is_loopback(name):
        raise Problem(
            "forbidden_host",
            f"The Host header names {name or 'nothing'!r}; without a token only localhost is served.",
            "Use http://127.0.0.1 or http://localhost, or give the control plane a token.",
        )


def _check_origin(asking: Asking) -> None:
    """A page of another origin (another port of localhost is one) gets nothing; a link to here may be followed."""
    if asking.fetch_mode == "navigate" and asking.method in SAFE_METHODS:
        return
    foreign = asking.origin is not None and _place(asking.origin) != asking.host.lower()
    if foreign or asking.fetch_site in ("cross-site", "same-site"):
        raise Problem(
            "forbidden_origin",
            f"A page of {asking.origin or 'another site'} may not use this API.",
            "Programs send no Origin header; a reverse proxy must pass the Host header on.",
        )


def _place(origin: str) -> str:
    """host:port of an origin as browsers write it; empty for what is none."""
    scheme, separator, place = origin.partition("://")
    return place.lower() if separator and scheme in ("http", "https") else ""


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


def _hostname(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


class Gate:
    """ASGI middleware: judges each request, puts the principal into its state, and bounds its body."""

    def __init__(self, app: ASGIApp, tokens: Tokens, sessions: Sessions) -> None:
        self._app = app
        self._tokens, self._sessions = tokens, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = _headers(scope["headers"])
        asking = Asking(
            method=scope.get("method", "GET"),
            path=scope["path"],
            host=headers.get("host", ""),
            origin=headers.get("origin"),
            fetch_site=headers.get("sec-fetch-site"),
            content_type=headers.get("content-type"),
            has_body=headers.get("content-length", "0") != "0" or "transfer-encoding" in headers,
            authorization=headers.get("authorization"),
            from_here=_from_here(scope),
            fetch_mode=headers.get("sec-fetch-mode"),
            cookie=_cookie(headers.get("cookie", "")),
            asked_by_page="x-requested-with" in headers,
        )
        try:
            principal, proof = judge(asking, self._tokens, self._sessions)
            scope.setdefault("state", {}).update(
                principal=principal, proof=proof, cookie=asking.authorization is None, from_here=asking.from_here
            )
            check_body_type(asking)
            length = headers.get("content-length", "0")
            if not length.isdigit() or int(length) > MAX_BODY:
                raise _too_large()
        except Problem as problem:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": problem.code})
                return
            await respond(problem, asking.path)(scope, receive, send)
            return
        if "transfer-encoding" in headers:
            receive = _bounded(receive)
        await self._app(scope, receive, send)


def _from_here(scope: Scope) -> bool:
    """A connection to an address of this machine from that very address is one of its own."""
    client, server = scope.get("client"), scope.get("server")
    return client is not None and (is_loopback(client[0]) or (server is not None and client[0] == server[0]))


def _cookie(header: str) -> str | None:
    """The session's value in a Cookie header."""
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return None


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
