"""Follows one replica's log for as long as it lives: through failures, a slow engine, its end."""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from service.backends.base import Seat
from service.backends.engines import LogStream
from service.backends.errors import ContainerGone, EngineError
from service.collector.events import PREFIX
from service.collector.figures import Figures
from service.collector.hub import Hub
from service.collector.lift import Lifter
from service.collector.log_end import LogEnd, torchrun_failure
from service.collector.log_file import event_lines, path_of, read_lines, seconds, tail_offset
from service.collector.log_writer import LogWriter
from service.settings import Settings
from service.store.database import Database
from service.store.tables import Replica

log = structlog.get_logger("collector")
LAG_S = 4.0
"""So far behind, a log is read in passes instead of being followed: an engine that rotates its files under a slow
follower skips lines without a word, but a pass reads what was there when it began."""
_LARGE_BATCH = 100
_CAUGHT_UP_S = 3.0
"""A pass that took no longer has caught up."""
_STEADY_S = 30.0
"""A stream that lasted so long is no sign of trouble when it ends."""
_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_TAIL_LINES = 2000
"""What is kept of the end of a log that takes too long to be read."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class LogSource(Protocol):
    """Where logs come from: the backend that runs the containers."""

    def logs(
        self, seat: Seat, since: int, *, wait: bool, ended: bool = False, tail: int | None = None
    ) -> LogStream: ...


@dataclass(frozen=True)
class Pass:
    """How far one reading of a log came."""

    behind: bool = False
    """It was given up because it followed too far behind."""
    whole: bool = True
    """It was not cut off by the clock."""


class Follower:
    """Brings one replica's log from its engine into its file, and its events to where they belong.

    Everything that it does can be done again: it goes on from what is stored, whatever failed and whenever it died.
    """

    def __init__(
        self,
        source: LogSource,
        database: Database,
        settings: Settings,
        hub: Hub,
        replica: Replica,
        attempt: int,
        figures: Figures | None = None,
        ended: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._source, self._database, self._hub = source, database, hub
        self._quota = settings.log_quota_bytes
        self._job_dir: Path = settings.job_dir(replica.job_id)
        self._replica, self._attempt = replica, attempt
        self._figures = figures or Figures()
        self._ended = ended
        self.path = path_of(self._job_dir / "logs", attempt, replica.node_rank)
        self._wake = threading.Event()
        self._stopped = False
        self._deadline: float | None = None
        self._stream: LogStream | None = None
        self._skew = 0.0
        self._error: tuple[str, str, str] | None = None
        self.done = threading.Event()
        self.result: LogEnd | None = None
        self.failure: EngineError | None = None

    def start(self) -> None:
        name = f"log-{self._replica.container_name}"
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def finish(self, patience_s: float) -> None:
        """The container has ended: what it printed last is read, for `patience_s` at most; then `done` is set."""
        if self._deadline is None:
            self._deadline = time.monotonic() + patience_s
            self._interrupt()

    def stop(self) -> None:
        """Leaves everything as it is; the next one goes on from there."""
        self._stopped = True
        self._interrupt()

    def _interrupt(self) -> None:
        """Called after what the thread is to see was set; it looks after it has set its stream."""
        self._wake.set()
        stream = self._stream
        if stream is not None:
            stream.close()

    def end(self, patience_s: float) -> LogEnd:
        """Reads the log of an ended container to its end, here and now. Raises EngineError, OSError."""
        self._deadline = self._deadline or time.monotonic() + patience_s
        read = self.collect(wait=False, ended=True)
        if not read.whole:
            self._skip_to_the_end()
        kind, message, host = self._error or (None, None, "")
        said = last_lines(self.path)
        return LogEnd(said[-1] if said else "", kind, message, host, torchrun_failure(said))

    def collect(self, *, wait: bool, ended: bool = False) -> Pass:
        """One reading: from where the file ends to the end of the log, or of our patience."""
        writer = LogWriter(self.path, self._quota)
        try:
            lifter = self._lifter(writer.end)
            try:
                self._stream = self._source.logs(Seat.of(self._replica), writer.since, wait=wait, ended=ended)
                return self._read(self._stream, writer, lifter, wait=wait, ended=ended)
            except EngineError:
                self._settle(lifter, writer, flush=True)
                raise
        finally:
            self._stream = None
            writer.close()
            self._hub.notify(self._replica.job_id)

    def _lifter(self, end: int) -> Lifter:
        """What lifts this log's events, with those lifted that a crash left in the file."""
        with self._database.read() as session:
            replica = session.get(Replica, self._replica.id) or self._replica
        self._replica = replica
        lifter = Lifter(self._database, self._job_dir, replica, self._attempt, self._quota, end)
        for line in event_lines(self.path, lifter.lifted):
            lifter.feed(line)
        return lifter

    def _read(self, stream: LogStream, writer: LogWriter, lifter: Lifter, *, wait: bool, ended: bool) -> Pass:
        read = Pass()
        try:
            for batch in stream if not (self._stopped or (wait and self._deadline is not None)) else ():
                before = writer.end
                for line in writer.append(batch):
                    lifter.feed(line)
                self._settle(lifter, writer)
                self._hub.notify(self._replica.job_id)
                self._figures.lines.inc(len(batch))
                self._figures.bytes.inc(max(0, writer.end - before))
                lag = self._lag(batch)
                if self._stopped or (ended and self._late()):
                    read = Pass(whole=False)
                    break
                if wait and (lag > LAG_S or self._deadline is not None):
                    read = Pass(behind=True)
                    break
        finally:
            stream.close()
        self._settle(lifter, writer, flush=True)
        self._error = lifter.error
        return read

    def _settle(self, lifter: Lifter, writer: LogWriter, flush: bool = False) -> None:
        before = lifter.counted
        stored = lifter.flush(writer.end) if flush else lifter.settle(writer.end)
        if stored:
            self._figures.transactions.inc()
        lifted, dropped = (now - then for now, then in zip(lifter.counted, before, strict=True))
        self._figures.events.inc(lifted)
        self._figures.dropped.inc(dropped)

    def _lag(self, batch: list[bytes]) -> float:
        """How old a batch is, as the engine's clock goes; 0 for a small one: then there was no more."""
        if len(batch) < _LARGE_BATCH:
            return 0.0
        # A long line has the time of its beginning, so that a single one says nothing.
        newest = max(line[: line.find(b" ")] for line in (batch[0], batch[len(batch) // 2], batch[-1]))
        moment = seconds(newest.decode("ascii", "replace"))
        if not moment:
            return 0.0
        age = time.time() - moment
        self._skew = min(self._skew, age)
        self._figures.lag.set(age - self._skew)
        return age - self._skew

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _run(self) -> None:
        self._figures.followers.inc()
        try:
            self._follow()
        except Exception:  # nothing that it foresaw; the controller starts another one
            log.exception("a log is followed no more", container=self._replica.container_name)
        finally:
            self._figures.followers.dec()
            self.done.set()
            self._ended(self._replica.job_id)

    def _follow(self) -> None:
        failures, behind = 0, False
        while not self._stopped:
            begun = time.monotonic()
            try:
                if self._deadline is not None:
                    self.result = self.end(0.0)
                    return
                read = self.collect(wait=not behind)
            except ContainerGone as error:
                self.failure = error
                return
            except EngineError as error:
                if self._deadline is not None:
                    self.failure = error
                    return
                log.info("log interrupted", container=self._replica.container_name, error=str(error))
            except Exception as error:  # a full disk, a database that refuses: nothing is lost by trying again
                log.error("a log can't be stored now", container=self._replica.container_name, exc_info=error)
            else:
                took = time.monotonic() - begun
                if read.behind or (behind and took > _CAUGHT_UP_S):
                    behind = True
                    continue
                if behind:
                    behind, failures = False, 0
                    self._skew = self._age_of_the_end()
                    continue
                self._ended(self._replica.job_id)  # most likely the container has ended: the controller looks
            self._figures.interruptions.inc()
            failures = 0 if time.monotonic() - begun > _STEADY_S else failures + 1
            self._wake.wait(_PAUSES_S[min(failures, len(_PAUSES_S)) - 1] if failures else 0.0)

    def _age_of_the_end(self) -> float:
        """Of a log that has been caught up with: what seems to be lag from now on is the clocks' difference."""
        newest = [line.time for line in read_lines(self.path, tail_offset(self.path, 1), 1)]
        moment = seconds(newest[0]) if newest else 0.0
        return max(0.0, time.time() - moment) if moment else 0.0

    def _skip_to_the_end(self) -> None:
        """The patience is over: the log's last lines instead of all, and a line that says so."""
        writer = LogWriter(self.path, self._quota)
        try:
            lifter = self._lifter(writer.end)
            stream = self._source.logs(Seat.of(self._replica), 0, wait=False, ended=True, tail=_TAIL_LINES)
            before = writer.newest
            newer = [line for batch in stream for line in batch if line[: line.find(b" ")] > before]
            if newer:
                stamp = newer[0][: newer[0].find(b" ")]
                since = before.decode("ascii", "replace") or "the beginning"
                writer.overlapped = True
                writer.note(stamp, f"lines between {since} and here are left out: the log took too long to be read")
                self._figures.cuts.inc()
            for line in writer.append(newer):
                lifter.feed(line)
            self._settle(lifter, writer, flush=True)
            self._error = lifter.error
        finally:
            writer.close()
            self._hub.notify(self._replica.job_id)


def last_lines(path: Path) -> list[str]:
    """The last lines that say something, for the reason of a failure."""
    said = []
    for line in read_lines(path, tail_offset(path, 50), 51):
        text = _CONTROL.sub("", line.text).strip()
        if text and not line.passing and not line.text.startswith((PREFIX, "navarch: ", "[navarch] ")):
            said.append(text[:1000])
    return said
