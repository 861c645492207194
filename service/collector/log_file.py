"""One replica's log file: whole lines, offsets that stay valid when old lines are dropped, exact resumption."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from service.backends.base import LogRecord

_DROPPED = re.compile(rb"^\S+ \[navarch\] (\d+) bytes of older log were dropped[^\n]*\n")
_OVERLAP_S = 2
"""How far back a resumed collection reads again: the engine's times are not strictly in order."""


@dataclass(frozen=True)
class StoredLine:
    time: str
    text: str
    end: int
    """Logical offset behind the line."""


def seconds(time: str) -> float:
    """RFC 3339 with nanoseconds → seconds since the epoch; 0 when it is something else."""
    head, _, fraction = time.rstrip("Z").partition(".")
    try:
        return datetime.fromisoformat(head).replace(tzinfo=UTC).timestamp() + float(f"0.{fraction[:9] or 0}")
    except ValueError:
        return 0.0


def path_of(logs_dir: Path, attempt: int, rank: int) -> Path:
    return logs_dir / f"{attempt}-{rank}.log"


def _start(file: BinaryIO) -> tuple[int, int]:
    """(logical offset of the first kept line, its physical offset)."""
    file.seek(0)
    match = _DROPPED.match(file.read(200))
    return (int(match.group(1)), match.end()) if match else (0, 0)


def read_lines(path: Path, offset: int, limit: int) -> Iterator[StoredLine]:
    """Whole lines from a logical offset on; begins with the first kept one when that has been dropped."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        logical, physical = _start(file)
        if offset < logical or (offset == 0 and physical):
            file.seek(0)
            stamp, _, text = file.read(physical).partition(b" ")
            yield StoredLine(stamp.decode(), text.decode().rstrip("\n"), logical)
            limit -= 1
        position = max(offset, logical)
        file.seek(position - logical + physical)
        for _ in range(limit):
            line = file.readline()
            if not line.endswith(b"\n"):
                return
            position += len(line)
            stamp, _, text = line[:-1].partition(b" ")
            yield StoredLine(stamp.decode("ascii", "replace"), text.decode("utf-8", "replace"), position)


def end_of(path: Path) -> int:
    """The logical offset behind the last byte."""
    try:
        with path.open("rb") as file:
            logical, physical = _start(file)
            return logical + os.fstat(file.fileno()).st_size - physical
    except FileNotFoundError:
        return 0


def tail_offset(path: Path, lines: int) -> int:
    """The logical offset at which the last `lines` lines begin."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return 0
    with file:
        logical, physical = _start(file)
        size = os.fstat(file.fileno()).st_size
        position, found = size, 0
        while position > physical:
            step = min(65536, position - physical)
            position -= step
            file.seek(position)
            block = file.read(step)
            here = block.count(b"\n")
            if found + here > lines:
                cut = len(block)
                for _ in range(lines + 1 - found):
                    cut = block.rindex(b"\n", 0, cut)
                return logical + position + cut + 1 - physical
            found += here
        return logical


def lines_backwards(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(offset, line) from the last one to the first; only the last may be without its line break."""
    end = file.seek(0, os.SEEK_END)
    kept = b""
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        kept = file.read(end - start) + kept
        parts = re.findall(rb"[^\n]*\n|[^\n]+", kept)
        position, kept = start + len(kept), parts[0] if start else b""
        for line in reversed(parts[1:] if start else parts):
            position -= len(line)
            yield position, line
        end = start


class LogWriter:
    """Appends an engine's log to a file. Opening one resumes it: what is in the file already is passed over."""

    def __init__(self, path: Path, quota: int) -> None:
        self._path = path
        self._quota = quota
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._cut_partial_line()
        self._logical, self._physical = _start(self._file)
        self._size = self._file.seek(0, os.SEEK_END)
        self._known, self._newest = self._recent()

    @property
    def since(self) -> int:
        """From which second on the engine's log is needed."""
        return max(0, int(self._newest) - _OVERLAP_S)

    @property
    def end(self) -> int:
        """The logical offset behind the last line."""
        return self._logical + self._size - self._physical

    def append(self, record: LogRecord) -> int | None:
        """The logical offset behind the line; None when the file had it already."""
        text = record.text.replace("\n", " ")
        if self._known:
            key = (record.time, text)
            if self._known.get(key, 0) > 0:
                self._known[key] -= 1
                return None
            if seconds(record.time) > self._newest + _OVERLAP_S:
                self._known.clear()
        line = f"{record.time} {text}\n".encode()
        self._file.write(line)
        self._file.flush()
        self._size += len(line)
        end = self.end
        if self._size > self._quota:
            self._drop_oldest()
        return end

    def close(self) -> None:
        self._file.close()

    def _cut_partial_line(self) -> None:
        """A crash in the middle of a write leaves a line without its end."""
        size = self._file.seek(0, os.SEEK_END)
        position = size
        while position > 0:
            step = min(65536, position)
            self._file.seek(position - step)
            found = self._file.read(step).rfind(b"\n")
            if found >= 0:
                position = position - step + found + 1
                break
            position -= step
        if position != size:
            self._file.truncate(position)

    def _recent(self) -> tuple[Counter[tuple[str, str]], float]:
        """The lines that a resumed stream will bring again, and the newest time."""
        known: Counter[tuple[str, str]] = Counter()
        window = 64
        while True:
            offset = tail_offset(self._path, window)
            lines = [line for line in read_lines(self._path, offset, window) if line.end > self._logical]
            newest = max((seconds(line.time) for line in lines), default=0.0)
            oldest = min((seconds(line.time) for line in lines), default=0.0)
            if len(lines) < window or oldest < newest - 2 * _OVERLAP_S - 1:
                break
            window *= 4
        known.update((line.time, line.text) for line in lines)
        return known, newest

    def _drop_oldest(self) -> None:
        """Keeps the newer half, behind a line that says how much is gone; replaced in one step."""
        self._file.seek(self._size - self._quota // 2)
        self._file.readline()
        first = self._file.tell()
        rest = self._file.read()
        logical = self._logical + first - self._physical
        stamp = rest.partition(b" ")[0].decode("ascii", "replace")
        marker = (
            f"{stamp} [navarch] {logical} bytes of older log were dropped: its size had reached {self._quota} bytes\n"
        )
        beside = self._path.with_suffix(".tmp")
        beside.write_bytes(marker.encode() + rest)
        beside.replace(self._path)
        self._file.close()
        self._file = self._path.open("ab+")
        self._logical, self._physical = logical, len(marker.encode())
        self._size = self._file.seek(0, os.SEEK_END)
