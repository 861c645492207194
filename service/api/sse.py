"""Server-sent events by polling files that grow: many followers, no thread for any of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from service.schemas import JobStatus, LogLine

POLL_S = 0.04
STATUS_S = 0.4
PING_S = 15.0
BATCH = 500


class LogSource(Protocol):
    """Lines after a cursor; quick enough to be asked many times a second."""

    def read(self, cursor: str | None, limit: int) -> tuple[Sequence[LogLine], str]:
        """At most `limit` lines after the cursor, and the cursor after them."""
        ...


@dataclass
class Shutdown:
    """Set when the server is told to end, so that streams end at once and their clients come back later."""

    begun: bool = False


@dataclass
class Follower:
    """One client that follows one log: sends lines, the status when it changes, and `end` when all is said."""

    source: LogSource
    status: Callable[[], JobStatus | None]
    """Blocking; None when the job is no more."""
    cursor: str | None
    shutdown: Shutdown
    _sent: JobStatus | None = None
    _status_at: float = field(default=0.0)

    async def events(self) -> AsyncIterator[bytes]:
        spoke = time.monotonic()
        yield b"retry: 1000\n\n"
        while not self.shutdown.begun:
            status = await self._changed_status()
            ended = self._sent is None or self._sent.finished
            lines, following = self.source.read(self.cursor, BATCH)
            self.cursor = following
            chunk = b"".join(encode("log", line, line.cursor) for line in lines)
            if status is not None and not (ended and lines):
                chunk += encode("job", status)
            if chunk:
                spoke = time.monotonic()
                yield chunk
            if lines:
                await asyncio.sleep(0)
                continue
            if ended:
                if self._sent is not None:
                    yield encode("end", self._sent, self.cursor)
                return
            if time.monotonic() - spoke > PING_S:
                spoke = time.monotonic()
                yield b": still here\n\n"
            await asyncio.sleep(POLL_S)

    async def _changed_status(self) -> JobStatus | None:
        """The job's status if it is new. A finished job's is asked no more: then only lines remain."""
        now = time.monotonic()
        if (self._sent is not None and self._sent.finished) or now - self._status_at < STATUS_S:
            return None
        self._status_at = now
        status = await run_in_threadpool(self.status)
        if status == self._sent:
            return None
        self._sent = status
        return status


def encode(event: str, data: BaseModel, identifier: str | None = None) -> bytes:
    """One event. JSON has no raw line breaks, so it is one `data` line."""
    head = f"id: {identifier}\n" if identifier else ""
    return f"{head}event: {event}\ndata: {data.model_dump_json()}\n\n".encode()


def stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
