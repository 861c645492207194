"""compose.yaml starts the control plane as a container that runs a job on the host's engine and keeps its data."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import pytest
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from images.base import ensure_base
from images.cancellation import Cancellation
from images.network import of_this_machine
from images.recipes import load_recipe
from service.client import Client

REPOSITORY = Path(__file__).resolve().parents[2]
CONTEXT = ("Dockerfile", ".dockerignore", "compose.yaml", "pyproject.toml", "constraints.txt", "README.md")
PACKAGES = ("jobs", "images", "service", "training")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def project(docker_client: docker.DockerClient, tmp_path: Path) -> Iterator[dict[str, str]]:
    """`docker-compose up` of a copy of this repository; yields its environment and takes it down again."""
    context = tmp_path / "navarch"
    context.mkdir()
    for name in CONTEXT:
        shutil.copy(REPOSITORY / name, context / name)
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    network = of_this_machine()
    if network.ca_bundle is not None:
        shutil.copy(network.ca_bundle, context / "ca-bundle.pem")
    steps = ensure_base(docker_client, load_recipe("cpu"), "", Cancellation())
    base = ""
    while not base:
        try:
            next(steps)
        except StopIteration as end:
            base = end.value
    environment = {
        **os.environ,
        "DOCKER_BUILDKIT": "0",
        "COMPOSE_DOCKER_CLI_BUILD": "0",
        "COMPOSE_PROJECT_NAME": "navarch-test",
        "NAVARCH_BASE": base,
        "NAVARCH_DATA": str(tmp_path / "data"),
        "NAVARCH_PORT": str(free_port()),
        "PIP_INDEX_URL": network.index_url,
    }

    def compose(*arguments: str) -> None:
        done = subprocess.run(
            ["docker-compose", *arguments], cwd=context, env=environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    try:
        compose("up", "-d", "--build")
        yield environment
        compose("restart")
        assert healthy(environment)["ok"]
    finally:
        compose("down", "-t", "20")


@retry(
    stop=stop_after_delay(60), wait=wait_fixed(0.3), retry=retry_if_exception_type((httpx.HTTPError, AssertionError))
)
def healthy(environment: dict[str, str]) -> dict[str, object]:
    answer = httpx.get(f"http://127.0.0.1:{environment['NAVARCH_PORT']}/api/v1/health", timeout=5)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.timeout(400)
def test_compose_runs_a_job_on_the_hosts_engine(project: dict[str, str], system_image: str) -> None:
    healthy(project)
    url = f"http://127.0.0.1:{project['NAVARCH_PORT']}/api/v1/jobs"
    token = (Path(project["NAVARCH_DATA"]) / "token").read_text().strip()
    own = {"Authorization": f"Bearer {token}"}
    assert httpx.get(url, timeout=10).status_code == 401
    with Client(url.removesuffix("/api/v1/jobs"), token=token) as client:
        assert list(client.jobs()) == []
    spec = {
        "type": "command",
        "name": "in-compose",
        "image": system_image,
        "command": "echo made > /workspace/run/here",
    }
    submitted = httpx.post(url, json=spec, headers=own, timeout=10)
    assert submitted.status_code == 201, submitted.text

    @retry(stop=stop_after_delay(60), wait=wait_fixed(0.3), retry=retry_if_exception_type(AssertionError))
    def finished() -> dict[str, object]:
        job = httpx.get(f"{url}/in-compose", headers=own, timeout=10).json()
        assert job["finished_at"], job
        return dict(job)

    job = finished()
    assert job["state"] == "succeeded", job
    made = list(Path(project["NAVARCH_DATA"]).rglob("here"))
    assert [path.read_text() for path in made] == ["made\n"]
    health = docker.from_env().containers.list(filters={"label": "com.docker.compose.project=navarch-test"})
    assert [container.attrs["Config"]["Labels"]["com.docker.compose.service"] for container in health] == ["navarch"]
