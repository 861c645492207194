"""The store and what is done with jobs in it: uniqueness, idempotency, secrets, leases, the scheduling pass."""

import contextlib
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import select

from jobs.spec import REDACTED
from service.access.principals import Role
from service.access.secrets import SecretBox
from service.contract.errors import Problem
from service.control.steps.schedule import schedule
from service.intake.submission import Submission, Submitted
from service.store.rows import find_job
from service.store.tables import Artifact, Attempt, Event, GpuLease, Holder, Host, Job, PortLease, Replica
from tests.unit.simulated_engine import Crash
from tests.unit.simulation import World

COMMAND: dict[str, Any] = {"type": "command", "image": "cpu", "command": "true"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def code(world: World, document: dict[str, Any], **more: Any) -> str:
    with pytest.raises(Problem) as refused:
        world.jobs.submit(document, **more)
    return refused.value.code


def test_one_gpu_and_one_port_have_one_holder_whatever_the_code_does(world: World) -> None:
    with world.database.write() as session:
        session.add(Holder(id="attempt/1", kind="job", name="n"))
        session.add(Holder(id="workspace/w", kind="workspace", name="w"))
        session.flush()
        session.add(GpuLease(gpu="GPU-1", host_id="h1", holder_id="attempt/1"))
        session.add(PortLease(host_id="h1", port=7000, holder_id="attempt/1"))
    other = "workspace/w"
    for row in (
        GpuLease(gpu="GPU-1", host_id="h2", holder_id=other),
        PortLease(host_id="h1", port=7000, holder_id=other),
        PortLease(host_id="h1", port=7001, holder_id="nobody"),
    ):
        with pytest.raises(IntegrityError), world.database.write() as session:
            session.add(row)
    with world.database.write() as session:
        session.delete(session.get(Holder, "attempt/1"))
    assert world.rows(GpuLease) == world.rows(PortLease) == []


def test_an_active_name_is_taken_and_free_again_afterwards(world: World) -> None:
    first = world.jobs.submit({**COMMAND, "name": "demo"}).job
    assert code(world, {**COMMAND, "name": "demo"}) == "name_taken"
    assert world.jobs.submit(COMMAND).job.name.startswith("command-")
    world.jobs.stop("demo")
    second = world.jobs.submit({**COMMAND, "name": "demo"}).job
    with world.database.read() as session:
        assert find_job(session, "demo", "local").id == second.id
        assert find_job(session, first.id, "local").id == first.id
        with pytest.raises(Problem):
            find_job(session, "nothing", "local")


def test_an_idempotency_key_makes_one_job(world: World) -> None:
    first = world.jobs.submit(COMMAND, idempotency_key="k")
    again = world.jobs.submit(COMMAND, idempotency_key="k")
    assert (first.replayed, again.replayed) == (False, True)
    assert again.job.id == first.job.id
    assert code(world, {**COMMAND, "command": "false"}, idempotency_key="k") == "idempotency_conflict"
    both = world.jobs.submit_many([Submission(COMMAND, idempotency_key="z"), Submission(COMMAND, idempotency_key="z")])
    assert [getattr(result, "replayed", None) for result in both] == [False, True]


def test_a_refused_submission_leaves_its_neighbours_alone(world: World) -> None:
    results = world.jobs.submit_many([Submission(COMMAND), Submission({"type": "x"}), Submission(COMMAND)])
    assert [isinstance(result, Problem) for result in results] == [False, True, False]
    assert len(world.rows(Job)) == 2


def test_what_goes_wrong_with_one_of_a_batch_is_told_to_nobody_else(world: World) -> None:
    """A link loop, a name too long, a NUL (which a client of the library may send), a row that the store refuses."""
    loop = world.settings.data_dir / "loop"
    loop.symlink_to(loop)
    sft = {"type": "sft", "image": "cpu", "model": "hf:org/m"}
    bad = [
        {**sft, "data": [str(loop)]},
        {**sft, "data": ["/" + "n" * 300]},
        {**sft, "data": [f"{world.settings.data_dir}/a\0b"]},
        {**sft, "data": ["artifact:m@" + "9" * 5000]},
        {**COMMAND, "mounts": [f"{loop}:/x"]},
        {**COMMAND, "after": ["\ud800"]},
        {**COMMAND, "env": {"A": "\ud800"}},
    ]
    results = world.jobs.submit_many([Submission(document) for one in bad for document in (one, COMMAND)])
    assert all(isinstance(result, Submitted) for result in results[1::2])
    assert all(isinstance(result, Exception) for result in results[::2])
    assert len(world.rows(Job)) == len(bad)
    refused = [result.code for result in results[::2] if isinstance(result, Problem)]
    assert len(refused) >= 5 and "internal" not in refused


def test_paths_are_checked_at_submit(world: World, tmp_path: Path) -> None:
    data = world.shared / "d.json"
    data.write_text("[]")
    sft = {"type": "sft", "image": "cpu", "model": "hf:org/m", "data": [{"path": str(data)}]}
    job = world.jobs.submit(sft).job
    assert job.resolved["mounts"] == [{"source": str(data), "target": str(data), "read_only": True}]
    assert code(world, {**sft, "data": [{"path": f"{data}.not"}]}) == "path_missing"
    assert code(world, {**sft, "data": [{"path": "/etc/passwd"}]}) == "mount_not_allowed"
    assert code(world, {**COMMAND, "mounts": ["/etc:/x"]}) == "mount_not_allowed"
    link = world.shared / "link"
    link.symlink_to("/etc")
    assert code(world, {**COMMAND, "mounts": [f"{link}:/x"]}) == "mount_not_allowed"
    assert code(world, {**sft, "model": "artifact:m"}) == "artifact_not_found"
    with world.database.write() as session:
        session.add(Artifact(owner_id="local", id="a", name="m", kind="model", path=str(tmp_path)))
    training = world.jobs.submit({**sft, "model": "artifact:m"}).job.resolved
    assert training["training"]["model"] == "/workspace/artifacts/m"
    assert training["mounts"][0]["target"] == "/workspace/artifacts/m"
    inside = {**sft, "model": "/models/x", "mounts": [f"{world.shared}:/models"]}
    assert world.jobs.submit(inside).job.resolved["training"]["model"] == "/models/x"


def test_a_working_folder_that_is_a_file_is_refused(world: World, tmp_path: Path) -> None:
    root = world.settings.mount_roots[0]
    (root / "tree" / "src").mkdir(parents=True)
    (root / "tree" / "run.sh").touch()

    def workdir(path: str, mode: str = "") -> dict[str, Any]:
        return {**COMMAND, "workdir": path, "mounts": [f"{root}/tree:/w{mode}"]}

    for path in ("/w", "/w/src", "/w/new", "/elsewhere"):
        world.jobs.submit(workdir(path))
    with pytest.raises(Problem) as refused:
        world.jobs.submit(workdir("/w/run.sh"))
    assert "`workdir` /w/run.sh is no folder" in refused.value.detail
    assert code(world, workdir("/w/new", ":ro")) == "path_missing"


def test_an_artifact_of_another_kind_or_name_is_refused_with_the_right_one(world: World, tmp_path: Path) -> None:
    serve = {"type": "serve", "image": "cpu"}
    with world.database.write() as session:
        for kind in ("model", "adapter"):
            session.add(Artifact(owner_id="local", id=kind, name=f"run-{kind}", kind=kind, path=str(tmp_path)))

    def refused(**changed: str) -> Problem:
        with pytest.raises(Problem) as caught:
            world.jobs.submit({**serve, **changed})
        return caught.value

    assert "run-model" in (refused(model="artifact:run").hint or "")
    assert (refused(model="artifact:run-modle").hint or "").startswith("Did you mean run-model")
    wrong = refused(model="artifact:run-adapter")
    assert (
        wrong.code == "invalid_spec" and "is an adapter" in wrong.detail and "artifact:run-model" in (wrong.hint or "")
    )
    assert world.jobs.submit({**serve, "model": "artifact:run-model", "adapter": "artifact:run-adapter"})
    assert "hf:org/name" in (refused(model="/nowhere/meta/llama").hint or "")


def test_secrets_are_nowhere_readable(world: World) -> None:
    job = world.jobs.submit({**COMMAND, "secrets": {"TOKEN": "s3cret-value"}}).job
    assert job.document["secrets"] == {"TOKEN": REDACTED}
    assert SecretBox(world.settings.data_dir).open(job.secrets) == {"TOKEN": "s3cret-value"}
    world.database.close()
    for file in world.settings.data_dir.rglob("*"):
        if file.is_file():
            assert b"s3cret-value" not in file.read_bytes(), file
    assert (world.settings.data_dir / "secret.key").stat().st_mode & 0o777 == 0o600


def test_only_an_ended_job_is_deleted(world: World) -> None:
    job = world.jobs.submit(COMMAND).job
    with pytest.raises(Problem) as refused:
        world.jobs.delete(job.id)
    assert refused.value.code == "job_active"
    world.jobs.stop(job.id)
    world.settings.job_dir(job.id).mkdir(parents=True)
    world.jobs.delete(job.id)
    assert world.rows(Job) == []
    assert not world.settings.job_dir(job.id).exists()


def test_one_bad_row_is_backed_off_with_its_error_and_the_others_go_on(world: World) -> None:
    controller = world.controller()
    bad, good = world.jobs.submit(COMMAND).job.id, world.jobs.submit(COMMAND).job.id
    controller.schedule()
    with world.database.write() as session:
        row = session.get(Job, bad)
        assert row is not None
        row.resolved = {"mounts": [{"wrong": 1}]}
    for _ in range(3):
        controller.step(bad)
        controller.step(good)
    assert world.job(bad).failures == 3
    assert "tries again in 4 s" in (world.job(bad).message or "")
    assert world.job(good).state == "running"


def test_a_container_that_ended_while_nobody_looked_is_not_started_again(tmp_path: Path) -> None:
    """The controller dies between a start and its commit, wherever that is; the job's command ran, and once only."""
    seen = set()
    for effects in itertools.count(1):
        folder = tmp_path / str(effects)
        folder.mkdir()
        world = World(folder)
        job_id = world.jobs.submit(COMMAND).job.id
        first = world.controller()
        first.schedule()
        first.fuse.left = effects
        with contextlib.suppress(Crash):
            first.step(job_id)
        machine = world.machines["h2"]
        ran = machine.runs.total() == 1
        seen.add((ran, world.rows(Replica)[0].container_id is not None))
        for container in world.containers():
            machine.end(container, 3)
        world.settle(world.controller())
        assert machine.runs.total() == 1
        job = world.job(job_id)
        assert (job.state, job.message) == (("failed", "exit code 3: started") if ran else ("succeeded", job.message))
        if not first.fuse.dead:
            break
    assert seen == {(False, False), (True, False), (True, True)}


def test_a_gang_that_loses_a_container_just_before_its_start_ends(tmp_path: Path) -> None:
    """The controller dies when all are ready; somebody removes one; the next controller must not try for ever."""
    for effects in itertools.count(1):
        folder = tmp_path / str(effects)
        folder.mkdir()
        world = World(folder)
        job_id = world.jobs.submit({**COMMAND, "resources": {"nodes": 2, "gpus": 1}}).job.id
        first = world.controller()
        first.schedule()
        first.fuse.left = effects
        with pytest.raises(Crash):
            while world.job(job_id).state == "provisioning":
                first.step(job_id)
        (attempt,) = world.attempts(job_id)
        if attempt.released_at is not None:
            break
    assert attempt.state == "provisioning"
    world.machines["h2"].containers.clear()
    second = world.controller()
    for _ in range(6):
        second.step(job_id)
    assert (world.job(job_id).state, world.job(job_id).reason) == ("failed", "container_removed")


def test_kinds_of_jobs_take_turns_in_the_order_of_the_queue(world: World) -> None:
    def submit(gpus: int, priority: int = 50) -> Job:
        return world.jobs.submit({**COMMAND, "resources": {"gpus": gpus}, "priority": priority}).job

    one, two, low, late, high = submit(1), submit(2), submit(1, 10), submit(1), submit(1, 90)
    context = world.controller().context
    assert schedule(context) == [high.id, one.id]  # h2 has one GPU, h1 two; `two` is next and keeps h1 to itself
    assert "needs 2 GPUs on one host" in (world.job(two.id).why or "")
    assert world.job(late.id).why == world.job(low.id).why
    assert f"h1 is kept for job {two.name}, which is ahead in the queue" in (world.job(late.id).why or "")
    after = submit(2)
    assert schedule(context) == []
    assert world.job(after.id).why == world.job(two.id).why


def test_cpus_and_memory_of_placed_jobs_are_gone_for_others_until_they_end(world: World) -> None:
    def submit(**resources: Any) -> Job:
        return world.jobs.submit({**COMMAND, "resources": resources}).job

    context = world.controller().context
    first = [submit(cpus=3), submit(cpus=3), submit(memory="10GB")]
    assert schedule(context) == [job.id for job in first]
    waits = submit(cpus=1.5)
    fits = submit(cpus=1)
    assert schedule(context) == [fits.id]
    assert world.job(waits.id).why == "needs 1.5 CPUs on one host: h1 has 1 of 4 CPUs free; h2 has 1 of 4 CPUs free"
    with world.database.write() as session:
        for attempt in session.exec(select(Attempt)):
            attempt.finished_at = world.now
    assert schedule(context) == [waits.id]


def test_a_job_with_a_time_limit_goes_ahead_where_it_ends_before_the_others_do(world: World) -> None:
    def submit(gpus: int, hours: int | None = None) -> Job:
        limit = {"max_duration": f"{hours}h"} if hours else {}
        return world.jobs.submit({**COMMAND, **limit, "resources": {"gpus": gpus}}).job

    context = world.controller().context
    running = [submit(1, hours=3), submit(1, hours=3)]
    assert schedule(context) == [job.id for job in running]
    large, long, endless, short = submit(2), submit(1, hours=4), submit(1), submit(1, hours=2)
    world.now += 60
    assert schedule(context) == [short.id]
    for waiting in (long, endless):
        assert f"h1 is kept for job {large.name}" in (world.job(waiting.id).why or "")


def test_jobs_that_need_the_same_are_of_one_kind(world: World) -> None:
    same = [world.jobs.submit({**COMMAND, "priority": n}).job.demand for n in (1, 2)]
    other = world.jobs.submit({**COMMAND, "resources": {"cpus": 1}}).job.demand
    assert same[0] == same[1] != other


def test_a_pass_over_ten_thousand_waiting_jobs(world: World) -> None:
    with world.database.write() as session:
        for host in ("h1", "h2"):
            row = session.get(Host, host)
            assert row is not None
            row.reachable = False
    document = {**COMMAND, "resources": {"gpus": 1}}
    for _ in range(10):
        world.jobs.submit_many([Submission({**document, "priority": n % 100}) for n in range(1000)])
    context = world.controller().context
    assert schedule(context) == []  # writes why everybody waits
    changes = _changes(world)
    begun = time.process_time()
    assert schedule(context) == []
    took = time.process_time() - begun
    assert _changes(world) == changes, "nothing new to say, yet something was written"
    assert world.rows(Job)[0].why == "needs 1 GPU on one host: h1 can't be reached now; h2 can't be reached now"
    assert took < 2.0  # a guard against N+1 queries; tests/bench measures


def _changes(world: World) -> int:
    """Moves with every write transaction."""
    return (world.settings.data_dir / "navarch.db-wal").stat().st_mtime_ns


def test_many_jobs_are_stopped_and_deleted_at_once_each_by_itself(world: World) -> None:
    queued = [world.jobs.submit({**COMMAND, "name": f"q{n}", "ports": ["7000:1"]}).job.id for n in range(120)]
    running = schedule(world.controller().context)
    stopped = world.jobs.stop_many([*queued, "nothing"], actor=world.principal("me", Role.ADMIN))
    assert [job.state for job in stopped if isinstance(job, Job)] == ["provisioning"] * 2 + ["stopped"] * 118
    assert isinstance(stopped[-1], Problem) and stopped[-1].code == "job_not_found"
    assert sum(event.actor_id == "me" for event in world.rows(Event)) == 120 + 118
    commits: list[set[str]] = []
    world.database.committed = commits.append
    deleted = world.jobs.delete_many([*queued, "q7"])
    assert sum("job" in tables for tables in commits) == 3, "others get to write in between"
    assert [result.code for result in deleted if isinstance(result, Problem)] == ["job_active"] * 2
    assert [job.id for job in world.rows(Job)] == running


def test_what_a_running_job_uses_is_found_without_looking_at_the_queue(world: World, tmp_path: Path) -> None:
    maker = world.jobs.submit({**COMMAND, "name": "maker"}).job.id
    world.jobs.stop(maker)
    with world.database.write() as session:
        session.add(
            Artifact(owner_id="local", id="a", name="maker-model", kind="model", path=str(tmp_path), job_id=maker)
        )
    user = world.jobs.submit({"type": "serve", "image": "cpu", "model": "artifact:maker-model"}).job
    for _ in range(3):
        world.jobs.submit_many([Submission(COMMAND) for _ in range(1000)])
    begun = time.process_time()
    with pytest.raises(Problem) as refused:
        world.jobs.delete(maker)
    assert refused.value.code == "artifact_in_use" and user.name in refused.value.detail
    assert time.process_time() - begun < 0.2
    world.jobs.stop(user.id)
    world.jobs.delete(maker)
