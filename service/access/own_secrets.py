"""Secrets of a person: set once, given to whatever they start, shown to nobody."""

from __future__ import annotations

from collections.abc import Mapping

from sqlmodel import Session, col, select

from jobs.values import parse_secrets
from service.access.principals import ENVIRONMENT, Principal
from service.access.secrets import SecretBox
from service.contract.errors import Problem
from service.store.database import Database
from service.store.events import record
from service.store.tables import Secret

_MOST, _LONGEST = 100, 64 * 1024


class OwnSecrets:
    def __init__(self, database: Database, box: SecretBox) -> None:
        self._database, self._box = database, box

    def set(self, name: str, value: str, actor: Principal) -> Secret:
        """Sets one, or another value of it; what starts from now on gets it. Raises Problem `invalid_request`."""
        if actor.id == ENVIRONMENT.id:
            raise Problem("invalid_request", "NAVARCH_TOKEN is nobody's own: it has no secrets.", None)
        try:
            parse_secrets({name: value})
        except ValueError as error:
            raise Problem("invalid_request", f"The secret {error}.", None) from None
        if not value or len(value) > _LONGEST:
            raise Problem("invalid_request", f"A secret has 1 to {_LONGEST} characters.", None)
        sealed = self._box.seal({name: value})
        assert sealed is not None
        with self._database.write() as session:
            if session.get(Secret, (actor.id, name)) is None and len(_rows(session, actor.id)) >= _MOST:
                raise Problem("invalid_request", f"You have {_MOST} secrets already.", "Remove one that is not needed.")
            row = session.merge(Secret(owner_id=actor.id, name=name, sealed=sealed))
            record(session, "secret.set", f"secret/{name}", f"{actor.name} set the secret {name}", actor=actor.id)
        return row

    def all(self, owner: Principal) -> list[Secret]:
        with self._database.read() as session:
            return _rows(session, owner.id)

    def remove(self, name: str, actor: Principal) -> bool:
        """False if there is none; what runs keeps it."""
        with self._database.write() as session:
            row = session.get(Secret, (actor.id, name))
            if row is None:
                return False
            session.delete(row)
            said = f"{actor.name} removed the secret {name}"
            record(session, "secret.removed", f"secret/{name}", said, actor=actor.id)
        return True


def given(
    session: Session, box: SecretBox, owner_id: str, *, sealed: bytes | None, env: Mapping[str, str]
) -> dict[str, str]:
    """What a container of somebody's is given: their secrets, and over them what its spec says."""
    own: dict[str, str] = {}
    for row in _rows(session, owner_id):
        own.update(box.open(row.sealed))
    return {**{name: value for name, value in own.items() if name not in env}, **box.open(sealed)}


def _rows(session: Session, owner_id: str) -> list[Secret]:
    return list(session.exec(select(Secret).where(Secret.owner_id == owner_id).order_by(col(Secret.name))))
