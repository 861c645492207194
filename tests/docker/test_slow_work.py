"""What is slow or can't work, on a real engine: pulls that stand still, containers that are refused, a job's writes."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import docker
import pytest

from tests.docker.control import Plane, test_settings, until


@pytest.fixture(scope="module")
def plane(docker_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    plane = Plane(test_settings(tmp_path_factory.mktemp("slow"), max_containers=30))
    yield plane
    plane.close()


class StillRegistry(ThreadingHTTPServer):
    """A registry that has every image, and never gets round to sending one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Still)
        self.asked: set[str] = set()
        self.let_go = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Still(BaseHTTPRequestHandler):
    server: StillRegistry
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path != "/v2/":
            self.server.asked.add(self.path.split("/")[2])
            self.server.let_go.wait(120)
        self.send_response(200 if self.path == "/v2/" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[StillRegistry]:
    server = StillRegistry()
    yield server
    server.let_go.set()
    server.shutdown()
    server.server_close()


def test_eight_pulls_that_stand_still_delay_nothing_and_end_at_once(
    plane: Plane, system_image: str, registry: StillRegistry
) -> None:
    at = f"127.0.0.1:{registry.server_port}"
    pulls = [plane.submit("true", image=f"{at}/still{number}:1", ssh=False) for number in range(8)]
    until("all pulls", lambda: registry.asked >= {f"still{number}" for number in range(8)}, 60)
    for job_id in pulls:
        assert plane.job(job_id).state == "provisioning"
        until("message", lambda job_id=job_id: (plane.job(job_id).message or "").startswith("pulls "))
    assert plane.ended(plane.submit("true", image=system_image, ssh=False)).state == "succeeded"
    begun = time.monotonic()
    for job_id in pulls:
        plane.runtime.jobs.stop(job_id)
    for job_id in pulls:
        assert plane.ended(job_id).state == "stopped"
    took = time.monotonic() - begun
    print(f"eight pulls were stopped in {took:.2f} s")
    assert took < 8
    assert plane.leases() == []


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"resources": {"ulimits": {"nofile": 1 << 30}}}, "rlimit"),
        ({"workdir": "/etc/passwd"}, "not a directory"),
    ],
    ids=["more open files than the kernel allows", "a workdir that is a file in the image"],
)
def test_what_the_engine_will_always_refuse_fails_at_once(
    plane: Plane, system_image: str, spec: dict[str, object], said: str
) -> None:
    job = plane.ended(plane.submit("true", image=system_image, ssh=False, **spec))
    assert (job.state, job.reason, job.attempts) == ("failed", "engine_refused", 1)
    assert said in (job.message or "")


def test_a_trivial_jobs_life_costs_eight_writes(plane: Plane, system_image: str) -> None:
    plane.ended(plane.submit("true", image=system_image))
    until("quiet", lambda: not plane.containers())
    before = plane.runtime.database.writes
    job_id = plane.submit("echo hello", image=system_image)
    assert plane.ended(job_id).state == "succeeded"
    until("removal", lambda: plane.replica(job_id).removed_at)
    assert plane.log(job_id) == ["hello"]
    assert plane.runtime.database.writes - before <= 8


def test_a_job_that_only_runs_costs_no_writes(plane: Plane, system_image: str) -> None:
    job_id = plane.submit("sleep 600", image=system_image, ssh=False)
    plane.in_state(job_id, "running")
    time.sleep(1)
    before = plane.runtime.database.writes
    for _ in range(10):
        plane.controller.wake(job_id)
        time.sleep(0.2)
    time.sleep(2 * plane.runtime.settings.sweep_s)
    assert plane.runtime.database.writes == before
    plane.runtime.jobs.stop(job_id)
    plane.ended(job_id)
