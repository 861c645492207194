"""What can't work fails with its reason, what may work later is tried within a budget, and no row stops another."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker.errors
import pytest
import requests
from sqlmodel import Session

from jobs.states import Reason, after_attempt
from service.backends.docker.history import Hosts
from service.backends.docker.leftovers import Leftovers
from service.backends.docker.refusals import engine_errors
from service.backends.docker.watch import Watches
from service.backends.errors import (
    BadContainer,
    ContainerGone,
    EngineError,
    GpuUnavailable,
    NoSpace,
    PortTaken,
    Unreachable,
)
from service.control.step import BUDGET
from service.store.database import Database
from service.store.tables import Holder, Host, Job, Replica
from tests.unit.simulated_engine import SimulatedEngine
from tests.unit.simulation import SimulatedController, World

COMMAND: dict[str, Any] = {"type": "command", "image": "cpu", "command": "true"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def answer(status: int, words: str, kind: type[docker.errors.APIError] = docker.errors.APIError) -> Exception:
    response = requests.Response()
    response.status_code = status
    return kind("refused", response=response, explanation=words)


SAID = [  # by Docker 20.10, to what is in the comment
    (500, "Cannot mkdir: /etc/passwd is not a directory", BadContainer),  # workdir
    (500, "lstat /var/lib/docker/overlay2/1/merged/a\x00b: invalid argument", BadContainer),  # workdir with NUL
    (500, "json: cannot unmarshal number 10995116276660488372224 into Go struct field", BadContainer),  # shm
    (500, "failed to create shim task: OCI runtime create failed: wrong rlimit value: RLIMIT_NOPE", BadContainer),
    (400, "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available", BadContainer),
    (400, 'failed to create shim task: exec: "/no/such": no such file or directory: unknown', BadContainer),
    (404, "network nope not found", BadContainer),
    (404, "No such container: 12ab", ContainerGone),
    (500, 'could not select device driver "" with capabilities: [[gpu]]', GpuUnavailable),
    (500, "Bind for 0.0.0.0:8080 failed: port is already allocated", PortTaken),
    (500, "write /var/lib/docker/tmp/x: no space left on device", NoSpace),
    (500, "OCI runtime create failed: read init-p: connection reset by peer", EngineError),
    (500, "failed to create shim: context deadline exceeded", EngineError),
    (503, "the daemon is shutting down", EngineError),
    (500, "something that nobody has heard of", EngineError),
    (409, "removal of container 12ab is already in progress", EngineError),
]


@pytest.mark.parametrize(("status", "words", "kind"), SAID, ids=[words[:40] for _, words, _ in SAID])
def test_an_engines_refusals_are_told_apart(status: int, words: str, kind: type[EngineError]) -> None:
    with pytest.raises(EngineError) as refused, engine_errors("x"):
        raise answer(status, words)
    assert type(refused.value) is kind
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (requests.ConnectionError("refused"), Unreachable),
        (TimeoutError(), Unreachable),
        (docker.errors.DockerException("Error while fetching server API version"), Unreachable),
        (ValueError("I/O operation on closed file"), Unreachable),
        (docker.errors.InvalidArgument("port 1"), BadContainer),
        (ValueError("embedded null byte"), BadContainer),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), BadContainer),
    ],
)
def test_only_a_way_that_is_cut_means_that_nothing_is_known(error: Exception, kind: type[EngineError]) -> None:
    with pytest.raises(EngineError) as refused, engine_errors("x"):
        raise error
    assert type(refused.value) is kind


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    def fail(self: SimulatedEngine, *_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(SimulatedEngine, name, fail)


def test_a_permanent_refusal_fails_the_job_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "create", BadContainer("Cannot mkdir: /etc/passwd is not a directory"))
    job_id = world.jobs.submit(COMMAND).job.id
    controller = world.controller()
    controller.schedule()
    for _ in range(2):
        controller.step(job_id)
    job = world.job(job_id)
    assert (job.state, job.reason, job.attempts) == ("failed", "engine_refused", 1)
    assert job.message == "the engine refused the container: Cannot mkdir: /etc/passwd is not a directory"


def test_what_may_pass_is_tried_within_a_budget(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "create", EngineError("something that nobody has heard of"))
    job_id = world.jobs.submit(COMMAND).job.id
    controller = world.controller()
    controller.schedule()
    said = []
    for _ in range(BUDGET):
        controller.step(job_id)
        said.append(world.job(job_id).message)
    assert [s.rpartition("again in ")[2] for s in said[:-1] if s] == ["1 s", "2 s", "4 s", "8 s", "16 s"]
    assert world.job(job_id).state == "stopping"
    for _ in range(100):
        world.now += 400
        controller.schedule()
        controller.step(job_id)
    job = world.job(job_id)
    assert (job.state, job.reason, job.system_retries) == ("failed", "internal_error", 5)
    assert "something that nobody has heard of" in (job.message or "")


def test_no_number_of_failures_is_too_large() -> None:
    assert after_attempt(Reason.USER_ERROR, 10**9, 10**6, 0).delay_s == 300.0


def broken(world: World, job_id: str, **values: Any) -> None:
    with world.database.write() as session:
        row = session.get(Job, job_id)
        assert row is not None
        for name, value in values.items():
            setattr(row, name, value)


def test_a_queued_row_that_makes_no_sense_fails_alone(world: World) -> None:
    bad = world.jobs.submit({**COMMAND, "priority": 90}).job.id
    broken(world, bad, ports={"what": "is this"})
    good = world.jobs.submit(COMMAND).job.id
    controller = world.controller()
    controller.schedule()
    assert world.job(good).state == "provisioning"
    assert "Navarch failed at this job" in (world.job(bad).why or "")
    for _ in range(BUDGET):
        world.now += 100
        controller.schedule()
    assert (world.job(bad).state, world.job(bad).reason) == ("failed", "internal_error")


REFUSED = {"type": "command", "from": "the future"}


def placed_with_a_spec_that_is_refused(world: World, state: str, **spec: Any) -> tuple[SimulatedController, str]:
    """A job in a state, in the hands of a control plane that refuses what it has stored of it."""
    job_id = world.jobs.submit({**COMMAND, "resources": {"gpus": 1}, **spec}).job.id
    controller = world.controller()
    controller.schedule()
    while world.job(job_id).state != state:
        controller.step(job_id)
    broken(world, job_id, document=REFUSED)
    return world.controller(), job_id


def test_a_job_that_runs_goes_on_and_can_be_stopped_though_its_stored_spec_is_refused(world: World) -> None:
    controller, job_id = placed_with_a_spec_that_is_refused(world, "running")
    for _ in range(20):
        controller.step(job_id)
    assert world.job(job_id).state == "running" and world.containers()[0].running
    world.jobs.stop(job_id)
    for _ in range(4):
        controller.step(job_id)
        world.now += 200
    assert (world.job(job_id).state, world.containers(), world.rows(Holder)) == ("stopped", [], [])


@pytest.mark.parametrize(("code", "ended"), [(0, ("succeeded", "completed")), (3, ("failed", "user_error"))])
def test_a_job_whose_stored_spec_is_refused_ends_as_its_container_does(
    world: World, code: int, ended: tuple[str, str]
) -> None:
    controller, job_id = placed_with_a_spec_that_is_refused(world, "running", retries=1)
    for machine in world.machines.values():
        for container in machine.containers.values():
            machine.end(container, code)
    for _ in range(3):
        controller.step(job_id)
    job = world.job(job_id)
    assert (job.state, job.reason, job.failures) == (*ended, 0)
    assert (world.containers(), world.rows(Holder)) == ([], [])


def test_a_job_that_is_being_started_fails_at_once_when_its_stored_spec_is_refused(world: World) -> None:
    controller, job_id = placed_with_a_spec_that_is_refused(world, "provisioning")
    for _ in range(3):
        controller.step(job_id)
    job = world.job(job_id)
    assert (job.state, job.reason) == ("failed", "bad_config")
    assert "its stored spec is refused" in (job.message or "")
    assert (world.containers(), world.rows(Holder)) == ([], [])


def test_an_attempt_whose_log_cannot_be_had_ends_without_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "follow", EngineError("configured logging driver does not support reading"))
    job_id = world.jobs.submit({**COMMAND, "command": "false"}).job.id
    controller = world.controller()
    controller.schedule()
    while world.job(job_id).state != "running":
        controller.step(job_id)
    for machine in world.machines.values():
        for container in machine.containers.values():
            machine.end(container, 3)
    for _ in range(BUDGET + 2):
        controller.step(job_id)
    job = world.job(job_id)
    assert (job.state, job.reason) == ("failed", "user_error")
    assert "does not support reading" in (job.message or "")
    assert world.rows(Replica)[0].exit_code == 3
    assert world.containers() == []


def test_nothing_is_given_back_while_the_container_may_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = world.jobs.submit({**COMMAND, "resources": {"gpus": 1}}).job.id
    controller = world.controller()
    controller.schedule()
    while world.job(job_id).state != "running":
        controller.step(job_id)
    failing(monkeypatch, "signal", EngineError("cannot kill container: it is in the state D"))
    world.jobs.stop(job_id)
    for _ in range(3 * BUDGET):
        world.now += 100
        controller.step(job_id)
    assert world.job(job_id).state == "stopping"
    assert "state D" in (world.job(job_id).message or "")


class FullDisk(Database):
    """A database whose writes fail as long as one wants."""

    full = False

    @contextmanager
    def write(self) -> Iterator[Session]:
        if self.full:
            raise OSError(28, "No space left on device")
        with super().write() as session:
            yield session


class Ear:
    def __init__(self) -> None:
        self.woken: list[str] = []

    def wake(self, job_id: str) -> None:
        self.woken.append(job_id)

    def look(self, host_id: str) -> None:
        pass

    def room(self) -> None:
        pass


def test_a_watch_outlives_writes_that_fail(world: World) -> None:
    database, machine = FullDisk(world.settings.url), world.machines["h1"]
    leftovers = Leftovers(world, database, "deployment", world.clock)
    watches = Watches(world, database, Hosts(database, world.clock), leftovers, "deployment", Ear())
    world.machines["h2"].reachable = False
    database.full = True
    watches.look_for_hosts()
    time.sleep(0.5)
    machine.reachable = False
    time.sleep(0.5)
    assert {t.name for t in threading.enumerate()} >= {"watch-h1", "watch-h2"}
    database.full = False
    machine.reachable = True
    deadline = time.monotonic() + 20
    while {host.id: host.reachable for host in world.rows(Host)} != {"h1": True, "h2": False}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    watches.stop()


def writes(controller: SimulatedController) -> int:
    return controller.database.writes


def test_an_idle_step_writes_nothing(world: World) -> None:
    job_id = world.jobs.submit(COMMAND).job.id
    controller = world.controller()
    controller.schedule()
    while world.job(job_id).state != "running":
        controller.step(job_id)
    before = writes(controller)
    for _ in range(5):
        controller.step(job_id)
        controller.schedule()
    assert writes(controller) == before
