"""What a signal does to a job: its programs get it, through whatever started them, and have their whole grace."""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from tests.docker.test_images_entrypoint import wait_until

Run = Callable[..., Container]
Start = Callable[..., Container]
SUPERVISE = Path(__file__).parents[2] / "images/navarch-supervise"

#: A training that saves on SIGTERM, which takes a second; its argument is its name.
TRAINING = """python3 -u -c '
import signal, sys, time
def save(*_):
    print(sys.argv[1], "saves", flush=True); time.sleep(1); print(sys.argv[1], "saved", flush=True); sys.exit(0)
signal.signal(signal.SIGTERM, save)
print(sys.argv[1], "runs", flush=True)
while True: time.sleep(0.05)
' """


@pytest.fixture(scope="module")
def busybox(docker_client: docker.DockerClient, system_image: str) -> Iterator[str]:
    """An image without bash: its only shell is busybox's, beside a Python."""
    tag = f"navarch-test-{uuid.uuid4().hex[:8]}:latest"
    dockerfile = (
        f"FROM {system_image}\n"
        "RUN apt-get -qq update && apt-get -qq -y install --no-install-recommends busybox-static > /dev/null\n"
        "RUN rm /bin/bash /bin/dash && ln -sf /bin/busybox /bin/sh && ln -sf /bin/busybox /usr/bin/tee\n"
    )
    docker_client.images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=tag, rm=True, forcerm=True)
    yield tag
    docker_client.images.remove(tag, force=True)


@pytest.fixture(params=["navarch", "bash", "dash", "busybox"])
def start(request: pytest.FixtureRequest, run_container: Run, system_image: str) -> Start:
    """Runs a command in an image of Navarch, and as plain images get it: under this shell, with Docker's own init."""

    def run(command: list[str], **options: object) -> Container:
        if request.param == "navarch":
            return run_container(system_image, command, **options)
        image = request.getfixturevalue("busybox") if request.param == "busybox" else system_image
        shell = "/bin/bash" if request.param == "bash" else "/bin/sh"
        return run_container(
            image,
            command,
            entrypoint=[shell, "/run/navarch/supervise"],
            init=True,
            volumes={str(SUPERVISE): {"bind": "/run/navarch/supervise", "mode": "ro"}},
            **options,
        )

    return run


def lines(container: Container) -> list[str]:
    return container.logs().decode().splitlines()


def stopped(container: Container, after: str, grace: int = 20) -> tuple[int, float]:
    """Exit code, and seconds from SIGTERM on; SIGTERM comes when the log has the line `after`."""
    wait_until(lambda: after in lines(container))
    begun = time.monotonic()
    container.stop(timeout=grace)
    container.reload()
    return int(container.attrs["State"]["ExitCode"]), time.monotonic() - begun


@pytest.mark.parametrize(
    "script",
    [
        f"{TRAINING} one\necho next $?",
        f"{TRAINING} one 2>&1 | tee /tmp/log\n{TRAINING} two",
        f"(cd /tmp && {TRAINING} one) | cat\n{TRAINING} two",
        f"yes | {TRAINING} one; {TRAINING} two",
        f"timeout 60 {TRAINING} one; {TRAINING} two",
        f"(({TRAINING} one; true); true); true",
        f"trap 'echo cleans up; exit 3' TERM; {TRAINING} one; {TRAINING} two",
    ],
    ids=["lines", "tee", "subshell", "yes", "timeout", "nested", "trap"],
)
def test_a_scripts_training_saves_and_nothing_follows(
    start: Start, script: str, request: pytest.FixtureRequest
) -> None:
    shell = "sh" if "busybox" in request.node.name else "bash"
    container = start([shell, "-c", script])
    code, seconds = stopped(container, "one runs")
    found = [line for line in lines(container) if line.startswith(("one", "two", "next"))]
    assert found == ["one runs", "one saves", "one saved"]
    assert ("cleans up" in lines(container)) == ("trap" in script)
    assert code == (3 if "trap" in script else 143)
    assert 1 <= seconds < 8


@pytest.mark.parametrize("start", ["navarch", "bash", "dash"], indirect=True)
def test_a_script_that_sends_all_it_says_through_tee(start: Start) -> None:
    container = start(["bash", "-c", f"exec > >(tee /tmp/log) 2>&1\n{TRAINING} one; {TRAINING} two"])
    _, seconds = stopped(container, "one runs")
    assert lines(container) == ["one runs", "one saves", "one saved"]
    assert 1 <= seconds < 8


def test_what_a_program_started_is_its_own_to_end(start: Start) -> None:
    """A data loader that dies under a training which saves would take it down."""
    program = """
import os, signal, sys, time
if os.fork() == 0:
    signal.signal(signal.SIGTERM, lambda *_: (print("loader got it", flush=True), os._exit(1)))
    while True: time.sleep(0.05)
def save(*_):
    time.sleep(1); print("saved", flush=True); sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("runs", flush=True)
while True: time.sleep(0.05)
"""
    container = start(["python3", "-c", program])
    code, _ = stopped(container, "runs")
    assert (code, lines(container)) == (75, ["runs", "saved", "loader got it"])


def test_what_a_dead_launcher_left_behind_gets_the_signal(start: Start) -> None:
    """A launcher that knows nothing of signals dies at once; its program still saves."""
    launcher = f"import subprocess; subprocess.call(['sh', '-c', {('exec ' + TRAINING + 'one')!r}])"
    container = start(["python3", "-c", launcher])
    _, seconds = stopped(container, "one runs")
    assert lines(container) == ["one runs", "one saves", "one saved"]
    assert seconds < 8


def test_the_grace_has_an_end(start: Start) -> None:
    script = "trap '' TERM; echo runs; while :; do sleep 0.1; done"
    container = start(["sh", "-c", script])
    code, seconds = stopped(container, "runs", grace=2)
    assert code == 137
    assert 2 <= seconds < 6


def test_a_program_without_a_handler_ends_at_once(start: Start) -> None:
    """As the first process of a container it would ignore SIGTERM, and wait out its grace."""
    container = start(["python3", "-u", "-c", "import time; print('runs'); time.sleep(60)"])
    code, seconds = stopped(container, "runs")
    assert code == 143
    assert seconds < 5


def test_a_job_that_ends_takes_no_account_of_what_it_left_in_the_background(start: Start) -> None:
    container = start(["sh", "-c", "sleep 60 & echo started; exit 4"])
    assert container.wait(timeout=15)["StatusCode"] == 4


def test_zombies_are_reaped(start: Start) -> None:
    script = (
        "for i in 1 2 3; do (sleep 0.1 & exec true); done; sleep 0.6; cat /proc/[0-9]*/stat > /tmp/all; cat /tmp/all"
    )
    container = start(["sh", "-c", script])
    assert container.wait(timeout=15)["StatusCode"] == 0
    assert not [line for line in lines(container) if ") Z " in line]


def test_other_signals_reach_the_command(start: Start) -> None:
    script = "trap 'echo got USR1; exit 5' USR1; echo runs; while :; do sleep 0.05; done"
    container = start(["sh", "-c", script])
    wait_until(lambda: lines(container) == ["runs"])
    container.kill("SIGUSR1")
    assert container.wait(timeout=15)["StatusCode"] == 5
    assert lines(container) == ["runs", "got USR1"]


@pytest.mark.parametrize(
    ("command", "code", "printed"),
    [
        (["echo", "a\\nb"], 0, ["a\\nb"]),
        (["false"], 1, []),
        (["sh", "-c", "kill -SEGV $$"], 139, []),
        (["sh", "-c", "echo out; echo err >&2; cat; exit 42"], 42, ["err", "out"]),
    ],
)
def test_command_and_exit_code_are_the_program_s(
    start: Start, command: list[str], code: int, printed: list[str]
) -> None:
    container = start(command)
    assert container.wait(timeout=15)["StatusCode"] == code
    assert sorted(lines(container)) == printed


def test_the_jobs_variables_are_untouched(start: Start) -> None:
    """Also those that a shell script might use for itself."""
    names = ("name", "line", "job", "code", "port", "given", "mask", "environment", "table", "shell", "key", "value")
    container = start(["env"], environment={name: f"mine-{name}" for name in names})
    assert container.wait(timeout=15)["StatusCode"] == 0
    found = dict(line.split("=", 1) for line in lines(container))
    assert {name: found.get(name) for name in names} == {name: f"mine-{name}" for name in names}
