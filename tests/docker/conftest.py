"""What tests against a real Docker Engine share: a client, images, containers that are removed, an SSH key."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from images.build import BuildOptions, build, finish
from service.client import Client
from tests.docker.engines import remove_containers
from tests.docker.front_door import FrontDoor, front_door, until
from tests.docker.ssh_client import free_port

TEST_LABEL = "navarch.test"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def docker_client() -> Iterator[docker.DockerClient]:
    """The engine that DOCKER_HOST names, or the local one."""
    client = docker.from_env(timeout=600)
    client.ping()
    yield client
    client.close()


@pytest.fixture(scope="session")
def system_image(docker_client: docker.DockerClient) -> str:
    """An image with SSH and the entrypoint, but no training environment: made in seconds, starts the same way.

    Give it to jobs of `type: command`; the name resolves like any image's.
    """
    return finish(build(docker_client, "cpu", training=False)).tag


@pytest.fixture(scope="session")
def cpu_image(docker_client: docker.DockerClient) -> str:
    """The full `cpu` image with the training package of this tree; minutes the first time, seconds after a change."""
    return finish(build(docker_client, "cpu", BuildOptions(wheelhouse=local_wheelhouse()))).tag


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, system_image: str) -> Iterator[FrontDoor]:
    """A control plane whose jobs may mount what lies in `folder / "shared"`; files that need more make their own."""
    folder = tmp_path_factory.mktemp("navarch")
    (folder / "shared").mkdir()
    with front_door(folder, "--mount-root", str(folder / "shared")) as opened:
        yield opened


@pytest.fixture
def client(door: FrontDoor) -> Iterator[Client]:
    with door.client() as made:
        yield made


def local_wheelhouse() -> Path | None:
    """Folder with torch's CPU wheel, fetched if need be; None where none is to be had."""
    folder = (REPOSITORY / os.environ.get("NAVARCH_STATE", ".navarch") / "wheelhouse").absolute()
    if not any(folder.glob("torch-*.whl")):
        fetch = ["bash", str(REPOSITORY / "scripts/wheelhouse.sh"), str(folder), sys.executable]
        subprocess.run(fetch, check=True, timeout=300)
    return folder if any(folder.glob("torch-*.whl")) else None


@pytest.fixture
def run_container(docker_client: docker.DockerClient) -> Iterator[Callable[..., Container]]:
    """Starts containers like docker-py's `containers.run(image, command, **options)`; removes them after the test."""
    mark = uuid.uuid4().hex

    def run(image: str, command: Any = None, **options: Any) -> Container:
        labels = {**options.pop("labels", {}), TEST_LABEL: mark}
        return docker_client.containers.run(image, command, detach=True, labels=labels, **options)

    yield run
    remove_containers(docker_client, f"{TEST_LABEL}={mark}")


@pytest.fixture(scope="session")
def ssh_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh key pair of OpenSSH; the public key is beside it with the ending .pub."""
    path = tmp_path_factory.mktemp("ssh") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


HTPASSWD = "ann:$2b$05$Q3zsgUz7e.DnbBi1BrulXuq3vtm8.aPTTEBNwmQnqTJa8IUyTFuMy"
"""`s3cret-pass`, as docker-registry takes it."""


@pytest.fixture(scope="session")
def registry(docker_client: docker.DockerClient, system_image: str) -> Iterator[tuple[str, Container]]:
    """Debian's docker-registry with basic auth, on a port of the loopback interface; engines need no TLS there."""
    tag, port = f"navarch-test-{uuid.uuid4().hex[:8]}:latest", free_port()
    settings = (
        "version: 0.1", "storage: {filesystem: {rootdirectory: /srv}}", f"http: {{addr: 127.0.0.1:{port}}}",
        "auth: {htpasswd: {realm: test, path: /htpasswd}}",
    )  # fmt: skip
    dockerfile = (
        f"FROM {system_image}\n"
        "RUN apt-get -qq update && apt-get -qq -y install --no-install-recommends docker-registry > /dev/null\n"
        f"RUN echo '{HTPASSWD}' > /htpasswd && printf '%s\\n' {' '.join(map(shlex.quote, settings))} > /registry.yaml\n"
    )
    docker_client.images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=tag, rm=True, forcerm=True)
    server = docker_client.containers.run(
        tag, ["docker-registry", "serve", "/registry.yaml"], network_mode="host", detach=True,
        environment={"NAVARCH_SSH_PORT": str(free_port())},
    )  # fmt: skip
    try:
        until(lambda: b"listening on" in server.logs(), "the registry listens")
        yield f"127.0.0.1:{port}", server
    finally:
        server.remove(force=True)
        docker_client.images.remove(tag, force=True)
