"""How a container of Navarch starts: sshd, the barrier, the job's signals and exit code, restarts."""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from tests.docker.conftest import TEST_LABEL
from tests.docker.ssh_client import SshClient, free_port

Run = Callable[..., Container]


def put(container: Container, files: dict[str, bytes]) -> None:
    """Puts files into /run/navarch, as the control plane does."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            archive.addfile(entry, io.BytesIO(content))
    assert container.put_archive("/run/navarch", buffer.getvalue())


def wait_until(condition: Callable[[], Any], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def created(docker_client: docker.DockerClient, system_image: str, run_container: Run) -> Callable[..., Container]:
    """Creates a container without starting it (it is removed by the fixture that starts others)."""
    probe = run_container(system_image, ["true"])
    labels = {TEST_LABEL: probe.labels[TEST_LABEL]}

    def create(command: list[str], **options: Any) -> Container:
        return docker_client.containers.create(system_image, command, labels=labels, **options)

    return create


def test_exit_code_of_the_job_is_the_containers(run_container: Run, system_image: str) -> None:
    container = run_container(system_image, ["bash", "-c", "echo out; exit 42"])
    assert container.wait(timeout=30)["StatusCode"] == 42
    assert container.logs().decode().splitlines() == ["out"]


def test_a_command_that_does_not_exist_says_so(run_container: Run, system_image: str) -> None:
    container = run_container(system_image, ["no-such-program"])
    assert container.wait(timeout=30)["StatusCode"] == 127
    assert "no-such-program" in container.logs().decode()


def test_sigterm_reaches_the_job_and_its_answer_counts(run_container: Run, system_image: str) -> None:
    script = "trap 'echo saving; exit 75' TERM; echo ready; while :; do sleep 0.05; done"
    container = run_container(system_image, ["bash", "-c", script])
    wait_until(lambda: b"ready" in container.logs())
    container.stop(timeout=20)
    container.reload()
    assert container.attrs["State"]["ExitCode"] == 75
    found = container.logs().decode().splitlines()
    assert [line for line in found if line != "Terminated"] == ["ready", "saving"]  # bash's word on its `sleep`


def test_job_waits_at_the_barrier_with_sshd_up(created: Callable[..., Container], ssh_key: Path) -> None:
    container = created(
        ["echo", "started"], environment={"NAVARCH_BARRIER": "1"}, ports={"22/tcp": ("127.0.0.1", None)}
    )
    put(container, {"authorized_keys": ssh_key.with_suffix(".pub").read_bytes()})
    container.start()
    login = SshClient.to(container, ssh_key)
    login.wait()
    assert container.logs() == b""
    put(container, {"go": b""})
    assert container.wait(timeout=10)["StatusCode"] == 0
    assert container.logs() == b"started\n"


def test_a_container_at_the_barrier_can_be_stopped(created: Callable[..., Container]) -> None:
    container = created(["echo", "started"], environment={"NAVARCH_BARRIER": "1"})
    container.start()
    time.sleep(0.5)
    begun = time.monotonic()
    container.stop(timeout=20)
    assert time.monotonic() - begun < 10
    assert container.logs() == b""


def test_restart_brings_sshd_back_with_the_same_host_key(run_container: Run, system_image: str, ssh_key: Path) -> None:
    container = run_container(
        system_image,
        ports={"22/tcp": ("127.0.0.1", None)},
        volumes={str(ssh_key.with_suffix(".pub")): {"bind": "/run/navarch/authorized_keys", "mode": "ro"}},
    )
    first = SshClient.to(container, ssh_key)
    first.wait()
    key = first.host_key()
    container.restart(timeout=5)
    again = SshClient.to(container, ssh_key)
    again.wait()
    assert again.host_key() == key


def test_host_key_given_by_the_control_plane_is_used(
    created: Callable[..., Container], ssh_key: Path, tmp_path: Path
) -> None:
    key = tmp_path / "host"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    container = created([], ports={"22/tcp": ("127.0.0.1", None)})
    put(
        container,
        {
            "authorized_keys": ssh_key.with_suffix(".pub").read_bytes(),
            "ssh_host_ed25519_key": key.read_bytes(),
            "ssh_host_ed25519_key.pub": key.with_suffix(".pub").read_bytes(),
        },
    )
    container.start()
    login = SshClient.to(container, ssh_key)
    login.wait()
    assert login.host_key() == key.with_suffix(".pub").read_text().split()[1]


def test_every_container_makes_its_own_host_key(run_container: Run, system_image: str, ssh_key: Path) -> None:
    keys = set()
    for _ in range(2):
        container = run_container(system_image, ports={"22/tcp": ("127.0.0.1", None)})
        wait_until(lambda: SshClient.to(container, ssh_key).host_key())  # noqa: B023 - used at once
        keys.add(SshClient.to(container, ssh_key).host_key())
    assert len(keys) == 2


def test_secrets_reach_the_job_exactly(created: Callable[..., Container]) -> None:
    container = created(["bash", "-c", 'printf \'%s|%s|%s\' "$TOKEN" "$EMPTY" "$QUOTED"'])
    put(container, {"env": b"TOKEN=a=b $HOME #c\nEMPTY=\nnot a setting\nQUOTED=\"kept\" 'too'"})
    container.start()
    assert container.wait(timeout=30)["StatusCode"] == 0
    assert container.logs() == b"a=b $HOME #c||\"kept\" 'too'"


def test_job_runs_on_a_read_only_filesystem_without_ssh(run_container: Run, system_image: str) -> None:
    container = run_container(system_image, ["bash", "-c", "echo done; exit 3"], read_only=True)
    assert container.wait(timeout=30)["StatusCode"] == 3
    log = container.logs().decode()
    assert "done" in log.splitlines()
    assert "read-only" in log


def test_two_containers_on_one_port_of_the_host_network_both_run_their_jobs(
    run_container: Run, system_image: str, ssh_key: Path
) -> None:
    """With host networking the sshd port can be taken: a job must not die for that."""
    port = free_port()
    options = {"network_mode": "host", "environment": {"NAVARCH_SSH_PORT": str(port)}}
    run_container(system_image, **options)
    wait_until(lambda: SshClient(port, ssh_key).host_key(), seconds=60)
    assert run_container(system_image, ["true"], **options).wait(timeout=30)["StatusCode"] == 0
