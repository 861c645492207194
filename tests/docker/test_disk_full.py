"""The disk under the data folder fills up: each write says so, health says so, and all goes on when there is room."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from service.locations import Endpoint
from tests.docker.front_door import until

SMALL = 6 << 20
JOB = {"type": "command", "image": "cpu", "command": "true"}


@dataclass
class SmallDisk:
    """A file system of a few MB in a mount namespace of its own, with a shell that keeps it."""

    folder: Path
    shell: subprocess.Popen[str]

    @property
    def data(self) -> Path:
        """The data folder, as this process sees it."""
        return Path(f"/proc/{self.shell.pid}/root{self.folder}/data")

    def run(self, command: str) -> None:
        assert self.shell.stdin is not None
        self.shell.stdin.write(command + "\n")
        self.shell.stdin.flush()

    def fill(self) -> None:
        """Leaves not one byte."""
        with (self.data / "filler").open("wb", buffering=0) as file:
            for size in (65536, 4096, 512, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def free(self) -> None:
        (self.data / "filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    own = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    environment = {
        **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
        "NAVARCH_ENGINE_URL": f"unix://{tmp_path}/no-engine.sock",
        "NAVARCH_DATA_DIR": str(tmp_path / "small" / "data"),
    }
    (tmp_path / "small").mkdir()
    shell = subprocess.Popen([*own, "sh"], stdin=subprocess.PIPE, text=True, env=environment)
    made = SmallDisk(tmp_path / "small", shell)
    made.run(f"mount -t tmpfs -o size={SMALL} tmpfs {made.folder}; mkdir {made.folder}/data")
    until(lambda: made.data.is_dir(), "the small disk is mounted")
    yield made
    made.run("kill $PLANE; wait; exit")
    shell.communicate(timeout=60)


def start(disk: SmallDisk, tmp_path: Path) -> None:
    disk.run(f"{sys.executable} -P -m service.cli.main up --port 0 > {tmp_path}/up.log 2>&1 & PLANE=$!")


def test_writes_and_health_say_so_and_all_is_well_again_when_there_is_room(disk: SmallDisk, tmp_path: Path) -> None:
    start(disk, tmp_path)
    until(lambda: Endpoint.read(disk.data) is not None, "the control plane answers", 90)
    endpoint = Endpoint.read(disk.data)
    assert endpoint is not None
    signed = {"Authorization": f"Bearer {(disk.data / 'token').read_text().strip()}"}
    with httpx.Client(base_url=f"{endpoint.url}/api/v1", headers=signed, timeout=60) as http:
        assert database_of(http) == (True, "can be written")
        disk.fill()
        until(lambda: not database_of(http)[0], "health notices")
        answer = http.get("/health")
        assert answer.status_code == 503 and answer.json()["code"] == "database_unavailable"
        assert "no space left" in database_of(http)[1]
        refused = http.post("/jobs", json=JOB)
        assert (refused.status_code, refused.json()["code"]) == (507, "disk_full") and refused.json()["hint"]
        assert http.get("/jobs").status_code == 200
        disk.free()
        until(lambda: database_of(http)[0], "health notices that there is room again")
        assert http.post("/jobs", json=JOB).status_code == 201


def database_of(http: httpx.Client) -> tuple[bool, str]:
    check = next(check for check in http.get("/health").json()["checks"] if check["name"] == "database")
    return check["ok"], check["detail"]


def test_a_full_disk_at_the_start_is_named(disk: SmallDisk, tmp_path: Path) -> None:
    disk.fill()
    start(disk, tmp_path)
    said = tmp_path / "up.log"
    until(lambda: said.exists() and "hint:" in said.read_text(), "it gives up", 90)
    time.sleep(0.2)
    assert "error: There is no space left on the disk" in said.read_text()
    assert "Free some space" in said.read_text() and "please report" not in said.read_text()
