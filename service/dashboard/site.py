"""Serves the dashboard's built files: the page for every address of its own, hashed files for ever, nothing inline."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

DIST = Path(__file__).parent / "dist"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Navarch</title>
<p>The dashboard has not been built in this checkout. <code>bash scripts/dashboard.sh</code> does that; the REST API
and the command line work without it. <a href="/docs">The API's pages</a></p></html>"""


def install(app: FastAPI) -> None:
    """Adds the dashboard below everything else: what is no file of it and no API is its page."""
    app.router.routes.append(_Pages("/{path:path}", _serve, methods=["GET"], include_in_schema=False))


class _Pages(Route):
    """Every address but the API's: those answer for themselves, and say which methods they have."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.NONE, {}) if scope["path"].startswith("/api/") else super().matches(scope)


def _serve(request: Request) -> Response:
    path: str = request.path_params["path"]
    if path.startswith("assets/") or "." in path.rpartition("/")[2]:
        return _file(path)
    page = DIST / "index.html"
    if not page.is_file():
        return HTMLResponse(_MISSING, 404, headers={"X-Content-Type-Options": "nosniff"})
    headers = {**_HEADERS, "Cache-Control": "no-cache", "X-Navarch-Version": version("navarch")}
    return FileResponse(page, headers=headers, media_type="text/html")


def _file(path: str) -> Response:
    from service.contract.errors import Problem

    target = (DIST / path).resolve()
    if not target.is_relative_to(DIST.resolve()) or not target.is_file():
        raise Problem("not_found", f"There is nothing at /{path[:200]}.")
    kept = "public, max-age=31536000, immutable" if path.startswith("assets/") else "no-cache"
    return FileResponse(target, headers={**_HEADERS, "Cache-Control": kept})
