"""Drives OpenSSH's client against a container, as a user's terminal or IDE does."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from docker.models.containers import Container


@dataclass(frozen=True)
class SshClient:
    """One way into a container: a port of this machine and a private key."""

    port: int
    key: Path

    @classmethod
    def to(cls, container: Container, key: Path) -> SshClient:
        """The way in through the port that the container's 22 is mapped to."""
        container.reload()
        return cls(int(container.ports["22/tcp"][0]["HostPort"]), key)

    @property
    def options(self) -> list[str]:
        """Options that ssh, scp and sftp share; the user's own configuration is left out."""
        values = {
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "5",
        }
        return ["-F", "/dev/null", "-i", str(self.key), *(f"-o{key}={value}" for key, value in values.items())]

    @property
    def command(self) -> list[str]:
        return ["ssh", *self.options, "-p", str(self.port), "root@127.0.0.1"]

    def run(self, command: str, *options: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command in the container by `ssh HOST command`."""
        return subprocess.run(
            [*self.command[:-1], *options, self.command[-1], command],
            input=input, stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    def wait(self, seconds: float = 15) -> None:
        """Waits until a login succeeds."""
        deadline = time.monotonic() + seconds
        while (result := self.run("true")).returncode != 0:
            assert time.monotonic() < deadline, result.stderr
            time.sleep(0.05)

    def host_key(self) -> str:
        """The host's ed25519 key as the client sees it (base64), empty while sshd is not up."""
        scan = subprocess.run(
            ["ssh-keyscan", "-T", "5", "-t", "ed25519", "-p", str(self.port), "127.0.0.1"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        lines = [line for line in scan.stdout.splitlines() if not line.startswith("#")]
        return lines[0].split()[2] if lines else ""

    @contextmanager
    def forwarding(self, *options: str) -> Iterator[None]:
        """Keeps a connection with forwarding options open; they are in place when the block begins."""
        process = subprocess.Popen(
            [*self.command[:-1], "-oExitOnForwardFailure=yes", *options, self.command[-1], "echo up; exec sleep 60"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "up\n", process.stderr.read()
            yield
        finally:
            process.terminate()
            process.communicate(timeout=10)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
