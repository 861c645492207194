"""GPUs are found by a probe and asked for by UUID; what a real engine passes on shows it, without any GPU."""

import signal
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from service.contract.errors import Problem
from service.store.tables import GpuLease, Host
from tests.docker.control import Plane, test_settings, until
from tests.docker.engines import OwnEngine, own_engine

__all__ = ["own_engine"]
UUIDS = ["GPU-aaaaaaaa-0000", "GPU-bbbbbbbb-1111"]
_SMI = f"""#!/bin/sh
# What the NVIDIA runtime would bring into the container.
echo "0, {UUIDS[0]}, Test GPU, 81920"
echo "1, {UUIDS[1]}, Test GPU, 81920"
"""


@pytest.fixture(scope="module")
def plane(own_engine: OwnEngine, system_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A host with two GPUs, as far as its engine and its nvidia-smi can tell."""
    own_engine.stop(signal.SIGTERM)
    own_engine.start(gpu_hook=True)
    client = docker.DockerClient(base_url=own_engine.url)
    container = client.containers.create(system_image)
    container.put_archive("/usr/local/bin", _tar("nvidia-smi", _SMI))
    container.commit("navarch/gpu-test", "latest")
    container.remove()
    client.images.remove(system_image, force=True)  # the probe takes the smallest image: leave only this one
    client.close()
    plane = Plane(test_settings(tmp_path_factory.mktemp("gpu"), engine_url=own_engine.url))
    until("GPUs", lambda: plane.rows(Host)[0].facts.get("gpus"))
    yield plane
    plane.close()


def _tar(name: str, content: str) -> bytes:
    import io
    import tarfile

    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o755
        tar.addfile(entry, io.BytesIO(content.encode()))
    return target.getvalue()


def test_gpus_are_found_by_the_probe(plane: Plane) -> None:
    gpus = plane.rows(Host)[0].facts["gpus"]
    assert [(g["uuid"], g["index"], g["memory_mib"]) for g in gpus] == [(UUIDS[0], 0, 81920), (UUIDS[1], 1, 81920)]
    left = plane.client.containers.list(all=True, filters={"label": "navarch.probe"})
    assert left == []


def test_probes_of_a_killed_process_are_removed_and_those_of_others_not(plane: Plane) -> None:
    mine = {"navarch.probe": "gpus", "navarch.deployment": plane.runtime.deployment}
    left = plane.client.containers.create("navarch/gpu-test", ["true"], labels=mine)
    other = plane.client.containers.create("navarch/gpu-test", ["true"], labels={**mine, "navarch.deployment": "other"})
    engine = plane.runtime.engines.engine("local")
    assert len(engine.gpus(plane.runtime.deployment)) == 2
    found = plane.client.containers.list(all=True, filters={"label": "navarch.probe"})
    assert [container.id for container in found] == [other.id] != [left.id]
    other.remove()


def test_container_gets_its_own_gpus_and_no_others(plane: Plane) -> None:
    show = "echo seen=$NVIDIA_VISIBLE_DEVICES; sleep 600"
    spec = {"image": "navarch/gpu-test", "ssh": False, "resources": {"gpus": 1}}
    one, two = plane.submit(show, **spec), plane.submit(show, **spec)
    for job_id in (one, two):
        plane.in_state(job_id, "running")
        (uuid,) = plane.replica(job_id).gpus
        plane.logged(job_id, f"seen={uuid}")
    assert {lease.gpu for lease in plane.rows(GpuLease)} == set(UUIDS)

    third = plane.submit(show, **spec)
    until("why", lambda: "needs 1 GPU on one host: local has 0 of 2 free" in (plane.job(third).why or ""))
    plane.runtime.jobs.stop(one)
    plane.in_state(third, "running")
    assert plane.replica(third).gpus == plane.replica(one).gpus
    for job_id in (two, third):
        plane.runtime.jobs.stop(job_id)
        plane.ended(job_id)
    assert plane.leases() == []


def test_both_gpus_in_one_container(plane: Plane) -> None:
    job_id = plane.submit(
        "echo seen=$NVIDIA_VISIBLE_DEVICES $NPROC_PER_NODE; df -k /dev/shm | tail -1",
        image="navarch/gpu-test",
        ssh=False,
        resources={"gpus": 2, "shm": "1GB"},
    )
    assert plane.ended(job_id).state == "succeeded"
    log = plane.log(job_id)
    assert log[0] == f"seen={UUIDS[0]},{UUIDS[1]} 2"
    assert log[1].split()[1] == "1048576"


def test_more_gpus_than_there_are_is_refused_at_submit(plane: Plane) -> None:
    with pytest.raises(Problem) as refused:
        plane.submit("true", image="navarch/gpu-test", resources={"gpus": 3})
    assert refused.value.code == "not_enough_gpus"
    assert "needs 3 GPUs on one host, but local has 2 GPUs" in refused.value.detail


def test_machine_without_gpus(docker_client: docker.DockerClient, system_image: str, tmp_path: Path) -> None:
    plane = Plane(test_settings(tmp_path))
    try:
        assert plane.rows(Host)[0].facts["gpus"] == []
        for _ in range(3):
            assert plane.runtime.engines.engine("local").gpus(plane.runtime.deployment) == []
        assert plane.containers() == []  # also the probe whose start failed is gone
        job_id = plane.submit("echo on the CPU", image=system_image)
        assert plane.ended(job_id).state == "succeeded"
        with pytest.raises(Problem) as refused:
            plane.submit("true", image=system_image, resources={"gpus": 1})
        assert refused.value.code == "not_enough_gpus"
    finally:
        plane.close()
