"""Lifts training events out of log lines: metrics and samples into files, progress, errors and artifacts into rows."""

import json
import time
from pathlib import Path
from typing import Any

from sqlmodel import Session, select

from service.artifacts.versions import next_version
from service.collector.log_file import StoredLine
from service.store.database import Database
from service.store.events import record_job
from service.store.tables import Artifact, Job, Replica

PREFIX = "@navarch "
_PROGRESS_EVERY_S = 0.5
_PROGRESS_KEYS = ("step", "total_steps", "eta_s")
_METRIC_KEYS = ("loss", "tokens_per_second")


def parse_event(text: str) -> dict[str, Any] | None:
    """The event in a line, or None. A line that looks like one but isn't is just a line."""
    if not text.startswith(PREFIX):
        return None
    try:
        event = json.loads(text[len(PREFIX) :])
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


class Lifter:
    """Lifts the events of one replica, each exactly once: files remember the log offset of their last line."""

    def __init__(self, database: Database, job_dir: Path, replica: Replica, attempt: int) -> None:
        assert replica.id is not None
        self._database = database
        self._job_dir = job_dir
        self._replica_id, self._job_id = replica.id, replica.job_id
        self._attempt, self._rank = attempt, replica.node_rank
        self._in_files = {name: self._last_offset(name) for name in ("metrics.jsonl", "samples.jsonl")}
        self._progress: dict[str, Any] = {}
        self._written_at = 0.0
        self.lifted = replica.lifted
        """Logical log offset up to which everything is lifted and stored."""
        self.error: tuple[str, str] | None = (
            (replica.error_kind, replica.error_message or "") if replica.error_kind else None
        )

    def feed(self, line: StoredLine) -> None:
        event = parse_event(line.text)
        if event is None:
            return
        kind = event["event"]
        if kind == "error":
            self._error(event, line.end)
        if self._rank != 0:
            return
        if kind in ("metrics", "eval"):
            self._metrics(event, line.end)
        elif kind == "progress":
            self._progress.update({key: event[key] for key in _PROGRESS_KEYS if _is_number(event.get(key))})
        elif kind == "sample":
            self._append("samples.jsonl", {k: v for k, v in event.items() if k != "event"}, line.end)
        elif kind == "artifact":
            self._artifact(event, line.end)
        elif kind == "ready":
            self._progress["ready"] = self._attempt
            self._progress["url_path"] = str(event.get("url_path", "/"))
            self.flush(line.end)
        if time.monotonic() - self._written_at > _PROGRESS_EVERY_S:
            self.flush(line.end)

    def flush(self, offset: int) -> None:
        """Stores progress, and that everything up to `offset` is lifted."""
        progress, self._progress = self._progress, {}
        self._written_at = time.monotonic()
        with self._database.write() as session:
            job = session.get(Job, self._job_id)
            if job is not None and progress:
                job.progress = {**job.progress, **progress}
            self._mark(session, offset)

    def _mark(self, session: Session, offset: int) -> Replica | None:
        replica = session.get(Replica, self._replica_id)
        if replica is not None:
            replica.lifted = self.lifted = max(self.lifted, offset)
        return replica

    def _metrics(self, event: dict[str, Any], offset: int) -> None:
        values = event.get("values")
        if not isinstance(values, dict):
            return
        numbers = {str(name): value for name, value in values.items() if _is_number(value)}
        line = {
            "time": event.get("time"),
            "step": event.get("step"),
            "total_steps": event.get("total_steps"),
            "values": numbers,
        }
        self._append("metrics.jsonl", line, offset)
        self._progress.update({key: event[key] for key in _PROGRESS_KEYS if _is_number(event.get(key))})
        self._progress.update({key: numbers[key] for key in _METRIC_KEYS if key in numbers})

    def _error(self, event: dict[str, Any], offset: int) -> None:
        kind, message = str(event.get("kind", "internal")), str(event.get("message", ""))[:4000]
        if self.error is not None and kind == "rank_failed":
            return  # what this rank said first is nearer to the cause
        self.error = (kind, message)
        with self._database.write() as session:
            replica = self._mark(session, offset)
            if replica is not None:
                replica.error_kind, replica.error_message = kind, message

    def _artifact(self, event: dict[str, Any], offset: int) -> None:
        run_path = str(event.get("path", ""))
        target = (self._job_dir / "run" / run_path).resolve()
        if not run_path or (self._job_dir / "run").resolve() not in target.parents:
            return
        metrics = event.get("metrics")
        with self._database.write() as session:
            job = session.get(Job, self._job_id)
            if job is None:
                return
            row = session.exec(select(Artifact).where(Artifact.job_id == job.id, Artifact.run_path == run_path)).first()
            if row is None:
                name = f"{job.name}-{target.name}"
                row = Artifact(
                    id=f"{job.id}-{run_path.replace('/', '-')}",
                    name=name,
                    version=next_version(session, name),
                    kind=str(event.get("kind", "model")),
                    path=str(target),
                    source=f"job:{job.name}",
                    job_id=job.id,
                    run_path=run_path,
                )
                session.add(row)
                record_job(session, job, "artifact.registered", f"{job.name} left {row.kind} {name}@{row.version}")
            row.attempt, row.digest, row.size = self._attempt, None, None  # filled in when the job has ended
            row.metrics = metrics if isinstance(metrics, dict) else {}
            self._mark(session, offset)

    def _append(self, name: str, content: dict[str, Any], offset: int) -> None:
        if offset <= self._in_files[name]:
            return
        content["src"] = [self._attempt, self._rank, offset]
        with (self._job_dir / name).open("a") as file:
            file.write(json.dumps(content, separators=(",", ":")) + "\n")
        self._in_files[name] = offset

    def _last_offset(self, name: str) -> int:
        """The log offset of the last line that this replica has in a file; a half-written line is cut off."""
        path = self._job_dir / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return 0
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with path.open("rb+") as file:
                file.truncate(len(whole))
        for line in reversed(whole.splitlines()):
            source = json.loads(line).get("src")
            if source and source[:2] == [self._attempt, self._rank]:
                return int(source[2])
        return 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
