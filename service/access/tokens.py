"""API tokens: random, shown once, kept as hashes only, in `tokens.json` of the data folder; and the local account's.

The account that runs the control plane needs no set-up: its token stands in the file `token` of the data folder, which
only that account can read. The command line and the Python client look there by themselves; with curl it is
`-H "Authorization: Bearer $(cat ~/.navarch/token)"`. It counts for requests from this machine only.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from service.access.principals import ENVIRONMENT, LOCAL, Principal, of_token
from service.access.private import private_file, private_folder
from service.contract.errors import Problem
from service.locations import LOCAL_TOKEN

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


def ensure_local_token(data_dir: Path) -> str:
    """The local account's token; made at the first call."""
    file = data_dir / LOCAL_TOKEN
    if not file.exists():
        private_file(file, PREFIX + secrets.token_urlsafe(32) + "\n")
    return file.read_text().strip()


class Tokens:
    """The tokens that a control plane accepts: those in its files, and the one that its environment gives.

    The files are read again when they change, so that a new or withdrawn token counts at once.
    """

    def __init__(self, data_dir: Path, given: str | None = None) -> None:
        self.folder = data_dir
        self._file = data_dir / "tokens.json"
        self._given = Token("environment", digest(given), 0.0) if given else None
        self._kept = _Cached(self._file, lambda text: [Token(**entry) for entry in json.loads(text)])
        self._local = _Cached(data_dir / LOCAL_TOKEN, lambda text: [Token("local", digest(text.strip()), 0.0)])

    def all(self) -> list[Token]:
        """Those that somebody gave out; the local account's is none of them."""
        return ([self._given] if self._given else []) + self._kept.read()

    def principal(self, token: str, *, from_here: bool) -> Principal | None:
        """Whose token it is; None when it isn't accepted. Takes the same time for every wrong one.

        `from_here`: the request comes from this machine.
        """
        return self.by_digest(digest(token), from_here=from_here)

    def by_digest(self, hashed: str, *, from_here: bool) -> Principal | None:
        """The same for a token's hash, such as the one that a signed-in browser's cookie was got with."""
        found = None
        for known in self._kept.read():
            if hmac.compare_digest(known.sha256, hashed):
                found = of_token(known.name)
        if self._given is not None and hmac.compare_digest(self._given.sha256, hashed):
            found = ENVIRONMENT
        for local in self._local.read():
            if hmac.compare_digest(local.sha256, hashed) and from_here:
                found = LOCAL
        return found

    def create(self, name: str) -> str:
        """Make a token and return it: the only time that it can be seen."""
        if not _NAME.fullmatch(name):
            raise Problem(
                "invalid_request", f"{name!r} can't name a token.", "Use 1 to 40 of a-z, 0-9, '.', '_' and '-'."
            )
        stored = self._kept.read()
        if any(known.name == name for known in stored):
            raise Problem(
                "name_taken", f"There is a token named {name}.", f"Withdraw it with `navarch token rm {name}`."
            )
        token = PREFIX + secrets.token_urlsafe(32)
        self._write([*stored, Token(name, digest(token), time.time())])
        return token

    def remove(self, name: str) -> bool:
        stored = self._kept.read()
        kept = [known for known in stored if known.name != name]
        if len(kept) == len(stored):
            return False
        self._write(kept)
        return True

    def _write(self, tokens: list[Token]) -> None:
        private_folder(self._file.parent)
        private_file(self._file, json.dumps([asdict(token) for token in tokens]))


class _Cached:
    """A file's tokens, read again when the file has changed."""

    def __init__(self, file: Path, parse: Callable[[str], list[Token]]) -> None:
        self._file, self._parse = file, parse
        self._seen: tuple[int, int] | None = None
        self._tokens: list[Token] = []

    def read(self) -> list[Token]:
        """Raises Problem `internal` when the file makes no sense: then nobody is let in by it."""
        try:
            status = self._file.stat()
        except FileNotFoundError:
            return []
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._seen:
            try:
                self._tokens = self._parse(self._file.read_text())
            except (ValueError, TypeError, AttributeError) as error:
                raise Problem("internal", f"{self._file} can't be read: {error}", "Put back a copy.") from error
            self._seen = stamp
        return self._tokens
