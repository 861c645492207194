"""Attacks on mounts, on a real engine: what a job swaps after the check never gets into a container."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
import pytest

from service.backends.docker.engine import DockerHost
from service.contract.errors import Problem
from service.store.tables import Artifact
from tests.docker.control import Plane, test_settings, until
from tests.docker.front_door import FrontDoor


@pytest.fixture(scope="module")
def plane(docker_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    folder = tmp_path_factory.mktemp("mounts")
    (folder / "outside").mkdir()
    (folder / "outside" / "secret").write_text("from outside\n")
    (folder / "root").mkdir()
    plane = Plane(test_settings(folder / "data", mount_roots=[folder / "root"]))
    yield plane
    plane.close()


@pytest.fixture
def root(plane: Plane) -> Path:
    """The mount root, with one folder in it."""
    root = plane.runtime.settings.mount_roots[0]
    for left in root.iterdir():
        left.unlink() if left.is_symlink() or left.is_file() else shutil.rmtree(left)
    (root / "d").mkdir()
    (root / "d" / "secret").write_text("from the root\n")
    return root


def run(plane: Plane, command: str, image: str, **spec: object) -> str:
    job_id = plane.submit(command, image=image, ssh=False, **spec)
    job = plane.ended(job_id, timeout_s=60)
    assert job.state == "succeeded", job.message
    return job_id


def descriptors() -> list[str]:
    """What this process holds open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(link.readlink()))
    return found


@pytest.mark.parametrize("target", ["{outside}", "/var/run", "/", "{data}", "{data}/../data/jobs"])
def test_a_job_that_plants_a_link_gains_nothing(plane: Plane, root: Path, system_image: str, target: str) -> None:
    """Job A swaps the folder for a link to something outside; job B, accepted before that, mounts it."""
    settings = plane.runtime.settings
    leads_to = target.format(outside=root.parent / "outside", data=settings.data_dir)
    swap = f"rm -r /r/d && ln -s {leads_to} /r/d"
    first = plane.submit(swap, image=system_image, ssh=False, mounts=[f"{root}:/r"], name="planter")
    second = plane.submit("ls /m; cat /m/*", image=system_image, ssh=False, mounts=[f"{root}/d:/m"], after=["planter"])
    assert plane.ended(first, 60).state == "succeeded"
    job = plane.ended(second, 60)
    assert (job.state, job.reason) == ("failed", "bad_config")
    assert f"{root}/d (it leads to" in (job.message or "")
    assert plane.log(second) == []
    assert plane.attempts(second)[0].final


def test_links_that_stay_in_the_root_are_followed(plane: Plane, root: Path, system_image: str) -> None:
    (root / "newest").symlink_to(root / "d")
    (root / "relative").symlink_to("d/secret")
    mounts = [f"{root}/newest:/m:ro", f"{root}/relative:/f:ro"]
    job_id = run(plane, "cat /m/secret /f", system_image, mounts=mounts)
    assert plane.log(job_id) == ["from the root", "from the root"]


@pytest.mark.parametrize("moment", ["create", "start"])
def test_a_swap_after_the_check_comes_too_late(
    plane: Plane, root: Path, system_image: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The folder becomes a link to outside right before the engine resolves anything."""
    name = "start" if moment == "start" else "_create"
    whole = getattr(DockerHost, name)

    def swapped(host: DockerHost, *arguments: object) -> object:
        (root / "d").rename(root / "moved")
        (root / "d").symlink_to(root.parent / "outside")
        return whole(host, *arguments)

    monkeypatch.setattr(DockerHost, name, swapped)
    script = "cat /m/secret; echo written > /m/result; mount | grep -c ' /m '"
    job_id = run(plane, script, system_image, mounts=[f"{root}/d:/m"])
    assert plane.log(job_id) == ["from the root", "1"]
    assert (root / "moved" / "result").read_text() == "written\n"
    assert sorted(path.name for path in (root.parent / "outside").iterdir()) == ["secret"]


def test_a_file_that_becomes_a_link_is_the_containers_own(
    plane: Plane, root: Path, system_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = DockerHost.start

    def swapped(host: DockerHost, container_id: str) -> None:
        (root / "d" / "secret").unlink()
        (root / "d" / "secret").symlink_to("/etc/hostname")
        start(host, container_id)

    monkeypatch.setattr(DockerHost, "start", swapped)
    job_id = run(plane, "cat /in/secret; echo; hostname", system_image, mounts=[f"{root}/d/secret:/in/secret:ro"])
    read, own = [line for line in plane.log(job_id) if line]
    assert read == own


def test_a_single_file_is_read_and_written(plane: Plane, root: Path, system_image: str) -> None:
    script = "cat /a.txt; echo more >> /a.txt; (echo x >> /b.txt) 2>/dev/null || echo read-only"
    mounts = [f"{root}/d/secret:/a.txt", f"{root}/d/secret:/b.txt:ro"]
    assert plane.log(run(plane, script, system_image, mounts=mounts)) == ["from the root", "read-only"]
    assert (root / "d" / "secret").read_text() == "from the root\nmore\n"


def test_a_file_is_not_put_in_place_of_a_folder(plane: Plane, root: Path, system_image: str) -> None:
    job = plane.ended(plane.submit("true", image=system_image, mounts=[f"{root}/d/secret:/etc"]), 60)
    assert job.state == "failed" and "nothing can be mounted at /etc" in (job.message or "")
    assert job.reason == "engine_refused"


def test_what_is_gone_when_the_job_starts_is_named(plane: Plane, root: Path, system_image: str) -> None:
    plane.submit("rm -r /r/d", image=system_image, ssh=False, mounts=[f"{root}:/r"], name="remover")
    second = plane.submit("true", image=system_image, ssh=False, mounts=[f"{root}/d:/m"], after=["remover"])
    job = plane.ended(second, 60)
    assert (job.state, job.reason) == ("failed", "missing_input")
    assert f"{root}/d does not exist" in (job.message or "")


def test_mounts_leave_nothing_in_the_engine(plane: Plane, root: Path, system_image: str) -> None:
    run(plane, "true", system_image, mounts=[f"{root}/d:/m", f"{root}/d/secret:/f"])
    until("removal", lambda: not plane.containers())

    def devices() -> list[str]:
        return [(volume.attrs["Options"] or {}).get("device", "") for volume in plane.client.volumes.list()]

    until("no volume is left", lambda: not [device for device in devices() if f"/proc/{os.getpid()}/" in device])
    until("nothing is mounted", lambda: str(root) not in Path("/proc/self/mountinfo").read_text())
    until("nothing is open", lambda: not [held for held in descriptors() if held.startswith(str(root))])


def test_the_data_folder_is_refused_at_submit(plane: Plane, root: Path, system_image: str) -> None:
    data = plane.runtime.settings.data_dir
    for source in (data, data.parent, f"{root}/../{data.name}", data / "secret.key", data / "jobs"):
        with pytest.raises(Problem) as refused:
            plane.submit("true", image=system_image, mounts=[f"{source}:/m"])
        assert refused.value.code in ("mount_not_allowed", "invalid_spec")


@pytest.fixture
def serving_image(docker_client: docker.DockerClient, system_image: str) -> Iterator[str]:
    """The system image under a label that lets it be asked to serve: its job ends before anything runs."""
    container = docker_client.containers.create(system_image)
    container.commit("navarch/test-mounts", "latest", changes="LABEL navarch.target=training")
    container.remove()
    yield "navarch/test-mounts:latest"
    docker_client.images.remove("navarch/test-mounts:latest")


def test_a_model_that_became_a_link_is_neither_read_nor_mounted(
    plane: Plane, root: Path, system_image: str, serving_image: str
) -> None:
    """The job announces run/model, then puts a link to a folder of the host in its place."""
    outside = root.parent / "outside"
    event = json.dumps({"event": "artifact", "kind": "model", "path": "model"})
    script = f"mkdir -p run/model && echo '@navarch {event}' && rm -r run/model && ln -s {outside} run/model"
    job_id = plane.submit(script, image=system_image, ssh=False, name="thief", workdir="/workspace")
    assert plane.ended(job_id, 60).state == "succeeded"

    def read() -> Artifact | None:
        (artifact,) = plane.rows(Artifact, job_id=job_id)
        return artifact if artifact.message or artifact.digest else None

    artifact = until("digest", read)
    assert artifact.digest is None and "leads out of" in artifact.message
    document = {"type": "serve", "name": "user", "image": serving_image, "model": f"artifact:{artifact.name}"}
    second = plane.runtime.jobs.submit(document).job.id
    job = plane.ended(second, 60)
    assert (job.state, job.reason) == ("failed", "bad_config") and "leads out of" in (job.message or "")


def test_a_control_plane_in_another_namespace_mounts_through_the_root(
    tmp_path: Path, system_image: str, docker_client: docker.DockerClient
) -> None:
    """As in a container: the daemon can't use our descriptors, so folders become links into the mounted root."""
    shared = tmp_path / "root"
    (shared / "d").mkdir(parents=True)
    (shared / "d" / "secret").write_text("from the root\n")
    door = FrontDoor(tmp_path, prefix=("unshare", "--mount", "--propagation", "private"))
    try:
        door.start("--mount-root", str(shared))
        with door.client() as client:
            spec = {
                "type": "command",
                "name": "linked",
                "image": system_image,
                "ssh": False,
                "command": "cat /m/secret /f.txt /all/d/secret; readlink /m; echo made > /m/result",
                "mounts": [f"{shared}/d:/m", f"{shared}/d/secret:/f.txt:ro", f"{shared}:/all:ro"],
            }
            client.submit(spec)
            job = client.wait("linked", timeout_s=60)
            lines = [line.line for line in client.logs("linked").items]
    finally:
        door.end()
    assert job.state == "succeeded", job
    assert lines == ["from the root"] * 3 + ["/run/navarch/mounts/0/d"]
    assert (shared / "d" / "result").read_text() == "made\n"
