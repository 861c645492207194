"""One name, several versions: which one a job gets, that it keeps it, and that nothing is lost on the way."""

from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config

from service.access.mounts import MountRules
from service.artifacts.digests import Digests
from service.artifacts.registry import Artifacts
from service.artifacts.versions import find_artifact
from service.contract.errors import Problem
from service.store import database as store
from service.store.database import Database
from service.store.tables import Artifact, Job, JobInput
from tests.unit.simulated_engine import LogRecord
from tests.unit.simulation import World

COMMAND: dict[str, Any] = {"type": "command", "image": "cpu", "command": "true"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run(world: World, name: str) -> Job:
    """A job that leaves `model/`, as its log says, and ends."""
    job = world.jobs.submit({**COMMAND, "name": name}).job
    controller = world.controller()
    controller.schedule()
    for _ in range(3):
        controller.step(job.id)
    (container,) = world.containers()
    (world.settings.job_dir(job.id) / "run" / "model").mkdir()
    (world.settings.job_dir(job.id) / "run" / "model" / "weights").write_text(job.id)
    left = '@navarch {"event": "artifact", "path": "model", "kind": "model"}'
    container.log.append(LogRecord("2026-01-01T00:00:02.000000000Z", left))
    world.settle(controller)
    controller.close()
    return world.job(job.id)


def serve(world: World, model: str, **more: Any) -> Job:
    return world.jobs.submit({"type": "serve", "image": "cpu", "model": f"artifact:{model}", **more}).job


def inputs(world: World, job: Job) -> list[tuple[str, str, int | None, str | None]]:
    return [(i.key, i.name, i.version, i.maker_name) for i in world.rows(JobInput) if i.job_id == job.id]


def refused(world: World, model: str) -> Problem:
    with pytest.raises(Problem) as caught:
        serve(world, model)
    return caught.value


def test_a_name_means_what_the_latest_run_left_and_older_ones_have_numbers(world: World) -> None:
    first, second = run(world, "sft"), run(world, "sft")
    newest, older = serve(world, "sft-model"), serve(world, "sft-model@1")
    assert inputs(world, newest) == [("model", "sft-model", 2, "sft")]
    assert inputs(world, older) == [("model", "sft-model", 1, "sft")]
    assert newest.resolved["mounts"][0]["source"] == str(world.settings.job_dir(second.id) / "run" / "model")
    assert older.resolved["mounts"][0]["source"] == str(world.settings.job_dir(first.id) / "run" / "model")
    assert "it has 1, 2" in refused(world, "sft-model@3").detail
    assert refused(world, "sft-model@two").code == "invalid_request"


def test_every_attempt_of_a_job_uses_the_version_that_the_first_one_did(world: World) -> None:
    run(world, "sft")
    job = serve(world, "sft-model", retries=1)
    controller = world.controller()
    controller.schedule()
    for _ in range(2):
        controller.step(job.id)
    (container,) = world.containers()
    before = container.plan.mounts
    for machine in world.machines.values():
        machine.end(container, 3)
    for _ in range(4):
        controller.step(job.id)
    assert world.job(job.id).state == "queued"
    with world.database.write() as session:  # meanwhile another run left a newer one
        session.add(
            Artifact(owner_id="local", id="x", name="sft-model", version=2, kind="model", path=str(world.folder))
        )
    world.now += 60
    controller.schedule()
    for _ in range(2):
        controller.step(job.id)
    (again,) = world.containers()
    assert again.plan.labels["navarch.attempt"] == "2" and again.plan.mounts == before
    assert inputs(world, job) == [("model", "sft-model", 1, "sft")]
    controller.close()


def test_two_versions_in_one_job_are_two_folders(world: World) -> None:
    run(world, "sft"), run(world, "sft")
    data = world.shared / "d.jsonl"
    data.write_text("")
    spec = {"type": "ppo", "image": "cpu", "model": "artifact:sft-model", "data": [{"path": str(data)}]}
    job = world.jobs.submit({**spec, "reward": {"model": "artifact:sft-model@1"}}).job
    assert inputs(world, job) == [("model", "sft-model", 2, "sft"), ("reward.model", "sft-model", 1, "sft")]
    targets = {mount["target"]: mount["source"] for mount in job.resolved["mounts"]}
    assert targets["/workspace/artifacts/sft-model"] != targets["/workspace/artifacts/sft-model@1"]


def test_a_job_tells_the_digest_of_what_it_used_even_when_that_is_gone(world: World) -> None:
    run(world, "sft")
    job = serve(world, "sft-model")
    digests = Digests(world.database, MountRules.of(world.settings))
    row = digests._next()
    assert row is not None
    digests._fill(row)
    world.jobs.stop(job.id)
    Artifacts(world.database, world.settings).delete("sft-model")
    (used,) = world.rows(JobInput)
    assert used.digest is not None and used.digest.startswith("sha256:") and world.rows(Artifact) == []


def test_a_number_is_never_given_twice(world: World) -> None:
    artifacts = Artifacts(world.database, world.settings)
    folder = world.shared / "data"
    folder.mkdir()
    assert artifacts.add(str(folder), name="d").version == 1
    with pytest.raises(Problem) as exists:
        artifacts.add(str(folder), name="d")
    assert exists.value.code == "artifact_exists" and "--new-version" in (exists.value.hint or "")
    assert artifacts.add(str(folder), name="d", new_version=True).version == 2
    with pytest.raises(Problem) as ambiguous:
        artifacts.delete("d")
    assert ambiguous.value.code == "artifact_ambiguous" and "d@1" in (ambiguous.value.hint or "")
    artifacts.delete("d@2")
    artifacts.delete("d")
    assert artifacts.add(str(folder), name="d").version == 3


def test_a_version_that_a_job_uses_is_kept_and_others_may_go(world: World) -> None:
    run(world, "sft"), run(world, "sft")
    job = serve(world, "sft-model")
    artifacts = Artifacts(world.database, world.settings)
    with pytest.raises(Problem) as used:
        artifacts.delete("sft-model@2")
    assert used.value.code == "artifact_in_use" and job.name in used.value.detail
    artifacts.delete("sft-model@1")
    assert [row.version for row in world.rows(Artifact)] == [2]


def test_names_of_before_become_versions_when_the_database_is_brought_up_to_date(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/navarch.db")
    config = Config()
    config.set_main_option("script_location", str(store._MIGRATIONS))
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    with database.engine.connect() as connection:
        insert = "INSERT INTO artifact VALUES (?, ?, 'model', ?, NULL, 7, 'ready', NULL, ?, ?, 1, ?, '{}', ?)"
        for row in (
            ("a", "sft-model", "/a", "job:sft", "j1", "model", 1.0),
            ("b", "sft-model-2", "/b", "job:sft", "j2", "model", 2.0),
            ("c", "run-2-model", "/c", "job:run-2", "j3", "model", 3.0),
            ("d", "llama-2", "/d", "/models/llama-2", None, None, 4.0),
        ):
            connection.exec_driver_sql(insert, row)
        connection.commit()
    database.migrate()
    with database.read() as session:
        found = {
            ref: find_artifact(session, ref).path for ref in ("sft-model", "sft-model@1", "run-2-model", "llama-2")
        }
        assert found == {"sft-model": "/b", "sft-model@1": "/a", "run-2-model": "/c", "llama-2": "/d"}
        assert find_artifact(session, "b").size == 7
        with pytest.raises(Problem) as gone:
            find_artifact(session, "sft-model-2")
        assert gone.value.hint == "Did you mean sft-model@2?"
    database.close()
