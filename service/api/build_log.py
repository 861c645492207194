"""Reads an image build's log file by byte offset."""

from __future__ import annotations

from pathlib import Path

from service.contract import schemas
from service.contract.errors import Problem

_CHUNK = 1 << 20


def read_build_log(file: Path, cursor: str | None, limit: int) -> tuple[list[schemas.LogLine], str]:
    """At most `limit` whole lines after the cursor, and the cursor after them. Raises Problem `invalid_cursor`."""
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        hint = "Use a `next_cursor` or an event id of this log."
        raise Problem("invalid_cursor", f"{cursor[:60]!r} is not a cursor of this log.", hint)
    offset = int(cursor or 0)
    try:
        with file.open("rb") as log:
            time = file.stat().st_mtime
            log.seek(offset)
            data = log.read(_CHUNK)
    except FileNotFoundError:
        return [], str(offset)
    lines = []
    for raw in data[: data.rfind(b"\n") + 1].splitlines(keepends=True)[:limit]:
        offset += len(raw)
        text = raw.decode(errors="replace").rstrip("\r\n")
        lines.append(schemas.LogLine(cursor=str(offset), time=time, replica=0, line=text))
    return lines, str(offset)
