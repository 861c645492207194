"""Images of other people: what would keep a job from running is said at submit; what wouldn't doesn't matter."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest

from jobs.states import Reason
from service.client import ApiError, Client
from tests.docker.front_door import FrontDoor, until

MakeImage = Callable[[str], str]
BUSYBOX = "apt-get -qq update && apt-get -qq -y install --no-install-recommends busybox-static > /dev/null"


@pytest.fixture(scope="module")
def make_image(docker_client: docker.DockerClient) -> Iterator[MakeImage]:
    """Builds a throw-away image from a Dockerfile's text."""
    tags = []

    def make(dockerfile: str) -> str:
        tag = f"navarch-test-{uuid.uuid4().hex[:8]}:latest"
        docker_client.images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=tag, rm=True, forcerm=True)
        tags.append(tag)
        return tag

    yield make
    for tag in reversed(tags):
        docker_client.images.remove(tag, force=True)


@pytest.fixture(scope="module")
def plain(make_image: MakeImage, system_image: str) -> str:
    """An image with nothing of Navarch's in its description: no entrypoint, no label."""
    return make_image(f"FROM scratch\nCOPY --from={system_image} / /\n")


@pytest.fixture(scope="module")
def busybox(make_image: MakeImage, system_image: str) -> str:
    """A file system with one program, which is no shell under this name."""
    with_it = make_image(f"FROM {system_image}\nRUN {BUSYBOX}\n")
    return make_image(f"FROM scratch\nCOPY --from={with_it} /bin/busybox /busybox\n")


def ended(client: Client, image: str, command: Any, **spec: Any) -> Any:
    job = client.submit({"type": "command", "image": image, "command": command, "grace": "20s", **spec})
    return client.wait(job.id, timeout_s=60)


def printed(client: Client, job: Any) -> list[str]:
    return [line.line for line in client.logs(job.id).items]


def refusal(client: Client, image: str, command: Any, **spec: Any) -> ApiError:
    """The answer to a submit; a dry run must say the same."""
    document = {"type": "command", "image": image, "command": command, **spec}
    (problem,) = client.plan(document).problems
    with pytest.raises(ApiError) as caught:
        client.submit(document)
    assert (caught.value.code, str(caught.value)) == (problem.code, problem.detail)
    return caught.value


@pytest.mark.parametrize("ssh", [True, False])
def test_an_entrypoint_of_the_images_own_does_not_swallow_the_command(
    client: Client, make_image: MakeImage, system_image: str, plain: str, ssh: bool
) -> None:
    image = make_image(f'FROM {system_image if ssh else plain}\nENTRYPOINT ["/bin/echo", "MY-ENTRYPOINT"]\n')
    command = ["python3", "-c", 'open("run/made", "w"); print("ran"); raise SystemExit(7)']
    job = ended(client, image, command, ssh=ssh)
    assert (job.state, job.reason) == ("failed", "user_error")
    assert "exit code 7" in job.message
    assert printed(client, job) == ["ran"]
    plan = client.plan({"type": "command", "image": image, "command": command, "ssh": ssh})
    assert any("its ENTRYPOINT (/bin/echo MY-ENTRYPOINT) is not run" in note for note in plan.notes)


def test_an_image_that_runs_as_another_user_is_refused_at_once(
    client: Client, make_image: MakeImage, system_image: str
) -> None:
    image = make_image(f"FROM {system_image}\nRUN useradd -m -u 1000 coder\nUSER coder\n")
    error = refusal(client, image, "id")
    assert error.code == "image_unsuitable"
    assert "runs as its USER coder" in str(error)
    assert "`ssh: false`" in (error.hint or "") and "`USER root`" in (error.hint or "")


def test_without_ssh_it_runs_as_its_user_who_can_write_to_the_run_folder(
    client: Client, door: FrontDoor, make_image: MakeImage, plain: str
) -> None:
    image = make_image(f"FROM {plain}\nRUN useradd -m -u 1000 coder\nUSER coder\n")
    job = ended(client, image, "id -un; touch run/x && echo written", ssh=False)
    assert (job.state, printed(client, job)) == ("succeeded", ["coder", "written"])
    assert "secrets" in refusal(client, image, "id", ssh=False, secrets={"TOKEN": "x"}).problem.detail


def test_what_an_image_lacks_is_said_with_the_key(client: Client, plain: str, busybox: str) -> None:
    assert "no Navarch layer" in refusal(client, plain, "true").problem.detail
    assert (
        "no bash, in which a `command` that is text runs" in refusal(client, busybox, "true", ssh=False).problem.detail
    )
    lacking = refusal(client, busybox, ["/busybox", "true"], ssh=False, secrets={"TOKEN": "x"})
    assert "no shell, by which a program gets the job's `secrets`" in lacking.problem.detail


def test_a_training_needs_the_training_environment(client: Client, door: FrontDoor, system_image: str) -> None:
    (door.folder / "shared" / "model").mkdir()
    document = {"type": "serve", "image": system_image, "model": str(door.folder / "shared" / "model")}
    with pytest.raises(ApiError) as caught:
        client.submit(document)
    assert caught.value.code == "image_unsuitable"
    assert "no training environment, and a job of type serve needs one" in caught.value.problem.detail


def test_an_image_without_any_shell_runs_a_program(client: Client, busybox: str) -> None:
    job = ended(client, busybox, ["/busybox", "echo", "out", "$HOME"], ssh=False)
    assert (job.state, printed(client, job)) == ("succeeded", ["out $HOME"])


def test_secrets_reach_a_plain_images_program(client: Client, plain: str) -> None:
    job = ended(client, plain, ["printenv", "TOKEN"], ssh=False, secrets={"TOKEN": "a=b $HOME 'c'"})
    assert printed(client, job) == ["a=b $HOME 'c'"]


def test_healthchecks_and_volumes_do_no_harm(
    client: Client, door: FrontDoor, docker_client: docker.DockerClient, make_image: MakeImage, system_image: str
) -> None:
    image = make_image(
        f"FROM {system_image}\nHEALTHCHECK --interval=1s CMD echo checked >> /tmp/checks\nVOLUME /data\n"
        'SHELL ["/bin/false", "-c"]\n'
    )
    before = {volume.name for volume in docker_client.volumes.list()}
    job = ended(client, image, "sleep 2.5; ls /tmp/checks /data; echo done")
    assert job.state == "succeeded"
    assert "done" in printed(client, job) and "/tmp/checks" not in printed(client, job)
    until(lambda: {v.name for v in docker_client.volumes.list()} <= before, "its volume is gone")
    notes = " ".join(client.plan({"type": "command", "image": image, "command": "true"}).notes)
    assert "HEALTHCHECK is not run" in notes and "VOLUME /data goes with the container" in notes


@pytest.mark.parametrize("kind", ["system", "plain"])
def test_a_stopped_script_saves_what_it_trained(client: Client, system_image: str, plain: str, kind: str) -> None:
    """As a team writes it today: a script that runs Python, then something after it."""
    script = """python3 -u -c '
import signal, sys, time
def bye(*a):
    print("saving", flush=True); time.sleep(2); print("saved", flush=True); sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print("runs", flush=True)
while True: time.sleep(0.2)
' | tee run/log
echo "after the training: exit $?"
"""
    image = system_image if kind == "system" else plain
    job = client.submit({"type": "command", "image": image, "command": script, "grace": "20s", "ssh": kind == "system"})
    until(lambda: printed(client, job) == ["runs"], "the training runs")
    client.stop(job.id)
    job = client.wait(job.id, timeout_s=30)
    assert (job.state, job.reason) == ("stopped", "stopped_by_user")
    assert printed(client, job) == ["runs", "saving", "saved"]


def test_an_image_that_comes_later_is_looked_at_when_the_job_starts(
    client: Client, docker_client: docker.DockerClient, make_image: MakeImage, system_image: str
) -> None:
    """What could not be seen at submit ends the job once and for all, without a retry."""
    image = make_image(f"FROM {system_image}\nUSER 1000\n")
    docker_client.images.get(system_image).tag(f"{image.partition(':')[0]}:later")
    first = client.submit({"type": "command", "image": system_image, "command": "sleep 3"})
    later = f"{image.partition(':')[0]}:later"
    job = client.submit({"type": "command", "image": later, "command": "true", "retries": 3, "after": first.id})
    docker_client.images.get(image).tag(later)
    try:
        job = client.wait(job.id, timeout_s=60)
    finally:
        docker_client.images.remove(later, force=True)
    assert (job.state, job.reason) == ("failed", Reason.IMAGE_UNSUITABLE.value)
    assert "USER 1000" in (job.message or "")
    assert len(job.attempts) == 1
