"""Cursors of paged lists: opaque to clients, exact in the face of equal times, and refused when they aren't ours."""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass

from service.contract.errors import Problem

_HINT = "Use the `next_cursor` of the page before, or leave it out for the first page."


@dataclass(frozen=True)
class Cursor:
    """The last item of a page that is ordered by time and id."""

    time: float
    id: str

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(f"{self.time!r}|{self.id}".encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Raises Problem `invalid_cursor`."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            time, _, identifier = raw.decode().partition("|")
            if not identifier or not math.isfinite(float(time)):
                raise ValueError
            return cls(float(time), identifier)
        except (ValueError, binascii.Error) as error:
            raise Problem("invalid_cursor", f"{text[:60]!r} is not a cursor of this list.", _HINT) from error

    @staticmethod
    def number(text: str) -> int:
        """A cursor that is a row's number. Raises Problem `invalid_cursor`."""
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise Problem("invalid_cursor", f"{text[:60]!r} is not a cursor of this list.", _HINT)
        return int(text)
