"""Takes the engine's log stream apart: frames of stdout and stderr into whole lines with their times."""

import struct
from collections.abc import Iterator
from typing import Protocol

from service.backends.base import LogRecord

_HEADER = struct.Struct(">BxxxL")
MAX_LINE_BYTES = 1024 * 1024


class Readable(Protocol):
    def read(self, amount: int, /) -> bytes: ...


def _exactly(stream: Readable, count: int) -> bytes:
    """`count` bytes, or fewer at the end of the stream."""
    parts = []
    while count > 0:
        part = stream.read(count)
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class LineJoiner:
    """Joins the pieces of long lines: the engine cuts them at 16 KiB and gives each piece a frame of its own."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[str, list[bytes], int]] = {}

    def feed(self, stream: int, payload: bytes) -> LogRecord | None:
        """A frame's content; a record when it ends a line. A line longer than MAX_LINE_BYTES loses its rest."""
        stamp, _, text = payload.partition(b" ")
        ends = text.endswith(b"\n")
        begun = self._open.pop(stream, None)
        time, parts, size = begun if begun else (stamp.decode("ascii", "replace"), [], 0)
        if size < MAX_LINE_BYTES:
            parts.append(text[: MAX_LINE_BYTES - size])
        if ends:
            return LogRecord(time, b"".join(parts).rstrip(b"\r\n").decode("utf-8", "replace"))
        self._open[stream] = (time, parts, size + len(text))
        return None

    def rest(self) -> list[LogRecord]:
        """What was printed last without a line break."""
        left = [LogRecord(time, b"".join(parts).decode("utf-8", "replace")) for time, parts, _ in self._open.values()]
        self._open.clear()
        return left


def records(stream: Readable) -> Iterator[LogRecord]:
    """Lines from a multiplexed stream, as they come."""
    joiner = LineJoiner()
    while True:
        header = _exactly(stream, 8)
        if len(header) < 8:
            break
        kind, size = _HEADER.unpack(header)
        record = joiner.feed(kind, _exactly(stream, size))
        if record is not None:
            yield record
    yield from joiner.rest()
