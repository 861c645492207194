"""How fast logs are stored: python tests/bench/log_lines.py [--lines N] [--engine]

Without an engine: what the engine sends for N lines of 100 characters (chunks, frames, times), out of memory through a
real socket, into a replica's file: the collector's whole path but dockerd. With --engine: a real container prints them.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.backends.docker.log_stream import DockerLog
from service.collector.follower import Follower
from service.collector.hub import Hub
from tests.unit.simulation import World

EVERY = 1000
"""One line in so many carries an event, as with a training that also talks."""


def sent(lines: int) -> bytes:
    """An engine's answer with `lines` lines, each a frame in a chunk of its own."""
    body = bytearray(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for number in range(lines):
        text = b"%0100d" % number
        if number % EVERY == 0:
            text = b'@navarch {"event":"metrics","step":%d,"values":{"loss":1.5,"lr":0.001}}' % number
        payload = b"2026-01-01T00:%02d:%02d.%09dZ %b\n" % (
            number // 6000000 % 60,
            number // 100000 % 60,
            number % 100000,
            text,
        )
        frame = struct.pack(">BxxxL", 1, len(payload)) + payload
        body += b"%x\r\n%b\r\n" % (len(frame), frame)
    return bytes(body + b"0\r\n\r\n")


class Engine:
    """Sends the same answer to whoever asks for a log."""

    def __init__(self, answer: bytes, folder: Path) -> None:
        self._answer = answer
        self._path = folder / "engine.sock"
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self._path))
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            child = os.fork()
            if child == 0:  # the sender's processor time is not the collector's
                connection.recv(65536)
                connection.sendall(self._answer)
                connection.close()
                os._exit(0)
            connection.close()
            os.waitpid(child, os.WNOHANG)

    def engine(self, host_id: str) -> Any:
        return self

    def follow(self, container_id: str, since: int, **how: Any) -> DockerLog:
        import docker

        api = docker.APIClient(base_url=f"unix://{self._path}", version="1.41", timeout=60)
        return DockerLog(api.get(api._url("/x"), stream=True), "the log", ended=True)


def from_memory(lines: int) -> None:
    with tempfile.TemporaryDirectory(prefix="navarch-bench-") as name:
        folder = Path(name)
        world = World(folder)
        replica = world.one_replica()
        world.settings.log_quota_bytes = 1 << 30
        follower = Follower(Engine(sent(lines), folder), world.database, world.settings, Hub(), replica, 1)
        start, used = time.perf_counter(), _cpu()
        follower.end(3600)
        took, cpu = time.perf_counter() - start, _cpu() - used
        stored = sum(1 for _ in follower.path.open("rb"))
        assert stored == lines, f"{stored} of {lines} lines"
        print(f"from memory: {lines:,} lines in {took:.2f} s, {cpu:.2f} s of a processor:", end=" ")
        print(f"{lines / took:,.0f} lines/s, {lines / cpu:,.0f} per second of a processor")
        world.close()


def from_a_container(lines: int) -> None:
    """From the start of the container to the job's end, with every line stored; dockerd's part is shown beside."""
    from tests.bench.control_plane import system_image
    from tests.docker.front_door import front_door

    with (
        tempfile.TemporaryDirectory(prefix="navarch-bench-") as name,
        front_door(Path(name)) as door,
        door.client() as client,
    ):
        spec = {"type": "command", "image": system_image(), "command": f"seq -f %0100.0f 1 {lines}"}
        dockerd = int(Path("/var/run/docker.pid").read_text())
        start, engine, own = time.perf_counter(), _of(dockerd), _of(door.process.pid)  # type: ignore[union-attr]
        job = client.submit(spec)
        ended = client.wait(job.id, timeout_s=900)
        took = time.perf_counter() - start
        engine, own = _of(dockerd) - engine, _of(door.process.pid) - own  # type: ignore[union-attr]
        (file,) = (door.data_dir / "jobs" / job.id / "logs").iterdir()
        stored = sum(1 for _ in file.open("rb"))
        print(f"from a container: {ended.state}, {stored:,} of {lines:,} lines after {took:.1f} s,", end=" ")
        print(f"{stored / took:,.0f} lines/s; processor: dockerd {engine:.1f} s, control plane {own:.1f} s")


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=600_000)
    parser.add_argument("--engine", action="store_true", help="also with a real container")
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {', '.join(f'{value:.1f}' for value in os.getloadavg())}")
    from_memory(asked.lines)
    if asked.engine:
        from_a_container(asked.lines)


if __name__ == "__main__":
    main()
