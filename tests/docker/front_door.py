"""Starts a control plane as a user does (`navarch up`) and drives it by its command line, SDK and HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from service.client import Client
from service.locations import Endpoint

REPOSITORY = Path(__file__).parents[2]


def port_range() -> str:
    """Ports for jobs: each process of tests that run side by side has its own; tests that name one take 25900 on."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 24000 + 600 * (worker % 3)
    return f"[{first}, {first + 599}]"


@dataclass
class FrontDoor:
    """One control plane with its own data folder, configuration and home."""

    folder: Path
    port: int = 0
    url: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    prefix: tuple[str, ...] = ()
    """What `navarch up` is started by, such as unshare."""

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def environ(self) -> dict[str, str]:
        """What its commands see: nothing of the person who runs the tests."""
        kept = {name: os.environ[name] for name in ("PATH", "DOCKER_HOST", "LANG") if name in os.environ}
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        own = {
            "HOME": str(home),
            "NAVARCH_DATA_DIR": str(self.data_dir),
            "NAVARCH_CONFIG_DIR": str(self.folder / "config"),
            "NAVARCH_PORT_RANGE": port_range(),
            "COLUMNS": "200",
            "PYTHONPATH": str(REPOSITORY),  # the code that is tested, whatever is installed
        }
        return {**kept, **own, **self.environment}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "service.cli.main", *arguments]

    def start(self, *options: str) -> None:
        """`navarch up` in the foreground of a process of its own; returns when it answers."""
        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *self.command("up", "--port", str(self.port), *options)],
                env=self.environ(),
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 120  # a second on an idle machine
        while True:
            endpoint = Endpoint.read(self.data_dir)
            if endpoint is not None and endpoint.pid == self.process.pid:
                break
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "up.log").read_text()
            time.sleep(0.05)
        self.url = endpoint.url
        self.port = int(endpoint.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        """As a power cut would: no clean-up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """SIGTERM, and every container of this control plane removed."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.navarch("down", "--containers")

    def navarch(
        self, *arguments: str, timeout_s: float = 120, cwd: Path | None = None, environment: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line; its output is no terminal."""
        return subprocess.run(
            self.command(*arguments),
            env={**self.environ(), **environment},
            cwd=cwd or self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    @property
    def token(self) -> str:
        """Of the account that started it."""
        return (self.data_dir / "token").read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def client(self) -> Client:
        return Client(self.url, token=self.token, timeout_s=30)


@contextmanager
def front_door(folder: Path, *options: str) -> Iterator[FrontDoor]:
    """A control plane on a free port, ended and cleaned up behind."""
    door = FrontDoor(folder)
    try:
        door.start(*options)
        yield door
    finally:
        door.end()


def until(check: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait for something that will be true soon."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
