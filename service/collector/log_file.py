"""One replica's log file as it is read: whole lines, and offsets that stay valid when old lines are dropped."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from service.collector.events import PREFIX

_HEAD = re.compile(rb"#([0-9]{1,18}) ([0-9]{1,18}) (\S{1,40})\n")
"""The first line of a file whose oldest lines were dropped: logical offset of the next line, the quota, a time. Lines
of a container begin with a time, so that none can be taken for it."""
_EVENT = b" " + PREFIX.encode()
_BLOCK = 1 << 20


@dataclass(frozen=True)
class StoredLine:
    time: str
    text: str
    end: int
    """Logical offset behind the line."""
    passing: bool = False
    """The state of a progress bar, which the next line replaces."""


@dataclass(frozen=True)
class Head:
    """How a file begins."""

    logical: int = 0
    """Logical offset of its first line."""
    physical: int = 0
    """Where that is in the file."""
    quota: int = 0
    time: str = ""

    @classmethod
    def of(cls, file: BinaryIO) -> "Head":
        file.seek(0)
        found = _HEAD.match(file.read(100))
        if found is None:
            return cls()
        return cls(int(found.group(1)), found.end(), int(found.group(2)), found.group(3).decode("ascii", "replace"))

    def line(self) -> bytes:
        return f"#{self.logical} {self.quota} {self.time}\n".encode()


def seconds(time: str) -> float:
    """RFC 3339 with nanoseconds → seconds since the epoch; 0 when it is something else."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return 0.0


def path_of(logs_dir: Path, attempt: int, rank: int) -> Path:
    return logs_dir / f"{attempt}-{rank}.log"


def parsed(line: bytes, end: int) -> StoredLine:
    """A line of a file, without its line break."""
    passing = line.endswith(b"\r")
    stamp, _, text = (line[:-1] if passing else line).partition(b" ")
    return StoredLine(stamp.decode("ascii", "replace"), text.decode("utf-8", "replace"), end, passing)


def read_lines(path: Path, offset: int, limit: int, size: int = 1 << 62) -> Iterator[StoredLine]:
    """Whole lines from a logical offset on, no more when they have `size` bytes; begins with the first kept one when
    that has been dropped."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        head = Head.of(file)
        if head.physical and (offset < head.logical or offset == 0):
            said = f"[navarch] {head.logical} bytes of older log were dropped: its size had reached {head.quota} bytes"
            yield StoredLine(head.time, said, head.logical)
            limit -= 1
        position = max(offset, head.logical)
        file.seek(position - head.logical + head.physical)
        for _ in range(limit):
            line = file.readline()
            if not line.endswith(b"\n"):
                return
            position += len(line)
            yield parsed(line[:-1], position)
            size -= len(line)
            if size <= 0:
                return


def event_lines(path: Path, offset: int) -> Iterator[StoredLine]:
    """The lines from a logical offset on that carry events; passes over all others in large steps."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        head = Head.of(file)
        position = max(offset, head.logical)
        file.seek(position - head.logical + head.physical)
        rest = b""
        while block := file.read(_BLOCK):
            rest += block
            whole, rest = rest[: rest.rfind(b"\n") + 1], rest[rest.rfind(b"\n") + 1 :]
            yield from events_in(whole, position)
            position += len(whole)


def events_in(data: bytes, position: int) -> Iterator[StoredLine]:
    """The lines that carry events among whole lines; the first of them begins at logical offset `position`."""
    found = data.find(_EVENT)
    while found >= 0:
        begin, end = data.rfind(b"\n", 0, found) + 1, data.find(b"\n", found) + 1
        if data.find(b" ", begin) == found:  # right behind the time
            yield parsed(data[begin : end - 1], position + end)
        found = data.find(_EVENT, end)


def end_of(path: Path) -> int:
    """The logical offset behind the last byte."""
    try:
        with path.open("rb") as file:
            head = Head.of(file)
            return head.logical + os.fstat(file.fileno()).st_size - head.physical
    except FileNotFoundError:
        return 0


def tail_offset(path: Path, lines: int, end: int = 1 << 62) -> int:
    """The logical offset at which the last `lines` lines begin, of those before the logical offset `end`."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return 0
    with file:
        head = Head.of(file)
        size = os.fstat(file.fileno()).st_size
        position, found = max(head.physical, min(size, end - head.logical + head.physical)), 0
        while position > head.physical:
            step = min(65536, position - head.physical)
            position -= step
            file.seek(position)
            block = file.read(step)
            here = block.count(b"\n")
            if found + here > lines:
                cut = len(block)
                for _ in range(lines + 1 - found):
                    cut = block.rindex(b"\n", 0, cut)
                return head.logical + position + cut + 1 - head.physical
            found += here
        return head.logical


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
