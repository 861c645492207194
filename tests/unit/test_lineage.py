"""Where an artifact came from and what came of it, as the API shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.artifacts.lineage import lineage
from service.artifacts.versions import find_artifact
from service.store.database import Database
from service.store.tables import Artifact, Job, JobInput
from tests.unit.simulation import World


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """base → sft → sft-model → ppo → ppo-model → serve; base → rm → rm-model → ppo, too; base → other."""
    world = World(tmp_path)
    made = {
        "sft": (["base"], "sft-model"),
        "rm": (["base"], "rm-model"),
        "other": (["base"], "other-model"),
        "ppo": (["sft-model", "rm-model"], "ppo-model"),
        "serve": (["ppo-model"], None),
    }
    with world.database.write() as session:
        session.add(Artifact(id="a-base", name="base", kind="model", path="/base", owner_id="local"))
        for at, (name, (_, model)) in enumerate(made.items()):
            session.add(Job(id=f"j-{name}", name=name, type=name, document={}, owner_id="local", created_at=at))
            if model is not None:
                session.add(
                    Artifact(id=f"a-{model}", name=model, kind="model", path="/", job_id=f"j-{name}", owner_id="local")
                )
        session.flush()
        for name, (used, _) in made.items():
            for one in used:
                row = JobInput(job_id=f"j-{name}", key=one, name=one, target="/x", version=1, artifact_id=f"a-{one}")
                session.add(row)
    return world.database


def shown(database: Database, ref: str) -> dict[str, tuple[int, set[str]]]:
    with database.read() as session:
        nodes = lineage(session, find_artifact(session, ref))
    order = [node.row.id for node in nodes]
    assert all(order.index(source) < order.index(node.row.id) for node in nodes for source in node.sources)
    return {node.row.id: (node.depth, set(node.sources)) for node in nodes}


def test_a_model_has_all_that_it_was_made_of_and_all_that_was_made_of_it(database: Database) -> None:
    found = shown(database, "sft-model")
    assert found == {
        "a-base": (0, set()),
        "j-sft": (1, {"a-base"}),
        "a-sft-model": (2, {"j-sft"}),
        "a-rm-model": (0, set()),  # PPO used it as well; how it came about is its own page's
        "j-ppo": (3, {"a-sft-model", "a-rm-model"}),
        "a-ppo-model": (4, {"j-ppo"}),
        "j-serve": (5, {"a-ppo-model"}),
    }


def test_what_was_made_of_several_shows_every_way_to_them(database: Database) -> None:
    found = shown(database, "ppo-model")
    assert found["a-rm-model"] == (2, {"j-rm"}) and found["j-rm"] == (1, {"a-base"})
    assert found["j-ppo"] == (3, {"a-sft-model", "a-rm-model"})
    assert "j-other" not in found, "a sister is none of its family"


def test_a_root_shows_everything(database: Database) -> None:
    assert {"j-sft", "j-rm", "j-other", "j-ppo", "j-serve"} <= shown(database, "base").keys()


def test_rows_that_go_in_a_circle_are_each_shown_once(database: Database) -> None:
    with database.write() as session:
        session.add(
            JobInput(job_id="j-sft", key="x", name="ppo-model", target="/y", version=1, artifact_id="a-ppo-model")
        )
    with database.read() as session:
        nodes = lineage(session, find_artifact(session, "sft-model"))
    assert len({node.row.id for node in nodes}) == len(nodes) == 7
