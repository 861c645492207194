"""Steps of a chain that are submitted before their inputs exist: they wait, start, or fail with the reason."""

from pathlib import Path
from typing import Any

import pytest

from service.contract.errors import Problem
from service.control.steps.schedule import next_retry, schedule
from service.store.tables import Artifact, Job, JobInput
from tests.unit.simulated_engine import LogRecord
from tests.unit.simulation import SimulatedController, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    (world.shared / "rows.jsonl").write_text("")
    return world


@pytest.fixture
def controller(world: World) -> SimulatedController:
    return world.controller()


def submit(world: World, stage: str, model: str, **more: Any) -> Job:
    spec = {"type": stage, "name": stage, "image": "cpu", "model": model, **more}
    if stage != "serve":
        spec["data"] = [{"path": str(world.shared / "rows.jsonl")}]
    return world.jobs.submit(spec).job


def start(world: World, controller: SimulatedController, job: Job) -> None:
    controller.schedule()
    for _ in range(3):
        controller.step(job.id)
    assert world.job(job.id).state == "running", world.job(job.id).message


def end(world: World, controller: SimulatedController, job: Job, *, code: int = 0, leaves: str = "model") -> None:
    """The job's container prints that it left something, and exits."""
    (container,) = (c for c in world.containers() if c.plan.labels["navarch.job"] == job.id)
    if leaves:
        event = f'@navarch {{"event": "artifact", "path": "{leaves}", "kind": "{leaves}"}}'
        container.log.append(LogRecord(f"2026-01-01T00:00:{len(container.log) + 1:02d}.000000000Z", event))
    for machine in world.machines.values():
        if container.id in machine.containers:
            machine.end(container, code)
    for _ in range(4):
        controller.step(job.id)


def test_a_chain_submitted_at_once_runs_step_by_step(world: World, controller: SimulatedController) -> None:
    sft = submit(world, "sft", "hf:org/base")
    rm = submit(world, "rm", "artifact:sft-model")
    ppo = submit(world, "ppo", "artifact:sft-model", reward={"model": "artifact:rm-model"})
    serve = submit(world, "serve", "artifact:ppo-model")
    start(world, controller, sft)
    assert [job.state for job in world.rows(Job)].count("queued") == 3 and len(world.containers()) == 1
    with world.database.write() as session:
        row = session.get(Job, sft.id)
        assert row is not None
        row.progress = {"step": 12, "total_steps": 40}
    controller.schedule()
    assert world.job(rm.id).why == "waits for artifact sft-model of job sft (running, step 12 of 40)"
    assert (world.job(ppo.id).why or "").endswith("and artifact rm-model of job rm (queued)")
    assert next_retry(controller.context) is None

    end(world, controller, sft)
    start(world, controller, rm)
    run_folder = str(world.settings.job_dir(sft.id) / "run" / "model")
    assert run_folder in [mount.source for mount in world.containers()[0].plan.mounts]
    controller.schedule()
    assert world.job(ppo.id).why == "waits for artifact rm-model of job rm (running)"
    used = [(i.key, i.name, i.version, i.maker_name) for i in world.rows(JobInput) if i.job_id == ppo.id]
    assert used == [("model", "sft-model", 1, "sft"), ("reward.model", "rm-model", None, "rm")]
    end(world, controller, rm)
    start(world, controller, ppo)
    end(world, controller, ppo)
    start(world, controller, serve)


def test_a_job_whose_input_will_not_come_fails_and_so_do_those_behind_it(
    world: World, controller: SimulatedController
) -> None:
    sft = submit(world, "sft", "hf:org/base")
    rm = submit(world, "rm", "artifact:sft-model")
    ppo = submit(world, "ppo", "artifact:sft-model", reward={"model": "artifact:rm-model"})
    start(world, controller, sft)
    end(world, controller, sft, code=1, leaves="")
    controller.schedule()
    failed = world.job(rm.id)
    assert (failed.state, failed.reason) == ("failed", "missing_input")
    assert failed.message == f"artifact sft-model won't come: job sft failed: {world.job(sft.id).message}"
    behind = world.job(ppo.id)
    assert behind.state == "failed"
    assert (behind.message or "").endswith("; artifact rm-model won't come: job rm failed before it started")


def test_a_maker_that_is_stopped_or_deleted(world: World, controller: SimulatedController) -> None:
    sft, rm = submit(world, "sft", "hf:org/base"), submit(world, "rm", "artifact:sft-model")
    world.jobs.stop(sft.id)
    with pytest.raises(Problem) as refused:  # it is about to end, so nothing may begin to wait for it
        submit(world, "serve", "artifact:sft-model")
    assert refused.value.code == "artifact_not_found"
    world.jobs.delete(sft.id)
    controller.schedule()
    assert "job sft was deleted" in (world.job(rm.id).message or "")
    sft, rm = submit(world, "sft", "hf:org/base"), submit(world, "rm", "artifact:sft-model")
    world.jobs.stop(sft.id)
    controller.schedule()
    assert world.job(rm.id).message == "artifact sft-model won't come: job sft was stopped"


def test_a_maker_that_is_tried_again_is_waited_for(world: World, controller: SimulatedController) -> None:
    sft, rm = submit(world, "sft", "hf:org/base", retries=1), submit(world, "rm", "artifact:sft-model")
    start(world, controller, sft)
    end(world, controller, sft, code=1)  # it has left something, which the next attempt writes again
    controller.schedule()
    assert world.job(sft.id).state == world.job(rm.id).state == "queued"
    assert world.job(rm.id).why == "waits for artifact sft-model of job sft (queued)"
    world.now += 60
    start(world, controller, sft)
    end(world, controller, sft)
    start(world, controller, rm)


def test_what_no_live_job_will_make_is_refused(world: World) -> None:
    submit(world, "sft", "hf:org/base")
    submit(world, "dpo", "hf:org/base", lora={"rank": 4, "merge": False})
    for reference in ("rm-model", "sft-adapter", "dpo-model", "sft-model@1", "sft-model-2"):
        with pytest.raises(Problem) as refused:
            submit(world, "serve", f"artifact:{reference}")
        assert refused.value.code == "artifact_not_found", reference
    with pytest.raises(Problem) as wrong:
        submit(world, "serve", "artifact:dpo-adapter")
    assert wrong.value.code == "invalid_spec" and "is an adapter" in wrong.value.detail
    assert submit(world, "serve", "hf:org/base", adapter="artifact:dpo-adapter").why == (
        "waits for artifact dpo-adapter of job dpo (queued)"
    )


def test_the_newest_is_the_one_that_is_being_made_and_older_ones_are_there_at_once(
    world: World, controller: SimulatedController
) -> None:
    with world.database.write() as session:
        session.add(Artifact(owner_id="local", id="x", name="sft-model", kind="model", path=str(world.folder)))
    sft = submit(world, "sft", "artifact:sft-model")  # it goes on from what an earlier run left
    assert sft.resolved["mounts"][0]["source"] == str(world.folder)
    older = submit(world, "serve", "artifact:sft-model@1")
    assert older.not_before == 0.0
    rm = submit(world, "rm", "artifact:sft-model")
    assert "waits for artifact sft-model of job sft" in (rm.why or "")
    start(world, controller, sft)
    end(world, controller, sft)
    start(world, controller, rm)
    assert [i.version for i in world.rows(JobInput) if i.job_id == rm.id] == [2]


def test_who_waits_for_an_input_keeps_nobody_off_the_gpus(world: World, controller: SimulatedController) -> None:
    sft = submit(world, "sft", "hf:org/base", resources={"gpus": 2})
    rm = submit(world, "rm", "artifact:sft-model", resources={"gpus": 1}, priority=90)
    other = submit(world, "dpo", "hf:org/base", resources={"gpus": 1})
    assert sorted(schedule(controller.context)) == sorted([sft.id, other.id])
    assert world.job(rm.id).state == "queued"


def test_what_is_about_to_be_taken_is_not_removed(world: World, controller: SimulatedController) -> None:
    """Between the end of the job that made it and the pass that gives it to the next."""
    sft, rm = submit(world, "sft", "hf:org/base"), submit(world, "rm", "artifact:sft-model")
    start(world, controller, sft)
    end(world, controller, sft)
    with pytest.raises(Problem) as refused:
        world.jobs.delete(sft.id)
    assert refused.value.code == "artifact_in_use" and "job rm" in refused.value.detail
    start(world, controller, rm)
    world.jobs.stop(rm.id)
    for _ in range(4):
        controller.step(rm.id)
    world.jobs.delete(sft.id)


def test_after_waits_for_the_success_of_any_job(world: World, controller: SimulatedController) -> None:
    def command(name: str, **more: Any) -> Job:
        return world.jobs.submit({"type": "command", "name": name, "image": "cpu", "command": "x", **more}).job

    first = command("prepare")
    second, third = command("train", after="prepare"), command("report", after=["prepare", "train"])
    assert second.why == "waits for job prepare (queued)"
    start(world, controller, first)
    end(world, controller, first, leaves="")
    with pytest.raises(Problem) as refused:
        world.jobs.delete(first.id)
    assert refused.value.code == "artifact_in_use"
    start(world, controller, second)
    assert world.job(third.id).why == "waits for job train (queued)"
    end(world, controller, second, code=1, leaves="")
    controller.schedule()
    failed = world.job(third.id)
    assert (failed.state, failed.reason) == ("failed", "missing_input")
    assert (failed.message or "").startswith("it was to follow job train, which failed: ")
    assert command("again", after="prepare").not_before == 0.0
    for name, code in (("train", "invalid_spec"), ("nobody", "job_not_found")):
        with pytest.raises(Problem) as refused:
            command("never", after=name)
        assert refused.value.code == code


def test_a_dry_run_says_what_would_be_waited_for(world: World) -> None:
    spec = {"type": "serve", "image": "cpu", "model": "artifact:sft-model"}
    with pytest.raises(Problem):
        world.plans.plan(spec)
    submit(world, "sft", "hf:org/base")
    plan = world.plans.plan(spec)
    assert not plan.placeable and plan.why == "waits for artifact sft-model of job sft (queued)"
