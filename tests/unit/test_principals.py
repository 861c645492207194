"""Jobs, names, idempotency keys and events belong to somebody: what one person does never meets another's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.access.principals import LOCAL
from service.api.app import create_app
from service.contract.errors import Problem
from service.runtime import Runtime
from service.settings import Settings
from service.store.rows import find_job
from service.store.tables import Event, Job, Replica
from tests.unit.local_client import local_client
from tests.unit.simulation import World

COMMAND: dict[str, Any] = {"type": "command", "image": "cpu", "command": "true", "name": "sft", "grace": 5}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_two_people_run_jobs_of_one_name_at_once(world: World) -> None:
    ann, bob = world.principal("ann"), world.principal("bob")
    jobs = {who: world.jobs.submit(COMMAND, actor=who).job.id for who in (ann, bob, LOCAL)}
    with pytest.raises(Problem) as taken:
        world.jobs.submit(COMMAND, actor=ann)
    assert taken.value.code == "name_taken"
    controller = world.controller()
    controller.schedule()
    for job_id in jobs.values():
        controller.step(job_id)
    names = {replica.job_id: replica.container_name for replica in world.rows(Replica)}
    assert [names[jobs[who]] for who in (ann, bob, LOCAL)] == [
        "navarch-deployme-sft.ann-1-0",
        "navarch-deployme-sft.bob-1-0",
        "navarch-deployme-sft-1-0",
    ]
    assert sorted(container.plan.name for container in world.containers()) == sorted(names.values())
    keys = {world.job(job_id).host_key for job_id in jobs.values()}
    assert len(keys) == 3, "a name's host key is its owner's"
    world.jobs.stop("sft", actor=ann)
    assert [world.job(jobs[who]).desired for who in (ann, bob, LOCAL)] == ["stop", "run", "run"]


def test_a_name_means_ones_own_job_first_then_anybodys_newest(world: World) -> None:
    ann, bob, eve = (world.principal(name) for name in ("ann", "bob", "eve"))
    first = world.jobs.submit(COMMAND, actor=ann).job
    second = world.jobs.submit(COMMAND, actor=bob).job
    with world.database.read() as session:
        found = [find_job(session, "sft", who.id).id for who in (ann, bob, eve)]
        assert found == [first.id, second.id, second.id]
        assert find_job(session, first.id, bob.id).id == first.id
    after = world.jobs.submit({**COMMAND, "name": "next", "after": ["sft"]}, actor=ann)
    assert [wait.maker_id for wait in after.inputs] == [first.id]


def test_an_artifact_that_is_being_made_is_ones_own_first(world: World) -> None:
    ann, bob = world.principal("ann"), world.principal("bob")
    spec = {"type": "sft", "image": "cpu", "name": "sft", "model": "hf:a/b", "data": [{"path": "hf:c/d"}]}
    makers = {who.id: world.jobs.submit(spec, actor=who).job.id for who in (ann, bob)}
    for who in (ann, bob):
        serve = world.jobs.submit({"type": "serve", "image": "cpu", "model": "artifact:sft-model"}, actor=who)
        assert [used.maker_id for used in serve.inputs] == [makers[who.id]]


def test_an_idempotency_key_is_its_senders(world: World) -> None:
    ann, bob = world.principal("ann"), world.principal("bob")
    first = world.jobs.submit(COMMAND, actor=ann, idempotency_key="k")
    other = world.jobs.submit({**COMMAND, "command": "false"}, actor=bob, idempotency_key="k")
    again = world.jobs.submit(COMMAND, actor=ann, idempotency_key="k")
    assert not other.replayed and other.job.id != first.job.id
    assert again.replayed and again.job.id == first.job.id


@pytest.fixture
def app(tmp_path: Path) -> Iterator[tuple[FastAPI, Settings]]:
    settings = Settings(data_dir=tmp_path, engine_url=f"unix://{tmp_path}/no-engine.sock")
    runtime = Runtime(settings)
    runtime.open()
    runtime.start()
    yield create_app(runtime), settings
    runtime.stop()


def test_people_are_shown_by_their_names_and_every_change_has_its_actor(app: tuple[FastAPI, Settings]) -> None:
    local = local_client(*app)
    token = local.post("/api/v1/users", json={"name": "ann"}).json()["token"]
    here, headers = ("127.0.0.1", 50000), {"Authorization": f"Bearer {token}"}
    ann = TestClient(app[0], base_url="http://127.0.0.1", headers=headers, client=here)
    own, hers = local.post("/api/v1/jobs", json=COMMAND).json(), ann.post("/api/v1/jobs", json=COMMAND).json()
    assert (own["owner"], hers["owner"]) == ("local", "ann") and own["id"] != hers["id"]
    assert local.get("/api/v1/jobs/sft").json()["id"] == own["id"]
    assert ann.get("/api/v1/jobs/sft").json()["id"] == hers["id"]
    listed = local.get("/api/v1/jobs", params={"owner": "ann"}).json()["items"]
    assert [(job["id"], job["owner"]) for job in listed] == [(hers["id"], "ann")]
    assert local.get("/api/v1/jobs", params={"owner": "nobody"}).json()["items"] == []
    assert ann.post("/api/v1/jobs/sft/stop").json()["id"] == hers["id"]
    assert local.delete("/api/v1/tokens/first", params={"user": "ann"}).status_code == 204
    assert ann.get("/api/v1/jobs").status_code == 401
    told = [(event["actor"], event["kind"]) for event in local.get("/api/v1/events").json()["items"]][::-1]
    assert [one for one in told if one[0] != "controller"] == [
        ("local", "user.added"),
        ("local", "token.made"),
        ("local", "job.submitted"),
        ("ann", "job.submitted"),
        ("ann", "job.stop_requested"),
        ("ann", "job.state"),
        ("local", "token.withdrawn"),
    ]


def test_an_actor_that_is_nobody_can_not_be_written(world: World) -> None:
    job = world.jobs.submit(COMMAND).job
    assert world.rows(Job)[0].owner_id == "local" and world.rows(Event)[0].actor_id == "local"
    with pytest.raises(Exception, match="FOREIGN KEY"), world.database.write() as session:
        session.add(Event(actor_id="nobody", kind="x", subject=f"job/{job.id}"))
