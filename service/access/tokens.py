"""API tokens: random, shown once, kept as hashes only; and the local account's, which stands in a file.

The account that runs the control plane needs no set-up: its token stands in the file `token` of the data folder, which
only that account can read. The command line and the Python client look there by themselves; with curl it is
`-H "Authorization: Bearer $(cat ~/.navarch/token)"`. It counts for requests from this machine only.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import col, select

from service.access import principals
from service.access.principals import ENVIRONMENT, LOCAL, Kind, Principal
from service.access.private import private_file
from service.contract.errors import Problem
from service.locations import LOCAL_TOKEN
from service.store import tables
from service.store.database import Database
from service.store.events import record

PREFIX = "nav_"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


def digest(token: str) -> str:
    """What is kept of a token. Tokens carry 256 random bits, so that a plain hash can't be searched."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class Token:
    name: str
    sha256: str
    created_at: float
    principal: Principal


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
        self._database = database
        self._given = Token("environment", digest(given), 0.0, ENVIRONMENT) if given else None
        self._lock = threading.Lock()
        self._known: Mapping[str, Token] | None = None
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
            return found.principal
        if self._given is not None and hmac.compare_digest(self._given.sha256, hashed):
            return ENVIRONMENT
        local = self._local_digest()
        return LOCAL if from_here and local is not None and hmac.compare_digest(local, hashed) else None

    def create(self, name: str, actor: Principal = LOCAL) -> str:
        """Make a token and return it: the only time that it can be seen. Raises Problem."""
        if not _NAME.fullmatch(name):
            raise Problem(
                "invalid_request", f"{name!r} can't name a token.", "Use 1 to 40 of a-z, 0-9, '.', '_' and '-'."
            )
        token = PREFIX + secrets.token_urlsafe(32)
        with self._lock, self._database.write() as session:
            if session.get(tables.Token, name) is not None:
                raise Problem(
                    "name_taken", f"There is a token named {name}.", f"Withdraw it with `navarch token rm {name}`."
                )
            try:
                whose = principals.enter(session, name, Kind.TOKEN)
            except ValueError:
                raise Problem("name_taken", f"{name} is somebody else's name here.", "Choose another.") from None
            session.add(tables.Token(name=name, sha256=digest(token), principal_id=whose.id))
            record(session, "token.made", f"token/{name}", f"{actor.name} made the token {name}", actor=actor.id)
            self._known = None
        return token

    def remove(self, name: str, actor: Principal = LOCAL) -> bool:
        """Withdraw a token, at once; False if there is none of this name. Whose it was stays who they are."""
        with self._lock, self._database.write() as session:
            row = session.get(tables.Token, name)
            if row is None:
                return False
            session.delete(row)
            said = f"{actor.name} withdrew the token {name}"
            record(session, "token.withdrawn", f"token/{name}", said, actor=actor.id)
            self._known = None
        return True

    def _kept(self) -> Mapping[str, Token]:
        """By hash, the oldest first."""
        known = self._known
        if known is None:
            with self._lock, self._database.read() as session:
                query = (
                    select(tables.Token, tables.Principal)
                    .join(tables.Principal, col(tables.Principal.id) == col(tables.Token.principal_id))
                    .order_by(col(tables.Token.created_at), col(tables.Token.name))
                )
                known = self._known = {
                    row.sha256: Token(row.name, row.sha256, row.created_at, Principal.of(whose))
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
