"""The complete `cpu` image: what an IDE and a job find in it."""

from __future__ import annotations

from collections.abc import Callable

import docker
import pytest
from docker.models.containers import Container

from images.catalog import resolve

Run = Callable[..., Container]


@pytest.fixture
def output(run_container: Run, cpu_image: str) -> Callable[[list[str]], str]:
    def run(command: list[str]) -> str:
        container = run_container(cpu_image, command, network_mode="none", working_dir="/tmp")
        status = container.wait(timeout=120)["StatusCode"]
        log = container.logs().decode()
        assert status == 0, log
        return log

    return run


def test_the_recipes_name_stands_for_its_image(docker_client: docker.DockerClient, cpu_image: str) -> None:
    image = resolve(docker_client, "cpu")
    assert cpu_image in image.tags
    assert (image.recipe, image.target) == ("cpu", "training")


def test_the_training_program_answers(output: Callable[[list[str]], str]) -> None:
    assert "navarch-train" in output(["navarch-train", "--help"])


def test_what_an_ide_finds_is_the_training_environment(output: Callable[[list[str]], str]) -> None:
    program = "import peft, sys, torch, transformers as t; print(sys.prefix, torch.__version__, t.__version__)"
    script = (
        f"python -c '{program}' && pip --version && readlink -f $(command -v torchrun)"
        " && ls -A /navarch /packages /root/.cache 2>&1 || true"
    )
    lines = output(["bash", "-c", script]).splitlines()
    assert any(line.startswith("/opt/navarch 2.13.0") and line.endswith(" 4.51.3") for line in lines)
    assert any(line.startswith("pip ") and "/opt/navarch/" in line for line in lines)
    assert "/opt/navarch/bin/torchrun" in lines
    for folder in ("/navarch", "/packages", "/root/.cache"):
        assert f"ls: cannot access '{folder}': No such file or directory" in lines


def test_a_users_folder_cannot_replace_the_training_package(run_container: Run, cpu_image: str) -> None:
    """A project may well have a folder `training` of its own where the job starts."""
    script = "mkdir -p training && echo 'raise SystemExit(9)' > training/__init__.py && exec navarch-train --help"
    container = run_container(cpu_image, ["bash", "-c", script], network_mode="none")
    assert container.wait(timeout=60)["StatusCode"] == 0, container.logs().decode()
