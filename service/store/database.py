"""Opens the database: SQLite, one writer at a time, short transactions only."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.orm import ORMExecuteState
from sqlmodel import Session

from service.store import json_columns

_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """Read and write transactions. SQLite allows one writer: writers queue on a lock here instead of on its file."""

    def __init__(self, url: str) -> None:
        self.path = Path(make_url(url).database or "navarch.db").absolute()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.engine: Engine = create_engine(
            url,
            pool_size=16,
            max_overflow=64,
            connect_args={"check_same_thread": False},
            hide_parameters=True,  # errors end in logs, and parameters hold what users sent
            json_serializer=json_columns.dump,
            json_deserializer=json_columns.load,
        )
        self.writes = 0
        """Write transactions so far."""
        self.committed: Callable[[set[str]], None] = lambda _: None
        """Told after each commit the names of the tables whose rows it changed."""
        self._writer = threading.Lock()
        event.listen(self.engine, "connect", _configure)
        event.listen(self.engine, "begin", _begin)

    def migrate(self) -> None:
        """Brings the schema up to date, in one transaction."""
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self.engine.connect() as connection:
            # A table that is made anew would take along what refers to it; this can't be set in a transaction.
            connection.connection.execute("PRAGMA foreign_keys=OFF")
            try:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
            finally:
                connection.rollback()
                connection.connection.execute("PRAGMA foreign_keys=ON")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads; nothing that happens meanwhile shows in it."""
        with Session(self.engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed at the end, or undone by an exception. Never talk to an engine inside."""
        with self._writer, Session(self.engine, expire_on_commit=False) as session:
            session.connection(execution_options={"navarch_write": True})
            touched: set[str] = set()
            event.listen(session, "before_flush", lambda flushed, *_: touched.update(_tables(flushed)))
            event.listen(session, "do_orm_execute", lambda statement: touched.update(_changed_by(statement)))
            yield session
            session.commit()
            self.writes += 1
        if touched:
            self.committed(touched)

    def close(self) -> None:
        self.engine.dispose()


def _tables(session: Session) -> set[str]:
    return {row.__tablename__ for rows in (session.new, session.dirty, session.deleted) for row in rows}


def _changed_by(statement: ORMExecuteState) -> set[str]:
    """The table that one statement changes without its rows being loaded."""
    mapper = statement.bind_mapper if statement.is_update or statement.is_delete else None
    return {str(mapper.class_.__tablename__)} if mapper is not None else set()


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=15000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("navarch_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
