"""Appends an engine's log to a replica's file: batch by batch, nothing twice, within a quota, all or nothing."""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from service.collector.log_file import Head, StoredLine, events_in, lines_backwards, seconds

OVERLAP_S = 4
"""How far back a resumed collection reads again: the engine's times are not strictly in order, and a line may be stored
a little after it began. A long line that is still open is there as a passing one, again every few seconds, with the
time from which on all its pieces come."""
_NOTE = b" [navarch] "


class LogWriter:
    """Opening one resumes the file: what is in it already is passed over when it comes again."""

    def __init__(self, path: Path, quota: int) -> None:
        self._path = path
        self._quota = quota
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._cut_partial_line()
        with path.open("rb") as file:
            self._head = Head.of(file)
        self._size = os.fstat(self._file).st_size
        self.newest = b""
        """The newest time in the file, as the engine wrote it."""
        self._open_since = b""
        """The time of the oldest line that had begun and not ended."""
        self._known = self._recent()
        self._known_until = _shifted(self.newest, OVERLAP_S) if self._known else b""
        self.overlapped = not self._known
        """Whether the engine still has what the file ends with: if not, it has dropped lines in between."""

    @property
    def since(self) -> int:
        """From which second on the engine's log is needed."""
        recent = int(seconds(self.newest.decode("ascii", "replace"))) - OVERLAP_S
        begun = int(seconds(self._open_since.decode("ascii", "replace"))) if self._open_since else recent
        return max(0, min(recent, begun))

    @property
    def end(self) -> int:
        """The logical offset behind the last line."""
        return self._head.logical + self._size - self._head.physical

    def append(self, lines: Sequence[bytes]) -> list[StoredLine]:
        """Stores the lines that the file doesn't have; returns those of them that carry events. Raises OSError."""
        fresh = self._fresh(lines) if self._known else lines
        if not fresh:
            return []
        if not self.overlapped and fresh[0] > self.newest + b"~":
            self.overlapped = True
            fresh = [self._gap(fresh[0]), *fresh]
        data, begin = b"".join(fresh), self.end
        self._write(data)
        found = list(events_in(data, begin))
        if self._size > self._quota:
            self._drop_oldest()
        return found

    def note(self, time: bytes, text: str) -> None:
        """A line of Navarch's own."""
        self._write(time + _NOTE + text.encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def _fresh(self, lines: Sequence[bytes]) -> list[bytes]:
        """What of a resumed stream the file doesn't have."""
        fresh: list[bytes] = []
        for index, line in enumerate(lines):
            stamp = line[: line.find(b" ")]
            if stamp > self._known_until:
                self._known = Counter()
                return fresh + list(lines[index:])
            key = hash(line)
            if self._known[key] > 0:
                self._known[key] -= 1
                self.overlapped = True
            else:
                fresh.append(line)
        return fresh

    def _gap(self, first: bytes) -> bytes:
        stamp = first[: first.find(b" ")]
        said = f"lines between {self.newest.decode('ascii', 'replace')} and here are lost: the engine keeps no more"
        return stamp + _NOTE + said.encode() + b"\n"

    def _cut_partial_line(self) -> None:
        """A crash in the middle of a write leaves a line without its end."""
        size = position = os.fstat(self._file).st_size
        while position > 0:
            step = min(65536, position)
            found = os.pread(self._file, step, position - step).rfind(b"\n")
            if found >= 0:
                position = position - step + found + 1
                break
            position -= step
        if position != size:
            os.ftruncate(self._file, position)

    def _recent(self) -> Counter[int]:
        """The lines that a resumed stream will bring again: as hashes, for there may be many."""
        known: Counter[int] = Counter()
        oldest = b""
        ended: set[bytes] = set()
        with self._path.open("rb") as file:
            for start, line in lines_backwards(file):
                if start < self._head.physical:
                    break
                stamp, passing = line[: line.find(b" ")], line.endswith(b"\r\n")
                if stamp > self.newest:
                    self.newest, oldest = stamp, _shifted(stamp, -2 * OVERLAP_S - 1)
                if passing and stamp not in ended and stamp < (self._open_since or self.newest + b"~"):
                    self._open_since = stamp
                    oldest = min(oldest, _shifted(stamp, -1))
                elif not passing:
                    ended.add(stamp)
                    if stamp < oldest:
                        break
                if _NOTE not in line[:50]:
                    known[hash(line)] += 1
        return known

    def _drop_oldest(self) -> None:
        """Keeps the newer half, behind a line that says how much is gone; replaced in one step."""
        with self._path.open("rb") as file:
            file.seek(self._size - self._quota // 2)
            file.readline()
            first = file.tell()
            stamp = file.readline().partition(b" ")[0].decode("ascii", "replace")[:40] or "-"
            head = Head(self._head.logical + first - self._head.physical, 0, self._quota, stamp)
            beside = self._path.with_suffix(".tmp")
            try:
                with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as new:
                    new.write(head.line())
                    file.seek(first)
                    shutil.copyfileobj(file, new, 1 << 20)
                beside.replace(self._path)
            except OSError:  # no room for both: it is tried again with the next lines
                beside.unlink(missing_ok=True)
                return
        os.close(self._file)
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND)
        self._head = Head(head.logical, len(head.line()), head.quota, head.time)
        self._size = os.fstat(self._file).st_size


def _shifted(stamp: bytes, by_s: int) -> bytes:
    """A time of the engine some seconds later or earlier; times compare as texts."""
    moment = seconds(stamp.decode("ascii", "replace"))
    if not moment:
        return stamp
    return datetime.fromtimestamp(int(moment) + by_s, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode() + stamp[19:]
