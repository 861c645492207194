"""The SSH keys that containers authorise, and whose they are."""

from __future__ import annotations

from sqlmodel import col, select

from service.access.principals import Principal
from service.contract.ssh_keys import PublicKey
from service.store.database import Database
from service.store.events import record
from service.store.tables import SshKey


class KeyRing:
    """The keys that every new container authorises: a person may have several, and two may share one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[PublicKey]:
        """Each key once, in the order in which they were added."""
        with self._database.read() as session:
            rows = session.exec(select(SshKey).order_by(col(SshKey.created_at), col(SshKey.fingerprint))).all()
        lines: dict[str, str] = {}
        for row in rows:
            lines.setdefault(row.fingerprint, row.line)
        return [PublicKey.parse(line) for line in lines.values()]

    def add(self, key: PublicKey, owner: Principal) -> bool:
        """Add somebody's key; False if they had it already."""
        with self._database.write() as session:
            if session.get(SshKey, (owner.id, key.fingerprint)) is not None:
                return False
            session.add(SshKey(owner_id=owner.id, fingerprint=key.fingerprint, line=key.line))
            said = f"the key {key.fingerprint} of {owner.name} is authorised"
            record(session, "key.added", f"key/{key.fingerprint}", said, actor=owner.id)
            return True

    def remove(self, fingerprint: str, actor: Principal) -> bool:
        """Take a key out, whoever has it; False if nobody has. Running containers keep it."""
        with self._database.write() as session:
            rows = session.exec(select(SshKey).where(SshKey.fingerprint == fingerprint)).all()
            for row in rows:
                session.delete(row)
            if rows:
                said = f"the key {fingerprint} is not authorised any more"
                record(session, "key.removed", f"key/{fingerprint}", said, actor=actor.id)
            return bool(rows)


def authorized_keys(database: Database) -> str:
    """What goes into a container's authorized_keys."""
    return "".join(key.line + "\n" for key in KeyRing(database).all())
