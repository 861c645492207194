"""Who acts: everything that is asked for, and everything that belongs to somebody, names a principal."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
    id: str
    """Never given to anybody else."""
    name: str
    role: Role
    kind: Kind


LOCAL = Principal("local", "local", Role.ADMIN, Kind.LOCAL)
CONTROLLER = Principal("controller", "controller", Role.ADMIN, Kind.SYSTEM)
ENVIRONMENT = Principal("token:environment", "environment", Role.ADMIN, Kind.TOKEN)
"""Whoever has the token that NAVARCH_TOKEN gives to the control plane."""


def of_token(name: str) -> Principal:
    """A token's principal; one that is withdrawn and made again under its name is the same one's."""
    return Principal(f"token:{name}", name, Role.ADMIN, Kind.TOKEN)
