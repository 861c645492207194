"""What tests over hosts share: real hosts for the whole session, and a control plane whose key they let in."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest

from service.client import Client
from tests.docker.conftest import cpu_image, docker_client, system_image
from tests.docker.front_door import FrontDoor, front_door
from tests.hosts.machines import Machines

__all__ = ["cpu_image", "docker_client", "system_image"]


@pytest.fixture(scope="session")
def hosts(docker_client: docker.DockerClient, system_image: str) -> Iterator[Machines]:
    """Two hosts that have the system image. Whoever cuts, kills or changes one puts it right again."""
    machines = Machines.claim()
    try:
        machines.up(2, system_image)
        yield machines
    finally:
        machines.close()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, hosts: Machines) -> Iterator[FrontDoor]:
    """A control plane whose key logs in on every host; it has no host yet but its own."""
    with front_door(tmp_path_factory.mktemp("navarch"), "--mount-root", str(hosts.shared)) as opened:
        with opened.client() as client:
            line = client.host_key()
        for host in hosts:
            host.authorize(line)
        yield opened


@pytest.fixture
def client(door: FrontDoor) -> Iterator[Client]:
    with door.client() as made:
        yield made
