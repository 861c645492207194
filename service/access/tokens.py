"""API tokens: random, shown once, kept as hashes only, in `tokens.json` of the data folder."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from service.contract.errors import Problem

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


class Tokens:
    """The tokens that a control plane accepts: those in its file, and the one that its environment gives.

    The file is read again when it changes, so that a new or withdrawn token counts at once.
    """

    def __init__(self, data_dir: Path, given: str | None = None) -> None:
        self._file = data_dir / "tokens.json"
        self._given = Token("environment", digest(given), 0.0) if given else None
        self._seen: tuple[int, int] | None = None
        self._cached: list[Token] = []

    def all(self) -> list[Token]:
        return ([self._given] if self._given else []) + self._stored()

    def owner(self, token: str) -> str | None:
        """The name of the token, or None when it isn't accepted. Takes the same time for every wrong one."""
        hashed = digest(token)
        found = None
        for known in self.all():
            if hmac.compare_digest(known.sha256, hashed):
                found = known.name
        return found

    def create(self, name: str) -> str:
        """Make a token and return it: the only time that it can be seen."""
        if not _NAME.fullmatch(name):
            raise Problem(
                "invalid_request", f"{name!r} can't name a token.", "Use 1 to 40 of a-z, 0-9, '.', '_' and '-'."
            )
        stored = self._stored()
        if any(known.name == name for known in stored):
            raise Problem(
                "name_taken", f"There is a token named {name}.", f"Withdraw it with `navarch token rm {name}`."
            )
        token = PREFIX + secrets.token_urlsafe(32)
        self._write([*stored, Token(name, digest(token), time.time())])
        return token

    def remove(self, name: str) -> bool:
        stored = self._stored()
        kept = [known for known in stored if known.name != name]
        if len(kept) == len(stored):
            return False
        self._write(kept)
        return True

    def _stored(self) -> list[Token]:
        try:
            status = self._file.stat()
        except FileNotFoundError:
            return []
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._seen:
            self._cached = [Token(**entry) for entry in json.loads(self._file.read_text())]
            self._seen = stamp
        return self._cached

    def _write(self, tokens: list[Token]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        beside = self._file.with_suffix(".tmp")
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump([asdict(token) for token in tokens], file)
        beside.replace(self._file)
