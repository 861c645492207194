"""A job that is deleted takes its files along, and nothing that others go on to use; nothing is left in silence."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from service.access.mounts import MountRules
from service.access.principals import Role
from service.artifacts.digests import Digests, digest_of
from service.artifacts.registry import Artifacts
from service.backends.errors import ImageMissing
from service.contract.errors import Problem
from service.intake import deletion
from service.intake.commands import Jobs
from service.store.tables import Artifact, Event, Job
from tests.unit.simulation import World

COMMAND: dict[str, Any] = {"type": "command", "image": "cpu", "command": "true"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def left(world: World, name: str = "sft", path: str = "model", version: int = 1, **files: str) -> Job:
    """A job that has ended and left an artifact with these files (the run folder's, by their relative paths)."""
    job = world.jobs.submit({**COMMAND, "name": name}).job
    world.jobs.stop(job.id)
    announced(world, job, path, version)
    for relative, text in (files or {"model/weights": "w" * 1000, "model/deep/er/config.json": "{}"}).items():
        file = run_dir(world, job) / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return job


def announced(world: World, job: Job, path: str, version: int = 1) -> None:
    with world.database.write() as session:
        row = Artifact(
            owner_id="local",
            id=f"{job.id}-{path}",
            name=f"{job.name}-{Path(path).name}",
            version=version,
            kind="model",
            path=str(run_dir(world, job) / path),
            run_path=path,
            job_id=job.id,
            source=f"job:{job.name}",
        )
        session.add(row)


def run_dir(world: World, job: Job) -> Path:
    return world.settings.job_dir(job.id) / "run"


def shelf(world: World) -> Path:
    return world.settings.data_dir / "artifacts"


def digest(world: World, path: str | Path) -> tuple[str, int]:
    with (found := MountRules.of(world.settings).open_any(path, "It")).opened:
        return digest_of(found)


def texts(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def refused(world: World, job: Job, **how: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        world.jobs.delete(job.id, **how)
    assert [row.id for row in world.rows(Job)] == [job.id], "the job is still there to be deleted again"
    return caught.value


def test_what_a_job_left_stays_under_its_name_when_the_job_is_deleted(world: World) -> None:
    job = left(world)
    before = digest(world, run_dir(world, job) / "model")
    found = world.jobs.delete("sft", actor=world.principal("me", Role.ADMIN))
    assert (found.job.id, [row.name for row in found.kept], found.gone) == (job.id, ["sft-model"], [])
    assert world.rows(Job) == [] and not world.settings.job_dir(job.id).exists()
    (row,) = world.rows(Artifact)
    assert (row.path, row.size, row.state) == (str(shelf(world) / "sft-model"), 1002, "ready")
    assert texts(Path(row.path)) == {"weights": "w" * 1000, "deep/er/config.json": "{}"}
    assert digest(world, row.path) == before
    assert Path(row.path).stat().st_mode & 0o777 == (Path(row.path) / "deep").stat().st_mode & 0o777 == 0o755
    told = {event.kind: event.message for event in world.rows(Event) if event.actor_id == "me"}
    assert row.path in told["artifact.kept"] and told["job.deleted"] == "sft was deleted"
    user = world.jobs.submit({"type": "serve", "image": "cpu", "model": "artifact:sft-model"})
    assert user.job.resolved["mounts"][0]["source"] == row.path
    assert [(i.version, i.maker_name) for i in user.inputs] == [(1, "sft")]


def test_what_could_not_be_read_in_the_run_folder_is_read_where_it_is_kept(world: World) -> None:
    job = left(world, other="not yet the model")
    digests = Digests(world.database, MountRules.of(world.settings))
    row = digests._next()
    assert row is not None
    digests._fill(row)
    assert digests._next() is None and "has no digest" in (world.rows(Artifact)[0].message or "")
    weights = run_dir(world, job) / "model" / "weights"
    weights.parent.mkdir()
    weights.write_text("w")
    world.jobs.delete(job.id)
    row = digests._next()
    assert row is not None
    digests._fill(row)
    (kept,) = world.rows(Artifact)
    assert (kept.digest or "").startswith("sha256:") and kept.message is None


def test_every_version_has_a_folder_of_its_own_and_goes_with_it(world: World) -> None:
    for version in (1, 2):
        left(world, version=version)
        world.jobs.delete("sft")
    assert sorted(path.name for path in shelf(world).iterdir()) == ["sft-model", "sft-model@2"]
    Artifacts(world.database, world.settings).delete("sft-model@1")
    assert [path.name for path in shelf(world).iterdir()] == ["sft-model@2"]
    assert [row.version for row in world.rows(Artifact)] == [2]


def test_artifacts_go_along_where_that_is_asked_for_and_are_named_with_their_sizes(world: World) -> None:
    job = left(world)
    found = world.jobs.delete("sft", keep_artifacts=False)
    assert [(row.name, row.size) for row in found.gone] == [("sft-model", 1002)] and found.kept == []
    assert world.rows(Artifact) == world.rows(Job) == []
    assert not world.settings.job_dir(job.id).exists() and not shelf(world).exists()
    assert "sft-model@1 was deleted with job sft" in [event.message for event in world.rows(Event)]


def test_links_are_followed_within_the_run_folder_only(world: World) -> None:
    job = left(world, **{"checkpoints/step-3/weights": "w"})
    (run_dir(world, job) / "model").symlink_to("checkpoints/step-3")
    (run_dir(world, job) / "checkpoints/step-3/notes").symlink_to("../../notes")
    (run_dir(world, job) / "notes").write_text("n")
    world.jobs.delete("sft")
    assert texts(shelf(world) / "sft-model") == {"weights": "w", "notes": "n"}


def test_what_lies_outside_is_neither_kept_nor_deleted(world: World) -> None:
    outside = world.shared / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    job = left(world)
    (run_dir(world, job) / "model" / "out").symlink_to(outside / "secret")
    (run_dir(world, job) / "folder").symlink_to(outside)
    problem = refused(world, job)
    assert problem.code == "artifact_not_kept" and "leads out of" in problem.detail
    assert "navarch rm --artifacts sft" in (problem.hint or "")
    assert not list(shelf(world).iterdir()), "nothing half-done"
    world.jobs.delete("sft", keep_artifacts=False)
    assert texts(outside) == {"secret": "s"} and not world.settings.job_dir(job.id).exists()


def test_a_single_file_and_artifacts_within_another_are_all_kept(world: World) -> None:
    job = left(world, path="out", **{"out/a": "a", "out/best/b": "b"})
    announced(world, job, "out/best")
    announced(world, job, "out/a")
    world.jobs.delete("sft")
    paths = {row.name: Path(row.path) for row in world.rows(Artifact)}
    assert texts(paths["sft-out"]) == {"a": "a", "best/b": "b"}
    assert texts(paths["sft-best"]) == {"b": "b"}
    assert paths["sft-a"] == shelf(world) / "sft-a" / "a" and paths["sft-a"].read_text() == "a"
    MountRules.of(world.settings).open_any(paths["sft-a"].parent, "Its folder is mounted with it, and").close()
    Artifacts(world.database, world.settings).delete("sft-a")
    assert sorted(path.name for path in shelf(world).iterdir()) == ["sft-best", "sft-out"]


def test_an_artifact_whose_files_are_gone_is_forgotten_and_that_is_said(world: World) -> None:
    job = left(world, **{"other": "x"})
    found = world.jobs.delete(job.id)
    assert [row.name for row in found.gone] == ["sft-model"] and world.rows(Artifact) == []


def test_a_name_that_is_no_file_name_gets_one(world: World) -> None:
    long = "m" * 250
    job = left(world, path=f"a/{long}", **{f"a/{long}/w": "1", "b/x@2/w": "2"})
    announced(world, job, "b/x@2")
    world.jobs.delete("sft")
    assert [texts(Path(row.path)) for row in world.rows(Artifact)] == [{"w": "1"}, {"w": "2"}]


def test_files_that_can_not_be_removed_leave_the_job_and_its_artifacts_in_order(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = left(world)
    remove = deletion.remove_tree

    def broken(folder: Path) -> None:
        raise OSError(5, "Input/output error", str(folder))

    monkeypatch.setattr(deletion, "remove_tree", broken)
    problem = refused(world, job)
    assert problem.code == "files_left" and str(world.settings.job_dir(job.id)) in problem.detail
    (row,) = world.rows(Artifact)
    assert texts(Path(row.path)) == {"weights": "w" * 1000, "deep/er/config.json": "{}"}
    monkeypatch.setattr(deletion, "remove_tree", remove)
    assert [kept.path for kept in world.jobs.delete("sft").kept] == [row.path]
    assert world.rows(Job) == [] and texts(Path(row.path))


@pytest.mark.parametrize("helper", ["helps", "does not help", "is not there"])
def test_files_of_another_account_are_taken_over_or_named_with_what_to_type(
    world: World, monkeypatch: pytest.MonkeyPatch, helper: str
) -> None:
    """tests/docker/test_rm.py does it with a real account; here the system's refusal is played."""
    job = left(world)
    theirs, remove, asked = [True], deletion.remove_tree, []

    def guarded(folder: Path) -> None:
        if theirs[0]:
            raise PermissionError(13, "Permission denied", str(folder / "run/model"))
        remove(folder)

    def hand_over(job: Job, folder: Path) -> None:
        asked.append(folder)
        if helper == "is not there":
            raise ImageMissing("its image cpu is not there any more")
        theirs[0] = helper == "does not help"

    monkeypatch.setattr(deletion, "remove_tree", guarded)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    world.jobs = Jobs(world.database, world.settings, hand_over=hand_over)
    if helper == "helps":
        assert len(world.jobs.delete("sft").kept) == 1 and world.rows(Job) == []
    else:
        problem = refused(world, job)
        assert problem.code == "files_left"
        assert ("Permission denied" if helper == "does not help" else "its image cpu is not") in problem.detail
        assert f"`sudo chown -hR 1000:{os.getegid()} {run_dir(world, job)}`" in (problem.hint or "")
    assert asked == [run_dir(world, job)]


def test_two_at_once_do_not_come_into_each_others_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    left(world)
    entered, go, remove = threading.Event(), threading.Event(), deletion.remove_tree

    def slowly(folder: Path) -> None:
        entered.set()
        assert go.wait(30)
        remove(folder)

    monkeypatch.setattr(deletion, "remove_tree", slowly)
    first = threading.Thread(target=world.jobs.delete, args=("sft",))
    first.start()
    assert entered.wait(30)
    with pytest.raises(Problem) as busy:
        world.jobs.delete("sft")
    go.set()
    first.join()
    assert busy.value.code == "job_active" and world.rows(Job) == []
