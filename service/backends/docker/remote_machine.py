"""What can be seen of a remote host's machine over SSH, and whether there is a way to it."""

from __future__ import annotations

from service.backends.docker.seen import Seen, started_at
from service.backends.docker.wires import Wire
from service.backends.errors import EngineError

_LOOK = """
echo "$(cat /proc/sys/kernel/random/boot_id)"
date +%s.%N
getconf CLK_TCK || echo 100
cat /proc/uptime
cat "/proc/$(cat /var/run/docker.pid)/stat"
"""
"""A line for each; what can't be read is missing at the end. Needs no more than a shell and coreutils."""


class RemoteMachine:
    """A host behind its SSH connection."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @property
    def shown(self) -> str:
        return self._wire.route.shown

    def check(self) -> None:
        """Raises Unreachable with why there is no way to it."""
        self._wire.check()

    def shell(self, program: str) -> str:
        """What a shell program prints there. Raises EngineError."""
        return self._wire.run(program).output.decode("utf-8", "replace")

    def reaches(self, address: str, port: int) -> str | None:
        return self._wire.reaches(address, port)

    def look(self) -> Seen:
        """An account without a shell can use the engine all the same: then nothing is seen."""
        try:
            return read(self.shell(_LOOK))
        except EngineError:
            return Seen()


def read(output: str) -> Seen:
    """From what the look printed. Pure."""
    lines = [*output.splitlines(), *[""] * 5]
    boot_id, now, ticks, uptime, stat = lines[:5]
    try:
        started = started_at(stat, uptime, int(ticks), float(now))
    except ValueError:
        started = None
    return Seen(boot_id.strip() or None, started)
