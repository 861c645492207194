"""Data folders of earlier versions are brought up to date, and what was under way in them goes on."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

from jobs.launch import LABEL_ATTEMPT, LABEL_JOB, LABEL_REPLICA, ContainerPlan
from service.access.keys import authorized_keys
from service.access.principals import Kind, Principal, Role
from service.access.private import forget_old_files
from service.access.tokens import Tokens, digest
from service.store.database import Database
from service.store.tables import Attempt, Event, GpuLease, Holder, Idempotency, ImageBuild, Job, PortLease, Replica
from tests.unit.simulated_engine import Container
from tests.unit.simulation import World

OLD = Path(__file__).with_name("data_folder_0003.sql")
"""A deployment of two hosts in the middle of its work, as the version before holders had it."""


TOKENS = [{"name": name, "sha256": digest(name), "created_at": 1.0} for name in ("lee", "local")]
KEYS = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl lee@desk"]


def schema(path: Path) -> dict[str, Any]:
    """Tables, columns, keys and indices, however they came about."""
    database = sqlite3.connect(path)
    ask = database.execute
    found: dict[str, Any] = {}
    for (table,) in ask("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").fetchall():
        if table == "alembic_version":
            continue
        (made,) = ask("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        columns = {(row[1], row[2], row[3], row[5]) for row in ask(f"PRAGMA table_info({table})")}
        keys = {(row[2], row[3], row[4], row[6]) for row in ask(f"PRAGMA foreign_key_list({table})")}
        indices = set()
        for row in ask(f"PRAGMA index_list({table})").fetchall():
            _, name, unique, origin, partial = row
            parts = tuple((part[2], part[3]) for part in ask(f"PRAGMA index_xinfo({name})") if part[5])
            text = ask("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()[0] or ""
            where = text.partition("WHERE ")[2] if partial else ""
            indices.add((name if origin == "c" else origin, unique, parts, where))
        found[table] = (columns, keys, indices, "AUTOINCREMENT" in made)
    database.close()
    return found


def test_migrations_make_what_the_models_say(tmp_path: Path) -> None:
    migrated = Database(f"sqlite:///{tmp_path / 'migrated.db'}")
    migrated.migrate()
    migrated.close()
    modelled = Database(f"sqlite:///{tmp_path / 'modelled.db'}")
    SQLModel.metadata.create_all(modelled.engine)
    modelled.close()
    wanted, made = schema(tmp_path / "modelled.db"), schema(tmp_path / "migrated.db")
    assert made.keys() == wanted.keys()
    for table in wanted:
        assert made[table] == wanted[table], table


def old_world(folder: Path) -> World:
    """The deployment of then, on machines on which its containers run, in the hands of this version."""
    data_dir = folder / "data"
    data_dir.mkdir()
    database = sqlite3.connect(data_dir / "navarch.db")
    database.executescript(OLD.read_text().replace("/DATA", str(data_dir)))
    database.close()
    (data_dir / "tokens.json").write_text(json.dumps(TOKENS))
    (data_dir / "authorized_keys").write_text("# mine\n" + "".join(f"{line}\n" for line in KEYS))
    world = World(folder)
    attempts = {attempt.id: attempt for attempt in world.rows(Attempt)}
    for replica in world.rows(Replica):
        if replica.container_id is not None and replica.removed_at is None:
            machine = world.machines[replica.host_id]
            container = Container(replica.container_id, _plan(replica, attempts[replica.attempt_id].number), world.now)
            machine.containers[container.id] = container
            world.engine(replica.host_id).start(container.id)
    return world


def _plan(replica: Replica, number: int) -> ContainerPlan:
    labels = {LABEL_JOB: replica.job_id, LABEL_ATTEMPT: str(number), LABEL_REPLICA: str(replica.node_rank)}
    nothing: dict[str, Any] = dict.fromkeys(("ipc", "shm_size", "cpus", "memory"))
    empty: dict[str, Any] = {name: {} for name in ("environment", "ulimits", "files")}
    ports = {int(inside): outside for inside, outside in replica.ports.items()}
    return ContainerPlan(
        name=replica.container_name,
        host_id=replica.host_id or "",
        image="navarch/cpu",
        command=(),
        workdir="/",
        labels=labels,
        ports=ports,
        mounts=(),
        gpus=tuple(replica.gpus),
        host_network=False,
        **nothing,
        **empty,
    )


def test_a_data_folder_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    world = old_world(tmp_path)
    jobs = {job.name: job for job in world.rows(Job)}
    assert {name: job.state for name, job in jobs.items()} == {
        "base": "succeeded",
        "failed": "failed",
        "gang": "running",
        "chained": "running",
        "stopping": "stopping",
        "queued": "queued",
        "waits": "queued",
        "starting": "provisioning",
    }
    holders = {holder.id: (holder.kind, holder.name) for holder in world.rows(Holder)}
    assert sorted(holders.values()) == [("job", name) for name in ("chained", "gang", "starting", "stopping")]
    gpus = {lease.gpu: holders[lease.holder_id][1] for lease in world.rows(GpuLease)}
    assert gpus == {"GPU-h1-0": "gang", "GPU-h2-0": "gang", "GPU-h1-1": "chained", "GPU-h2-1": "stopping"}
    assert ("h1", 7000) in {(lease.host_id, lease.port) for lease in world.rows(PortLease)}
    with pytest.raises(IntegrityError), world.database.write() as session:
        session.add(GpuLease(gpu="GPU-new", host_id="h1", holder_id="nobody"))
    (build,) = world.rows(ImageBuild)
    assert (build.state, build.starts) == ("running", 1)

    running = {container.id: container.started_at for container in world.containers()}
    controller = world.controller()
    for _ in range(3):
        for job in world.live_jobs():
            controller.step(job.id)
    assert {c.id: c.started_at for c in world.containers() if c.id in running} == running, "a container was touched"
    assert world.job(jobs["starting"].id).state == "running"
    world.settle(controller)
    ended = {job.name: job.state for job in world.rows(Job)}
    assert ended == {**dict.fromkeys(ended, "succeeded"), "failed": "failed", "stopping": "stopped"}
    assert world.containers() == world.rows(Holder) == world.rows(GpuLease) == []
    assert all(runs == 1 for machine in world.machines.values() for runs in machine.runs.values())


def test_what_belonged_to_a_name_belongs_to_a_principal(tmp_path: Path) -> None:
    world = old_world(tmp_path)
    owners = {job.name: job.owner_id for job in world.rows(Job)}
    assert owners == {**dict.fromkeys(owners, "local"), "base": "lee"}
    actors = {event.actor_id for event in world.rows(Event)}
    assert actors == {"local", "lee", "controller"}
    lee = Principal("lee", "lee", Role.ADMIN, Kind.USER)
    tokens = Tokens(world.database, world.settings.data_dir)
    assert tokens.principal("lee", from_here=False) == lee
    called_local = tokens.principal("local", from_here=False)
    assert called_local is not None and (called_local.id, called_local.kind) == ("token-local", Kind.USER)
    with world.database.read() as session:
        assert authorized_keys(session, "local") == KEYS[0] + "\n" and authorized_keys(session, "lee") == ""
    again = world.jobs.submit(
        {"type": "command", "image": "cpu", "command": "true"}, actor=lee, idempotency_key="k2"
    )  # the person of then goes on with their name
    assert not again.replayed
    (kept, _) = world.rows(Idempotency)
    assert (kept.owner_id, kept.key) == ("lee", "k1")
    forget_old_files(world.settings.data_dir)
    assert not [name for name in ("tokens.json", "authorized_keys") if (world.settings.data_dir / name).exists()]


def test_a_data_folder_can_be_given_back_to_the_version_before(tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    world = old_world(tmp_path)
    before = sqlite3.connect(":memory:")
    before.executescript(OLD.read_text())
    config = Config()
    config.set_main_option("script_location", "service/store/migrations")
    with world.database.engine.connect() as connection:
        connection.connection.execute("PRAGMA foreign_keys=OFF")
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
    after = sqlite3.connect(world.settings.data_dir / "navarch.db")
    for table in ("gpu_lease", "port_lease"):
        query = f"SELECT * FROM {table} ORDER BY 1, 2"
        assert after.execute(query).fetchall() == before.execute(query).fetchall()
    assert after.execute("SELECT name, owner FROM job WHERE owner <> 'local'").fetchall() == [("base", "lee")]
    assert after.execute("SELECT key FROM idempotency").fetchall() == [("k1",)]
    assert json.loads((world.settings.data_dir / "tokens.json").read_text()) == TOKENS
    assert (world.settings.data_dir / "authorized_keys").read_text().splitlines() == KEYS
