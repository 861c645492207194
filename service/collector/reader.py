"""Reads a job's logs back: pages by opaque cursors, over all its attempts and containers."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from heapq import merge
from pathlib import Path

from service.collector.events import PREFIX
from service.collector.hub import Hub
from service.collector.log_file import StoredLine, path_of, read_lines, seconds, tail_offset
from service.contract.errors import Problem

_FILE = re.compile(r"([0-9]+)-([0-9]+)\.log")
_PLACE = r"[0-9]{1,9}-[0-9]{1,9}:[0-9]{1,18}"
_CURSOR = re.compile(rf"{_PLACE}(,{_PLACE})*")
Key = tuple[int, int]
"""(attempt, rank)."""


@dataclass(frozen=True)
class LogLine:
    cursor: str
    time: float
    attempt: int
    replica: int
    line: str


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

        `tail`: without a cursor, begin that many lines before the end of the newest attempt. `until`: stop where this
        cursor stands. Lines that carry training events are left out unless `events`. Raises Problem `invalid_cursor`.
        """
        folder = self._logs_dir(job_id)
        offsets = _parse(cursor)
        keys = [key for key in self._keys(folder) if replica is None or key[1] == replica]
        ends = _parse(until)
        if ends:
            keys = [key for key in keys if key in ends or key[0] < max(ends)[0]]
        if tail is not None and not cursor:
            keys = [key for key in keys if key[0] == keys[-1][0]]
            offsets = self._tail(folder, keys, tail, events)
        items: list[LogLine] = []
        newest = max((attempt for attempt, _ in offsets), default=0)
        attempts = sorted({attempt for attempt, _ in keys})
        for attempt in attempts:
            of_attempt = [key for key in keys if key[0] == attempt]
            if attempt < newest and not any(key in offsets for key in of_attempt):
                continue  # the cursor began at the tail of a newer one
            for key, line in self._merged(folder, of_attempt, offsets, ends, limit - len(items), events):
                offsets[key] = line.end
                if events or not line.text.startswith(PREFIX):
                    items.append(LogLine(_text(offsets), seconds(line.time), key[0], key[1], line.text))
                if len(items) >= limit:
                    return LogPage(items, _text(offsets))
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

    def _merged(
        self,
        folder: Path,
        keys: list[Key],
        offsets: dict[Key, int],
        ends: dict[Key, int],
        limit: int,
        events: bool,
    ) -> "list[tuple[Key, StoredLine]]":
        """Enough lines of one attempt for `limit` shown ones, in the order of time; each file's own order is kept."""
        taken: list[tuple[Key, StoredLine]] = []
        ahead = dict(offsets)
        while True:
            chunks = [
                [
                    (key, line)
                    for line in read_lines(path_of(folder, *key), ahead.get(key, 0), limit + 1)
                    if line.end <= ends.get(key, line.end)
                ]
                for key in keys
            ]
            if not any(chunks):
                return taken
            merged = merge(*chunks, key=lambda item: item[1].time)
            for item in list(merged)[: limit + 1]:
                taken.append(item)
                ahead[item[0]] = item[1].end
            shown = sum(1 for _, line in taken if events or not line.text.startswith(PREFIX))
            if shown >= limit:
                return taken

    def _tail(self, folder: Path, keys: list[Key], count: int, events: bool) -> dict[Key, int]:
        """Where the last `count` lines of one attempt begin in each of its files."""
        wanted = count
        while True:
            first = {key: tail_offset(path_of(folder, *key), wanted) for key in keys}
            last = dict(first)
            found: list[tuple[str, Key, int]] = []
            for key in keys:
                for line in read_lines(path_of(folder, *key), first[key], wanted):
                    if events or not line.text.startswith(PREFIX):
                        found.append((line.time, key, last[key]))
                    last[key] = line.end
            if len(found) >= count or not any(first.values()) or wanted > 1_000_000:
                break
            wanted *= 4
        found.sort(key=lambda item: item[0])
        for _, key, begin in reversed(found[-count:] if count else []):
            last[key] = begin
        return last
