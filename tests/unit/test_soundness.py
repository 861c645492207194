"""A damaged, emptied or foreign database is refused at the start in words; health means that it can be written."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from service.api.app import create_app
from service.contract.errors import Problem
from service.runtime import Runtime
from service.settings import Settings
from service.store.faults import of_storage
from service.store.soundness import Heartbeat
from tests.unit.local_client import local_client


def runtime(folder: Path) -> Runtime:
    return Runtime(Settings(data_dir=folder, engine_url=f"unix://{folder}/no-engine.sock"))


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in which a control plane ran and ended."""
    folder = tmp_path_factory.mktemp("used")
    first = runtime(folder)
    first.open()
    first.start()
    with first.database.write() as session:
        session.connection().exec_driver_sql("CREATE TABLE filler (t)")
        for number in range(500):
            session.connection().exec_driver_sql("INSERT INTO filler VALUES (?)", ("x" * number,))
    first.stop()
    with sqlite3.connect(folder / "navarch.db") as database:  # the tests damage one file, so all of it must be there
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return folder


def connect(database: Path, sql: str) -> None:
    connection = sqlite3.connect(database)
    connection.execute(sql)
    connection.commit()
    connection.close()


def truncate(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2 // 4096 * 4096)


def zero_the_beginning(database: Path) -> None:
    with database.open("r+b") as file:
        file.write(bytes(8192))


def zero_the_middle(database: Path) -> None:
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(database.stat().st_size - 4096))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "is damaged"),
    "truncated to nothing": (
        lambda database: os.truncate(database, 0),
        "is empty or gone, but its folder has been used",
    ),
    "removed": (lambda database: database.unlink(), "is empty or gone, but its folder has been used"),
    "beginning zeroed": (zero_the_beginning, "is no database: its beginning is overwritten"),
    "rest zeroed": (zero_the_middle, "is damaged"),
    "something else": (lambda database: database.write_text("hello " * 999), "is no database"),
    "a table gone": (lambda database: connect(database, "DROP TABLE port_lease"), "its table port_lease is missing"),
    "a column gone": (
        lambda database: connect(database, "ALTER TABLE host DROP COLUMN seen_at"),
        "host has no seen_at",
    ),
    "of a newer version": (
        lambda database: connect(database, "UPDATE alembic_version SET version_num='9'"),
        "newer Navarch",
    ),
    "of another deployment": (
        lambda database: connect(database, "UPDATE meta SET value='x'"),
        "belongs to deployment x",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_database_is_refused_with_what_to_do(used: Path, tmp_path: Path, name: str) -> None:
    damage, said = DAMAGES[name]
    folder = tmp_path / "data"
    shutil.copytree(used, folder)
    for leftover in folder.glob("navarch.db-*"):
        leftover.unlink()
    damage(folder / "navarch.db")
    again = runtime(folder)
    with pytest.raises(Problem) as refused:
        again.open()
    again.database.close()
    assert refused.value.code == "database_unavailable" and said in refused.value.detail, refused.value.detail
    assert str(folder) in refused.value.detail and refused.value.hint


def test_a_sound_database_starts_again_and_an_old_folder_without_a_marker_gets_one(used: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(used, folder)
    (folder / "deployment").unlink()
    again = runtime(folder)
    again.open()
    again.start()
    assert (folder / "deployment").read_text().strip() == again.deployment
    again.stop()


def test_health_is_bad_while_nothing_can_be_written_and_good_again_by_itself(tmp_path: Path) -> None:
    plane = runtime(tmp_path)
    plane.open()
    plane.start()
    plane.heartbeat = Heartbeat(tmp_path / "elsewhere", plane._beat, every_s=0)
    http = local_client(create_app(plane), plane.settings)
    try:
        answer = http.get("/api/v1/health")
        assert answer.status_code == 503 and answer.json()["code"] == "database_unavailable"
        (tmp_path / "elsewhere").mkdir()
        checks = {check["name"]: check for check in http.get("/api/v1/health").json()["checks"]}
        assert checks["database"]["ok"] and checks["database"]["detail"] == "can be written"
    finally:
        plane.stop()


def test_a_full_disk_is_told_from_a_mistake() -> None:
    for error in (OSError(28, "No space left on device", "/x"), sqlite3.OperationalError("database or disk is full")):
        problem = of_storage(error)
        assert problem is not None and problem.code == "disk_full" and "Free some space" in (problem.hint or "")
    assert of_storage(ValueError("full")) is None
