"""Lifts training events out of log lines: metrics and samples into files, progress, errors and artifacts into rows."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json
from sqlalchemy import func
from sqlmodel import Session, col, select

from service.artifacts.versions import next_version
from service.collector import events
from service.collector.log_file import StoredLine, lines_backwards, seconds
from service.store.database import Database
from service.store.events import record_job
from service.store.places import run_folder_elsewhere
from service.store.tables import Artifact, Job, Replica

_STORE_EVERY_S = 0.5
_MARK_EVERY_S, _MARK_BYTES = 10.0, 4 << 20
"""Plain lines need no transaction: how far they are read is stored so often only, to be read again after a crash."""
_METRICS, _SAMPLES = "metrics.jsonl", "samples.jsonl"
_SHOWN_FIGURES = ("loss", "tokens_per_second")
"""Figures that a job's progress shows."""
_MAX_ARTIFACTS = 200
"""Of one job: a container that announces more is not training."""
_MAX_CELL = 20_000


@dataclass
class Findings:
    """What lifted lines come to, until it is stored: all of it in one transaction with the offset behind them."""

    progress: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, events.Artifact] = field(default_factory=dict)
    """By path below the run folder."""
    error: tuple[str, str, str] | None = None
    """Kind, message, and the name of the host whose fault it is."""
    dropped: Counter[str] = field(default_factory=Counter)
    lines: dict[str, list[str]] = field(default_factory=lambda: {_METRICS: [], _SAMPLES: []})
    """For the files."""

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for it."""
        return bool(self.artifacts or self.error or "ready" in self.progress)

    def __bool__(self) -> bool:
        return bool(self.urgent or self.progress or self.dropped or any(self.lines.values()))


class Lifter:
    """Lifts the events of one replica, each exactly once: rows move with `Replica.lifted`, lines in files say which
    log offset they came from. What could not be stored is still there for the next try."""

    def __init__(
        self, database: Database, job_dir: Path, replica: Replica, attempt: int, quota: int, log_end: int = 1 << 62
    ) -> None:
        assert replica.id is not None
        self._database = database
        self._job_dir, self._quota = job_dir, quota
        self._replica_id, self._job_id = replica.id, replica.job_id
        self._attempt, self._rank = attempt, replica.node_rank
        self._in_files = {name: self._last_offset(name) for name in (_METRICS, _SAMPLES)}
        self._found = Findings()
        self._stored_at = 0.0
        self.counted = (0, 0)
        """Events that could be used, and values and events that could not."""
        self.lifted = min(replica.lifted, log_end)
        """Logical log offset up to which everything is lifted and stored."""
        self.error: tuple[str, str, str] | None = (
            (replica.error_kind, replica.error_message or "", replica.error_host or "") if replica.error_kind else None
        )

    def feed(self, line: StoredLine) -> None:
        event = events.parse(line.text) if line.end > self.lifted else None
        if event is None:
            return
        used, dropped = self.counted
        self.counted = (used, dropped + 1) if isinstance(event, events.Dropped) else (used + 1, dropped)
        if isinstance(event, events.Dropped):
            self._found.dropped[event.why] += 1
        elif isinstance(event, events.Error):
            self._error(event)
        elif self._rank == 0:
            self._take(event, line)

    def settle(self, offset: int) -> bool:
        """Stores what was found, if it is time to. Called after each batch; whether there was a transaction."""
        waited = time.monotonic() - self._stored_at
        due = self._found.urgent or (self._found and waited > _STORE_EVERY_S)
        if due or (offset - self.lifted > _MARK_BYTES and waited > _MARK_EVERY_S):
            return self.flush(offset)
        return False

    def flush(self, offset: int) -> bool:
        """Stores what was found, and that everything up to `offset` is lifted; False when there is nothing new."""
        if not self._found and offset <= self.lifted:
            return False
        self._write_files()
        with self._database.write() as session:
            self._store(session, offset)
        self._found, self.lifted = Findings(), max(self.lifted, offset)
        self._stored_at = time.monotonic()
        return True

    def _take(self, event: events.Event, line: StoredLine) -> None:
        found, progress = self._found, self._found.progress
        if isinstance(event, events.Metrics):
            self._figures(event, line)
        elif isinstance(event, events.Progress):
            given = {"step": event.step, "total_steps": event.total_steps, "eta_s": event.eta_s}
            progress.update({name: value for name, value in given.items() if value is not None})
        elif isinstance(event, events.Sample):
            rows = [[_cell(cell) for cell in (row if isinstance(row, list) else [row])] for row in event.rows]
            told = {"time": _moment(event, line), "title": event.title, "columns": event.columns, "rows": rows}
            self._append(_SAMPLES, told, line.end)
        elif isinstance(event, events.Artifact):
            found.artifacts[event.path] = event
        elif isinstance(event, events.Ready):
            progress["ready"], progress["url_path"] = self._attempt, event.url_path

    def _figures(self, event: events.Metrics, line: StoredLine) -> None:
        values = self._numbers(event.event, event.values)
        told = {"time": _moment(event, line), "step": event.step, "total_steps": event.total_steps, "values": values}
        self._append(_METRICS, told, line.end)
        progress = self._found.progress
        progress["step"] = event.step
        if event.total_steps is not None:
            progress["total_steps"] = event.total_steps
        for name in _SHOWN_FIGURES:
            if name in values:
                progress[name] = values[name] if isinstance(values[name], float) else None

    def _numbers(self, name: str, given: dict[str, Any]) -> dict[str, events.Figure]:
        values = {key: number for key, value in given.items() if (number := events.figure(value)) is not None}
        if len(values) < len(given):
            self._found.dropped[f"{name}: a value is not a number"] += len(given) - len(values)
        return values

    def _error(self, event: events.Error) -> None:
        if self.error is not None and event.kind == "rank_failed":
            return  # what this rank said first is nearer to the cause
        self.error = self._found.error = (event.kind, event.message, event.host)

    def _store(self, session: Session, offset: int) -> None:
        found = self._found
        replica, job = session.get(Replica, self._replica_id), session.get(Job, self._job_id)
        if replica is None or job is None:
            return
        if found.progress:
            job.progress = {**job.progress, **found.progress}
        for event in found.artifacts.values():
            self._artifact(session, job, replica, event)
        if found.error is not None:
            replica.error_kind, replica.error_message, replica.error_host = found.error
        if found.dropped:
            replica.dropped = dict(Counter(replica.dropped) + found.dropped)
        replica.lifted = max(replica.lifted, offset)

    def _artifact(self, session: Session, job: Job, replica: Replica, event: events.Artifact) -> None:
        row = session.exec(select(Artifact).where(Artifact.job_id == job.id, Artifact.run_path == event.path)).first()
        if row is None:
            known = session.exec(select(func.count(col(Artifact.id))).where(Artifact.job_id == job.id)).one()
            if known >= _MAX_ARTIFACTS:
                self._found.dropped[f"artifact: more than {_MAX_ARTIFACTS} of one job"] += 1
                return
            name = f"{job.name}-{Path(event.path).name}"
            elsewhere = run_folder_elsewhere(session, replica.host_id, job.id)
            row = Artifact(
                id=f"{job.id}-{event.path.replace('/', '-')}",
                name=name,
                version=next_version(session, name),
                kind=event.kind,
                path=str((elsewhere or self._job_dir / "run") / event.path),
                host_id=replica.host_id if elsewhere is not None else None,
                owner_id=job.owner_id,
                source=f"job:{job.name}",
                job_id=job.id,
                run_path=event.path,
            )
            session.add(row)
            record_job(session, job, "artifact.registered", f"{job.name} left {row.kind} {name}@{row.version}")
        elif replica.host_id != row.host_id and (row.host_id or run_folder_elsewhere(session, replica.host_id, job.id)):
            elsewhere = run_folder_elsewhere(session, replica.host_id, job.id)  # this attempt runs on another host
            row.path = str((elsewhere or self._job_dir / "run") / event.path)
            row.host_id = replica.host_id if elsewhere is not None else None
        row.attempt, row.digest, row.size = self._attempt, None, None  # filled in when the job has ended
        row.metrics = self._numbers("artifact", event.metrics)

    def _append(self, name: str, content: dict[str, Any], offset: int) -> None:
        if offset <= self._in_files[name]:
            return
        content["src"] = [self._attempt, self._rank, offset]
        self._found.lines[name].append(json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n")
        self._in_files[name] = offset

    def _write_files(self) -> None:
        for name, lines in self._found.lines.items():
            if not lines:
                continue
            path = self._job_dir / name
            data = "".join(lines).encode()
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                size = os.fstat(handle).st_size
                if size + len(data) > self._quota:
                    self._found.dropped[f"{name}: it has reached its limit of {self._quota >> 20} MiB"] += len(lines)
                else:
                    _write_all(handle, data, size)
            finally:
                os.close(handle)
            lines.clear()

    def _last_offset(self, name: str) -> int:
        """The log offset of the last line that this replica has in a file; a half-written line is cut off."""
        try:
            file = (self._job_dir / name).open("rb+")
        except FileNotFoundError:
            return 0
        with file:
            for start, line in lines_backwards(file):
                if not line.endswith(b"\n"):
                    file.truncate(start)
                    continue
                source = _source(line)
                if source is not None and source[:2] == [self._attempt, self._rank]:
                    return source[2]
                if source is not None and source[0] < self._attempt:
                    return 0
        return 0


def _write_all(handle: int, data: bytes, size: int) -> None:
    """All of it or, where the disk is full, nothing."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(handle, view) :]
    except OSError:
        os.ftruncate(handle, size)
        raise


def _moment(event: events.Event, line: StoredLine) -> float:
    return event.time if event.time is not None else seconds(line.time)


def _cell(value: events.Cell) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…"


def _source(line: bytes) -> list[int] | None:
    """[attempt, rank, log offset] that a line in a file came from."""
    try:
        source = from_json(line).get("src")
    except (ValueError, AttributeError):
        return None
    fits = isinstance(source, list) and len(source) == 3 and all(isinstance(part, int) for part in source)
    return source if fits else None
