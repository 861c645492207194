"""A container kept as an image: what was installed stays, who used it doesn't; pushing it to a registry."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from images.catalog import resolve
from images.commit import commit, push
from images.errors import ImageError
from tests.docker.conftest import TEST_LABEL
from tests.docker.front_door import FrontDoor
from tests.docker.ssh_client import SshClient, free_port
from tests.docker.test_images_build import layer_files
from tests.docker.test_images_entrypoint import put, wait_until

Run = Callable[..., Container]
TOKEN = b"hf_a-very-secret-token"


@pytest.fixture
def tag(docker_client: docker.DockerClient) -> Iterator[str]:
    name = f"navarch-test-{uuid.uuid4().hex[:8]}:latest"
    yield name
    for container in docker_client.containers.list(all=True, filters={"ancestor": name}):
        container.remove(force=True)
    if docker_client.images.list(name=name):
        docker_client.images.remove(name, force=True)


@pytest.fixture
def used(docker_client: docker.DockerClient, system_image: str, run_container: Run, ssh_key: Path) -> Container:
    """A running container of a job, with keys and tokens in all the places where they gather."""
    probe = run_container(system_image, ["true"])
    container = docker_client.containers.create(
        system_image,
        labels={TEST_LABEL: probe.labels[TEST_LABEL], "navarch.deployment": "d1", "navarch.job": "j1"},
        ports={"22/tcp": ("127.0.0.1", None)},
        environment={"HF_TOKEN": TOKEN.decode(), "WORLD_SIZE": "8", "NAVARCH_BARRIER": "1", "LANG": "en_US.UTF-8"},
    )
    put(
        container,
        {
            "authorized_keys": ssh_key.with_suffix(".pub").read_bytes(),
            "env": b"WANDB_API_KEY=" + TOKEN + b'\nQUOTED={"key": "' + TOKEN + b'"}\n',
            "go": b"",
        },
    )
    container.start()
    login = SshClient.to(container, ssh_key)
    login.wait()
    cache = "/root/.cache/huggingface"
    script = (
        f"echo precious > /workspace/notes; mkdir -p {cache} /srv/.ssh; printf {TOKEN.decode()} > {cache}/token; "
        f"echo a typed secret > ~/.bash_history; echo token={TOKEN.decode()} > /opt/conf; rm /usr/bin/rsync; "
        "ssh-keygen -q -t ed25519 -N '' -f /srv/.ssh/id_rsa; cp /srv/.ssh/id_rsa /opt/key"
    )
    assert login.run(script).returncode == 0
    return container


def test_a_committed_container_keeps_the_work_and_no_secret(
    docker_client: docker.DockerClient, used: Container, tag: str, ssh_key: Path, run_container: Run
) -> None:
    host_key = SshClient.to(used, ssh_key).host_key()
    public = ssh_key.with_suffix(".pub").read_bytes().split()[1]
    made = commit(docker_client, str(used.id), tag, secrets=[TOKEN.decode(), public.decode()])
    assert {"/opt/conf", "/srv/.ssh/id_rsa", "/opt/key"} <= set(made.left_out), made

    names = set()
    for name, content in layer_files(docker_client, tag):
        names.add(name)
        assert TOKEN not in content, name
        assert public not in content, name
        assert not content.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----"), name
        assert b"a typed secret" not in content, name
        assert not name.startswith(("run/navarch/", "etc/ssh/ssh_host", "etc/ssh/navarch")), name
    assert "workspace/notes" in names and "usr/bin/.wh.rsync" in names
    base = docker_client.images.get(used.attrs["Image"]).attrs["RootFS"]["Layers"]
    assert docker_client.images.get(tag).attrs["RootFS"]["Layers"][:-1] == base

    # The container goes on as before.
    login = SshClient.to(used, ssh_key)
    assert login.run("cat /root/.cache/huggingface/token").stdout == TOKEN.decode()
    assert login.run("echo $WANDB_API_KEY").stdout.strip() == TOKEN.decode()
    assert login.host_key() == host_key

    # A container of the image is nobody's job, has its own host key, and lets in whom it is told to.
    fresh = run_container(
        tag,
        ports={"22/tcp": ("127.0.0.1", None)},
        volumes={str(ssh_key.with_suffix(".pub")): {"bind": "/run/navarch/authorized_keys", "mode": "ro"}},
    )
    login = SshClient.to(fresh, ssh_key)
    login.wait()
    assert login.host_key() not in ("", host_key)
    assert login.run("cat /workspace/notes; env").stdout.startswith("precious\n")
    environment = login.run("env").stdout.splitlines()
    assert not [line for line in environment if line.startswith(("HF_TOKEN", "WORLD_SIZE", "WANDB", "QUOTED"))]
    assert "navarch.deployment" not in fresh.labels
    assert resolve(docker_client, tag).recipe == "commit"


def test_a_container_of_a_committed_image_waits_for_its_own_barrier(
    docker_client: docker.DockerClient, used: Container, tag: str, run_container: Run
) -> None:
    used.stop(timeout=5)
    commit(docker_client, str(used.id), tag)
    waiting = run_container(tag, ["echo", "started"], environment={"NAVARCH_BARRIER": "1"})
    with pytest.raises(Exception, match=r"timed out|Timeout"):
        waiting.wait(timeout=2)
    put(waiting, {"go": b""})
    assert waiting.wait(timeout=10)["StatusCode"] == 0


def test_a_second_commit_carries_nothing_twice(
    docker_client: docker.DockerClient, used: Container, tag: str, run_container: Run
) -> None:
    commit(docker_client, str(used.id), tag)
    first = docker_client.images.get(tag).attrs["RootFS"]["Layers"]
    again = run_container(tag, ["sh", "-c", "echo more > /workspace/more; sleep 60"])
    wait_until(lambda: again.exec_run(["test", "-s", "/workspace/more"]).exit_code == 0)
    commit(docker_client, str(again.id), tag)
    assert docker_client.images.get(tag).attrs["RootFS"]["Layers"][:-1] == first
    names = [name for name, _ in layer_files(docker_client, tag)]
    assert names.count("workspace/notes") == 1 and "workspace/more" in names


def test_committing_what_is_not_there_says_so(docker_client: docker.DockerClient) -> None:
    with pytest.raises(ImageError) as caught:
        commit(docker_client, "no-such-container", "x")
    assert caught.value.code == "container_missing"


def test_an_image_goes_to_a_registry_with_a_login_and_comes_back(
    door: FrontDoor, docker_client: docker.DockerClient, system_image: str, registry: tuple[str, Container]
) -> None:
    address, server = registry
    name = f"{address}/team/base:1"

    def navarch(*words: str, password: str = "") -> tuple[int, str]:
        done = subprocess.run(
            door.command(*words), env=door.environ(), input=password, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    code, said = navarch("image", "push", system_image, "--to", name)
    assert code == 1 and "no basic auth" in said and "navarch registry login" in said, said
    assert not docker_client.images.list(name), "what failed leaves no tag behind"
    code, said = navarch("registry", "login", address, "-u", "ann", password="wrong")
    assert code == 1 and f"{address} does not let ann in" in said, said
    assert navarch("registry", "login", address, "-u", "ann", password="s3cret-pass")[0] == 0
    for file in door.data_dir.glob("navarch.*"):
        assert b"s3cret-pass" not in file.read_bytes(), file
    code, said = navarch("image", "push", system_image, "--to", name)
    assert code == 0 and f"pushed as {address}/team/base@sha256:" in said, said
    docker_client.images.remove(name)
    code, said = navarch("image", "pull", name)
    assert code == 0 and docker_client.images.get(name).id == docker_client.images.get(system_image).id, said
    docker_client.images.remove(name)
    file = door.folder / "base.tar"
    assert navarch("image", "tag", system_image, name)[0] == navarch("image", "export", name, str(file))[0] == 0
    docker_client.images.remove(name)
    code, said = navarch("image", "import", str(file))
    assert code == 0 and f"{name} is here" in said, said
    docker_client.images.remove(name)
    assert navarch("registry", "logout", address)[0] == 0
    assert navarch("image", "pull", name)[0] == 1
    assert navarch("registry", "login", address, "-u", "ann", password="s3cret-pass")[0] == 0
    server.kill()
    code, said = navarch("image", "push", system_image, "--to", name)
    server.start()
    assert code == 1 and "(tried 3 times)" in said and not docker_client.images.list(name), said


def test_a_push_that_is_refused_says_why(docker_client: docker.DockerClient, system_image: str) -> None:
    destination = f"127.0.0.1:{free_port()}/nobody:1"
    with pytest.raises(ImageError) as caught:
        list(push(docker_client, system_image, destination))
    docker_client.images.remove(destination)
    assert caught.value.code == "push_failed"
    assert "navarch registry login" in caught.value.hint
