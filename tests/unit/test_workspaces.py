"""A workspace from its making to its removal on simulated machines, with crashes of the control plane on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.mistakes import SpecError
from jobs.placement import HostCapacity, Placed, Waits
from jobs.spec import redacted
from jobs.workspace import WorkspaceSpec, parse_workspace
from jobs.workspace_launch import find_place
from service.contract.errors import Problem
from service.control.invariants import examine
from service.store.tables import GpuLease, Holder, PortLease, Workspace
from tests.unit.simulated_engine import Crash
from tests.unit.simulation import SimulatedController, World

SPEC = {"type": "workspace", "name": "colossal_env", "image": "cpu", "ports": ["8095:22", 7000]}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def _drive(world: World, state: str | None, controller: SimulatedController, rounds: int = 40) -> None:
    """Steps until the only workspace is in that state (None: gone)."""
    for _ in range(rounds):
        rows = world.rows(Workspace)
        if (rows[0].state if rows else None) == state:
            return
        for row in rows:
            controller.step_workspace(row.id)
        controller.work_lanes()
        for machine in world.machines.values():  # whoever was sent SIGTERM ends
            for container in machine.containers.values():
                if container.running and container.signals:
                    machine.end(container, 143)
                    container.signals.clear()
        world.now += 1.0
    raise AssertionError(f"not {state}: {[(row.state, row.message) for row in world.rows(Workspace)]}")


def _sound(world: World) -> None:
    controller = world.controller()
    wrong = [check for check in examine(world.database, [controller.backend]) if not check.ok]
    controller.close()
    assert not wrong, wrong


def test_it_keeps_its_address_its_container_and_its_host_key(world: World) -> None:
    controller = world.controller()
    made = world.workspaces.create({**SPEC, "resources": {"gpus": 2}})
    _drive(world, "running", controller)
    (container,) = world.containers()
    before = world.rows(Workspace)[0]
    assert before.ports == {"22": 8095, "7000": 7000} and container.plan.gpus == ("GPU-h1-0", "GPU-h1-1")
    assert container.plan.hostname == "colossal_env" and list(container.plan.volumes) == ["/root"]

    world.workspaces.stop("colossal_env")
    _drive(world, "stopped", controller)
    assert not world.rows(GpuLease) and {lease.port for lease in world.rows(PortLease)} == {8095, 7000}
    world.workspaces.start("colossal_env")
    _drive(world, "running", controller)
    assert [c.id for c in world.containers()] == [container.id] and len(world.rows(GpuLease)) == 2

    world.workspaces.start("colossal_env", switch=True)
    _drive(world, "stopping", controller)
    _drive(world, "running", controller)
    after, (new,) = world.rows(Workspace)[0], world.containers()
    assert new.id != container.id and after.made == 2
    assert (after.ports, after.host_id, after.host_key) == (before.ports, before.host_id, before.host_key)

    world.workspaces.remove(made.id)
    _drive(world, None, controller)
    assert not world.containers() and not world.rows(Holder) and world.machines["h1"].volumes
    _sound(world)
    controller.close()


def test_an_engine_that_restarts_takes_nothing_away(world: World) -> None:
    controller = world.controller()
    world.workspaces.create(SPEC)
    _drive(world, "running", controller)
    (container,) = world.containers()
    world.now += 100.0
    for machine in world.machines.values():
        machine.restart_engine()
    _drive(world, "starting", controller)
    _drive(world, "running", controller)
    assert [c.id for c in world.containers()] == [container.id]
    controller.close()


def test_one_that_ends_again_and_again_fails_and_says_so(world: World) -> None:
    controller = world.controller()
    world.workspaces.create(SPEC)
    for _ in range(200):
        row = world.rows(Workspace)[0]
        if row.state == "failed":
            break
        controller.step_workspace(row.id)
        for machine in world.machines.values():
            for container in machine.containers.values():
                machine.end(container, 1)
        world.now += 5.0
    assert row.state == "failed" and "ended 6 times" in (row.message or ""), row
    assert sum(world.machines[row.host_id].runs.values()) == 6
    _sound(world)
    controller.close()


def test_who_holds_the_gpus_is_said_with_since_when(world: World) -> None:
    controller = world.controller()
    world.workspaces.create({**SPEC, "resources": {"gpus": "h1:0,1"}})
    _drive(world, "running", controller)
    world.now += 3600.0
    other = {"name": "late", "image": "cpu", "resources": {"gpus": "all"}, "host": "h1"}
    with pytest.raises(Problem) as refused:
        world.workspaces.create(other)
    assert refused.value.code == "no_room"
    assert "h1 has 0 of 2 free" in refused.value.detail
    assert "Workspace colossal_env has 2 GPUs (for 1h" in refused.value.detail
    assert len(world.rows(Workspace)) == 1 and len(world.rows(Holder)) == 1

    world.workspaces.stop("colossal_env")
    _drive(world, "stopped", controller)
    world.workspaces.create({**other, "resources": {"gpus": 1}})
    with pytest.raises(Problem) as short:
        world.workspaces.start("colossal_env")
    assert "Workspace late has 1 GPU" in short.value.detail
    controller.close()


def test_it_is_stopped_at_its_max_unless_that_is_extended(world: World) -> None:
    controller = world.controller()
    world.workspaces.create({**SPEC, "max": "1h"})
    _drive(world, "running", controller)
    world.now += 3000.0
    world.workspaces.extend("colossal_env", 3600.0)
    world.now += 3000.0
    key = world.rows(Workspace)[0].id
    assert (controller.step_workspace(key) or 0.0) > 0 and world.rows(Workspace)[0].state == "running"
    world.now += 3000.0
    _drive(world, "stopped", controller)
    assert world.rows(Workspace)[0].reason == "max_duration"
    controller.close()


def test_a_crash_at_any_effect_loses_and_doubles_nothing(world: World) -> None:
    """Create, stop, start, switch, remove: at every seventh effect the process dies, and the next one goes on."""
    crashed = 0
    for at in range(1, 400, 7):
        controller = world.controller()
        controller.fuse.left = at
        died = _life(world, controller)
        if not died:
            break
        crashed += 1
    assert crashed > 7, "the fuse never burnt"
    assert not died


def _life(world: World, controller: SimulatedController) -> bool:
    """The whole life; a controller that dies is followed by another. Whether one died."""
    died = False

    def until(state: str | None) -> None:
        nonlocal controller, died
        try:
            _drive(world, state, controller)
        except Crash:
            died = True
            controller.close()
            controller = world.controller()
            _drive(world, state, controller)

    world.workspaces.create({**SPEC, "resources": {"gpus": 1}})
    until("running")
    key = world.rows(Workspace)[0].host_key
    first = [container.id for container in world.containers()]
    world.workspaces.stop("colossal_env")
    until("stopped")
    world.workspaces.start("colossal_env")
    until("running")
    assert [container.id for container in world.containers()] == first, "its container was made anew"
    world.workspaces.start("colossal_env", switch=True)
    until("stopping")
    until("running")
    row, running = world.rows(Workspace)[0], [c for c in world.containers() if c.running]
    assert len(running) == 1 and running[0].id not in first and row.host_key == key
    assert row.ports == {"22": 8095, "7000": 7000}
    _sound(world)
    world.workspaces.remove("colossal_env", home=True)
    until(None)
    assert not world.containers() and not world.rows(Holder) and not world.rows(PortLease)
    assert not any(machine.volumes for machine in world.machines.values())
    controller.close()
    return died


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "Not OK"}, "`name` must be 1 to 40"),
        ({"name": ""}, "`name` is missing"),
        ({"gpus": 2}, "write it under `resources`, as resources.gpus"),
        ({"resources": {"gpus": "many"}}, "HOST:0,1"),
        ({"resources": {"gpus": "h1:0,0"}}, "HOST:0,1"),
        ({"resources": {"gpus": "h1:0"}, "host": "h2"}, "names those of another"),
        ({"command": "sleep"}, "a workspace runs no command"),
        ({"ports": ["8095:22", "8096:22"]}, "publishes container port 22 twice"),
        ({"mounts": ["/data:/root"]}, "name a folder for it with `home`"),
        ({"home": "data"}, "isn't absolute"),
        ({"max": "soon"}, "`max` must be a duration"),
        ({"type": "sft"}, "`type` must be workspace"),
    ],
)
def test_what_is_wrong_is_said_in_words(given: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_workspace({**SPEC, **given})
    assert said in str(refused.value)


def test_secrets_are_not_in_what_is_stored() -> None:
    document = {**SPEC, "secrets": {"HF_TOKEN": "hf_abc"}}
    assert parse_workspace(document).secrets == {"HF_TOKEN": "hf_abc"}
    assert "hf_abc" not in str(redacted(document))


@pytest.mark.parametrize(
    ("gpus", "host", "expected"),
    [
        ("all", None, ("big", ("b0", "b1", "b2"))),
        ("small:0", None, ("small", ("s0",))),
        ("big:2,0", None, ("big", ("b2", "b0"))),
        (1, None, ("small", ("s0",))),
        (0, "big", ("big", ())),
    ],
)
def test_gpus_are_given_by_number_all_of_a_host_or_by_name(
    gpus: int | str, host: str | None, expected: tuple[str, tuple[str, ...]]
) -> None:
    hosts = [HostCapacity("small", "small", ("s0",)), HostCapacity("big", "big", ("b0", "b1", "b2"))]
    spec = WorkspaceSpec.model_validate({"name": "w", "host": host, "resources": {"gpus": gpus}})
    found = find_place(spec, hosts)
    assert isinstance(found, Placed) and (found.host_id, found.gpus) == expected


def test_all_gpus_of_a_host_that_has_none_can_t_be_had() -> None:
    spec = WorkspaceSpec.model_validate({"name": "w", "resources": {"gpus": "all"}})
    found = find_place(spec, [HostCapacity("bare", "bare")])
    assert isinstance(found, Waits) and "bare has none" in found.why
