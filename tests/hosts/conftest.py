"""What tests over hosts share: three real hosts for the whole session, and a control plane that has been given them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from service.client import Client
from tests.docker.conftest import cpu_image, docker_client, ssh_key, system_image
from tests.docker.front_door import FrontDoor, front_door
from tests.hosts.machines import Machine, Machines

__all__ = ["cpu_image", "docker_client", "ssh_key", "system_image"]


@pytest.fixture(scope="session")
def hosts(docker_client: docker.DockerClient, system_image: str) -> Iterator[Machines]:
    """Two hosts that have the system image. Whoever cuts, kills or changes one puts it right again."""
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated"))  # so that the hosts go
    machines = Machines.claim()
    try:
        machines.up(2, system_image)
        yield machines
    finally:
        machines.close()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, hosts: Machines) -> Iterator[FrontDoor]:
    """A control plane whose key logs in on every host; it has no host yet but its own."""
    with front_door(
        tmp_path_factory.mktemp("navarch"), "--mount-root", str(tmp_path_factory.mktemp("roots"))
    ) as opened:
        let_in(opened, hosts)
        yield opened


@pytest.fixture
def client(door: FrontDoor) -> Iterator[Client]:
    with door.client() as made:
        yield made


def let_in(door: FrontDoor, hosts: Machines | list[Machine]) -> None:
    with door.client() as client:
        line = client.host_key()
    for host in hosts:
        host.authorize(line)


def write_key(folder: Path, text: str) -> Path:
    file = folder / "key"
    file.write_text(text)
    file.chmod(0o600)
    return file
