"""What the log of an ended container says about its end."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LogEnd:
    last_line: str = ""
    error_kind: str | None = None
    error_message: str | None = None
