"""A dry run: what would run where, and everything that would keep it from running."""

from pathlib import Path
from typing import Any

import pytest

from service.backends.references import how_to_get
from service.contract.errors import Problem
from service.store.tables import Artifact, Host, ImageBuild, Job
from tests.unit.simulation import World

COMMAND: dict[str, Any] = {"type": "command", "image": "cpu", "command": "true"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_it_shows_the_container_and_changes_nothing(world: World) -> None:
    plan = world.plans.plan({**COMMAND, "resources": {"gpus": 2}, "secrets": {"A": "hidden"}})
    assert plan.placeable and not plan.problems and not plan.notes
    assert plan.replicas[0].gpus == ["GPU-h1-0", "GPU-h1-1"]
    assert plan.replicas[0].command == ["bash", "-c", "true"]
    assert "hidden" not in plan.model_dump_json()
    assert world.rows(Job) == []


def test_an_image_that_is_nowhere_is_named_with_the_way_to_get_it(world: World) -> None:
    (problem,) = world.plans.plan({**COMMAND, "image": "colossalai-0.3.0", "resources": {"gpus": 2}}).problems
    assert problem.code == "image_missing" and "colossalai-0.3.0 is not on h1 and can't be pulled" in problem.detail
    assert "`navarch image build colossalai-0.3.0`" in (problem.hint or "")
    assert how_to_get("navarch/cpu") == "Build it: `navarch image build cpu`."
    assert how_to_get("colosalai-0.3.0").startswith("Did you mean colossalai-0.3.0?")
    assert "--tag mine:1" in how_to_get("mine:1")


def test_an_image_that_one_host_lacks_is_copied_from_another(world: World) -> None:
    world.machines["h2"].images.clear()
    plan = world.plans.plan({**COMMAND, "resources": {"nodes": 2, "gpus": 1, "spread": True}})
    assert plan.problems == [] and plan.notes == ["Image cpu is copied to h2 from h1 first."]
    assert world.plans.plan({**COMMAND, "resources": {"gpus": 2}}).problems == []


def test_an_image_that_is_being_built_or_pulled_is_told_apart(world: World) -> None:
    pulled = world.plans.plan({**COMMAND, "image": "debian:trixie", "ssh": False, "resources": {"gpus": 2}})
    assert not pulled.problems and pulled.notes == ["Image debian:trixie is not on h1: it is pulled first."]
    with world.database.write() as session:
        session.add(
            ImageBuild(
                owner_id="local", id="b1", recipe="rocm", tag="mine/rocm:latest", state="running", message="step 3 of 9"
            )
        )
    (problem,) = world.plans.plan({**COMMAND, "image": "mine/rocm", "resources": {"gpus": 2}}).problems
    assert "still being built (build b1, step 3 of 9)" in problem.detail


def test_an_image_without_sshd_is_told_before_the_job_fails(world: World) -> None:
    plan = world.plans.plan({**COMMAND, "image": "debian", "resources": {"gpus": 2}})
    assert "has no Navarch layer" in plan.problems[0].detail
    assert world.plans.plan({**COMMAND, "image": "debian", "ssh": False, "resources": {"gpus": 2}}).problems == []


def test_a_host_that_does_not_answer_is_waited_for(world: World) -> None:
    """Known to be away, or found to be so only now."""
    world.machines["h1"].reachable = False
    asked = {**COMMAND, "resources": {"gpus": 2}}
    found_now = world.plans.plan(asked)
    assert not found_now.placeable and "h1 doesn't answer" in (found_now.why or "") and found_now.replicas == []
    with world.database.write() as session:
        host = session.get(Host, "h1")
        assert host is not None
        host.reachable = False
    known = world.plans.plan(asked)
    assert not known.placeable and "h1 can't be reached now" in (known.why or "")


def test_an_artifact_whose_files_are_gone_is_refused(world: World, tmp_path: Path) -> None:
    serve = {"type": "serve", "image": "cpu", "model": "artifact:m"}
    with pytest.raises(Problem) as unknown:
        world.plans.plan(serve)
    assert unknown.value.code == "artifact_not_found"
    with world.database.write() as session:
        session.add(Artifact(owner_id="local", id="a", name="m", kind="model", path=str(tmp_path / "m")))
    with pytest.raises(Problem) as gone:
        world.plans.plan(serve)
    assert gone.value.code == "path_missing" and "navarch artifact rm m" in (gone.value.hint or "")
    (tmp_path / "m").mkdir()
    assert world.plans.plan(serve).problems == []
