"""The SSH keys that containers authorise, and whose they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlmodel import Session, col, or_, select

from service.access.principals import Principal, check_admin, check_owner
from service.contract.ssh_keys import PublicKey
from service.store import tables
from service.store.database import Database
from service.store.events import record
from service.store.tables import SshKey


@dataclass(frozen=True)
class Authorised:
    """A key, and whose containers it opens: its owner's, or everybody's."""

    key: PublicKey
    owner: Principal
    everywhere: bool


class KeyRing:
    """A person may have several keys, and two may share one."""

    def __init__(self, database: Database, changed: Callable[[], None] = lambda: None) -> None:
        """`changed`: told when containers have to authorise others from now on."""
        self._database, self._changed = database, changed

    def all(self) -> list[Authorised]:
        """In the order in which they were added."""
        query = (
            select(SshKey, tables.Principal)
            .join(tables.Principal, col(tables.Principal.id) == col(SshKey.owner_id))
            .order_by(col(SshKey.created_at), col(SshKey.fingerprint))
        )
        with self._database.read() as session:
            rows = session.exec(query).all()
        return [Authorised(PublicKey.parse(row.line), Principal.of(owner), row.everywhere) for row, owner in rows]

    def add(
        self, key: PublicKey, owner: Principal, *, actor: Principal | None = None, everywhere: bool = False
    ) -> bool:
        """Add somebody's key; False if they had it already. Raises Problem `not_yours`, `admin_only`."""
        actor = actor or owner
        if everywhere:
            check_admin(actor, "authorise a key in everybody's containers")
        with self._database.write() as session:
            check_owner(session, actor, owner.id, "A key of somebody else's")
            row = session.get(SshKey, (owner.id, key.fingerprint))
            if row is not None and row.everywhere == everywhere:
                return False
            where = " in all containers" if everywhere else ""
            said = f"the key {key.fingerprint} of {owner.name} is authorised{where}"
            record(session, "key.added", f"key/{key.fingerprint}", said, actor=actor.id)
            new = row is None
            row = row or SshKey(owner_id=owner.id, fingerprint=key.fingerprint, line=key.line)
            row.everywhere = everywhere
            session.add(row)
        self._changed()
        return new

    def remove(self, fingerprint: str, owner: Principal, *, actor: Principal | None = None) -> bool:
        """Take somebody's key out; False if they don't have it. Raises Problem `not_yours`."""
        actor = actor or owner
        with self._database.write() as session:
            check_owner(session, actor, owner.id, f"The key {fingerprint}")
            row = session.get(SshKey, (owner.id, fingerprint))
            if row is None:
                return False
            session.delete(row)
            said = f"the key {fingerprint} of {owner.name} is not authorised any more"
            record(session, "key.removed", f"key/{fingerprint}", said, actor=actor.id)
        self._changed()
        return True


def authorized_keys(session: Session, owner_id: str) -> str:
    """What goes into the authorized_keys of somebody's containers."""
    own = or_(col(SshKey.owner_id) == owner_id, col(SshKey.everywhere))
    rows = session.exec(select(SshKey).where(own).order_by(col(SshKey.created_at), col(SshKey.fingerprint)))
    lines = {row.fingerprint: PublicKey.parse(row.line).line for row in rows}
    return "".join(line + "\n" for line in lines.values())
