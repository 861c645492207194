"""What can be seen of an engine's machine besides what the engine says; and how that is read from /proc."""

from dataclasses import dataclass


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
