"""Workspaces through the front door: their address, home and container stay, whatever happens around them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import httpx
import pytest
from docker.models.containers import Container
from docker.models.images import Image

from images.commit import COPY_LABEL
from service.client import ApiError, Client
from service.contract.workspaces import Workspace
from tests.docker.front_door import FrontDoor, until
from tests.docker.ssh_client import free_port


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


@pytest.mark.timeout(600)  # the control plane is started six times
def test_a_day_on_a_gpu_server_with_a_power_cut_at_every_step(
    door: FrontDoor, client: Client, system_image: str, docker_client: docker.DockerClient, tmp_path: Path,
    registry: tuple[str, Container],
) -> None:  # fmt: skip
    """ann creates, logs in, installs, commits, pushes and removes; somebody else goes on from the pushed image."""
    address, server = registry
    shared, tag, port = door.folder / "shared" / "day", f"{address}/team/colossalai:0.3.0", free_port()
    deployment = client.version().deployment
    _package(shared)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "ann")], check=True)
    public = (tmp_path / "ann.pub").read_text()
    token = client.add_user("ann").token or ""
    ann = Client(door.url, token=token)
    ann.add_key(public)
    ann.set_secret("HF_TOKEN", "hf_of_ann_and_nobody_else")
    client.registry_login(address, "ann", "s3cret-pass")

    def power_cut() -> None:
        door.kill()
        door.start("--mount-root", str(door.folder / "shared"))

    def copies() -> list[Image]:
        found = docker_client.images.list(filters={"label": COPY_LABEL})
        return [image for image in found if image.labels[COPY_LABEL].startswith(deployment)]

    def cut_off(begun: Callable[[], object], *words: str) -> None:
        """A command that is under way when the control plane dies is typed again."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        typed = subprocess.Popen(door.command(*words), env={**door.environ(), "NAVARCH_TOKEN": token}, **quiet)
        until(lambda: bool(begun()) or typed.poll() is not None, f"{words} begins", 60)
        power_cut()
        assert typed.wait(timeout=60) != 0, "it was over before"
        done = door.navarch(*words, environment={"NAVARCH_TOKEN": token})
        assert done.returncode == 0, done.stderr

    try:
        spec = {"name": "colossal_env", "image": system_image, "ports": [f"{port}:22", "auto:7000"], "ipc": "host"}
        ann.create_workspace({**spec, "mounts": [f"{shared}:/workspace/LLM"]})
        power_cut()
        until(lambda: ann.workspace("colossal_env").state == "running", "it runs", 90)
        login = ["ssh", "-p", str(port), "-i", str(tmp_path / "ann"), "-o", f"UserKnownHostsFile={tmp_path / 'known'}"]
        login += ["-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes", "root@127.0.0.1"]
        keys = "ssh-keygen -qN '' -f ~/.ssh/id_rsa && cp /run/navarch/authorized_keys /opt/"
        installs = f"dpkg -i /workspace/LLM/seed.deb && echo $HF_TOKEN > /opt/token && {keys}"
        subprocess.run([*login, installs], check=True, capture_output=True)
        cut_off(copies, "image", "commit", "colossal_env", "--tag", tag)
        until(lambda: not copies(), "no copy is left with everything in it")
        cut_off(lambda: b"team/colossalai" in server.logs(), "image", "push", tag)
        ann.delete_workspace("colossal_env", home="delete")
        power_cut()
        until(lambda: not list(ann.workspaces()), "it is gone")
        docker_client.images.remove(tag, force=True)
        client.create_workspace({"name": "next", "image": tag})
        power_cut()
        until(lambda: client.workspace("next").state == "running", "the next one runs", 90)
        assert _ssh(door, "next", "seed; ls /opt") == "the package is here\n"
        secrets = f"-e {public.split()[1]} -e hf_of_ann_and_nobody_else"
        assert _ssh(door, "next", f"grep -rlF {secrets} / --exclude-dir=proc --exclude-dir=sys 2>/dev/null; true") == ""
        assert client.consistency().ok, client.consistency()
    finally:
        door.navarch("workspace", "rm", "next", "--home")
        if docker_client.images.list(tag):
            docker_client.images.remove(tag, force=True)


def _package(folder: Path) -> None:
    """Something to install, as apt would."""
    for name, text in (
        ("seed/DEBIAN/control", "Package: seed\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n"),
        ("seed/usr/bin/seed", "#!/bin/sh\necho the package is here\n"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "seed/usr/bin/seed").chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode & ~0o7022)
    subprocess.run(["dpkg-deb", "-b", str(folder / "seed"), str(folder / "seed.deb")], check=True, capture_output=True)


def test_a_start_needs_no_body(door: FrontDoor, workspace: str) -> None:
    answer = httpx.post(f"{door.url}/api/v1/workspaces/{workspace}/start", headers=door.headers)
    assert answer.status_code == 200, answer.text
