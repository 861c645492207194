"""How a container of Navarch starts: sshd, the barrier, the job's signals and exit code, restarts."""

from __future__ import annotations

from collections.abc import Callable

from docker.models.containers import Container

Run = Callable[..., Container]


def test_exit_code_of_the_job_is_the_containers(run_container: Run, system_image: str) -> None:
    container = run_container(system_image, ["bash", "-c", "echo out; exit 42"])
    assert container.wait(timeout=30)["StatusCode"] == 42
    assert container.logs().decode().splitlines() == ["out"]
