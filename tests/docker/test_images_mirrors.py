"""`navarch image build` behind a firewall: every index that it is told of is really asked, from inside the build."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from docker.models.containers import Container

from tests.docker.front_door import front_door


class Mirror(ThreadingHTTPServer):
    """Package indexes that answer for every package, and have nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: set[str] = set()
        super().__init__(("0.0.0.0", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.asked.add(self.path)
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><html><body></body></html>")

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def as_containers_see_it(container: Container) -> str:
    """This machine's address on the bridge network; a new engine's network itself doesn't name it."""
    container.reload()
    return str(container.attrs["NetworkSettings"]["Networks"]["bridge"]["Gateway"])


def test_pip_asks_the_indexes_that_the_command_names(
    tmp_path: Path, system_image: str, run_container: Callable[..., Container], mirror: Mirror
) -> None:
    """The build fails, as the mirrors have no torch; what counts is who was asked for it."""
    gateway = as_containers_see_it(run_container(system_image, ["sleep", "60"]))
    url = f"http://{gateway}:{mirror.server_address[1]}"
    with front_door(tmp_path) as door:
        done = door.navarch(
            *("image", "build", "cpu", "--tag", "navarch-test/mirrors", "--verbose"),
            *("--index-url", f"{url}/main/simple", "--extra-index-url", f"{url}/extra/simple"),
            *("--torch-index-url", f"{url}/torch/whl", "--trusted-host", gateway),
            timeout_s=200,
        )
    assert done.returncode == 1 and "No matching distribution found for torch" in done.stdout + done.stderr, done.stdout
    for index in ("main/simple", "extra/simple", "torch/whl"):
        assert f"/{index}/torch/" in mirror.asked, sorted(mirror.asked)
