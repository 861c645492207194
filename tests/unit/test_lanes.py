"""Slow work has lanes of its own: what is slow on one host, or of one kind, delays nothing else, and can be ended."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.control.figures import Figures
from service.control.lanes import Lanes
from service.control.loop import Controller
from service.store.tables import Host
from tests.unit.simulation import World

PLAIN: dict[str, Any] = {"type": "command", "image": "debian", "command": "x", "ssh": False}


def until(check: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := check()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


@contextlib.contextmanager
def controlled(world: World) -> Iterator[Controller]:
    """The real controller, threads and all, at work on simulated machines."""
    simulated = world.controller()
    controller = Controller(simulated.context)
    controller.start()
    try:
        yield controller
    finally:
        for machine in world.machines.values():
            machine.answering.set()
            machine.pulling.set()
        controller.stop()
        simulated.close()


def submit(world: World, controller: Controller, **spec: Any) -> str:
    job_id = world.jobs.submit({**PLAIN, **spec}).job.id
    controller.room()
    return job_id


def stop(world: World, controller: Controller, job_id: str) -> None:
    world.jobs.stop(job_id)
    controller.wake(job_id)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, gpus=(0,))
    with world.database.write() as session:
        host = session.get(Host, "h1")
        assert host is not None
        host.max_containers = 40
    yield world
    world.close()


def test_slow_pulls_delay_nothing_else_and_end_when_their_job_is_stopped(world: World) -> None:
    machine = world.machines["h1"]
    machine.pulling.clear()
    with controlled(world) as controller:
        pulls = [submit(world, controller, image=f"slow:{number}") for number in range(12)]
        until(lambda: all("pulls slow:" in (world.job(job_id).message or "") for job_id in pulls))
        quick = submit(world, controller)
        until(lambda: world.job(quick).state == "running")
        for container in world.containers():
            machine.end(container, 0)
        until(lambda: world.job(quick).state == "succeeded")
        for job_id in pulls[:2]:  # one that is being pulled, and one that waits for its turn
            stop(world, controller, job_id)
            until(lambda job_id=job_id: world.job(job_id).state == "stopped")
        machine.pulling.set()
        until(lambda: all(world.job(job_id).state == "running" for job_id in pulls[2:]))
        assert "slow:0" not in machine.images


def test_jobs_that_need_the_same_image_wait_for_one_pull(world: World) -> None:
    machine = world.machines["h1"]
    machine.pulling.clear()
    with controlled(world) as controller:
        first, second = (submit(world, controller, image="slow:0") for _ in range(2))
        until(lambda: all("pulls slow:0" in (world.job(job_id).message or "") for job_id in (first, second)))
        stop(world, controller, first)
        until(lambda: world.job(first).state == "stopped")
        machine.pulling.set()
        until(lambda: world.job(second).state == "running")


def test_a_pull_that_fails_is_told_to_each_job_that_waited(world: World) -> None:
    machine = world.machines["h1"]
    machine.pulling.clear()
    with controlled(world) as controller:
        jobs = [submit(world, controller, image="slow:0") for _ in range(2)]
        until(lambda: all("pulls slow:0" in (world.job(job_id).message or "") for job_id in jobs))
        machine.disk_full = True
        machine.pulling.set()
        until(lambda: all(world.job(job_id).state == "failed" for job_id in jobs))
        assert {world.job(job_id).reason for job_id in jobs} == {"no_space"}


def test_a_host_that_hangs_delays_no_other(tmp_path: Path) -> None:
    world = World(tmp_path, gpus=(0, 1))
    with controlled(world) as controller:
        on_both = [submit(world, controller) for _ in range(6)]
        until(lambda: all(world.job(job_id).state == "running" for job_id in on_both))
        world.machines["h1"].answering.clear()
        for job_id in on_both:
            controller.wake(job_id)
        good = submit(world, controller, resources={"gpus": 1})
        until(lambda: world.job(good).state == "running")
        stop(world, controller, good)
        until(lambda: world.job(good).state == "stopped")
    world.close()


def test_a_lane_has_so_many_workers_and_outlives_what_goes_wrong() -> None:
    lanes, gate, done = Lanes(2, Figures()), threading.Event(), []
    for number in range(5):
        lanes.submit("kind", "place", lambda number=number: (gate.wait(), done.append(number)))
    lanes.submit("kind", "place", lambda: 1 / 0)
    lanes.submit("kind", "elsewhere", lambda: done.append("else"))
    until(lambda: done == ["else"])
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("kind-place-")]
    assert len(workers) == 2
    gate.set()
    until(lambda: len(done) == 6)
    lanes.submit("kind", "place", lambda: done.append("after"))
    until(lambda: "after" in done)
    lanes.stop(5)
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("kind-place-")])
