"""Who acts: everything that is asked for, and everything that belongs to somebody, names a principal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlmodel import Session, select

from service.contract.errors import Problem
from service.store import tables

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


class Role(StrEnum):
    ADMIN = "admin"
    MEMBER = "member"


class Kind(StrEnum):
    """How a principal shows who it is."""

    LOCAL = "local"
    """The account of this machine that runs the control plane, by the token file that only it can read."""
    TOKEN = "token"
    """By the token that NAVARCH_TOKEN gives to the control plane."""
    USER = "user"
    """A person, by tokens that were made for them."""
    SYSTEM = "system"
    """Navarch itself."""


@dataclass(frozen=True)
class Principal:
    """A row of the table, as a value."""

    id: str
    """Never given to anybody else."""
    name: str
    """What people are shown; nobody else's either."""
    role: Role
    kind: Kind

    @classmethod
    def of(cls, row: tables.Principal) -> Principal:
        return cls(row.id, row.name, Role(row.role), Kind(row.kind))


LOCAL = Principal(tables.LOCAL, "local", Role.ADMIN, Kind.LOCAL)
CONTROLLER = Principal(tables.CONTROLLER, "controller", Role.ADMIN, Kind.SYSTEM)
ENVIRONMENT = Principal("environment", "environment", Role.ADMIN, Kind.TOKEN)
"""Whoever has the token that NAVARCH_TOKEN gives to the control plane. A migration made the rows of these three."""


def names(session: Session) -> Mapping[str, str]:
    """What people are shown of each principal, by its id."""
    return dict(session.exec(select(tables.Principal.id, tables.Principal.name)).all())


def find(session: Session, principal_id: str) -> Principal:
    """Whoever has this id; a row that names one has its principal."""
    return Principal.of(session.exec(select(tables.Principal).where(tables.Principal.id == principal_id)).one())


def named(session: Session, name: str) -> Principal:
    """Whoever has this name and may come in. Raises Problem `user_not_found`."""
    row = session.exec(select(tables.Principal).where(tables.Principal.name == name)).first()
    if row is None or row.removed_at is not None or row.kind == Kind.SYSTEM:
        raise Problem("user_not_found", f"There is no user {name!r}.", "`navarch user ls` lists them.")
    return Principal.of(row)


def check_name(name: str, what: str) -> None:
    """Raises Problem `invalid_request` for what can't name a person or a token."""
    if not _NAME.fullmatch(name):
        said = f"{name!r} can't name a {what}."
        raise Problem("invalid_request", said, "Use 1 to 40 of a-z, 0-9, '.', '_' and '-'.")


def enter(session: Session, name: str, role: Role) -> Principal:
    """A new person. Raises Problem `name_taken`: a name is never given to anybody else."""
    check_name(name, "user")
    known = session.exec(select(tables.Principal).where(tables.Principal.name == name)).first()
    if known is not None:
        gone = "was the name of a user who was removed: what they did goes on to name them" if known.removed_at else ""
        raise Problem("name_taken", f"{name} {gone or 'is the name of somebody here'}.", "Choose another name.")
    row = tables.Principal(id=name, name=name, role=role.value, kind=Kind.USER.value)
    session.add(row)
    session.flush()  # others refer to it
    return Principal.of(row)


def check_admin(actor: Principal, what: str) -> None:
    """Raises Problem `admin_only`; `what` as in "Only an admin may …"."""
    if actor.role is not Role.ADMIN:
        raise Problem("admin_only", f"Only an admin may {what}.", "`navarch user ls` shows who is one.")


def check_owner(session: Session, actor: Principal, owner_id: str, what: str) -> None:
    """Members change what is theirs, admins everything. Raises Problem `not_yours` with whose it is."""
    refusal = not_yours(session, actor, owner_id, what)
    if refusal is not None:
        raise refusal


def not_yours(session: Session, actor: Principal, owner_id: str, what: str) -> Problem | None:
    """The refusal of `check_owner`, where there is one."""
    if actor.role is Role.ADMIN or actor.id == owner_id:
        return None
    owner = find(session, owner_id).name
    hint = f"You can look at it; ask {owner} or an admin to change it."
    return Problem("not_yours", f"{what} belongs to {owner}.", hint, owner=owner)


def only_own(session: Session, actor: Principal, jobs: Sequence[tables.Job | Problem]) -> list[tables.Job | Problem]:
    """The jobs that somebody may change, and why not the others."""
    return [
        job if isinstance(job, Problem) else not_yours(session, actor, job.owner_id, f"Job {job.name}") or job
        for job in jobs
    ]
