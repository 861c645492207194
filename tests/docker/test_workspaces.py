"""Workspaces through the front door: their address, home and container stay, whatever happens around them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import pytest

from service.client import ApiError, Client
from service.contract.workspaces import Workspace
from tests.docker.front_door import FrontDoor, until


@pytest.fixture
def workspace(door: FrontDoor, client: Client, system_image: str) -> Iterator[str]:
    """One with a mount, a port of its own and an underscore in its name."""
    (door.folder / "shared" / "data").mkdir(exist_ok=True)
    (door.folder / "shared" / "data" / "note").write_text("from the host\n")
    name = "colossal_env"
    options = ["--image", system_image, "--port", "auto:7000", "--mount", f"{door.folder}/shared/data:/workspace/LLM"]
    made = door.navarch("workspace", "create", name, *options, "--ipc", "host", "-e", "GREETING=hello there")
    assert made.returncode == 0, made.stderr
    yield name
    door.navarch("workspace", "rm", name, "--home")


def _ssh(door: FrontDoor, name: str, command: str) -> str:
    done = door.navarch("workspace", "ssh", name, "--", command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _address(found: Workspace) -> tuple[str, int, str | None, dict[str, int]]:
    return found.ssh.host, found.ssh.port, found.ssh.host_key, found.ports


def test_what_an_ide_remembers_stays_through_stops_switches_and_restarts(
    door: FrontDoor, client: Client, workspace: str
) -> None:
    first = client.workspace(workspace)
    assert first.state == "running" and first.ports.keys() == {"22", "7000"}
    assert (
        _ssh(door, workspace, "cat LLM/note; hostname; echo $GREETING") == "from the host\ncolossal_env\nhello there\n"
    )
    _ssh(door, workspace, "echo mine > ~/kept; echo layer > /opt/installed; echo written > LLM/back")
    assert (door.folder / "shared" / "data" / "back").read_text() == "written\n"

    assert door.navarch("workspace", "stop", workspace).returncode == 0
    assert client.workspace(workspace).state == "stopped"
    assert door.navarch("workspace", "start", workspace).returncode == 0
    assert _ssh(door, workspace, "cat ~/kept /opt/installed LLM/note") == "mine\nlayer\nfrom the host\n"

    door.kill()  # the next process has other descriptors: the mounts must be found all the same
    door.start("--mount-root", str(door.folder / "shared"))
    assert _ssh(door, workspace, "cat ~/kept /opt/installed") == "mine\nlayer\n"
    assert door.navarch("workspace", "restart", workspace).returncode == 0
    assert _ssh(door, workspace, "cat ~/kept /opt/installed LLM/note") == "mine\nlayer\nfrom the host\n"

    assert door.navarch("workspace", "start", workspace, "--switch").returncode == 0
    assert _ssh(door, workspace, "cat ~/kept LLM/note; ls /opt") == "mine\nfrom the host\n"
    with door.client() as again:
        assert _address(again.workspace(workspace)) == _address(first)
        assert again.consistency().ok, again.consistency()


def test_a_container_that_ends_is_started_again_and_one_that_is_removed_is_told(
    door: FrontDoor, client: Client, workspace: str, docker_client: docker.DockerClient
) -> None:
    _ssh(door, workspace, "echo layer > /opt/installed")
    found = client.workspace(workspace)
    ready = found.ready_at
    docker_client.containers.get(found.container).kill()
    until(lambda: client.workspace(workspace).ready_at not in (None, ready), "started again")
    assert _ssh(door, workspace, "cat /opt/installed") == "layer\n"

    docker_client.containers.get(found.container).remove(force=True)
    until(lambda: client.workspace(workspace).state == "failed", "told")
    assert "removed by somebody else" in (client.workspace(workspace).message or "")
    assert door.navarch("workspace", "start", workspace).returncode == 0
    assert _address(client.workspace(workspace)) == _address(found)


def test_removing_keeps_the_home_for_the_next_of_that_name_unless_asked(
    door: FrontDoor, client: Client, system_image: str, docker_client: docker.DockerClient
) -> None:
    made = client.create_workspace({"type": "workspace", "name": "brief", "image": system_image})
    until(lambda: client.workspace("brief").state == "running", "running")
    _ssh(door, "brief", "echo mine > ~/kept")
    assert door.navarch("workspace", "rm", "brief").returncode == 0
    with pytest.raises(ApiError) as gone:
        client.workspace("brief")
    assert gone.value.code == "workspace_not_found"
    again = door.navarch("workspace", "create", "brief", "--image", system_image)
    assert again.returncode == 0, again.stderr
    assert _ssh(door, "brief", "cat ~/kept") == "mine\n"
    assert client.workspace("brief").ssh.host_key == client.workspace("brief").ssh.host_key is not None
    assert door.navarch("workspace", "rm", "brief", "--home").returncode == 0
    assert made.home not in {volume.name for volume in docker_client.volumes.list()}
    assert client.consistency().ok


def test_a_yaml_file_describes_one_and_bad_ones_are_refused_in_words(
    door: FrontDoor, client: Client, workspace: str, tmp_path: Path
) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text("type: workspace\nname: colossal_env\ngpus: all\nresources: {gpus: many}\n")
    refused = door.navarch("workspace", "create", str(file))
    assert "resources.gpus" in refused.stderr and "HOST:0,1" in refused.stderr
    taken = door.navarch("workspace", "create", workspace, "--image", "cpu")
    assert "There is a workspace named" in taken.stderr
    job = door.navarch("submit", str(file))
    assert "navarch workspace create" in job.stderr
    port = client.workspace(workspace).ports["7000"]
    other = door.navarch("workspace", "create", "other", "--image", "debian", "--port", f"{port}:22")
    assert f"port {port} of local belongs to workspace {workspace}" in other.stderr
    outside = door.navarch("workspace", "create", "other", "--mount", "/etc:/workspace/etc")
    assert "lies outside the folders" in outside.stderr
    gpus = door.navarch("workspace", "create", "other", "--gpus", "all")
    assert "needs GPUs, but local has none" in gpus.stderr
    other_image = door.navarch("workspace", "start", workspace, "--image", "debian")
    assert "--switch" in other_image.stderr


def test_what_an_ide_does_is_tried_and_what_fails_is_named(door: FrontDoor, client: Client, workspace: str) -> None:
    well = client.check_workspace(workspace)
    assert well.ok, well
    assert {check.name for check in well.checks} >= {"exec", "sftp", "reverse forward", "local forward", "environment"}
    _ssh(door, workspace, "sed -i '1i echo welcome' ~/.bashrc; chmod -x /usr/lib/openssh/sftp-server")
    told = door.navarch("workspace", "check", workspace)
    failed = [line.split()[1] for line in told.stdout.splitlines() if line.startswith("fails")]
    assert told.returncode == 1 and failed == ["exec", "sftp"], told.stdout
    assert "welcome" in told.stdout and "~/.bashrc" in told.stdout


def test_every_workspace_has_a_name_in_ssh_and_blocks_for_ides(door: FrontDoor, client: Client, workspace: str) -> None:
    assert door.navarch("ssh-config").returncode == 0
    home = door.folder / "home"
    assert (home / ".ssh" / "config").read_text().startswith("Include ")
    login = ["ssh", "-F", str(home / ".ssh" / "config"), "-o", "BatchMode=yes", f"navarch-{workspace}", "hostname"]
    assert subprocess.run(login, capture_output=True, text=True, check=True).stdout == "colossal_env\n"
    again = door.navarch("ssh-config")
    assert "as before" in again.stdout
    assert (home / ".ssh" / "config").read_text().count("Include ") == 1
    blocks = {block.name: block for block in client.workspace_ide(workspace)}
    port = str(client.workspace(workspace).ssh.port)
    assert port in blocks["PyCharm"].text and "/usr/local/bin/python" in blocks["PyCharm"].text
    assert blocks["VS Code"].link == f"vscode://vscode-remote/ssh-remote+navarch-{workspace}/workspace"
    assert f"Port {port}" in door.navarch("workspace", "ide", workspace).stdout


def test_a_workspace_kept_as_an_image_is_the_start_of_the_next_without_its_keys(
    door: FrontDoor, client: Client, workspace: str, docker_client: docker.DockerClient
) -> None:
    _ssh(door, workspace, "echo package > /opt/installed; cp /run/navarch/authorized_keys /opt/copied")
    tag = f"navarch-test-{door.port}:kept"
    try:
        told = door.navarch("image", "commit", workspace, "--tag", tag)
        assert told.returncode == 0, told.stderr
        assert "/opt/copied" in told.stdout and "/root" in told.stdout
        labels = docker_client.images.get(tag).labels
        assert (labels["navarch.commit.workspace"], labels["navarch.commit.by"]) == (workspace, "local")
        made = door.navarch("workspace", "create", "next", "--image", tag)
        assert made.returncode == 0, made.stderr
        assert _ssh(door, "next", "cat /opt/installed; ls /opt") == "package\ninstalled\n"
        assert client.workspace("next").ssh.host_key != client.workspace(workspace).ssh.host_key
    finally:
        door.navarch("workspace", "rm", "next", "--home")
        docker_client.images.remove(tag, force=True)


def test_a_start_needs_no_body(door: FrontDoor, workspace: str) -> None:
    answer = httpx.post(f"{door.url}/api/v1/workspaces/{workspace}/start", headers=door.headers)
    assert answer.status_code == 200, answer.text
