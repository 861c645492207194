"""Lines of a job's log by their numbers: where each begins, in one file or merged by time over all ranks of an attempt.

A file's index is an array of offsets, kept in memory and grown by what was written since; lines that carry training
events are not counted, as people don't see them. Reading line 1,900,000 of a log costs the same as reading the first.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import re2

from service.collector.log_file import seconds
from service.contract.errors import Problem

EVENT = b"@navarch "
_STAMP = 30
"""RFC 3339 with nanoseconds, as the engine writes it."""
_CHUNK = 32 << 20
_SEARCH_BLOCK = 4000
_AT_START = ("^", "\\A")
_LONGEST = 20_000
"""Of one line, what a page is given."""
_KEPT = 16
"""Indexes in memory: 8 bytes a line each."""


@dataclass(frozen=True)
class IndexedLine:
    time: float
    rank: int
    text: str
    length: int | None
    """Bytes of the whole line where `text` is only its beginning."""


@dataclass
class _File:
    """One rank's file, as far as it is known."""

    rank: int
    path: Path
    inode: int = -1
    size: int = 0
    starts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Offset of each shown line."""
    ends: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def refresh(self) -> bool:
        """Takes in what was written since. True when there was something."""
        try:
            with self.path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_ino != self.inode or facts.st_size < self.size:
                    empty = np.empty(0, np.int64)
                    self.inode, self.size, self.starts, self.ends = facts.st_ino, 0, empty, empty
                if facts.st_size == self.size:
                    return False
                file.seek(self.size)
                parts = []
                while block := file.read(_CHUNK):
                    cut = block.rfind(b"\n") + 1
                    if cut == 0:
                        rest = file.readline()  # a line longer than a chunk
                        if not rest.endswith(b"\n"):
                            break
                        block, cut = block + rest, len(block) + len(rest)
                    elif cut < len(block):
                        file.seek(cut - len(block), os.SEEK_CUR)
                    parts.append(_scan(block[:cut], self.size))
                    self.size += cut
        except FileNotFoundError:
            return False
        if not parts:
            return False
        self.starts = np.concatenate([self.starts, *(part[0] for part in parts)])
        self.ends = np.concatenate([self.ends, *(part[1] for part in parts)])
        return True

    def block(self, first: int, last: int) -> bytes:
        """Everything from line `first` to the end of line `last`."""
        with self.path.open("rb") as file:
            file.seek(int(self.starts[first]))
            return file.read(int(self.ends[last] - self.starts[first]))

    def times(self) -> npt.NDArray[np.int64]:
        """A number for each line's time that orders as the times do: digits of the stamp, months taken as 31 days."""
        found = np.zeros(len(self.starts), np.int64)
        step = 200_000
        for first in range(0, len(found), step):
            last = min(first + step, len(found)) - 1
            data = np.frombuffer(self.block(first, last), np.uint8)
            part, base = slice(first, last + 1), self.starts[first]
            found[part] = _order(data, self.starts[part] - base, self.ends[part] - base)
        return np.maximum.accumulate(found)

    def read(self, lines: npt.NDArray[np.int64]) -> list[bytes]:
        """Some lines, each cut to what a page is given and a bit."""
        found = []
        with self.path.open("rb") as file:
            for start, end in zip(self.starts[lines].tolist(), self.ends[lines].tolist(), strict=True):
                file.seek(start)
                found.append(file.read(min(end - start, _LONGEST + 64)))
        return found


def _scan(block: bytes, base: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(starts, ends) of the shown lines of a block of whole lines that begins at offset `base`."""
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == 10).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    shown = np.ones(len(starts), bool)
    maybe = np.flatnonzero(ends - starts > _STAMP + len(EVENT))
    for index, byte in enumerate(EVENT):
        maybe = maybe[data[starts[maybe] + _STAMP + 1 + index] == byte]
    shown[maybe] = False
    return starts[shown] + base, ends[shown] + base


def _order(
    data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    times = np.zeros(len(starts), np.int64)
    known = np.flatnonzero(ends - starts >= _STAMP)
    if not len(known):
        return times
    stamps = data[starts[known][:, None] + np.arange(_STAMP)].astype(np.int64) - 48

    def digits(first: int, count: int) -> npt.NDArray[np.int64]:
        value = np.zeros(len(known), np.int64)
        for place in range(first, first + count):
            value = value * 10 + stamps[:, place]
        return value

    days = (digits(0, 4) - 2000) * 372 + digits(5, 2) * 31 + digits(8, 2)
    clock = digits(11, 2) * 3600 + digits(14, 2) * 60 + digits(17, 2)
    times[known] = (days * 86400 + clock) * 1_000_000_000 + digits(20, 9)
    return times


class LineIndex:
    """The lines of one attempt: of one rank, or of all of them in the order of time."""

    def __init__(self, files: Sequence[tuple[int, Path]]) -> None:
        self._files = [_File(rank, path) for rank, path in files]
        self._lock = threading.Lock()
        self._merged: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None

    def refresh(self) -> int:
        """How many lines there are now."""
        with self._lock:
            if any([file.refresh() for file in self._files]):
                self._merged = None
            return sum(len(file.starts) for file in self._files)

    def lines(self, first: int, count: int) -> list[IndexedLine]:
        """Lines `first` … `first + count - 1`, as many as there are."""
        with self._lock:
            return [_indexed(rank, raw) for rank, raw in self._raw(first, count)]

    def at(self, moment: float) -> int:
        """The number of the first line that was printed at a moment (seconds since the epoch) or later."""
        with self._lock:
            low, high = 0, sum(len(file.starts) for file in self._files)
            while low < high:
                middle = (low + high) // 2
                if _indexed(*self._raw(middle, 1)[0]).time < moment:
                    low = middle + 1
                else:
                    high = middle
            return low

    def search(self, query: str, *, regex: bool, first: int, back: bool) -> int | None:
        """The first line from `first` on (with `back` from there to the start) that matches; case does not matter.

        Raises Problem `invalid_request` when the query is no regular expression.
        """
        options = re2.Options()
        options.case_sensitive = False
        options.log_errors = False
        try:
            wanted = re2.compile(f"(?m:{query})" if regex else re2.escape(query), options)
        except re2.error as error:
            hint = "Look-around and back-references are not supported; leave `regex` out to search for plain text."
            raise Problem("invalid_request", f"{query[:60]!r} is not a regular expression: {error}.", hint) from None
        with self._lock:
            if len(self._files) == 1:
                anchored = regex and any(anchor in query for anchor in _AT_START)
                return _search_file(self._files[0], wanted, first, back, line_by_line=anchored)
            total = sum(len(file.starts) for file in self._files)
            at = min(first, total - 1) if back else max(0, first)
            while 0 <= at < total:
                begin = max(0, at + 1 - _SEARCH_BLOCK) if back else at
                raws = self._raw(begin, at + 1 - begin if back else _SEARCH_BLOCK)
                numbers = range(len(raws) - 1, -1, -1) if back else range(len(raws))
                for number in numbers:
                    if wanted.search(raws[number][1].partition(b" ")[2]):
                        return begin + number
                at = begin - 1 if back else begin + len(raws)
            return None

    def _raw(self, first: int, count: int) -> list[tuple[int, bytes]]:
        if len(self._files) == 1:
            file = self._files[0]
            numbers = np.arange(first, min(first + count, len(file.starts)), dtype=np.int64)
            return [(file.rank, raw) for raw in file.read(numbers)] if len(numbers) else []
        if not self._files:  # nothing has been printed yet
            return []
        which, place = self._order()
        which, place = which[first : first + count], place[first : first + count]
        found: list[tuple[int, bytes]] = [(0, b"")] * len(which)
        for index, file in enumerate(self._files):
            mine = np.flatnonzero(which == index)
            if len(mine):
                for target, raw in zip(mine.tolist(), file.read(place[mine]), strict=True):
                    found[target] = (file.rank, raw)
        return found

    def _order(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(which file, which of its lines), ordered by time; each file keeps its own order."""
        if self._merged is None:
            times = [file.times() for file in self._files]
            which = np.concatenate([np.full(len(one), index, np.int64) for index, one in enumerate(times)])
            place = np.concatenate([np.arange(len(one), dtype=np.int64) for one in times])
            order = np.argsort(np.concatenate(times), kind="stable")
            self._merged = which[order], place[order]
        return self._merged


def _search_file(file: _File, wanted: Any, first: int, back: bool, *, line_by_line: bool) -> int | None:
    """Blocks of lines as one text each: a match there is looked at again in its line alone.

    What is bound to a line's start can't be found so, as each line of the file starts with its time.
    """
    total = len(file.starts)
    at = min(first, total - 1) if back else max(0, first)
    while 0 <= at < total:
        begin = max(0, at + 1 - _SEARCH_BLOCK) if back else at
        last = at if back else min(at + _SEARCH_BLOCK, total) - 1
        hits = _each(file, wanted, begin, last) if line_by_line else _matches(file, wanted, begin, last)
        hit = max(hits, default=None) if back else next(iter(hits), None)
        if hit is not None:
            return hit
        at = begin - 1 if back else last + 1
    return None


def _each(file: _File, wanted: Any, first: int, last: int) -> Iterator[int]:
    for number, raw in enumerate(file.read(np.arange(first, last + 1, dtype=np.int64)), first):
        if wanted.search(raw.partition(b" ")[2]):
            yield number


def _matches(file: _File, wanted: Any, first: int, last: int) -> Iterator[int]:
    data = file.block(first, last)
    starts = file.starts[first : last + 1] - file.starts[first]
    ends = file.ends[first : last + 1] - file.starts[first]
    position = 0
    while position <= len(data) and (found := wanted.search(data, position)) is not None:
        line = max(0, int(np.searchsorted(starts, found.start(), "right")) - 1)
        if found.start() <= ends[line] and wanted.search(data[starts[line] : ends[line]].partition(b" ")[2]):
            yield first + line
        if line + 1 >= len(starts):
            return
        position = int(starts[line + 1])


def _indexed(rank: int, raw: bytes) -> IndexedLine:
    stamp, _, text = raw.partition(b" ")
    cut = len(text) > _LONGEST
    return IndexedLine(
        time=seconds(stamp.decode("ascii", "replace")),
        rank=rank,
        text=text[:_LONGEST].decode("utf-8", "replace"),
        length=len(text) if cut else None,
    )


class LineIndexes:
    """The indexes in use; the one that was not asked for longest goes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[Path, ...], LineIndex] = OrderedDict()

    def of(self, files: Sequence[tuple[int, Path]]) -> LineIndex:
        """The index of one attempt's files, (rank, path) each."""
        key = tuple(path for _, path in files)
        with self._lock:
            found = self._known.pop(key, None) or LineIndex(files)
            self._known[key] = found
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return found
