"""What hosts do to jobs: each time the right state with the right reason, nothing lost, and nothing left behind."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from service.client import ApiError, Client
from service.contract.schemas import Job
from tests.docker.front_door import FrontDoor, until
from tests.hosts.machines import Machine, Machines

NOTICED_S = 25.0
"""A host that is cut off is lost within 15 s; a busy machine takes longer."""
COUNTS = "n=0; while [ $n -lt {0} ]; do n=$((n + 1)); echo $n; sleep 0.2; done"


@pytest.fixture(scope="module")
def fleet(door: FrontDoor, hosts: Machines) -> Iterator[Machines]:
    """Two remote hosts, h1 and h2, on which alone anything is placed."""
    with door.client() as client:
        client.change_host("local", state="draining")
        for name, machine in zip(("h1", "h2"), hosts, strict=False):
            client.add_host(name, machine.url)
        until(lambda: all(client.host(name).reachable for name in ("h1", "h2")), "both answer")
    yield hosts


@pytest.fixture(autouse=True)
def sound(door: FrontDoor, fleet: Machines) -> Iterator[None]:
    """After each fault: hosts answer again, no job is left, and database and engines agree that nothing is held."""
    yield
    with door.client() as client:
        until(lambda: all(client.host(name).reachable for name in ("h1", "h2")), "both answer again", 60)
        for job in client.jobs():
            client.stop(job.id)
            client.wait(job.id, timeout_s=60)
            until(lambda job=job: _deleted(client, job.id), f"{job.name} leaves nothing")  # type: ignore[misc]
        checks = client.consistency()
        assert checks.ok, checks
    for machine in fleet:
        engine = machine.docker()
        left = engine.containers.list(all=True)
        engine.close()
        assert left == [], f"containers on {machine.name}"
        assert machine.shell("ls /var/lib/navarch/*/jobs").split() == []


def _deleted(client: Client, job_id: str) -> bool:
    try:
        client.delete(job_id, artifacts="delete")
    except ApiError:
        return False
    return True


def start(client: Client, image: str, name: str, host: str, script: str, **more: object) -> Job:
    """A job that runs on this host now."""
    others = [other.name for other in client.hosts() if other.name not in (host, "local")]
    for other in others:
        client.change_host(other, state="draining")
    job = client.submit(
        {"type": "command", "name": name, "image": image, "command": ["sh", "-c", script], "ssh": False, **more}
    )
    until(lambda: client.job(job.id).state != "queued", f"{name} is placed")
    for other in others:
        client.change_host(other, state="active")
    until(lambda: client.job(job.id).state != "provisioning", f"{name} has started", 60)
    return client.job(job.id)


def lines(client: Client, job: Job) -> list[str]:
    return [line.line for line in client.logs(job.id).items]


def test_kill_9_of_the_control_plane_stops_nothing(door: FrontDoor, fleet: Machines, system_image: str) -> None:
    with door.client() as client:
        first = start(client, system_image, "one", "h1", COUNTS.format(60))
        second = start(client, system_image, "two", "h2", COUNTS.format(60))
    door.kill()
    door.start("--mount-root", str(fleet.shared))
    with door.client() as client:
        for job in (first, second):
            ended = client.wait(job.id, timeout_s=60)
            assert (ended.state, len(ended.attempts)) == ("succeeded", 1), ended.message
            assert lines(client, job) == [str(number) for number in range(1, 61)]


def test_a_host_that_is_cut_off_keeps_its_job_and_delays_nobody(
    client: Client, fleet: Machines, system_image: str
) -> None:
    job = start(client, system_image, "far", "h1", COUNTS.format(200))
    fleet[0].cut()
    cut_at = time.monotonic()
    try:
        near = start(client, system_image, "near", "h2", "echo here")  # while nobody knows yet
        assert client.wait(near.id, timeout_s=15).state == "succeeded"
        until(lambda: client.job(job.id).unreachable_since is not None, "it is noticed", NOTICED_S)
        assert client.job(job.id).state == "running"
        until(lambda: not client.host("h1").reachable, "the host's own row says so, too", NOTICED_S)
        host = client.host("h1")
        assert host.unreachable_since and host.message
        again = start(client, system_image, "again", "h2", "echo here")
        assert client.wait(again.id, timeout_s=15).state == "succeeded"
        assert time.monotonic() - cut_at < 60
    finally:
        fleet[0].heal()
    until(lambda: client.host("h1").reachable and client.job(job.id).unreachable_since is None, "it is back", 30)
    ended = client.wait(job.id, timeout_s=90)
    assert (ended.state, len(ended.attempts)) == ("succeeded", 1), ended.message
    assert lines(client, job) == [str(number) for number in range(1, 201)]


def test_an_engine_that_dies_is_the_systems_fault(client: Client, fleet: Machines, system_image: str) -> None:
    job = start(client, system_image, "dies", "h1", "sleep 3; sleep 600")
    fleet[0].kill_docker()
    until(lambda: client.job(job.id).unreachable_since is not None, "it is noticed", NOTICED_S)
    fleet[0].start_docker()
    until(lambda: len(client.job(job.id).attempts) == 2, "it is tried again", 60)
    assert client.job(job.id).attempts[0].reason == "engine_restarted"


def test_a_host_that_loses_power_is_told_as_that(client: Client, fleet: Machines, system_image: str) -> None:
    job = start(client, system_image, "power", "h1", "sleep 600")
    fleet[0].kill()
    try:
        until(lambda: client.job(job.id).unreachable_since is not None, "it is noticed", NOTICED_S)
        assert client.job(job.id).state == "running"
    finally:
        fleet[0].boot()
    until(lambda: len(client.job(job.id).attempts) == 2, "it is tried again", 60)
    assert client.job(job.id).attempts[0].reason == "host_rebooted", client.job(job.id).attempts


def test_a_container_that_somebody_removes_is_that(client: Client, fleet: Machines, system_image: str) -> None:
    job = start(client, system_image, "gone", "h2", "sleep 600")
    _remove_all(fleet[1])
    ended = client.wait(job.id, timeout_s=30)
    assert (ended.state, ended.reason) == ("failed", "container_removed"), ended.message


def _remove_all(machine: Machine) -> None:
    engine = machine.docker()
    for container in engine.containers.list():
        container.remove(force=True)
    engine.close()


def test_a_host_that_stays_away_is_given_up_and_swept_when_it_is_back(
    door: FrontDoor, fleet: Machines, system_image: str
) -> None:
    """Last of all: the control plane goes on with a short patience."""
    with door.client() as client:
        job = start(client, system_image, "lost", "h1", "sleep 600")
    door.environment["NAVARCH_UNREACHABLE_GRACE_S"] = "2"
    door.kill()
    door.start("--mount-root", str(fleet.shared))
    fleet[0].cut()
    try:
        with door.client() as client:
            client.change_host("h2", state="draining")  # it may not be tried again elsewhere yet
            until(lambda: client.job(job.id).attempts[0].reason == "host_lost", "it is given up", 60)
            client.stop(job.id)
            assert client.wait(job.id, timeout_s=30).state in ("stopped", "failed")
            with pytest.raises(ApiError, match="still to be removed"):
                client.delete(job.id)
            client.change_host("h2", state="active")
    finally:
        fleet[0].heal()
