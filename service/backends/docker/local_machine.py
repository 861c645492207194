"""What can be seen of an engine that runs on this very machine: when it started, and whether the machine rebooted."""

import os
import socket
import struct
import subprocess
import time
from pathlib import Path

from service.backends.docker.seen import Seen, started_at


def look(socket_path: str) -> Seen:
    return Seen(_boot_id(), _engine_started_at(socket_path))


def shell(program: str) -> str:
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, timeout=20, check=False)
    return done.stdout


def reaches(address: str, port: int) -> str | None:
    """Why nothing answers at another machine's address; None when something does, if only by a refusal."""
    try:
        socket.create_connection((address, port), timeout=3).close()
    except ConnectionRefusedError:
        return None
    except OSError as error:
        return str(error) or type(error).__name__
    return None


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _engine_started_at(socket_path: str) -> float | None:
    """When the dockerd behind a socket was started; None when its process can't be seen."""
    for pid in (_peer(socket_path), _from_pidfile(socket_path)):
        if pid and _name(pid) == "dockerd":
            return _started_at(pid)
    return None


def _peer(socket_path: str) -> int | None:
    """The process that listens on a socket (systemd's, when it opened the socket for the engine)."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(2)
            connection.connect(socket_path)
            size = struct.calcsize("3i")
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
            return int(pid) or None
    except OSError:
        return None


def _from_pidfile(socket_path: str) -> int | None:
    try:
        return int(Path(socket_path).with_suffix(".pid").read_text())
    except (OSError, ValueError):
        return None


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _started_at(pid: int) -> float | None:
    try:
        stat, uptime = Path(f"/proc/{pid}/stat").read_text(), Path("/proc/uptime").read_text()
    except OSError:
        return None
    return started_at(stat, uptime, os.sysconf("SC_CLK_TCK"), time.time())
