"""Looks at the data folder before anything works on it: a damaged, emptied or foreign database is refused in words."""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from alembic.script import ScriptDirectory
from sqlmodel import SQLModel

from service.contract.errors import Problem
from service.store import tables
from service.store.faults import of_storage

MARKER = "deployment"
"""A file in the data folder: the id of the deployment whose database lies beside it."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_MAGIC = b"SQLite format 3\x00"
_PROBE_BYTES = 64 * 1024
assert tables.Job.__tablename__  # the import fills SQLModel.metadata


def probe_disk(folder: Path) -> None:
    """Writes a little file and removes it. Raises OSError."""
    file = folder / f".probe-{os.getpid()}"
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            left = _PROBE_BYTES
            while left > 0:
                left -= os.write(handle, b"\x00" * left)
        finally:
            os.close(handle)
    finally:
        file.unlink(missing_ok=True)


def check(database: Path) -> None:
    """Raises Problem `disk_full` or `database_unavailable`, each with what to do, when `database` can't be worked on.

    No database in a folder that was never used is a first start.
    """
    try:
        probe_disk(database.parent)
    except OSError as error:
        raise of_storage(error) or _refused(
            f"The data folder {database.parent} can't be written: {error.strerror}.",
            "Give it to the user who runs `navarch up`, or choose another with --data-dir.",
        ) from error
    if not _has_content(database):
        used = _known_as(database) or _jobs_in(database.parent)
        if used:
            raise _refused(
                f"The database {database} is empty or gone, but its folder has been used: {used}.", _restore(database)
            )
        return
    with database.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise _refused(f"{database} is no database: its beginning is overwritten.", _restore(database))
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=15)) as connection:
            _check_content(database, connection)
    except sqlite3.Error as error:
        raise of_storage(error) or _refused(
            f"The database {database} is damaged: {error}.", _restore(database)
        ) from error


def mark(database: Path, deployment: str) -> None:
    """Notes whose data folder this is: what makes an emptied database beside it a loss, not a first start."""
    file = database.parent / MARKER
    if _marker(database) != deployment:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(deployment + "\n")


def _check_content(database: Path, connection: sqlite3.Connection) -> None:
    found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    if found != ["ok"]:
        raise _refused(f"The database {database} is damaged: {'; '.join(found)[:500]}.", _restore(database))
    there = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" not in there:
        raise _refused(f"{database} is a database, but none of Navarch's.", "Choose another folder with --data-dir.")
    revisions = [str(row[0]) for row in connection.execute("SELECT version_num FROM alembic_version")]
    known = [script.revision for script in ScriptDirectory(str(_MIGRATIONS)).walk_revisions()]
    strange = [revision for revision in revisions if revision not in known]
    if strange:
        raise _refused(
            f"The database {database} was written by a newer Navarch: its schema is {strange[0]}, not {known[0]}.",
            "Install the newer version again.",
        )
    if revisions == known[:1]:
        _check_schema(database, connection, there)
    _check_deployment(database, connection)


def _check_deployment(database: Path, connection: sqlite3.Connection) -> None:
    row = connection.execute("SELECT value FROM meta WHERE key = 'deployment'").fetchone()
    expected = _marker(database)
    if expected and (row is None or row[0] != expected):
        found = row[0] if row else "(none)"
        raise _refused(
            f"The database {database} belongs to deployment {found}, its data folder to {expected}.",
            f"Put back the database of {expected}. If this one is right, remove the file {database.parent / MARKER}.",
        )


def _check_schema(database: Path, connection: sqlite3.Connection, there: set[str]) -> None:
    """What a database that needs no migration must have."""
    for table in SQLModel.metadata.sorted_tables:
        columns = {row[1] for row in connection.execute(f'PRAGMA table_info("{table.name}")')}
        missing = [column.name for column in table.columns if column.name not in columns]
        if table.name not in there or missing:
            what = f"its table {table.name} " + ("is missing" if table.name not in there else f"has no {missing[0]}")
            raise _refused(f"The database {database} is not whole: {what}.", _restore(database))


def _has_content(database: Path) -> bool:
    try:
        return database.stat().st_size > 0
    except FileNotFoundError:
        return False


def _marker(database: Path) -> str:
    try:
        return (database.parent / MARKER).read_text().strip()
    except OSError:
        return ""


def _known_as(database: Path) -> str:
    known = _marker(database)
    return f"it is that of deployment {known}" if known else ""


def _jobs_in(folder: Path) -> str:
    try:
        count = sum(1 for entry in (folder / "jobs").iterdir() if entry.is_dir())
    except OSError:
        return ""
    return f"files of {count} jobs lie in it" if count else ""


def _restore(database: Path) -> str:
    deployment = _marker(database)
    listed = f"docker ps --filter label=navarch.deployment={deployment}"
    running = f" What still runs: {listed}." if deployment else ""
    return (
        f"Put back a copy of {database.name}. Without one, move {database.parent} away and begin anew: models, logs "
        f"and metrics of its jobs stay readable under jobs/.{running}"
    )


def _refused(detail: str, hint: str) -> Problem:
    return Problem("database_unavailable", detail, hint)


class Heartbeat:
    """Whether the data folder can be written, found out by writing; asked at most once a second."""

    def __init__(self, folder: Path, write: Callable[[], None], every_s: float = 1.0) -> None:
        self._folder, self._write, self._every_s = folder, write, every_s
        self._lock = threading.Lock()
        self._asked_at = -1e9
        self._trouble: str | None = None

    def trouble(self) -> str | None:
        """What is wrong, in words; None when it can be written."""
        with self._lock:
            if time.monotonic() - self._asked_at > self._every_s:
                self._trouble = self._look()
                self._asked_at = time.monotonic()
            return self._trouble

    def _look(self) -> str | None:
        try:
            probe_disk(self._folder)
            self._write()
        except Exception as error:
            problem = of_storage(error)
            return problem.detail if problem is not None else f"it can't be written: {error}"
        return None
