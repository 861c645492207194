"""Jobs are deleted with their files, whoever these belong to, and what they left goes on to be used."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.docker.front_door import FrontDoor, until

_ACCOUNT = 21987
"""An ordinary account; nobody's."""
_LEAVES = """\
type: command
name: {name}
image: {image}
ssh: false
workdir: /workspace
command: |
  mkdir -p run/model/inner run/private/deep
  echo weights > run/model/inner/weights; echo secret > run/private/deep/file; ln -s {outside} run/private/link
  chmod 700 run/private run/model
  {more}
  echo '@navarch {event}'
"""
_EVENT = json.dumps({"event": "artifact", "kind": "model", "path": "model"})


@pytest.fixture
def ordinary() -> Iterator[FrontDoor]:
    """A control plane of an ordinary account that may use the engine, as group docker allows."""
    if os.geteuid() != 0:
        pytest.skip("only root can start something as another account")
    folder = Path(tempfile.mkdtemp(prefix="navarch-rm-"))
    for path in (folder, folder / "home", folder / "config", folder / "data", folder / "outside"):
        path.mkdir(exist_ok=True)
        os.chown(path, _ACCOUNT, _ACCOUNT)
    group = str(Path("/var/run/docker.sock").stat().st_gid)
    account = ("setpriv", "--reuid", str(_ACCOUNT), "--regid", str(_ACCOUNT), "--groups", group)
    door = FrontDoor(folder, prefix=account)
    try:
        door.start()
        yield door
    finally:
        door.end()
        shutil.rmtree(folder)


def left(door: FrontDoor, image: str, name: str, more: str = "true") -> Path:
    """A job that has left a model and private files, all root's; its run folder."""
    outside = door.folder / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "file").write_text("outside")
    file = door.folder / f"{name}.yaml"
    file.write_text(_LEAVES.format(name=name, image=image, outside=outside, more=more, event=_EVENT))
    done = door.navarch("submit", str(file), "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    job = json.loads(door.navarch("show", name, "--json").stdout)
    return door.data_dir / "jobs" / job["id"] / "run"


def helpers(client: docker.DockerClient) -> list[Any]:
    return client.containers.list(all=True, filters={"label": "navarch.purpose=handover"}, ignore_removed=True)


def test_an_ordinary_account_keeps_the_model_and_leaves_nothing_of_roots(
    ordinary: FrontDoor, system_image: str, docker_client: docker.DockerClient
) -> None:
    run = left(ordinary, system_image, "own")
    assert (run / "private").stat().st_uid == 0
    done = ordinary.navarch("rm", "own")
    assert done.returncode == 0, done.stderr
    model = ordinary.data_dir / "artifacts" / "own-model"
    assert done.stdout.startswith("own removed\n") and "stays   artifact:own-model@1  8 B" in done.stdout
    assert str(model) in done.stdout
    assert not run.parent.exists() and (ordinary.folder / "outside" / "file").read_text() == "outside"
    weights = model / "inner" / "weights"
    assert weights.read_text() == "weights\n" and weights.stat().st_uid == _ACCOUNT
    assert not helpers(docker_client)
    shown = json.loads(ordinary.navarch("artifact", "show", "own-model", "--json").stdout)
    assert (shown["path"], shown["source"], shown["job"]) == (str(model), "job:own", None)
    until(lambda: "sha256:" in ordinary.navarch("artifact", "show", "own-model").stdout, "its digest")
    removed = ordinary.navarch("artifact", "rm", "own-model")
    assert removed.returncode == 0 and not list(model.parent.iterdir()), removed.stderr


def test_artifacts_are_deleted_where_that_is_asked_for(ordinary: FrontDoor, system_image: str) -> None:
    run = left(ordinary, system_image, "gone")
    done = ordinary.navarch("rm", "gone", "--artifacts")
    assert done.stderr.startswith("artifact:gone-model@1  ") and "will be deleted with job gone" in done.stderr
    assert done.stdout == "gone removed\n  deleted artifact:gone-model@1  8 B\n"
    assert not run.parent.exists() and not (ordinary.data_dir / "artifacts").exists()
    assert "No artifacts" in ordinary.navarch("artifact", "ls").stdout


def test_where_the_files_can_not_be_taken_over_the_command_says_what_to_type(
    ordinary: FrontDoor, system_image: str, docker_client: docker.DockerClient
) -> None:
    docker_client.images.get(system_image).tag("navarch/test-rm", "latest")
    run = left(ordinary, "navarch/test-rm:latest", "stays")
    docker_client.images.remove("navarch/test-rm:latest", noprune=True)
    done = ordinary.navarch("rm", "stays")
    assert done.returncode == 1 and "its image navarch/test-rm:latest is not there any more" in done.stderr
    typed = f"sudo chown -hR {_ACCOUNT}:{_ACCOUNT} {run}"
    assert typed in done.stderr and (run / "private" / "deep" / "file").exists()
    for path in (run, *run.rglob("*")):  # what the command does
        os.chown(path, _ACCOUNT, _ACCOUNT, follow_symlinks=False)
    done = ordinary.navarch("rm", "stays", "--json")
    (item,) = json.loads(done.stdout)
    assert (item["job"]["name"], [one["name"] for one in item["kept"]]) == ("stays", ["stays-model"])
    assert not run.parent.exists()


@pytest.fixture
def serving_image(docker_client: docker.DockerClient, system_image: str) -> Iterator[str]:
    """The system image under a label that lets it be asked to serve: its job ends before anything runs."""
    container = docker_client.containers.create(system_image)
    container.commit("navarch/test-rm-serves", "latest", changes="LABEL navarch.target=training")
    container.remove()
    yield "navarch/test-rm-serves:latest"
    docker_client.images.remove("navarch/test-rm-serves:latest")


def test_a_kept_model_is_mounted_into_the_next_job(door: FrontDoor, system_image: str, serving_image: str) -> None:
    """The container gets the folder of the model that stayed, under the path that the spec's words mean."""
    left(door, system_image, "first")
    assert "stays   artifact:first-model@1" in door.navarch("rm", "first").stdout
    with door.client() as client:
        job = client.submit({"type": "serve", "name": "next", "image": serving_image, "model": "artifact:first-model"})
        refused = door.navarch("artifact", "rm", "first-model")
        ended = client.wait(job.id, timeout_s=60)
        (used,) = ended.inputs
    assert "used by job next" in refused.stderr
    assert (used.name, used.version, used.job) == ("first-model", 1, "first")
    assert ended.reason not in ("bad_config", "missing_input"), ended.message
