"""Who acts: everything that is asked for, and everything that belongs to somebody, names a principal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sqlmodel import Session, select

from service.store import tables


class Role(StrEnum):
    ADMIN = "admin"
    MEMBER = "member"


class Kind(StrEnum):
    """How a principal shows who it is."""

    LOCAL = "local"
    """The account of this machine that runs the control plane, by the token file that only it can read."""
    TOKEN = "token"
    USER = "user"
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


def enter(session: Session, name: str, kind: Kind, role: Role = Role.ADMIN) -> Principal:
    """The principal of this name and kind, made now if there is none; None of another kind ever has the same name.

    Raises ValueError when a principal of another kind has it.
    """
    row = session.exec(select(tables.Principal).where(tables.Principal.name == name)).first()
    if row is None:
        row = tables.Principal(id=name, name=name, role=role.value, kind=kind.value)
        session.add(row)
        session.flush()  # others refer to it
    if row.kind != kind.value:
        raise ValueError(f"{name} is the name of a principal that is no {kind.value}")
    return Principal.of(row)
