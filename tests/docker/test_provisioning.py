"""What a spec asks for is what the container has: keys, ports, mounts, limits, secrets, run folder; and it is kept."""

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from service.access.principals import LOCAL
from service.backends.docker.engine import DockerHost
from service.backends.docker.ssh_ready import WrongHostKey, handshake
from service.contract.ssh_keys import PublicKey
from service.store.tables import Job, Replica
from tests.docker.control import Plane, test_settings, until


@pytest.fixture(scope="module")
def plane(
    docker_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory, ssh_key: Path
) -> Iterator[Plane]:
    folder = tmp_path_factory.mktemp("provisioning")
    (folder / "shared").mkdir()
    (folder / "shared" / "data.txt").write_text("from the host\n")
    plane = Plane(test_settings(folder / "data", mount_roots=[folder / "shared"]))
    plane.runtime.keys.add(PublicKey.parse(ssh_key.with_suffix(".pub").read_text()), LOCAL)
    yield plane
    plane.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def test_the_container_has_what_the_spec_asks_for(plane: Plane, system_image: str) -> None:
    shared = plane.runtime.settings.mount_roots[0]
    script = """
        cat /workspace/in/data.txt; touch /workspace/in/x 2>/dev/null || echo read-only
        df -k /dev/shm | tail -1 | awk '{print $2}'; ulimit -n; pwd; echo $TOKEN; env | grep -c TOKEN=
        cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max
        stat -c %a /run/navarch/env; echo kept > $NAVARCH_RUN_DIR/result
    """
    job_id = plane.submit(
        script,
        image=system_image,
        mounts=[f"{shared}:/workspace/in:ro"],
        secrets={"TOKEN": "s3cret"},
        workdir="/tmp",
        resources={"shm": "128MB", "memory": "256MB", "cpus": 0.5, "ulimits": {"nofile": 4321}},
    )
    assert plane.ended(job_id).state == "succeeded"
    assert plane.log(job_id) == [
        "from the host", "read-only", "131072", "4321", "/tmp", "s3cret", "1", str(256 << 20), "600",
    ]  # fmt: skip
    result = plane.runtime.settings.job_dir(job_id) / "run" / "result"
    assert result.read_text() == "kept\n"
    until("removal of the container", lambda: not plane.containers())


def test_a_job_can_be_deleted_the_moment_it_has_ended(
    plane: Plane, system_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = DockerHost.remove

    def slowly(host: DockerHost, container_id: str) -> None:
        time.sleep(1)  # a busy engine: the job's end is seen well before its container is gone
        remove(host, container_id)

    monkeypatch.setattr(DockerHost, "remove", slowly)
    job_id = plane.submit("true", image=system_image, ssh=False)
    plane.ended(job_id)
    assert plane.replica(job_id).removed_at is None
    plane.runtime.jobs.delete(job_id)
    assert plane.rows(Job, id=job_id) == plane.rows(Replica, job_id=job_id) == []
    assert not plane.client.containers.list(all=True, filters={"label": f"navarch.job={job_id}"})


def test_ready_means_that_ssh_works(plane: Plane, system_image: str, ssh_key: Path, tmp_path: Path) -> None:
    port = free_port()
    job_id = plane.submit("sleep 600", image=system_image, ports=[f"{port}:22", "auto:8000"])
    job = plane.in_state(job_id, "running")
    ports = plane.replica(job_id).ports
    first, last = plane.runtime.settings.port_range
    assert ports["22"] == port
    assert first <= ports["8000"] <= last
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {' '.join((job.host_key or '').split()[:2])}\n")
    options = ["-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
    login = ["ssh", *options, "-i", str(ssh_key), "-p", str(port), "root@127.0.0.1", "echo $NAVARCH_JOB"]
    shown = subprocess.run(login, capture_output=True, text=True, timeout=20, check=True)
    assert shown.stdout.strip() == job.name
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    with pytest.raises(WrongHostKey):
        handshake("127.0.0.1", port, other)
    plane.runtime.jobs.stop(job_id)
    assert plane.ended(job_id).state == "stopped"


def test_two_jobs_that_want_one_port_come_one_after_the_other(plane: Plane, system_image: str) -> None:
    port = free_port()
    first = plane.submit("sleep 600", image=system_image, ports=[f"{port}:8000"])
    plane.in_state(first, "running")
    second = plane.submit("echo mine", image=system_image, ports=[f"{port}:8000"])
    name = plane.job(first).name
    until("why", lambda: f"port {port} of local belongs to job {name}" in (plane.job(second).why or ""))
    plane.runtime.jobs.stop(first)
    assert plane.ended(second).state == "succeeded"


def test_a_gang_starts_together_and_finds_its_master(plane: Plane, system_image: str) -> None:
    script = """python3 - <<'END'
import os, socket
rank, port = int(os.environ["NODE_RANK"]), int(os.environ["MASTER_PORT"])
if rank == 0:
    server = socket.create_server((os.environ["MASTER_ADDR"], port))
    print("met", server.accept()[0].recv(10).decode(), flush=True)
else:
    import time
    for _ in range(200):
        try:
            connection = socket.create_connection((os.environ["MASTER_ADDR"], port)); break
        except OSError:
            time.sleep(0.05)
    connection.sendall(b"rank 1")
END"""
    job_id = plane.submit(script, image=system_image, resources={"nodes": 2})
    job = plane.ended(job_id, timeout_s=60)
    assert (job.state, job.message) == ("succeeded", "finished with exit code 0")
    checked, met = plane.log(job_id)
    assert checked.startswith("checked 2 nodes in ") and met == "met rank 1"
    (attempt,) = plane.attempts(job_id)
    assert attempt.released_at is not None
    assert plane.leases() == []


def test_one_failing_rank_ends_the_gang_with_its_reason(plane: Plane, system_image: str) -> None:
    script = 'if [ $NODE_RANK = 1 ]; then echo "rank 1 broke"; exit 9; fi; exec sleep 600'
    job_id = plane.submit(script, image=system_image, resources={"nodes": 2})
    job = plane.ended(job_id, timeout_s=60)
    assert (job.state, job.reason, job.message) == (
        "failed",
        "user_error",
        "rank 1 on local: exit code 9: rank 1 broke",
    )
    until("removal of both containers", lambda: not plane.containers())
