"""Image builds are seen while they wait, can be cancelled at any point, and don't wait for what isn't theirs."""

from __future__ import annotations

import io
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docker
import pytest

from service.client import ApiError, Client
from tests.docker.front_door import FrontDoor, until
from tests.docker.test_images_build import step_containers

MakeRecipe = Callable[[str, str], str]


@pytest.fixture
def recipe(door: FrontDoor) -> MakeRecipe:
    """Writes a recipe on a base; its file's path."""

    def write(name: str, base: str) -> str:
        file = door.folder / f"{name}.yaml"
        file.write_text(f"name: {name}\nbase: {base}\ntorch: cpu\n")
        return str(file)

    return write


@pytest.fixture(scope="module")
def hanging(docker_client: docker.DockerClient, system_image: str) -> Iterator[str]:
    """A base on which every build hangs in a step that says nothing: its apt-get sleeps."""
    tag = f"navarch-test-{uuid.uuid4().hex[:8]}:latest"
    apt = "cd /usr/local/bin && printf '#!/bin/sh\\nexec sleep 600\\n' > apt-get && chmod 755 apt-get"
    dockerfile = f"FROM {system_image}\nRUN {apt}\n"
    docker_client.images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=tag, rm=True, forcerm=True)
    yield tag
    docker_client.images.remove(tag, force=True)


class Stalls(BaseHTTPRequestHandler):
    """A registry that begins to answer and never ends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        self.send_header("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
        self.send_header("Content-Length", "2" if self.path == "/v2/" else "1000")
        self.end_headers()
        self.wfile.write(b"{}" if self.path == "/v2/" else b"{")
        if self.path != "/v2/":
            self.rfile.read()  # until the other side goes away

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def silent_registry() -> Iterator[str]:
    """An image whose pull never ends."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Stalls) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}/team/base:1"
        server.shutdown()


@pytest.fixture(autouse=True)
def nothing_left(client: Client) -> Iterator[None]:
    yield
    for build in client.builds(limit=20):
        if not build.finished:
            client.cancel_build(build.id)


def in_a_step(client: docker.DockerClient) -> Callable[[], bool]:
    return lambda: bool(step_containers(client))


def cancelled(client: Client, build_id: str, seconds: float = 8) -> None:
    begun = time.monotonic()
    client.cancel_build(build_id)
    until(lambda: client.build(build_id).finished, "the build has ended", seconds)
    ended = client.build(build_id)
    assert ended.state == "stopped" and "cancelled by" in (ended.message or "")
    assert time.monotonic() - begun < seconds


def test_a_build_in_the_middle_of_a_step_is_cancelled_and_leaves_nothing(
    client: Client, docker_client: docker.DockerClient, recipe: MakeRecipe, hanging: str
) -> None:
    build = client.build_image(recipe("hangs", hanging), target="system")
    until(in_a_step(docker_client), "a step hangs", 60)
    cancelled(client, build.id)
    until(lambda: not step_containers(docker_client), "its container is gone", 10)
    assert not docker_client.images.list(name="navarch/hangs-system")
    with pytest.raises(ApiError) as caught:
        client.cancel_build(build.id)
    assert caught.value.code == "build_finished"


def test_builds_of_one_recipe_wait_in_line_and_say_so(
    client: Client, door: FrontDoor, docker_client: docker.DockerClient, recipe: MakeRecipe, hanging: str
) -> None:
    name = recipe("line", hanging)
    first, second, third = (client.build_image(name, target="system") for _ in range(3))
    until(in_a_step(docker_client), "the first builds", 60)
    assert [client.build(build.id).ahead for build in (first, second, third)] == [0, 1, 2]
    assert client.build(third.id).message == "waits for 2 builds before it"
    assert "waits for 2 builds before it" in door.navarch("image", "builds").stdout
    assert next(client.follow_build(third.id)) == "Waits for 2 builds before it"
    done = door.navarch("image", "cancel", second.id)
    assert done.returncode == 0 and "before it started" in done.stdout, done.stderr
    assert client.build(second.id).state == "stopped"
    assert client.build(third.id).ahead == 1
    cancelled(client, first.id)
    until(lambda: client.build(third.id).state == "running", "the third starts")
    done = door.navarch("image", "cancel", name)
    assert done.returncode == 0, done.stderr
    until(lambda: client.build(third.id).finished, "the third has ended", 15)


def test_a_build_does_not_wait_for_the_pull_of_another(
    client: Client, docker_client: docker.DockerClient, recipe: MakeRecipe, system_image: str, silent_registry: str
) -> None:
    pulls = client.build_image(recipe("pulls", silent_registry), target="system")
    until(lambda: "Pulling" in (client.build(pulls.id).message or ""), "the first pulls")
    builds = client.build_image(recipe("builds", system_image), target="system", tag="navarch-test-builds:1")
    try:
        until(lambda: client.build(builds.id).finished, "the other is built", 120)
        assert client.build(builds.id).state == "succeeded", client.build(builds.id).message
        assert client.build(pulls.id).state == "running"
        cancelled(client, pulls.id)
    finally:
        docker_client.images.remove("navarch-test-builds:1", force=True)


def test_the_engine_builds_one_after_another(
    client: Client, docker_client: docker.DockerClient, recipe: MakeRecipe, system_image: str, hanging: str
) -> None:
    first = client.build_image(recipe("holds", hanging), target="system")
    until(in_a_step(docker_client), "the first builds", 60)
    second = client.build_image(recipe("follows", system_image), target="system", tag="navarch-test-follows:1")
    until(lambda: client.build(second.id).ahead == 1, "the second waits for its turn")
    assert client.build(second.id).message == "waits for 1 build before it"
    cancelled(client, first.id)
    try:
        until(lambda: client.build(second.id).finished, "the second is built", 120)
        assert client.build(second.id).state == "succeeded"
    finally:
        docker_client.images.remove("navarch-test-follows:1", force=True)


def test_a_cancelled_base_leaves_no_folder(client: Client, door: FrontDoor, docker_client: docker.DockerClient) -> None:
    """A base from the distribution's packages is made by programs outside of the engine."""
    file = door.folder / "debian.yaml"
    file.write_text("name: debian\nbase: registry.invalid/debian:1\ndebootstrap: bullseye\ntorch: cpu\n")
    build = client.build_image(str(file), target="system")
    until(lambda: bool(list(Path("/tmp").glob("navarch-base-*/root/usr"))), "debootstrap works", 120)
    cancelled(client, build.id, 30)
    until(lambda: not list(Path("/tmp").glob("navarch-base-*")), "its folder is gone", 20)
    assert not docker_client.images.list(name="navarch/base:bullseye")


def test_a_build_that_nobody_asked_for_cannot_be_cancelled(client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        client.cancel_build("nothing")
    assert caught.value.code == "build_not_found"
