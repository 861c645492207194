"""Takes the engine's log stream apart: chunks, frames of stdout and stderr, whole lines with their times."""

import struct
import time as clocks
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

_HEADER = struct.Struct(">BxxxL")
_STREAMS = frozenset({0, 1, 2})
MAX_LINE_BYTES = 1024 * 1024
_MAX_FRAME = 64 * 1024 * 1024
_PIECE_BYTES = 16 * 1024
"""Of each piece but the last of a long line; some engines forget the line break behind the last."""
_SHOW_EVERY_S = 0.5
FIRST_MARK_S, MARK_EVERY_S = 1, 5
"""A line that has begun is shown at the latest when others are so much younger, and again and again. The engine gives
all its pieces the time of the first: who resumes the log must see from how far back it is needed."""
_SHOWN_BYTES = 1000


class Dechunker:
    """Undoes HTTP's chunked coding for many chunks at once: the engine makes a chunk of every line."""

    def __init__(self) -> None:
        self._rest = b""
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """The body in `data`. Raises ValueError when it isn't chunked."""
        buffer = self._rest + data if self._rest else data
        parts = []
        position, size = 0, len(buffer)
        while True:
            line_end = buffer.find(b"\r\n", position)
            if line_end < 0:
                break
            length = int(buffer[position:line_end], 16)
            begin, end = line_end + 2, line_end + 2 + length
            if length == 0:
                self.ended = True
                break
            if end + 2 > size:
                break
            parts.append(buffer[begin:end])
            position = end + 2
        self._rest = buffer[position:]
        if len(self._rest) > _MAX_FRAME:
            raise ValueError("a chunk of the log is too large")
        return b"".join(parts)


@dataclass
class _Open:
    """A line that has begun."""

    time: bytes
    mark_at: bytes
    """The engine's time at which it is shown, though nothing new came."""
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    bar: bool = False
    """It goes back to its beginning again and again, as progress bars do."""
    state: bytes = b""
    """What a bar showed last."""
    changed: bool = False
    shown_at: float = 0.0
    """By the clock of whoever reads; of a line that was never shown, when it began."""
    shown: bool = False

    def add(self, text: bytes) -> None:
        """More of it; behind a carriage return, it begins again."""
        self.changed = True
        if b"\r" in text or self.bar:
            states, _, tail = (b"".join(self.parts) + text).rpartition(b"\r")
            self.state = _last(states) or self.state
            self.parts, self.size, self.bar, text = [], 0, True, tail
        room = MAX_LINE_BYTES - self.size
        if room > 0:
            self.parts.append(text[:room])
        self.size += len(text)

    def whole(self) -> bytes:
        said = b"".join(self.parts)
        if self.bar:
            return said if said.strip() else self.state
        lost = self.size - len(said)
        return said + b" [navarch: %d more bytes of this line were left out]" % lost if lost > 0 else said

    def now(self) -> bytes:
        """What is shown of it before its end."""
        return (self.state or self.whole()) if self.bar else self.whole()[-_SHOWN_BYTES:]


class Lines:
    """Whole lines, each `TIME TEXT` and a line break, from the frames of a multiplexed stream.

    The engine cuts long lines into pieces of 16 KiB, each a frame of its own. A line that a progress bar overwrites
    (with carriage returns) is what stands there at its end. What has begun and has no end yet is shown now and then, as
    a line that ends with CR LF: it is one that passes.
    """

    def __init__(self, clock: Callable[[], float] = clocks.monotonic) -> None:
        self._clock = clock
        self._rest = b""
        self._open: dict[int, _Open] = {}

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that end in `data`. Raises ValueError when it isn't the engine's format."""
        buffer = self._rest + data if self._rest else data
        lines: list[bytes] = []
        append, unpack = lines.append, _HEADER.unpack_from
        position, size = 0, len(buffer)
        while position + 8 <= size:
            stream, length = unpack(buffer, position)
            end = position + 8 + length
            if end > size:
                if stream not in _STREAMS or length > _MAX_FRAME:
                    raise ValueError("not a multiplexed log stream")
                break
            payload = buffer[position + 8 : end]
            position = end
            if payload.endswith(b"\n") and b"\r" not in payload and stream not in self._open and stream < 3:
                append(payload)
            else:
                self._piece(stream, payload, lines)
        self._rest = buffer[position:]
        if self._open:
            lines[:0] = self._begun(max((line[: line.find(b" ")] for line in lines), default=b""))
        return lines

    def rest(self) -> list[bytes]:
        """What was printed last without a line break, once nothing more can come."""
        left = [_line(opened.time, opened.whole()) for opened in self._open.values() if opened.size or opened.bar]
        self._open.clear()
        return left

    def _piece(self, stream: int, payload: bytes, lines: list[bytes]) -> None:
        if stream not in _STREAMS:  # the engine's own trouble with the log comes in a stream of its own
            raise ValueError(payload[:500].decode("utf-8", "replace"))
        time, _, text = payload.partition(b" ")
        opened = self._open.pop(stream, None)
        if opened is None:
            opened = _Open(time, _later(time, FIRST_MARK_S), shown_at=self._clock())
        broken = text.endswith(b"\n")
        opened.add((text[:-2] if text.endswith(b"\r\n") else text[:-1]) if broken else text)
        if broken or len(text) < _PIECE_BYTES:
            lines.append(_line(opened.time, opened.whole()))
        else:
            self._open[stream] = opened

    def _begun(self, newest: bytes) -> list[bytes]:
        """Lines that have begun and are to be shown; before the others of their batch, should that be cut off."""
        shown, now = [], self._clock()
        for opened in self._open.values():
            first_state = opened.bar and not opened.shown
            due = opened.changed and (first_state or now - opened.shown_at >= _SHOW_EVERY_S)
            if due or newest >= opened.mark_at:
                opened.changed, opened.shown, opened.shown_at = False, True, now
                opened.mark_at = _later(max(newest, opened.time), MARK_EVERY_S)
                shown.append(opened.time + b" " + opened.now() + b"\r\n")
        return shown


def _line(time: bytes, text: bytes) -> bytes:
    return time + b" " + text + b"\n"


def _last(states: bytes) -> bytes:
    """What a terminal would show of a line with carriage returns: its last state that says something."""
    return next((state for state in reversed(states.split(b"\r")) if state.strip()), b"")


def _later(time: bytes, by_s: int) -> bytes:
    """The engine's time, some seconds later; itself when it is none, so that nothing is held back."""
    try:
        moment = datetime.fromisoformat(time[:19].decode("ascii"))
    except ValueError:
        return time
    return (moment + timedelta(seconds=by_s)).isoformat().encode() + time[19:]
