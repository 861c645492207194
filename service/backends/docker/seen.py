"""What can be seen of an engine's machine besides what the engine says: from /proc, and by a small shell program."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.backends.engines import Examination
from service.backends.errors import EngineError

_CLOSER = """
echo clock $(date +%s.%N)
echo disk $(df -P -k -- {root} 2>/dev/null | tail -n +2)
echo shm $(df -P -k /dev/shm 2>/dev/null | tail -n +2)
echo devices $(ls -d /proc/driver/nvidia/gpus/* 2>/dev/null | wc -l)
dmesg 2>/dev/null | grep -F 'NVRM: Xid' | tail -n 3 | sed 's/^/xid /'
true
"""
"""Needs a shell and coreutils; what isn't allowed, or isn't there, prints nothing."""


@dataclass(frozen=True)
class Seen:
    """None: it can't be seen from here."""

    boot_id: str | None = None
    engine_started_at: float | None = None
    """By the machine's own clock."""


def started_at(stat: str, uptime: str, ticks_per_s: int, now: float) -> float | None:
    """When a process was started, exact to hundredths of a second: /proc/stat knows the boot time to seconds only.

    `stat` is its /proc/PID/stat, `uptime` /proc/uptime, `now` the time when they were read.
    """
    try:
        ticks = int(stat.rpartition(")")[2].split()[19])
        return now - (float(uptime.split()[0]) - ticks / ticks_per_s)
    except (ValueError, IndexError):
        return None


def closer(shell: Callable[[str], str], root: str) -> Examination:
    """Disk, memory, clock and the driver's errors. `root`: where the engine keeps its data."""
    before = time.time()
    try:
        said = shell(_CLOSER.format(root=shlex.quote(root)))
    except (EngineError, OSError):  # an account without a shell: Docker can be used all the same
        return Examination()
    return read_closer(said, before, time.time())


def read_closer(said: str, before: float, after: float) -> Examination:
    """From what the program printed, which was begun and over at these times. Pure."""
    found: dict[str, list[str]] = {}
    xids = []
    for line in said.splitlines():
        word, _, rest = line.partition(" ")
        if word == "xid":
            xids.append(rest.strip())
        else:
            found[word] = rest.split()
    disk, shm = found.get("disk", []), found.get("shm", [])
    return Examination(
        gpu_devices=_whole(found.get("devices", []), 0),
        disk_size=_kib(disk, 1),
        disk_free=_kib(disk, 3),
        shm=_kib(shm, 1),
        skew_s=_skew(found.get("clock", []), before, after),
        xids=tuple(xids),
    )


def _skew(clock: list[str], before: float, after: float) -> float | None:
    """Zero for a time in between: that is all that is certain."""
    try:
        now = float(clock[0])
    except (IndexError, ValueError):
        return None
    return now - before if now < before else max(0.0, now - after)


def _whole(words: list[str], index: int) -> int | None:
    return int(words[index]) if len(words) > index and words[index].isdigit() else None


def _kib(words: list[str], index: int) -> int | None:
    number = _whole(words, index)
    return number << 10 if number is not None else None
