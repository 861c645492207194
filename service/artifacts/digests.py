"""Fills in the digest and size of artifacts in the background, once their files don't change any more."""

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import structlog
from sqlalchemy import update
from sqlmodel import col, or_, select

from service.store.database import Database
from service.store.tables import Artifact, Job, JobInput

log = structlog.get_logger("digests")
_LOOK_EVERY_S = 2.0
_CHUNK = 1 << 20


class Interrupted(Exception):
    """The control plane ends; the next start begins anew with this artifact."""


def digest_of(path: Path, stopping: threading.Event | None = None) -> tuple[str, int]:
    """`sha256:…` of a file or folder, and its bytes.

    A file's is its SHA-256. A folder's is the SHA-256 of what `sha256sum` prints of its files in the order of their
    paths, so anybody can check it:
    `find . -xtype f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum`.
    Raises OSError when something can't be read.
    """
    stopping = stopping or threading.Event()
    if not path.is_dir():
        hexadecimal, size = _file(path, stopping)
        return f"sha256:{hexadecimal}", size
    whole, total = hashlib.sha256(), 0
    for name in sorted(_files(path)):
        hexadecimal, size = _file(path / os.fsdecode(name), stopping)
        whole.update(hexadecimal.encode() + b"  " + name + b"\n")
        total += size
    return f"sha256:{whole.hexdigest()}", total


def _files(folder: Path) -> Iterator[bytes]:
    """Relative paths of the files in a folder, as bytes; files behind links count, folders behind links don't."""

    def fail(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        for name in names:
            file = Path(parent, name)
            if file.is_file():
                yield os.fsencode(file.relative_to(folder))


def _file(path: Path, stopping: threading.Event) -> tuple[str, int]:
    found, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            if stopping.is_set():
                raise Interrupted
            found.update(chunk)
            size += len(chunk)
    return found.hexdigest(), size


class Digests:
    """One thread that reads one artifact after the other, without holding a transaction meanwhile."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stopping = threading.Event()
        self._unreadable: set[tuple[str, float]] = set()
        """Artifacts not tried again before the next start: (id, when it was made)."""
        self._thread = threading.Thread(target=self._run, name="digests", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                row = self._next()
                if row is not None:
                    self._fill(row)
                    continue
            except Interrupted:
                return
            except Exception:  # a database that doesn't answer now will later
                log.exception("digests failed")
            self._stopping.wait(_LOOK_EVERY_S)

    def _next(self) -> Artifact | None:
        """The oldest artifact without a digest that nobody writes to: its job has ended, or it has none."""
        with self._database.read() as session:
            query = (
                select(Artifact)
                .outerjoin(Job, col(Job.id) == col(Artifact.job_id))
                .where(col(Artifact.digest).is_(None), Artifact.state == "ready")
                .where(or_(col(Artifact.job_id).is_(None), col(Job.finished_at).is_not(None)))
                .order_by(col(Artifact.created_at), col(Artifact.id))
            )
            return next((row for row in session.exec(query) if (row.id, row.created_at) not in self._unreadable), None)

    def _fill(self, row: Artifact) -> None:
        begun = time.monotonic()
        found: tuple[str, int] | None = None
        message = None
        try:
            found = digest_of(Path(row.path), self._stopping)
        except OSError as error:
            self._unreadable.add((row.id, row.created_at))
            message = f"It has no digest: {error.strerror or error}: {error.filename or row.path}"
        with self._database.write() as session:
            now = session.get(Artifact, row.id)
            if now is None or (now.path, now.created_at, now.attempt) != (row.path, row.created_at, row.attempt):
                return
            now.message = message
            if found is not None:
                now.digest, now.size = found
                users = update(JobInput).where(col(JobInput.artifact_id) == now.id, col(JobInput.digest).is_(None))
                session.connection().execute(users.values(digest=now.digest))
        log.info("artifact read", artifact=row.name, digest=found and found[0], seconds=time.monotonic() - begun)
