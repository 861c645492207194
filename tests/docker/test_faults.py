"""Whatever ends a container from outside is told apart in the job's reason, against a real engine."""

import io
import signal
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from service.contract.errors import Problem
from service.store.tables import Host
from tests.docker.control import Plane, test_settings, until
from tests.docker.engines import OwnEngine, own_engine

__all__ = ["own_engine"]
FOREVER = "echo up; exec sleep 600"


@pytest.fixture(scope="module")
def plane(docker_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    plane = Plane(test_settings(tmp_path_factory.mktemp("faults")))
    yield plane
    plane.close()


def running(plane: Plane, image: str, command: str = FOREVER, **spec: object) -> str:
    job_id = plane.submit(command, image=image, **spec)
    plane.in_state(job_id, "running")
    plane.logged(job_id, "up")
    return job_id


def test_exit_code_of_the_command(plane: Plane, system_image: str) -> None:
    job_id = plane.submit("exec 2>&1; echo working; echo 'it broke' >&2; exit 3", image=system_image)
    job = plane.ended(job_id)
    assert (job.state, job.reason) == ("failed", "user_error")
    assert job.message == "exit code 3: it broke"
    assert plane.replica(job_id).exit_code == 3
    assert plane.log(job_id) == ["working", "it broke"]


def test_command_that_is_not_there(plane: Plane, system_image: str) -> None:
    job = plane.ended(plane.submit(["no-such-program"], image=system_image))
    assert (job.state, job.reason) == ("failed", "user_error")
    assert "not found" in (job.message or "")


def test_killed_from_outside(plane: Plane, system_image: str) -> None:
    job_id = running(plane, system_image)
    plane.client.api.kill(plane.replica(job_id).container_id)
    job = plane.ended(job_id)
    assert (job.state, job.reason) == ("failed", "killed")
    assert "SIGKILL" in (job.message or "")


def test_removed_by_hand(plane: Plane, system_image: str) -> None:
    job_id = running(plane, system_image)
    plane.client.api.remove_container(plane.replica(job_id).container_id, force=True)
    job = plane.ended(job_id)
    assert (job.state, job.reason) == ("failed", "container_removed")
    assert "up" in plane.log(job_id)
    assert plane.leases() == []


def test_out_of_memory(plane: Plane, system_image: str) -> None:
    eat = "echo up; python3 -c 'x = bytearray(300 * 1024 * 1024)' || exit $?"
    job_id = plane.submit(eat, image=system_image, resources={"memory": "64MB"})
    job = plane.ended(job_id)
    assert (job.state, job.reason) == ("failed", "out_of_memory"), job.message
    assert "64 MB" in (job.message or "")
    assert plane.replica(job_id).oom_killed


def test_named_port_that_another_program_has(plane: Plane, system_image: str) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        job = plane.ended(plane.submit("true", image=system_image, ports=[f"{port}:8000"]))
    assert (job.state, job.reason) == ("failed", "port_unavailable")
    assert str(port) in (job.message or "")
    assert plane.leases() == []


def test_pool_port_that_another_program_has_is_changed_for_another(
    plane: Plane, system_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.control.steps.schedule._seed", lambda row: row.attempts)
    first, _ = plane.runtime.settings.port_range
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("0.0.0.0", first))
        other.listen()
        job_id = plane.submit("echo done", image=system_image)
        job = plane.ended(job_id)
    assert (job.state, job.user_retries, job.system_retries) == ("succeeded", 0, 1)
    assert [a.reason for a in plane.attempts(job_id)] == ["port_unavailable", "completed"]
    assert plane.log(job_id) == ["done"]


def test_image_that_is_nowhere(plane: Plane) -> None:
    job = plane.ended(plane.submit("true", image="navarch-test/no-such-image:1"), timeout_s=60)
    assert (job.state, job.reason) == ("failed", "image_unavailable")
    assert "navarch image build" in (job.message or "")


def test_image_without_navarch_layer(plane: Plane, docker_client: docker.DockerClient) -> None:
    nothing = io.BytesIO()
    tarfile.open(fileobj=nothing, mode="w").close()
    docker_client.api.import_image_from_data(nothing.getvalue(), repository="navarch-test-bare")
    try:
        with pytest.raises(Problem) as caught:
            plane.submit("true", image="navarch-test-bare")
    finally:
        docker_client.images.remove("navarch-test-bare", force=True)
    assert caught.value.code == "image_unsuitable"
    assert "ssh: false" in (caught.value.hint or "")


def test_max_duration(plane: Plane, system_image: str) -> None:
    job = plane.ended(plane.submit("echo up; sleep 600", image=system_image, max_duration="1s"))
    assert (job.state, job.reason) == ("stopped", "max_duration")


def test_retries_of_the_user_are_used_up(plane: Plane, system_image: str) -> None:
    job_id = plane.submit("exit 5", image=system_image, retries=1)
    job = plane.ended(job_id)
    assert (job.state, job.reason, job.attempts, job.user_retries) == ("failed", "user_error", 2, 1)
    assert [a.reason for a in plane.attempts(job_id)] == ["user_error", "user_error"]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_engine_restarted_under_a_job(
    own_engine: OwnEngine, system_image: str, tmp_path: Path, sig: signal.Signals
) -> None:
    plane = Plane(test_settings(tmp_path, engine_url=own_engine.url, host_address=f"{own_engine.subnet}.1"))
    try:
        job_id = plane.submit(FOREVER, image=system_image, ssh=False)
        plane.in_state(job_id, "running")
        plane.logged(job_id, "up")
        own_engine.stop(sig)
        until("unreachable job", lambda: plane.job(job_id).unreachable_since is not None)
        assert plane.job(job_id).state in ("running", "stopping")
        time.sleep(0.5)
        own_engine.start()
        first = until("end of the attempt", lambda: plane.attempts(job_id)[0].finished_at and plane.attempts(job_id)[0])
        facts = plane.rows(Host)[0].facts
        assert first.reason == "engine_restarted", (facts, plane.replica(job_id), first)
        until("second attempt", lambda: plane.job(job_id).attempts == 2)
        plane.in_state(job_id, "running")
        assert plane.job(job_id).user_retries == 0
        assert plane.job(job_id).unreachable_since is None
        plane.runtime.jobs.stop(job_id)
        assert plane.ended(job_id).reason == "stopped_by_user"
        until("no containers", lambda: not plane.containers())
    finally:
        if not own_engine.processes:
            own_engine.start()
        plane.close()
