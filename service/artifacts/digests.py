"""Fills in the digest and size of artifacts in the background, once their files don't change any more."""

import hashlib
import os
import threading
import time

import structlog
from sqlalchemy import update
from sqlmodel import col, or_, select

from service.access.mounts import Checked, MountRules
from service.access.paths import Opened, files_below
from service.artifacts.elsewhere import Elsewhere
from service.contract.errors import Problem
from service.store.database import Database
from service.store.tables import Artifact, Job, JobInput

log = structlog.get_logger("digests")
_LOOK_EVERY_S = 2.0
_AWAY_S = 60.0
"""A host on which a file could not be read is asked again after that long."""
_CHUNK = 1 << 20


class Interrupted(Exception):
    """The control plane ends; the next start begins anew with this artifact."""


def digest_of(found: Checked, stopping: threading.Event | None = None) -> tuple[str, int]:
    """`sha256:…` of a file or folder, and its bytes.

    A file's is its SHA-256. A folder's is the SHA-256 of what `sha256sum` prints of its files in the order of their
    paths, so anybody can check it:
    `find . -xtype f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum`.
    Files behind links count, folders behind links don't. Raises OSError when something can't be read, or lies outside
    of the folder in which the artifact was allowed.
    """
    stopping = stopping or threading.Event()
    if not found.opened.is_dir:
        hexadecimal, size = _file(found.opened, stopping)
        return f"sha256:{hexadecimal}", size
    whole, total = hashlib.sha256(), 0
    for name, opened in files_below(found.opened, found.anchor):
        hexadecimal, size = _file(opened, stopping)
        whole.update(hexadecimal.encode() + b"  " + name + b"\n")
        total += size
    return f"sha256:{whole.hexdigest()}", total


def _file(opened: Opened, stopping: threading.Event) -> tuple[str, int]:
    found, size = hashlib.sha256(), 0
    with os.fdopen(opened.readable(), "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            if stopping.is_set():
                raise Interrupted
            found.update(chunk)
            size += len(chunk)
    return found.hexdigest(), size


def _place(row: Artifact) -> tuple[str, str, float]:
    return row.id, row.path, row.created_at


class Digests:
    """One thread that reads one artifact after the other, without holding a transaction meanwhile."""

    def __init__(self, database: Database, rules: MountRules, elsewhere: Elsewhere | None = None) -> None:
        self._database, self._rules, self._elsewhere = database, rules, elsewhere
        self._later: dict[str, float] = {}
        """Remote host → when it is asked again: the files of others don't wait for it."""
        self._stopping = threading.Event()
        self._unreadable: set[tuple[str, str, float]] = set()
        """Artifacts not tried again before the next start, or before they move: (id, path, when it was made)."""
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
            now = time.monotonic()
            return next(
                (
                    row
                    for row in session.exec(query)
                    if _place(row) not in self._unreadable and self._later.get(row.host_id or "", 0.0) <= now
                ),
                None,
            )

    def _read(self, row: Artifact) -> tuple[str, int]:
        if row.host_id is not None and self._elsewhere is not None:
            return self._elsewhere(row.host_id).digest(row)
        with (checked := self._rules.open_any(row.path, "Its path")).opened:
            return digest_of(checked, self._stopping)

    def _fill(self, row: Artifact) -> None:
        begun = time.monotonic()
        found: tuple[str, int] | None = None
        message = None
        try:
            found = self._read(row)
        except (Problem, OSError) as error:
            if row.host_id is not None:
                self._later[row.host_id] = time.monotonic() + _AWAY_S
            else:
                self._unreadable.add(_place(row))
            said = f"{error.strerror or error}: {error.filename or row.path}" if isinstance(error, OSError) else error
            message = f"It has no digest: {said}"
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
