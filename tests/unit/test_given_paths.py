"""Paths that somebody names and the control plane reads: what other accounts may not read reaches nobody through it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from images.context import make_context
from images.network import Network
from service.access.mounts import MountRules
from service.access.principals import ENVIRONMENT, LOCAL, Principal
from service.api.app import create_app
from service.builds import inputs
from service.contract.errors import Problem
from service.runtime import Runtime
from service.settings import Settings
from tests.unit.local_client import local_client

RECIPE = "base: debian:bookworm\nname: mine\n"
OTHERS = ENVIRONMENT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A mount root, beside which secrets lie."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.yaml").write_text("swordfish: 1\n")
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a.whl").write_text("swordfish")
    return root


@pytest.fixture
def rules(tmp_path: Path, root: Path) -> MountRules:
    (tmp_path / "data").mkdir()
    return MountRules(tmp_path / "data", [root])


def code(rules: MountRules, path: Path, by: Principal) -> str | None:
    try:
        rules.open_given(path, "It", by).close()
    except Problem as problem:
        return problem.code
    return None


def test_only_the_local_account_names_paths_outside_the_mount_roots(
    tmp_path: Path, root: Path, rules: MountRules
) -> None:
    (root / "inside").write_text("x")
    assert code(rules, root / "inside", OTHERS) is None
    assert code(rules, tmp_path / "secret.yaml", LOCAL) is None
    assert code(rules, tmp_path / "secret.yaml", OTHERS) == "mount_not_allowed"
    assert code(rules, tmp_path / "gone", OTHERS) == "mount_not_allowed", "nor does anybody learn what is there"
    assert code(MountRules(tmp_path / "data", []), root / "inside", OTHERS) == "mount_not_allowed"


@pytest.mark.parametrize("by", [LOCAL, OTHERS])
def test_a_link_that_a_job_left_in_a_root_leads_nobody_out_of_it(
    tmp_path: Path, root: Path, rules: MountRules, by: Principal
) -> None:
    (root / "recipe.yaml").symlink_to(tmp_path / "secret.yaml")
    (root / "wheels").symlink_to(tmp_path / "wheels")
    with pytest.raises(Problem) as refused:
        inputs.check(str(root / "recipe.yaml"), {}, by, rules)
    assert refused.value.code == "mount_not_allowed" and "swordfish" not in str(refused.value)
    with pytest.raises(Problem) as refused:
        inputs.check("cpu", {"wheelhouse": str(root / "wheels")}, by, rules)
    assert refused.value.code == "mount_not_allowed"


def packed(recipe: str, options: dict[str, Any], by: Principal, rules: MountRules, beside: Path) -> dict[str, bytes]:
    """What the engine is sent of a build's inputs."""
    with inputs.opened(recipe, options, by, rules, beside) as given:
        context = make_context(given.recipe, Network(ca_bundle=given.ca_bundle), given.wheelhouse, training=True)
        found = {wheel.name: wheel.read_bytes() for wheel in context.wheels}
        found["ca"] = context.contents.get("network/ca-bundle.pem", b"")
    assert not list(beside.iterdir())
    return found


def test_what_a_build_reads_is_what_was_opened(tmp_path: Path, root: Path, rules: MountRules) -> None:
    (root / "mine.yaml").write_text(RECIPE)
    (root / "house").mkdir()
    (root / "house" / "a.whl").write_text("wheel a")
    (root / "store").write_text("wheel b")
    (root / "house" / "b.whl").symlink_to("../store")
    (root / "house" / "notes.txt").symlink_to("/etc/hostname")
    (root / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    options = {"wheelhouse": str(root / "house"), "ca_bundle": str(root / "ca.pem")}
    assert inputs.check(str(root / "mine.yaml"), options, OTHERS, rules).name == "mine"
    found = packed(str(root / "mine.yaml"), options, OTHERS, rules, tmp_path / "builds")
    assert found == {"a.whl": b"wheel a", "b.whl": b"wheel b", "ca": b"-----BEGIN CERTIFICATE-----\n"}
    with inputs.opened("cpu", options, OTHERS, rules, tmp_path / "builds") as given:
        assert given.wheelhouse is not None
        (root / "house" / "a.whl").unlink()
        (root / "house" / "a.whl").symlink_to(tmp_path / "secret.yaml")
        assert (given.wheelhouse / "a.whl").read_text() == "wheel a", "swapped after it was opened"


@pytest.mark.parametrize("by", [LOCAL, OTHERS])
def test_a_wheel_that_links_out_of_the_root_ends_the_build(
    tmp_path: Path, root: Path, rules: MountRules, by: Principal
) -> None:
    (root / "house").mkdir()
    (root / "house" / "a.whl").symlink_to(tmp_path / "wheels" / "a.whl")
    with pytest.raises(Problem, match="leads out of"):
        packed("cpu", {"wheelhouse": str(root / "house")}, by, rules, tmp_path / "builds")


def test_the_local_account_builds_from_wherever_it_keeps_things(tmp_path: Path, rules: MountRules) -> None:
    found = packed("cpu", {"wheelhouse": str(tmp_path / "wheels")}, LOCAL, rules, tmp_path / "builds")
    assert found == {"a.whl": b"swordfish", "ca": b""}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"wheelhouse": "/etc/hostname"}, "is no folder"),
        ({"ca_bundle": "/etc"}, "is no file"),
        ({"ca_bundle": "/dev/zero"}, "is no file"),
        ({"wheelhouse": "/no/such/folder"}, "does not exist"),
        ({"wheelhouse": "wheels"}, "is no absolute path"),
    ],
)
def test_a_path_that_is_no_good_is_told_when_the_build_is_asked_for(
    rules: MountRules, options: dict[str, str], says: str
) -> None:
    with pytest.raises(Problem, match=says):
        inputs.check("cpu", options, LOCAL, rules)


@pytest.fixture
def app(tmp_path: Path, root: Path) -> Iterator[tuple[FastAPI, Settings]]:
    data = tmp_path / "served"
    settings = Settings(data_dir=data, mount_roots=[root], engine_url=f"unix://{data}/no-engine.sock")
    runtime = Runtime(settings)
    runtime.open()
    yield create_app(runtime), settings
    runtime.database.close()


def test_through_the_front_door(app: tuple[FastAPI, Settings], tmp_path: Path, root: Path) -> None:
    local = local_client(*app)
    token = local.post("/api/v1/users", json={"name": "ann"}).json()["token"]
    ann = TestClient(app[0], base_url="http://127.0.0.1", headers={"Authorization": f"Bearer {token}"})
    secret = str(tmp_path / "secret.yaml")
    (root / "mine.yaml").write_text(RECIPE)
    os.link(tmp_path / "secret.yaml", tmp_path / "secret.gguf")
    for path, body in (
        ("images/builds", {"recipe": secret}),
        ("images/builds", {"recipe": "cpu", "wheelhouse": str(tmp_path / "wheels")}),
        ("images/builds", {"recipe": "cpu", "ca_bundle": secret}),
        ("artifacts", {"path": str(tmp_path / "secret.gguf")}),
        ("artifacts", {"path": str(tmp_path / "wheels")}),
    ):
        answer = ann.post(f"/api/v1/{path}", json=body)
        assert answer.json()["code"] == "mount_not_allowed" and "swordfish" not in answer.text, body
    assert (
        ann.post("/api/v1/images/builds", json={"recipe": str(root / "mine.yaml")}).json()["tag"]
        == "navarch/mine:latest"
    )
    said = local.post("/api/v1/images/builds", json={"recipe": secret}).json()
    assert said["code"] == "invalid_recipe" and "swordfish" in said["detail"], "the local account reads its own file"
    (tmp_path / "ours.yaml").write_text(RECIPE)
    answer = local.post("/api/v1/images/builds", json={"recipe": str(tmp_path / "ours.yaml"), "target": "system"})
    assert answer.json()["tag"] == "navarch/mine-system:latest"
