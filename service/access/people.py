"""The people who use a control plane: added, given a role, removed. What they hold and may hold is told with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from sqlalchemy import delete
from sqlmodel import Session, col, select

from jobs.states import TERMINAL
from service.access.principals import LOCAL, Kind, Principal, Role, check_admin, check_owner, enter, named
from service.access.tokens import Tokens
from service.contract.errors import Problem
from service.store import tables
from service.store.database import Database
from service.store.events import record

_SHOWN = 5


class People:
    def __init__(self, database: Database, tokens: Tokens, changed: Callable[[], None] = lambda: None) -> None:
        """`changed`: told when what somebody may has changed."""
        self._database, self._tokens, self._changed = database, tokens, changed

    def add(self, name: str, role: Role, actor: Principal = LOCAL) -> Principal:
        """A new person. Raises Problem `name_taken`, `admin_only`."""
        check_admin(actor, "add users")
        with self._database.write() as session:
            made = enter(session, name, role)
            record(session, "user.added", f"user/{name}", f"{actor.name} added {name}, {role}", actor=actor.id)
        return made

    def find(self, name: str, actor: Principal) -> Principal:
        """The person that a request names, or who asks. Raises Problem `user_not_found`."""
        if name in ("", actor.name):
            return actor
        with self._database.read() as session:
            return named(session, name)

    def own(self, name: str, actor: Principal, what: str) -> Principal:
        """The same, where it must be who asks, or an admin asks. Raises Problem `not_yours`."""
        found = self.find(name, actor)
        with self._database.read() as session:
            check_owner(session, actor, found.id, what)
        return found

    def give_role(self, name: str, role: Role, actor: Principal = LOCAL) -> Principal:
        """Raises Problem; the accounts of the control plane itself are admins for ever."""
        check_admin(actor, "give roles")
        with self._database.write() as session:
            row = _person(session, name, "is given no role")
            if row.role != role:
                row.role = role.value
                record(session, "user.role", f"user/{name}", f"{name} is {role} now", actor=actor.id)
        self._tokens.changed()
        self._changed()
        return Principal.of(row)

    def limit(self, name: str, change: Mapping[str, int | None], actor: Principal = LOCAL) -> None:
        """Sets limits of what they may hold, or lifts them (None). What they have already stays. Raises Problem."""
        check_admin(actor, "set quotas")
        with self._database.write() as session:
            row = session.exec(select(tables.Principal).where(tables.Principal.id == named(session, name).id)).one()
            merged = {**row.quota, **change}
            row.quota = {kind: most for kind, most in merged.items() if most is not None}
            said = ", ".join(f"{most} {kind}" for kind, most in row.quota.items()) or "no limit"
            record(session, "user.quota", f"user/{name}", f"the quota of {name}: {said}", actor=actor.id)
        self._changed()

    def remove(self, name: str, actor: Principal = LOCAL) -> None:
        """Takes away their tokens, keys and secrets. Raises Problem `user_busy` while they have something here."""
        check_admin(actor, "remove users")
        with self._database.write() as session:
            row = _person(session, name, "can't be removed")
            left = _left(session, row.id)
            if left:
                more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
                said = f"{name} still has {', '.join(left[:_SHOWN])}{more}."
                raise Problem("user_busy", said, "Stop or remove that first: an admin may.", holds=left)
            row.removed_at = time.time()
            session.exec(delete(tables.Token).where(col(tables.Token.principal_id) == row.id))
            session.exec(delete(tables.SshKey).where(col(tables.SshKey.owner_id) == row.id))
            session.exec(delete(tables.Secret).where(col(tables.Secret.owner_id) == row.id))
            record(session, "user.removed", f"user/{name}", f"{actor.name} removed {name}", actor=actor.id)
        self._tokens.changed()
        self._changed()


def _person(session: Session, name: str, refusal: str) -> tables.Principal:
    """The row of a person. Raises Problem for the accounts of the control plane itself."""
    found = named(session, name)
    if found.kind is not Kind.USER:
        raise Problem("invalid_request", f"{name} is an account of the control plane itself and {refusal}.", None)
    return session.exec(select(tables.Principal).where(tables.Principal.id == found.id)).one()


def _left(session: Session, owner_id: str) -> list[str]:
    """What somebody still has here: jobs that have not ended, workspaces."""
    terminal = [state.value for state in TERMINAL]
    jobs = select(tables.Job).where(tables.Job.owner_id == owner_id, col(tables.Job.state).not_in(terminal))
    workspaces = select(tables.Workspace).where(tables.Workspace.owner_id == owner_id)
    return [
        *(f"the job {job.name} ({job.state})" for job in session.exec(jobs)),
        *(f"the workspace {workspace.name} ({workspace.state})" for workspace in session.exec(workspaces)),
    ]
