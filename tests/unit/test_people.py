"""What each person may do: members what is theirs, admins everything; every route of the API is asked."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from service.access.keys import KeyRing
from service.access.own_secrets import OwnSecrets
from service.access.people import People
from service.access.principals import LOCAL, Principal
from service.access.secrets import SecretBox
from service.access.tokens import Tokens
from service.api.app import create_app
from service.api.bodies import BoundedRoute
from service.contract.errors import Problem
from service.contract.ssh_keys import PublicKey, make_pair
from service.control.live_keys import LiveKeys
from service.runtime import Runtime
from service.settings import Settings
from service.store.tables import Artifact, ImageBuild, Workspace
from tests.unit.local_client import local_client
from tests.unit.simulation import SimulatedController, World

COMMAND: dict[str, Any] = {"type": "command", "image": "cpu", "command": "true", "name": "sft"}
ADMINS_ONLY = {
    *("POST /users", "PATCH /users/{name}", "DELETE /users/{name}"),
    *("POST /hosts", "PATCH /hosts/{ref}", "DELETE /hosts/{ref}", "POST /hosts/{ref}/check"),
    *("PUT /registries/{address}", "DELETE /registries/{address}"),
    *("DELETE /images/{ref}", "POST /images/import", "GET /consistency", "GET /place"),
}
"""Nobody's but an admin's. A route that is new is one of these until it is said to be a member's, too."""
OF_ANYBODY = {"POST /jobs/{ref}/retry", "POST /jobs/{ref}/proxy/{path}"}
"""What a member may do with somebody else's job: run a copy of it, ask the model that it serves."""


class Plane:
    """A control plane without an engine; `ann` and `bob` are members."""

    def __init__(self, folder: Path) -> None:
        self.runtime = Runtime(Settings(data_dir=folder, engine_url=f"unix://{folder}/no-engine.sock"))
        self.runtime.open()
        self.runtime.start()
        self.app = create_app(self.runtime)
        self.admin = local_client(self.app, self.runtime.settings)
        self.ann, self.bob = self.member("ann"), self.member("bob")

    def member(self, name: str) -> TestClient:
        token = self.admin.post("/api/v1/users", json={"name": name}).json()["token"]
        return as_whom(self.app, token)

    def operations(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Method, path and description of each."""
        for path, described in self.app.openapi()["paths"].items():
            for method, operation in described.items():
                yield method.upper(), path.removeprefix("/api/v1"), operation


def as_whom(app: FastAPI, token: str) -> TestClient:
    return TestClient(app, base_url="http://navarch", headers={"Authorization": f"Bearer {token}"})


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    made = Plane(tmp_path_factory.mktemp("plane"))
    yield made
    made.runtime.stop()


def filled(path: str, **named: str) -> str:
    for part in ("ref", "name", "fingerprint", "build_id", "type", "path", "address"):
        path = path.replace(f"{{{part}}}", named.get(part, {"path": "score", "type": "sft"}.get(part, "x")))
    return "/api/v1" + path


def test_a_member_is_refused_whatever_only_an_admin_may_do(plane: Plane) -> None:
    refused, documented = set(), set()
    for method, path, operation in plane.operations():
        answer = plane.ann.request(method, filled(path), json={} if method != "GET" else None)
        if answer.status_code == 403 and answer.json()["code"] == "admin_only":
            refused.add(f"{method} {path}")
        if operation["x-navarch-role"] == "admin":
            documented.add(f"{method} {path}")
    assert refused == documented == ADMINS_ONLY
    for one in sorted(ADMINS_ONLY):
        method, path = one.split(" ")
        answer = plane.admin.request(method, filled(path), json={} if method != "GET" else None)
        assert answer.status_code != 403, one


def test_every_route_asks_who_may() -> None:
    from service.api.app import ROUTERS

    routes = [route for module in ROUTERS for route in module.router.routes if isinstance(route, APIRoute)]
    assert len(routes) > 40 and not [route.path for route in routes if not isinstance(route, BoundedRoute)]


def test_somebody_elses_can_be_looked_at_and_not_changed(plane: Plane) -> None:
    job = plane.bob.post("/api/v1/jobs", json=COMMAND).json()["id"]
    with plane.runtime.database.write() as session:
        session.add(Workspace(id="w-1", name="lab", document={}, owner_id="bob", host_id="local", state="stopped"))
        session.add(ImageBuild(id="b1", recipe="cpu", tag="t", owner_id="bob"))
        session.add(Artifact(id="a1", name="model", kind="model", path="/x", owner_id="bob"))
    refs = {"/jobs": job, "/workspaces": "w-1", "/images/builds": "b1", "/artifacts": "model"}
    asked = []
    for method, path, _ in plane.operations():
        kind = next((kind for kind in refs if path.startswith(f"{kind}/{{")), None)
        if kind is None or f"{method} {path}" in OF_ANYBODY:
            continue
        where = filled(path, ref=refs[kind], build_id=refs[kind])
        answer = plane.ann.request(method, where, json={"by": 60} if path.endswith("/extend") else None)
        if method == "GET":
            assert answer.status_code not in (403, 500), path
            continue
        asked.append(path)
        assert (answer.status_code, answer.json()["code"]) == (403, "not_yours"), (path, answer.text)
        assert "belongs to bob" in answer.json()["detail"], answer.text
    assert len(asked) >= 10
    for path in ("/jobs/stop", "/jobs/delete"):
        (item,) = plane.ann.post(f"/api/v1{path}", json={"jobs": [job]}).json()["items"]
        assert item["problem"]["code"] == "not_yours"
    commit = {"workspace": "lab", "tag": "r:5000/x:1"}
    assert plane.ann.post("/api/v1/images/commits", json=commit).json()["code"] == "not_yours"
    assert plane.bob.post(f"/api/v1/jobs/{job}/stop").status_code == 202
    assert plane.bob.delete("/api/v1/artifacts/model").status_code == 204
    assert plane.admin.delete("/api/v1/workspaces/w-1").status_code == 200, "an admin may"


def test_tokens_and_keys_are_their_owners_and_the_admins(plane: Plane, tmp_path: Path) -> None:
    line = make_pair(tmp_path / "key", "x").line
    assert plane.bob.post("/api/v1/tokens", json={"name": "laptop", "lasts": 60}).status_code == 201
    key = plane.bob.post("/api/v1/keys", json={"public_key": line}).json()["fingerprint"]
    for method, path, body in (
        ("POST", "/tokens", {"name": "mine", "user": "bob"}),
        ("DELETE", "/tokens/laptop?user=bob", None),
        ("GET", "/tokens?user=bob", None),
        ("POST", "/keys", {"public_key": line, "user": "bob"}),
        ("DELETE", f"/keys/{key}?user=bob", None),
    ):
        answer = plane.ann.request(method, f"/api/v1{path}", json=body)
        assert answer.json()["code"] == "not_yours", path
    assert plane.ann.post("/api/v1/keys", json={"public_key": line, "everywhere": True}).json()["code"] == "admin_only"
    assert {token["name"] for token in plane.ann.get("/api/v1/tokens").json()["items"]} == {"first"}
    assert {"ann", "bob"} <= {token["user"] for token in plane.admin.get("/api/v1/tokens").json()["items"]}
    assert plane.admin.delete(f"/api/v1/keys/{key}", params={"user": "bob"}).status_code == 204
    assert plane.admin.delete("/api/v1/tokens/laptop", params={"user": "bob"}).status_code == 204


def test_a_user_is_added_made_an_admin_and_removed(plane: Plane) -> None:
    assert plane.admin.patch("/api/v1/users/bob", json={"quota": {"gpus": 4, "jobs": 2}}).status_code == 200
    lifted = plane.admin.patch("/api/v1/users/bob", json={"quota": {"gpus": None}}).json()["quota"]
    assert lifted == {"gpus": None, "workspaces": None, "jobs": 2, "disk": None}
    eve, carl = plane.member("eve"), plane.member("carl")
    assert eve.get("/api/v1/session").json()["role"] == "member"
    assert plane.admin.patch("/api/v1/users/eve", json={"role": "admin"}).json()["role"] == "admin"
    assert eve.get("/api/v1/session").json()["role"] == "admin", "at once"
    job = carl.post("/api/v1/jobs", json=COMMAND).json()["id"]
    busy = eve.delete("/api/v1/users/carl").json()
    assert (busy["code"], busy["holds"]) == ("user_busy", ["the job sft (queued)"])
    assert eve.post(f"/api/v1/jobs/{job}/stop").status_code == 202
    assert eve.delete("/api/v1/users/carl").status_code == 204
    assert carl.get("/api/v1/jobs").status_code == 401
    assert plane.admin.get(f"/api/v1/jobs/{job}").json()["owner"] == "carl", "what they did goes on to name them"
    there = {user["name"] for user in plane.admin.get("/api/v1/users").json()["items"]}
    assert "carl" not in there and {"local", "eve"} <= there
    for name in ("local", "environment"):
        assert plane.admin.patch(f"/api/v1/users/{name}", json={"role": "member"}).json()["code"] == "invalid_request"
    told = {(event["actor"], event["kind"]) for event in plane.admin.get("/api/v1/events").json()["items"]}
    assert {("local", "user.role"), ("eve", "user.removed")} <= told


def test_a_quota_says_by_how_much_and_what_one_has(tmp_path: Path) -> None:
    world = World(tmp_path)
    ann, bob = world.principal("ann"), world.principal("bob")
    people = People(world.database, Tokens(world.database, world.settings.data_dir))
    people.limit("ann", {"gpus": 2, "workspaces": 1, "disk": 4096})
    world.workspaces.create({"name": "lab", "image": "cpu", "resources": {"gpus": 1}}, actor=ann)
    with pytest.raises(Problem, match="over the quota of 1 workspaces by 1: workspace lab"):
        world.workspaces.create({"name": "lab2", "image": "cpu"}, actor=ann)
    with pytest.raises(Problem, match=r"needs 3 GPUs: 1 more than the 2 of your quota"):
        world.jobs.submit({**COMMAND, "resources": {"gpus": 1, "nodes": 3}}, actor=ann)
    waiting = world.jobs.submit({**COMMAND, "resources": {"gpus": 2}}, actor=ann).job
    others = world.jobs.submit({**COMMAND, "resources": {"gpus": 2}}, actor=bob).job
    controller = world.controller()
    controller.schedule()
    assert world.job(others.id).state == "provisioning", "what waits for its owner's quota keeps nobody else waiting"
    assert world.job(waiting.id).why == "would be over the quota of 2 GPUs by 1: workspace lab has 1"
    people.limit("ann", {"gpus": None})
    controller.schedule()
    assert "needs 2 GPUs" in (world.job(waiting.id).why or ""), "the limit is lifted; bob has the GPUs"
    run = world.settings.job_dir(waiting.id) / "run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "weights").write_bytes(b"x" * 9000)
    with pytest.raises(Problem, match=r"over the quota of 0.0 GB of disk by 0.0 GB: job sft has 0.0 GB"):
        world.jobs.submit({**COMMAND, "name": "more"}, actor=ann)
    controller.close()
    world.close()


def test_secrets_are_ones_own_encrypted_and_given_to_what_one_starts(tmp_path: Path) -> None:
    world = World(tmp_path)
    ann, bob = world.principal("ann"), world.principal("bob")
    secrets = OwnSecrets(world.database, SecretBox(world.settings.data_dir))
    for name, value in {"HF_TOKEN": "hf_of_ann_1", "WANDB_API_KEY": "swordfish", "OTHER": "hidden-by-env"}.items():
        secrets.set(name, value, ann)
    secrets.set("HF_TOKEN", "hf_of_ann_2", ann)
    with pytest.raises(Problem, match="line break"):
        secrets.set("TWO", "a\nb", ann)
    for file in world.settings.data_dir.glob("navarch.db*"):
        assert b"swordfish" not in file.read_bytes()
    controller = world.controller()
    spec = {**COMMAND, "secrets": {"WANDB_API_KEY": "of the job"}, "env": {"OTHER": "seen"}}
    jobs = [world.jobs.submit(spec, actor=who).job for who in (ann, bob)]
    world.workspaces.create({"name": "lab", "image": "cpu"}, actor=ann)
    controller.schedule()
    for _ in range(2):
        for job in jobs:
            controller.step(job.id)
        controller.step_workspace(world.rows(Workspace)[0].id)
        controller.work_lanes()
    files = {container.plan.name.split("-", 2)[2]: container.files.get("env") for container in world.containers()}
    assert files == {
        "sft.ann-1-0": b"HF_TOKEN=hf_of_ann_2\nWANDB_API_KEY=of the job\n",
        "sft.bob-1-0": b"WANDB_API_KEY=of the job\n",
        "lab.ann-w1": b"HF_TOKEN=hf_of_ann_2\nOTHER=hidden-by-env\nWANDB_API_KEY=swordfish\n",
    }
    assert secrets.remove("HF_TOKEN", ann) and not secrets.remove("HF_TOKEN", bob)
    controller.close()
    world.close()


def test_a_secret_is_told_to_nobody(plane: Plane) -> None:
    assert plane.ann.put("/api/v1/secrets/HF_TOKEN", json={"value": "hf_swordfish"}).status_code == 200
    for answer in (
        plane.ann.get("/api/v1/secrets"),
        plane.admin.get("/api/v1/secrets"),
        plane.ann.put("/api/v1/secrets/HF TOKEN", json={"value": "hf_swordfish"}),
        plane.ann.put("/api/v1/secrets/X", json={"value": "hf_swordfish", "more": 1}),
        plane.ann.put("/api/v1/secrets/X", json={"value": ["hf_swordfish"]}),
        plane.admin.get("/api/v1/events"),
    ):
        assert "swordfish" not in answer.text
    assert [one["name"] for one in plane.ann.get("/api/v1/secrets").json()["items"]] == ["HF_TOKEN"]
    assert plane.admin.get("/api/v1/secrets").json()["items"] == []
    assert plane.ann.delete("/api/v1/secrets/HF_TOKEN").status_code == 204


def test_a_key_reaches_its_owners_running_containers_and_leaves_them(tmp_path: Path) -> None:
    world = World(tmp_path)
    ann, bob = world.principal("ann"), world.principal("bob")
    controller = world.controller()
    world.workspaces.create({"name": "lab", "image": "cpu"}, actor=ann)
    world.jobs.submit({**COMMAND, "command": "sleep 600"}, actor=bob)
    controller.schedule()
    for _ in range(3):
        for row in world.rows(Workspace):
            controller.step_workspace(row.id)
        controller.step(world.live_jobs()[0].id)
        controller.work_lanes()
    live = LiveKeys(controller.context, lambda kind, place, work: work())
    ring = KeyRing(world.database, live.look)
    key, root = (PublicKey.parse(make_pair(tmp_path / name, name).line) for name in ("ann", "root"))

    def known(owner: Principal) -> str:
        (container,) = (one for one in world.containers() if f".{owner.id}-" in one.plan.name)
        return container.files["authorized_keys"].decode()

    assert known(ann) == known(bob) == ""
    ring.add(key, ann)
    assert (known(ann), known(bob)) == (f"{key.line}\n", "")
    ring.add(root, LOCAL, everywhere=True)
    assert known(ann) == f"{key.line}\n{root.line}\n" and known(bob) == f"{root.line}\n"
    ring.remove(key.fingerprint, ann)
    assert known(ann) == known(bob) == f"{root.line}\n"
    _given_again_after_a_restart(world, root)
    controller.close()
    world.close()


def _given_again_after_a_restart(world: World, root: PublicKey) -> None:
    """A process that does not know what containers have gives it to them."""
    for container in world.containers():
        container.files["authorized_keys"] = b""
    controller: SimulatedController = world.controller()
    LiveKeys(controller.context, lambda kind, place, work: work()).look()
    assert {container.files["authorized_keys"].decode() for container in world.containers()} == {f"{root.line}\n"}
    controller.close()
