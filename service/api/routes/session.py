"""`/session`: who asks, and how a browser signs in and out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.access.principals import Principal
from service.access.sessions import COOKIE, LASTS_S
from service.access.tokens import digest
from service.api.bodies import BoundedRoute
from service.api.problems import RESPONSES
from service.api.state import principal_of, state_of
from service.contract import pages
from service.contract.errors import Problem

router = APIRouter(route_class=BoundedRoute, tags=["control plane"], responses=RESPONSES)


@router.get("/session", response_model=pages.Session, summary="Who asks")
def who(request: Request) -> pages.Session:
    """Whoever the token or the cookie belongs to."""
    if not request.state.proof:
        raise Problem("unauthorized", "Nobody is signed in.", "`navarch dashboard` prints a link that signs in.")
    return _shown(principal_of(request), request.state.cookie)


@router.post("/session", response_model=pages.Session, summary="Sign in")
def sign_in(request: Request, body: pages.SessionRequest) -> Response:
    """Gives a browser its cookie, for a token or for the code of a link (`unauthorized` when it is none)."""
    state = state_of(request)
    proof = state.sessions.redeem(body.code) if body.code else digest(body.token or "")
    found = state.tokens.by_digest(proof or "", from_here=request.state.from_here)
    if found is None or proof is None:
        said = "The link was used already, or is older than ten minutes." if body.code else "This token is not known."
        raise Problem("unauthorized", said, "`navarch dashboard` prints a new link; an admin makes tokens.")
    answer = Response(_shown(found, True).model_dump_json(), media_type="application/json")
    answer.set_cookie(
        COOKIE,
        state.sessions.cookie(proof),
        max_age=int(LASTS_S),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.delete("/session", status_code=204, response_class=Response, summary="Sign out")
def sign_out(request: Request) -> Response:
    """Takes the cookie away from the browser."""
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


@router.post("/session/link", response_model=pages.SessionLink, status_code=201, summary="A link that signs in")
def link(request: Request) -> pages.SessionLink:
    """A path with a code in it: whoever opens it within ten minutes, once, is signed in as whoever asked for it."""
    return pages.SessionLink(path=f"/?code={state_of(request).sessions.code(request.state.proof)}")


def _shown(principal: Principal, session: bool) -> pages.Session:
    return pages.Session(name=principal.name, role=principal.role.value, session=session)
