"""How a browser stays signed in: a sealed cookie, got for a token or for the one-time code of a printed link.

The cookie holds who it is, until when, and the hash of the token that it was got with, encrypted with the data folder's
key: it survives a restart, and is worth nothing once that token is withdrawn. Scripts can't read it (HttpOnly), other
sites can't send it (SameSite=Strict), and what changes something needs a header that forms can't set.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from service.access.principals import Principal
from service.access.secrets import SecretBox
from service.access.tokens import Tokens
from service.contract.errors import Problem

COOKIE = "navarch_session"
LASTS_S = 30 * 86400.0
CODE_LASTS_S = 600.0
_MAX_CODES = 100


@dataclass(frozen=True)
class _Code:
    proof: str
    until: float


class Sessions:
    """Makes and checks cookies. `proof` is the hash of the token that somebody has shown."""

    def __init__(self, data_dir: Path, tokens: Tokens) -> None:
        self._box = SecretBox(data_dir)
        self._tokens = tokens
        self._codes: dict[str, _Code] = {}
        self._lock = threading.Lock()

    def cookie(self, proof: str) -> str:
        sealed = self._box.seal({"proof": proof, "until": str(time.time() + LASTS_S)})
        assert sealed is not None
        return sealed.decode()

    def principal(self, cookie: str, *, from_here: bool) -> tuple[Principal, str] | None:
        """Whose cookie it is, with its proof; None when it is none, too old, or its token was withdrawn."""
        if len(cookie) > 2000:
            return None
        try:
            held = self._box.open(cookie.encode())
        except (Problem, ValueError):
            return None
        if float(held.get("until", "0")) < time.time():
            return None
        found = self._tokens.by_digest(held.get("proof", ""), from_here=from_here)
        return (found, held["proof"]) if found is not None else None

    def code(self, proof: str) -> str:
        """A code for one sign-in within ten minutes, as whoever has shown that token."""
        code = secrets.token_urlsafe(24)
        now = time.monotonic()
        with self._lock:
            self._codes = {name: one for name, one in self._codes.items() if one.until > now}
            while len(self._codes) >= _MAX_CODES:
                self._codes.pop(next(iter(self._codes)))
            self._codes[code] = _Code(proof, now + CODE_LASTS_S)
        return code

    def redeem(self, code: str) -> str | None:
        """The proof behind a code, once; None when it was used, is too old, or never was one."""
        with self._lock:
            found = self._codes.pop(code, None)
        return found.proof if found is not None and found.until > time.monotonic() else None
