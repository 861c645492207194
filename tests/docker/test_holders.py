"""Another holder than an attempt launches a container through the backend, and has it as long as it holds anything."""

import time
from collections.abc import Iterator
from dataclasses import replace

import docker
import pytest
from sqlmodel import col, delete

from jobs.launch import LABEL_DEPLOYMENT, LABEL_WORKSPACE, Launch, plan_containers
from jobs.placement import Placed, Placement
from jobs.spec import parse_spec
from service.backends.base import Gang, Phase, Reserved, Seat
from service.backends.docker.backend import DockerBackend
from service.backends.docker.leftovers import ORPHAN_AGE_S
from service.store.tables import Holder, PortLease
from tests.docker.control import Plane, test_settings, until


@pytest.fixture
def plane(docker_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    plane = Plane(test_settings(tmp_path_factory.mktemp("holders")))
    yield plane
    plane.close()


class Ear:
    def __init__(self) -> None:
        self.woken: set[str] = set()
        self.looked: set[str] = set()

    def wake(self, owner: str) -> None:
        self.woken.add(owner)

    def look(self, host_id: str) -> None:
        self.looked.add(host_id)

    def room(self) -> None:
        pass


def test_a_workspace_has_its_container_as_long_as_it_is_a_holder(plane: Plane, system_image: str) -> None:
    runtime, ear, ahead = plane.runtime, Ear(), 0.0
    port = runtime.settings.port_range[1]
    with runtime.database.write() as session:
        session.add(Holder(id="workspace/w1", kind="workspace", name="desk"))
        session.flush()
        session.add(PortLease(host_id="local", port=port, holder_id="workspace/w1"))
    backend = DockerBackend(runtime.engines, runtime.database, runtime.settings, lambda: time.time() + ahead)
    backend.start(runtime.deployment, ear, lambda kind, place, work: work())
    name = f"navarch-{runtime.deployment[:8]}-desk"
    gang = Gang("workspace/w1", "w1", (Seat(0, name, "local", None),))
    spec = parse_spec({"type": "command", "name": "desk", "image": system_image, "command": "echo here; sleep 600"})
    folder = backend.run_folder(gang)
    folder.make()
    reserved = backend.reserve(gang, spec)
    assert isinstance(reserved, Reserved)
    launch = Launch(runtime.deployment, "w1", "desk", 1, str(folder.path), "", "", "", {})
    placement = Placement((Placed(0, "local", (), (port,), ()),), None)
    (plan,) = plan_containers(spec, placement, reserved.addresses, launch)
    plan = replace(plan, name=name, labels={LABEL_DEPLOYMENT: runtime.deployment, LABEL_WORKSPACE: "w1"})
    (made,) = backend.launch(gang, spec, [plan], reserved, lambda: False)
    assert backend.launch(gang, spec, [plan], reserved, lambda: False) == [made]
    assert [sight.phase for sight in backend.observe(gang)] == [Phase.RUNNING]
    stream = backend.logs(gang.seats[0], 0, wait=True)
    assert next(iter(stream))[0].endswith(b" here\n")
    stream.close()

    backend.sweep()  # begins to watch the hosts
    until("watch", lambda: backend.watches.connected() == ["local"] and ear.looked == {"local"})
    ahead = 2 * ORPHAN_AGE_S
    backend.sweep()
    assert [sight.phase for sight in backend.observe(gang)] == [Phase.RUNNING]
    assert dict(backend.strays()) == {"local": []}
    backend.signal(gang, [0], "SIGKILL")
    until("its end", lambda: ear.woken == {"w1"})
    assert [(sight.phase, sight.exit_code) for sight in backend.observe(gang)] == [(Phase.ENDED, 137)]

    with runtime.database.write() as session:
        session.exec(delete(Holder).where(col(Holder.id) == "workspace/w1"))
    assert plane.leases() == []
    backend.sweep()
    assert [sight.phase for sight in backend.observe(gang)] == [Phase.ABSENT]
    backend.stop()
