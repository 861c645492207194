"""`/users`, `/tokens` and `/keys`: who uses this control plane, and by what they are known."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from sqlmodel import Session, col, select

from service.access.keys import Authorised
from service.access.principals import Kind, Role, named
from service.access.quotas import held
from service.api.bodies import BoundedRoute
from service.api.problems import RESPONSES
from service.api.state import principal_of, state_of
from service.contract import people as contract
from service.contract.errors import Problem
from service.contract.schemas import Page
from service.contract.ssh_keys import PublicKey
from service.store import tables

router = APIRouter(route_class=BoundedRoute, responses=RESPONSES)
FIRST_TOKEN = "first"

UserName = Annotated[str, Path(description="A user's name.", max_length=100)]
SecretName = Annotated[str, Path(description="A variable's name, such as HF_TOKEN.", max_length=200)]
Whose = Annotated[str, Query(description="Whose; by default one's own.", max_length=100)]


@router.get("/users", response_model=Page[contract.User], tags=["people"], summary="List users")
def users(request: Request) -> Response:
    """Everybody who uses this control plane, with what they hold."""
    with state_of(request).database.read() as session:
        page = Page[contract.User](items=_users(session))
    return Response(page.model_dump_json(), media_type="application/json")


@router.post("/users", response_model=contract.User, status_code=201, tags=["people"], summary="Add a user")
def add_user(request: Request, body: contract.UserRequest) -> contract.User:
    """The answer has their first token, and nothing else ever shows it."""
    state, actor = state_of(request), principal_of(request)
    made = state.people.add(body.name, Role(body.role), actor)
    limits = body.quota.model_dump(exclude_none=True)
    if limits:
        state.people.limit(made.name, limits, actor)
    token = state.tokens.create(FIRST_TOKEN, actor, owner=made)
    return _user(request, made.name).model_copy(update={"token": token})


@router.get("/users/{name}", response_model=contract.User, tags=["people"], summary="Look at a user")
def user(request: Request, name: UserName) -> contract.User:
    return _user(request, name)


@router.patch("/users/{name}", response_model=contract.User, tags=["people"], summary="Change what a user may")
def change_user(request: Request, name: UserName, body: contract.UserChange) -> contract.User:
    """What the body leaves out stays as it is."""
    state, actor = state_of(request), principal_of(request)
    if body.role is not None:
        state.people.give_role(name, Role(body.role), actor)
    if body.quota is not None:
        state.people.limit(name, body.quota.model_dump(exclude_unset=True), actor)
    return _user(request, name)


@router.delete("/users/{name}", status_code=204, response_class=Response, tags=["people"], summary="Remove a user")
def remove_user(request: Request, name: UserName) -> Response:
    """Their tokens and keys count no more. Refused (`user_busy`) while they have jobs that run, or workspaces."""
    state_of(request).people.remove(name, principal_of(request))
    return Response(status_code=204)


def _users(session: Session) -> list[contract.User]:
    rows = select(tables.Principal).where(
        col(tables.Principal.removed_at).is_(None), col(tables.Principal.kind) != Kind.SYSTEM.value
    )
    return [
        _shown(session, row)
        for row in session.exec(rows.order_by(col(tables.Principal.created_at), col(tables.Principal.name)))
    ]


def _shown(session: Session, row: tables.Principal) -> contract.User:
    gpus = held(session, "gpus", row.id)
    return contract.User(
        name=row.name,
        role=row.role,
        created_at=row.created_at,
        quota=contract.Quota(**row.quota),
        gpus=sum(one.amount for one in gpus),
        workspaces=len(held(session, "workspaces", row.id)),
        jobs=len(held(session, "jobs", row.id)),
        holds=[f"{one.what}: {one.amount}" for one in gpus],
    )


def _user(request: Request, name: str) -> contract.User:
    with state_of(request).database.read() as session:
        found = named(session, name)
        return next(item for item in _users(session) if item.name == found.name)


@router.get("/tokens", response_model=contract.Tokens, tags=["people"], summary="List tokens")
def tokens(request: Request, user: Annotated[str | None, Query(max_length=100)] = None) -> contract.Tokens:
    """Their names, never themselves: one's own, or somebody's for an admin, who without `user` sees all."""
    state, actor = state_of(request), principal_of(request)
    everybody = user is None and actor.role is Role.ADMIN
    owner = state.people.own(user or "", actor, "What is known of tokens")
    items = [token for token in state.tokens.all() if everybody or token.principal.id == owner.id]
    return contract.Tokens(
        items=[
            contract.Token(
                name=token.name,
                user=token.principal.name,
                created_at=token.created_at,
                expires_at=token.expires_at,
                last_used_at=token.last_used_at,
            )
            for token in items
        ]
    )


@router.post("/tokens", response_model=contract.Token, status_code=201, tags=["people"], summary="Make a token")
def add_token(request: Request, body: contract.TokenRequest) -> contract.Token:
    """The answer shows it, and nothing else ever does."""
    state, actor = state_of(request), principal_of(request)
    owner = state.people.own(body.user, actor, "A token of somebody else's")
    token = state.tokens.create(body.name, actor, owner=owner, lasts_s=body.lasts)
    now = time.time()
    until = now + body.lasts if body.lasts is not None else None
    return contract.Token(name=body.name, user=owner.name, created_at=now, expires_at=until, token=token)


@router.delete("/tokens/{name}", status_code=204, tags=["people"], summary="Withdraw a token")
def remove_token(request: Request, name: Annotated[str, Path(max_length=100)], user: Whose = "") -> None:
    """Whatever uses it is refused from now on."""
    state, actor = state_of(request), principal_of(request)
    owner = state.people.own(user, actor, f"The token {name}")
    if not state.tokens.remove(name, actor, owner=owner):
        raise Problem("not_found", f"{owner.name} has no token {name!r}.", "GET /tokens lists them.")


@router.get("/secrets", response_model=contract.Secrets, tags=["people"], summary="List one's secrets")
def secrets(request: Request) -> contract.Secrets:
    """Their names; a value is shown to nobody."""
    rows = state_of(request).secrets.all(principal_of(request))
    return contract.Secrets(items=[contract.Secret(name=row.name, set_at=row.set_at) for row in rows])


@router.put("/secrets/{name}", response_model=contract.Secret, tags=["people"], summary="Set a secret")
def set_secret(request: Request, name: SecretName, body: contract.SecretRequest) -> contract.Secret:
    """One's jobs and workspaces that start from now on have it as a variable, through /run/navarch/env."""
    row = state_of(request).secrets.set(name, body.value, principal_of(request))
    return contract.Secret(name=row.name, set_at=row.set_at)


@router.delete("/secrets/{name}", status_code=204, tags=["people"], summary="Remove a secret")
def remove_secret(request: Request, name: SecretName) -> None:
    """What runs keeps it."""
    if not state_of(request).secrets.remove(name, principal_of(request)):
        raise Problem("not_found", f"You have no secret {name!r}.", "GET /secrets lists them.")


@router.get("/keys", response_model=Page[contract.Key], tags=["people"], summary="List authorised keys")
def keys(request: Request, user: Annotated[str | None, Query(max_length=100)] = None) -> Response:
    """The public keys that containers authorise: everybody's, or somebody's."""
    state = state_of(request)
    owner = state.people.find(user, principal_of(request)) if user is not None else None
    found = [_key(one) for one in state.keys.all() if owner is None or one.owner.id == owner.id]
    return Response(Page[contract.Key](items=found).model_dump_json(), media_type="application/json")


@router.post(
    "/keys",
    response_model=contract.Key,
    status_code=201,
    tags=["people"],
    summary="Authorise a key",
    responses={200: {"model": contract.Key, "description": "It was authorised already"}},
)
def add_key(request: Request, body: contract.KeyRequest) -> Response:
    """Their owner's containers authorise it within seconds. Adding it again changes nothing (200)."""
    state, actor = state_of(request), principal_of(request)
    owner = state.people.own(body.user, actor, "A key of somebody else's")
    key = PublicKey.parse(body.public_key)
    added = state.keys.add(key, owner, actor=actor, everywhere=body.everywhere)
    shown = _key(Authorised(key, owner, body.everywhere))
    return Response(shown.model_dump_json(), 201 if added else 200, media_type="application/json")


@router.delete(
    "/keys/{fingerprint:path}", status_code=204, response_class=Response, tags=["people"], summary="Remove a key"
)
def remove_key(request: Request, fingerprint: Annotated[str, Path(max_length=200)], user: Whose = "") -> Response:
    """No container authorises it any more, within seconds; who is logged in by it stays so."""
    state, actor = state_of(request), principal_of(request)
    owner = state.people.own(user, actor, f"The key {fingerprint}")
    if not state.keys.remove(fingerprint, owner, actor=actor):
        raise Problem("not_found", f"{owner.name} has no key {fingerprint!r}.", "GET /keys lists them.")
    return Response(status_code=204)


def _key(one: Authorised) -> contract.Key:
    key = one.key
    return contract.Key(
        fingerprint=key.fingerprint,
        type=key.type,
        comment=key.comment,
        public_key=key.line,
        user=one.owner.name,
        everywhere=one.everywhere,
    )
