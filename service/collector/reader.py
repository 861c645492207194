"""Reads a job's logs back: pages by opaque cursors, over all its attempts and containers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from heapq import merge
from pathlib import Path

from service.collector.events import PREFIX
from service.collector.hub import Hub
from service.collector.log_file import StoredLine, end_of, path_of, read_lines, seconds, tail_offset
from service.contract.errors import Problem

_FILE = re.compile(r"([0-9]+)-([0-9]+)\.log")
_PLACE = r"[0-9]{1,9}-[0-9]{1,9}:[0-9]{1,18}"
_CURSOR = re.compile(rf"{_PLACE}(,{_PLACE})*")
_PAGE_BYTES = 4 << 20
"""A page ends when it has so much text, whatever its limit."""
Key = tuple[int, int]
"""(attempt, rank)."""


@dataclass(frozen=True)
class LogLine:
    cursor: str
    time: float
    attempt: int
    replica: int
    line: str
    passing: bool = False


@dataclass(frozen=True)
class LogPage:
    lines: list[LogLine]
    next_cursor: str


def _parse(cursor: str | None) -> dict[Key, int]:
    if not cursor:
        return {}
    if len(cursor) > 16384 or not _CURSOR.fullmatch(cursor):
        raise Problem(
            "invalid_cursor",
            f"{cursor[:60]!r} is not a cursor of this log.",
            "Use the `next_cursor` of the page before, or leave it out for the first page.",
        )
    offsets = {}
    for part in cursor.split(","):
        name, _, offset = part.partition(":")
        attempt, _, rank = name.partition("-")
        offsets[(int(attempt), int(rank))] = int(offset)
    return offsets


def _text(offsets: dict[Key, int]) -> str:
    return ",".join(f"{attempt}-{rank}:{offset}" for (attempt, rank), offset in sorted(offsets.items())) or "1-0:0"


class LogReader:
    """Reads the log files of jobs; any thread may."""

    def __init__(self, logs_dir: Callable[[str], Path], hub: Hub) -> None:
        self._logs_dir = logs_dir
        self._hub = hub

    def read(
        self,
        job_id: str,
        cursor: str | None = None,
        limit: int = 1000,
        replica: int | None = None,
        tail: int | None = None,
        events: bool = False,
        until: str | None = None,
    ) -> LogPage:
        """Up to `limit` lines behind `cursor`, attempt by attempt, within one in the order of time.

        `tail`: without a cursor, begin that many lines before the end of the newest attempt, or before `until`.
        `until`: stop where this cursor stands. Lines that carry training events are left out unless `events`.
        Raises Problem `invalid_cursor`.
        """
        folder = self._logs_dir(job_id)
        offsets = _parse(cursor)
        keys = [key for key in self._keys(folder) if replica is None or key[1] == replica]
        ends = _parse(until)
        if ends:
            keys = [key for key in keys if key in ends or key[0] < max(ends)[0]]
        if tail is not None and not cursor:
            keys = [key for key in keys if key[0] == keys[-1][0]]
            offsets = _View(folder, keys, ends, events).tail(tail)
        items: list[LogLine] = []
        room = _PAGE_BYTES
        newest = max((attempt for attempt, _ in offsets), default=0)
        attempts = sorted({attempt for attempt, _ in keys})
        for attempt in attempts:
            of_attempt = [key for key in keys if key[0] == attempt]
            if attempt < newest and not any(key in offsets for key in of_attempt):
                continue  # the cursor began at the tail of a newer one
            view = _View(folder, of_attempt, ends, events)
            for key, line in view.merged(offsets, limit - len(items)):
                offsets[key] = line.end
                if view.shows(key, line):
                    at = seconds(line.time)
                    items.append(LogLine(_text(offsets), at, key[0], key[1], line.text, line.passing))
                    room -= len(line.text)
                if len(items) >= limit or room <= 0:
                    return LogPage(items, _text(offsets))
            if not view.exhausted:
                break
        return LogPage(items, _text(offsets))

    def subscribe(self, job_id: str, callback: Callable[[], None]) -> Callable[[], None]:
        """See Hub.subscribe."""
        return self._hub.subscribe(job_id, callback)

    def wait(self, job_id: str, timeout_s: float, cursor: str | None = None) -> bool:
        """Blocks until there may be lines behind `cursor`, or the job changed; False after `timeout_s`."""
        return self._hub.wait(job_id, timeout_s, lambda: bool(self.read(job_id, cursor, limit=1).lines))

    def _keys(self, folder: Path) -> list[Key]:
        try:
            matches = [_FILE.fullmatch(file.name) for file in folder.iterdir()]
        except FileNotFoundError:
            return []
        return sorted((int(match.group(1)), int(match.group(2))) for match in matches if match)


class _View:
    """The files of one attempt at one moment, and which of their lines are shown."""

    def __init__(self, folder: Path, keys: list[Key], ends: dict[Key, int], events: bool) -> None:
        self._paths = {key: path_of(folder, *key) for key in keys}
        self._events = events
        self._ends = {key: min(end_of(path), ends.get(key, 1 << 62)) for key, path in self._paths.items()}
        self.exhausted = True
        """Whether `merged` has given all that there is."""

    def shows(self, key: Key, line: StoredLine) -> bool:
        """A progress bar's state only while it is the newest line; events only to who asked for them."""
        if line.passing and line.end < self._ends[key]:
            return False
        return self._events or not line.text.startswith(PREFIX)

    def merged(self, offsets: dict[Key, int], limit: int) -> "list[tuple[Key, StoredLine]]":
        """Enough lines for `limit` shown ones, in the order of time; each file's own order is kept."""
        taken: list[tuple[Key, StoredLine]] = []
        ahead = dict(offsets)
        room = _PAGE_BYTES
        shown = 0
        while shown < limit and room > 0:
            chunks = [self._chunk(key, ahead.get(key, 0), limit + 1) for key in self._paths]
            if not any(chunks):
                return taken
            unread = [max(line.time for _, line in chunk) for chunk in chunks if self._goes_on(chunk, limit)]
            horizon = min(unread, default="~")
            for index, (key, line) in enumerate(list(merge(*chunks, key=lambda item: item[1].time))[: limit + 1]):
                if index and line.time > horizon:
                    break  # what a file that was not read so far has, comes before this
                taken.append((key, line))
                ahead[key] = line.end
                room -= len(line.text)
                shown += self.shows(key, line)
        self.exhausted = False
        return taken

    def _chunk(self, key: Key, offset: int, limit: int) -> "list[tuple[Key, StoredLine]]":
        lines = read_lines(self._paths[key], offset, limit, _PAGE_BYTES)
        return [(key, line) for line in lines if line.end <= self._ends[key]]

    def _goes_on(self, chunk: "list[tuple[Key, StoredLine]]", limit: int) -> bool:
        """Whether a chunk ends because it was large."""
        return bool(chunk) and len(chunk) <= limit and chunk[-1][1].end < self._ends[chunk[-1][0]]

    def tail(self, count: int) -> dict[Key, int]:
        """Where the last `count` lines begin in each of the files."""
        wanted = count
        while True:
            first = {key: tail_offset(path, wanted, self._ends[key]) for key, path in self._paths.items()}
            last = dict(first)
            found: list[tuple[str, Key, int]] = []
            for key, path in self._paths.items():
                at = ""  # never goes back: a long line has the time of its beginning
                for line in read_lines(path, first[key], wanted):
                    if line.end > self._ends[key]:
                        break
                    at = max(at, line.time)
                    if self.shows(key, line):
                        found.append((at, key, last[key]))
                    last[key] = line.end
            if len(found) >= count or not any(first.values()) or wanted > 1_000_000:
                break
            wanted *= 4
        found.sort(key=lambda item: item[0])
        for _, key, begin in reversed(found[-count:] if count else []):
            last[key] = begin
        return last
