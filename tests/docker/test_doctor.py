"""`navarch doctor` compares the database with the engine's real containers, and /docs needs no other host."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container

from service.locations import Endpoint
from service.process import only_one
from tests.docker.front_door import FrontDoor, until


def checks(door: FrontDoor) -> tuple[int, dict[str, dict[str, Any]]]:
    """The doctor's exit code, and its checks by name."""
    done = door.navarch("doctor", "--json")
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)}


def test_doctor_finds_a_container_that_no_attempt_has(
    door: FrontDoor, system_image: str, run_container: Callable[..., Container]
) -> None:
    with door.client() as client:
        until(lambda: client.health().ok, "the engine is known")
        spec = {"name": "own", "type": "command", "image": system_image, "command": "sleep 600", "grace": "1s"}
        job = client.submit(spec)
        until(lambda: client.job(job.id).state == "running", "the job runs")
        code, found = checks(door)
        assert code == 0, found
        assert all(found[name]["ok"] for name in ("leases", "attempts", "containers on local"))

        labels = {"navarch.deployment": client.version().deployment, "navarch.job": "nobody", "navarch.attempt": "1"}
        stray = run_container(system_image, ["sleep", "600"], labels=labels)
        code, found = checks(door)
        assert code == 1
        assert not found["containers on local"]["ok"] and stray.name in found["containers on local"]["detail"]
        assert found["control plane"]["ok"] and found["leases"]["ok"]
        stray.remove(force=True)
        assert checks(door)[0] == 0
        client.stop(job.id)


def test_doctor_without_a_control_plane_says_so_once(door: FrontDoor, docker_client: docker.DockerClient) -> None:
    done = door.navarch("--url", "http://127.0.0.1:9", "doctor", "--json")
    wrong = [check["name"] for check in json.loads(done.stdout) if not check["ok"]]
    assert (done.returncode, wrong) == (1, ["control plane"])


def test_doctor_and_down_look_at_the_control_plane_that_is_asked(door: FrontDoor, tmp_path: Path) -> None:
    """Not at the default data folder, where another one may run, or none."""
    other = FrontDoor(tmp_path, environment={"NAVARCH_CONFIG_DIR": door.environ()["NAVARCH_CONFIG_DIR"]})
    try:
        up = other.navarch("up", "--detach", "--port", "0", "--json")
        url = json.loads(up.stdout)["url"]
        by_option = door.navarch("--url", url, "doctor", "--json")
        found = {check["name"]: check["detail"] for check in json.loads(by_option.stdout)}
        assert found["data folder"] == str(other.data_dir) and url in found["control plane"], found
        assert door.navarch("--url", url, "down").stdout == "Navarch has ended.\n"
        with door.client() as client:
            assert client.version().deployment, "the one of the default data folder goes on"
        gone = door.navarch("down", environment={"NAVARCH_URL": url})
        assert gone.returncode == 3 and "No control plane answers" in gone.stderr
    finally:
        other.end()


def test_down_ends_no_process_that_is_something_else(tmp_path: Path) -> None:
    """A control plane in a container notes the process number that it has in there."""
    door = FrontDoor(tmp_path)
    door.data_dir.mkdir()
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        Endpoint("http://127.0.0.1:9", bystander.pid).write(door.data_dir)
        with only_one(door.data_dir):
            done = door.navarch("down")
        assert done.returncode == 1 and "it runs in a container" in done.stderr and bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
