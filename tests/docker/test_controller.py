"""The control plane is killed with kill -9 at every stage of a job; after a restart nothing is lost or doubled."""

import contextlib
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from service.backends.docker.ssh_ready import handshake
from service.intake.commands import Jobs
from service.store.tables import Event, ImageBuild, Meta
from tests.docker.control import PlaneProcess, test_settings, until


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[PlaneProcess]:
    plane = PlaneProcess(test_settings(tmp_path))
    yield plane
    plane.close()


def submit(plane: PlaneProcess, image: str, command: str, **spec: object) -> str:
    """Writes a job into the database as the API would, whether the control plane lives or not."""
    document = {"type": "command", "image": image, "command": command, "grace": "3s", **spec}
    return Jobs(plane.database, plane.settings).submit(document).job.id


def containers_of(client: docker.DockerClient, job_id: str) -> list[object]:
    return client.containers.list(all=True, filters={"label": f"navarch.job={job_id}"}, ignore_removed=True)


def lines(plane: PlaneProcess, job_id: str) -> list[str]:
    from service.collector.hub import Hub
    from service.collector.reader import LogReader

    page = LogReader(lambda job: plane.settings.job_dir(job) / "logs", Hub()).read(job_id, limit=100_000)
    return [line.line for line in page.lines]


def test_killed_while_provisioning(plane: PlaneProcess, docker_client: docker.DockerClient, system_image: str) -> None:
    job_id = submit(plane, system_image, "echo done")
    until("attempt", lambda: plane.job(job_id).state != "queued")
    plane.kill()
    plane.start()
    job = plane.ended(job_id)
    assert (job.state, job.attempts) == ("succeeded", 1)
    assert lines(plane, job_id) == ["done"]
    until("removal", lambda: not containers_of(docker_client, job_id))
    assert plane.leases() == []


def test_killed_when_the_engine_has_just_started_the_container(
    plane: PlaneProcess, docker_client: docker.DockerClient, system_image: str
) -> None:
    """Between the engine's start and the commit of it; meanwhile the container ends. Its command runs once."""
    for number in range(3):
        label = f"navarch.deployment={plane.rows(Meta, key='deployment')[0].value}"
        events = docker_client.events(decode=True, filters={"label": label, "event": "start"})
        job_id = submit(plane, system_image, f"echo run >> $NAVARCH_RUN_DIR/runs; exit {number}")
        started = next(events)
        plane.kill()
        events.close()
        docker_client.api.wait(started["id"])
        plane.start()
        job = plane.ended(job_id)
        assert (job.state, job.attempts) == ("failed" if number else "succeeded", 1)
        assert (plane.settings.job_dir(job_id) / "run" / "runs").read_text() == "run\n"


def test_killed_while_running_many_times(
    plane: PlaneProcess, docker_client: docker.DockerClient, system_image: str
) -> None:
    count = 1000
    job_id = submit(plane, system_image, f"for i in $(seq {count}); do echo line $i; sleep 0.002; done")
    plane.in_state(job_id, "running")
    started = plane.replica(job_id).container_id
    for _ in range(2):
        plane.kill()
        plane.start()
    job = plane.ended(job_id, timeout_s=60)
    assert (job.state, job.attempts) == ("succeeded", 1)
    assert plane.replica(job_id).container_id == started
    assert lines(plane, job_id) == [f"line {i}" for i in range(1, count + 1)]
    assert plane.states(job_id) == ["provisioning", "running", "stopping", "succeeded"]


def test_killed_while_stopping(plane: PlaneProcess, docker_client: docker.DockerClient, system_image: str) -> None:
    slow = "trap 'echo saving; sleep 1; echo saved; exit 0' TERM; echo up; sleep 600 & wait"
    job_id = submit(plane, system_image, slow, grace="20s")
    plane.in_state(job_id, "running")
    until("its first line", lambda: lines(plane, job_id) == ["up"])
    Jobs(plane.database, plane.settings).stop(job_id)
    until("SIGTERM", lambda: plane.replica(job_id).signalled_at)
    plane.kill()
    plane.start()
    job = plane.ended(job_id)
    assert (job.state, job.reason) == ("stopped", "stopped_by_user")
    assert lines(plane, job_id) == ["up", "saving", "saved"]
    assert plane.leases() == []


def test_job_that_ends_while_nobody_looks(
    plane: PlaneProcess, docker_client: docker.DockerClient, system_image: str
) -> None:
    job_id = submit(plane, system_image, "echo before; sleep 1; echo after; exit 4")
    plane.in_state(job_id, "running")
    plane.kill()
    (container,) = containers_of(docker_client, job_id)
    container.wait()  # type: ignore[attr-defined]
    assert plane.job(job_id).state == "running"
    plane.start()
    job = plane.ended(job_id)
    assert (job.state, job.reason) == ("failed", "user_error")
    assert lines(plane, job_id) == ["before", "after"]


def test_running_job_keeps_its_host_key_over_restarts_and_retries(
    plane: PlaneProcess, docker_client: docker.DockerClient, system_image: str
) -> None:
    job_id = submit(plane, system_image, "sleep 600", retries=1)
    job = plane.in_state(job_id, "running")
    port = plane.replica(job_id).ports["22"]
    assert handshake("127.0.0.1", port, job.host_key or "")
    plane.kill()
    assert handshake("127.0.0.1", port, job.host_key or "")
    plane.start()
    docker_client.api.kill(plane.replica(job_id).container_id)
    until("second attempt", lambda: plane.job(job_id).attempts == 2)
    plane.in_state(job_id, "running")
    assert handshake("127.0.0.1", plane.replica(job_id).ports["22"], job.host_key or "")
    Jobs(plane.database, plane.settings).stop(job_id)
    plane.ended(job_id)


@pytest.fixture
def recipe(docker_client: docker.DockerClient, system_image: str, tmp_path: Path) -> Iterator[Path]:
    """A recipe on a base of its own, so that no layer of its image is there yet."""
    base = f"navarch-test/{tmp_path.name.replace('_', '-')}-{os.getpid()}:base"
    origin = docker_client.images.get(system_image).labels["navarch.built-from"]
    mark = f"{base}-{time.time()}"
    text = f"FROM {origin}\nLABEL navarch.test={mark}\n"
    docker_client.images.build(fileobj=io.BytesIO(text.encode()), tag=base, rm=True, forcerm=True)
    path = tmp_path / "own.yaml"
    path.write_text(f"base: {base}\ntorch: cpu\n")
    yield path
    docker_client.images.remove(base, force=True)
    for image in docker_client.images.list(filters={"dangling": True, "label": f"navarch.test={mark}"}):
        with contextlib.suppress(docker.errors.APIError):  # gone with the one that it was made from
            docker_client.images.remove(image.id)


def test_killed_while_an_image_is_built(plane: PlaneProcess, docker_client: docker.DockerClient, recipe: Path) -> None:
    tag = f"navarch-test/interrupted-{plane.settings.port_range[0]}:latest"
    build = ImageBuild(owner_id="local", id="build1", recipe=str(recipe), tag=tag, options={"target": "system"})
    with plane.database.write() as session:
        session.add(build)
    log = plane.settings.data_dir / "builds" / "build1.log"
    plane.kill()
    plane.start()
    until("packages on their way", lambda: log.exists() and "fetch-packages.sh /packages" in log.read_text(), 60)
    plane.kill()
    assert (plane.builds()[0].state, plane.builds()[0].starts) == ("running", 1)
    plane.start()
    try:
        until("end of the build", lambda: plane.builds()[0].finished_at, 300)
        (row,) = plane.builds()
        assert (row.state, row.starts) == ("succeeded", 2), (row.message, log.read_text()[-2000:])
        assert "Starts again" in log.read_text()
        assert docker_client.images.get(tag).id == row.image_id
        made = docker_client.containers.run(tag, ["sh", "-c", "command -v sshd && command -v tini"], remove=True)
        assert len(made.splitlines()) == 2
        kinds = [event.kind for event in plane.rows(Event) if event.kind.startswith("image.")]
        assert kinds == ["image.built"]
    finally:
        plane.kill()
        with contextlib.suppress(docker.errors.ImageNotFound):
            docker_client.images.remove(tag, force=True)
