"""Stored specs: newer code reads older ones; what it can't read concerns one job, and the pass goes on."""

from pathlib import Path
from typing import Any

import pytest

from jobs import stored
from jobs.mistakes import SpecError
from jobs.stored import VERSION, read_stored
from service.contract.errors import Problem
from service.control.steps.schedule import schedule
from service.store.tables import Job
from tests.unit.simulation import World

COMMAND: dict[str, Any] = {"type": "command", "image": "cpu", "command": "true"}


def test_an_older_spec_is_read_as_it_would_be_written_now(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(document: dict[str, Any]) -> dict[str, Any]:
        return {"workdir" if key == "cwd" else key: value for key, value in document.items()}

    monkeypatch.setattr(stored, "VERSION", 3)
    monkeypatch.setattr(stored, "UPGRADES", {1: renamed, 2: lambda document: {**document, "retries": 1}})
    spec = read_stored({**COMMAND, "cwd": "/old"}, 1)
    assert (spec.workdir, spec.retries) == ("/old", 1)
    assert read_stored({**COMMAND, "workdir": "/new"}, 3).retries == 0


def test_a_newer_spec_is_refused_with_what_to_do() -> None:
    with pytest.raises(SpecError, match=f"newer Navarch .*version {VERSION + 1}.* submit the job again"):
        read_stored(COMMAND, VERSION + 1)


def test_every_version_can_be_brought_up_to_the_present() -> None:
    assert set(stored.UPGRADES) == set(range(1, VERSION))


def test_a_spec_that_is_refused_fails_its_job_and_the_others_are_placed(tmp_path: Path) -> None:
    world = World(tmp_path)
    newer, older, good = (world.jobs.submit(COMMAND).job.id for _ in range(3))
    training = world.jobs.submit({"type": "sft", "name": "sft", "image": "cpu", "model": "hf:a/b", "data": ["hf:c/d"]})
    with world.database.write() as session:
        for job_id, change in ((newer, {"spec_version": 99}), (older, {"document": {**COMMAND, "workdir": "rel"}})):
            row = session.get(Job, job_id)
            assert row is not None
            row.sqlmodel_update(change)
        row = session.get(Job, training.job.id)
        assert row is not None
        row.spec_version = 99
    assert schedule(world.controller().context) == [good]
    assert (world.job(newer).state, world.job(newer).reason) == ("failed", "bad_config")
    assert "newer Navarch" in (world.job(newer).message or "")
    assert "`workdir` has a path that isn't absolute" in (world.job(older).message or "")
    with pytest.raises(Problem) as refused:
        world.jobs.submit({"type": "serve", "image": "cpu", "model": "artifact:sft-model"})
    assert refused.value.code == "artifact_not_found"
    world.close()
