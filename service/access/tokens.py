"""API tokens: random, shown once, kept as hashes only; and the local account's, which stands in a file.

The account that runs the control plane needs no set-up: its token stands in the file `token` of the data folder, which
only that account can read. The command line and the Python client look there by themselves; with curl it is
`-H "Authorization: Bearer $(cat ~/.navarch/token)"`. It counts for requests from this machine only.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sqlmodel import col, select

from service.access.principals import ENVIRONMENT, LOCAL, Kind, Principal, check_name, check_owner
from service.access.private import private_file
from service.contract.errors import Problem
from service.locations import LOCAL_TOKEN
from service.store import tables
from service.store.database import Database
from service.store.events import record

PREFIX = "nav_"
FIRST = "first"
"""Name of the token that is made when there is none and others than this machine are listened to."""
_USED_EVERY_S = 60.0


def digest(token: str) -> str:
    """What is kept of a token. Tokens carry 256 random bits, so that a plain hash can't be searched."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class Token:
    name: str
    sha256: str
    created_at: float
    principal: Principal
    expires_at: float | None = None
    last_used_at: float | None = None

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= time.time()


def ensure_local_token(data_dir: Path) -> str:
    """The local account's token; made at the first call."""
    file = data_dir / LOCAL_TOKEN
    if not file.exists():
        private_file(file, PREFIX + secrets.token_urlsafe(32) + "\n")
    return file.read_text().strip()


class Tokens:
    """The tokens that a control plane accepts: its table's, the one of its environment, and the local account's.

    Every change goes through this object, so that what was read once is asked for at each request without a query.
    """

    def __init__(self, database: Database, data_dir: Path, given: str | None = None) -> None:
        self.folder = data_dir
        self.database = database
        self._given = Token("environment", digest(given), 0.0, ENVIRONMENT) if given else None
        self._lock = threading.Lock()
        self._known: Mapping[str, Token] | None = None
        self._used: dict[str, float] = {}
        """By hash: uses that are not written yet."""
        self._local: tuple[tuple[int, int], str] | None = None

    def all(self) -> list[Token]:
        """Those that somebody gave out; the local account's is none of them."""
        return ([self._given] if self._given else []) + list(self._kept().values())

    def principal(self, token: str, *, from_here: bool) -> Principal | None:
        """Whose token it is; None when it isn't accepted.

        `from_here`: the request comes from this machine.
        """
        return self.by_digest(digest(token), from_here=from_here)

    def by_digest(self, hashed: str, *, from_here: bool) -> Principal | None:
        """The same for a token's hash, such as the one that a signed-in browser's cookie was got with.

        How long the search takes tells something about hashes only, from which no token can be found.
        """
        found = self._kept().get(hashed)
        if found is not None:
            if found.expired:
                return None
            self._used[hashed] = time.time()
            return found.principal
        if self._given is not None and hmac.compare_digest(self._given.sha256, hashed):
            return ENVIRONMENT
        local = self._local_digest()
        return LOCAL if from_here and local is not None and hmac.compare_digest(local, hashed) else None

    def why_not(self, token: str) -> str:
        """Why a token is not accepted, for whoever has it."""
        found = self._kept().get(digest(token.strip()))
        if found is None or found.expires_at is None:
            return "The token is not one of this control plane's."
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.expires_at))
        return f"The token {found.name} of {found.principal.name} expired on {when}."

    def create(
        self, name: str, actor: Principal = LOCAL, *, owner: Principal | None = None, lasts_s: float | None = None
    ) -> str:
        """Make a token of somebody's (by default one's own) and return it: the only time that it can be seen.

        Raises Problem.
        """
        owner = owner or actor
        if owner.id == ENVIRONMENT.id:
            raise Problem("invalid_request", "NAVARCH_TOKEN is nobody's own.", "Say whose it is to be: `--user NAME`.")
        check_name(name, "token")
        token = PREFIX + secrets.token_urlsafe(32)
        with self._lock, self.database.write() as session:
            check_owner(session, actor, owner.id, "A token of somebody else's")
            if session.get(tables.Token, (owner.id, name)) is not None:
                said = f"{owner.name} has a token named {name}."
                raise Problem("name_taken", said, f"Withdraw it with `navarch token rm {name}`.")
            until = time.time() + lasts_s if lasts_s is not None else None
            row = tables.Token(name=name, sha256=digest(token), principal_id=owner.id, expires_at=until)
            session.add(row)
            said = f"{actor.name} made the token {name} of {owner.name}"
            record(session, "token.made", f"token/{name}", said, actor=actor.id)
            self._known = None
        return token

    def remove(self, name: str, actor: Principal = LOCAL, *, owner: Principal | None = None) -> bool:
        """Withdraw a token, at once; False if there is none of this name. Whose it was stays who they are."""
        owner = owner or actor
        with self._lock, self.database.write() as session:
            check_owner(session, actor, owner.id, f"The token {name}")
            row = session.get(tables.Token, (owner.id, name))
            if row is None:
                return False
            session.delete(row)
            said = f"{actor.name} withdrew the token {name} of {owner.name}"
            record(session, "token.withdrawn", f"token/{name}", said, actor=actor.id)
            self._known = None
        return True

    def changed(self) -> None:
        """Somebody's role has changed, or they and their tokens are gone: the next request looks anew."""
        self._known = None

    def write_uses(self) -> None:
        """Writes when tokens were last used, where that has changed by a minute."""
        before = {hashed: token.last_used_at or 0.0 for hashed, token in self._kept().items()}
        news = {hashed: at for hashed, at in dict(self._used).items() if at - before.get(hashed, at) > _USED_EVERY_S}
        if not news:
            return
        with self._lock, self.database.write() as session:
            for row in session.exec(select(tables.Token).where(col(tables.Token.sha256).in_(news))):
                row.last_used_at = news[row.sha256]
            self._known = None

    def _kept(self) -> Mapping[str, Token]:
        """By hash, the oldest first."""
        known = self._known
        if known is None:
            with self._lock, self.database.read() as session:
                query = (
                    select(tables.Token, tables.Principal)
                    .join(tables.Principal, col(tables.Principal.id) == col(tables.Token.principal_id))
                    .order_by(col(tables.Token.created_at), col(tables.Token.name))
                )
                known = self._known = {
                    row.sha256: Token(
                        row.name,
                        row.sha256,
                        row.created_at,
                        replace(Principal.of(whose), kind=Kind.USER),  # from elsewhere nobody is the local account
                        row.expires_at,
                        row.last_used_at,
                    )
                    for row, whose in session.exec(query)
                }
        return known

    def _local_digest(self) -> str | None:
        """Of the local account's token, read again when its file has changed."""
        file = self.folder / LOCAL_TOKEN
        try:
            status = file.stat()
        except FileNotFoundError:
            return None
        stamp = (status.st_mtime_ns, status.st_ino)
        if self._local is None or self._local[0] != stamp:
            self._local = (stamp, digest(file.read_text().strip()))
        return self._local[1]
