"""Server-sent events for one log: woken by the collector, no thread and no polling for any follower."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from service.contract.schemas import JobStatus, LogLine

STATUS_S = 0.4
"""The status is looked up at most this often, however many lines come."""
FALLBACK_S = 5.0
"""It is looked up at least this often, in case that a wake-up was missed."""
PING_S = 15.0
BATCH = 500

Subscribe = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes what is to be called, from any thread, when there is news; gives back what ends that."""
Read = Callable[[str | None, int], tuple[Sequence[LogLine], str]]
"""At most so many lines after a cursor, and the cursor after them."""


class Shutdown:
    """Set when the server is told to end, so that streams end at once and their clients come back later."""

    def __init__(self) -> None:
        self.begun = False
        self._wakes: set[Callable[[], None]] = set()

    def begin(self) -> None:
        self.begun = True
        for wake in tuple(self._wakes):
            wake()

    def watch(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` when the end begins; gives back what ends that."""
        self._wakes.add(wake)
        return lambda: self._wakes.discard(wake)


@dataclass
class Follower:
    """One client that follows one log: gets lines, the status when it changes, and `end` when all is said."""

    read: Read
    status: Callable[[], JobStatus | None]
    """Blocking; None when what is followed is no more."""
    subscribe: Subscribe
    cursor: str | None
    shutdown: Shutdown
    sent: JobStatus | None = None
    looked_at: float = -1e9

    async def events(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        news = asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(news.set)

        unwatch = self.shutdown.watch(wake)
        unsubscribe = self.subscribe(wake)
        try:
            yield b"retry: 1000\n\n"
            spoke = time.monotonic()
            while not self.shutdown.begun:
                news.clear()
                chunk, more = await self._chunk()
                if chunk:
                    spoke = time.monotonic()
                elif time.monotonic() - spoke >= PING_S:
                    spoke, chunk = time.monotonic(), b": still here\n\n"
                if chunk:
                    yield chunk
                if more is None:
                    return
                if not more:
                    await _until(news, self._patience())
        finally:
            unsubscribe()
            unwatch()

    async def _chunk(self) -> tuple[bytes, bool | None]:
        """What is to be sent now, and whether more waits already (None: this was the end)."""
        status = await self._changed_status()
        finished = self.sent is None or self.sent.finished
        lines, self.cursor = await run_in_threadpool(self.read, self.cursor, BATCH)
        chunk = b"".join(encode("log", line, line.cursor) for line in lines)
        if finished and not lines:
            return (chunk + encode("end", self.sent, self.cursor) if self.sent is not None else chunk), None
        if status is not None and not finished:
            chunk += encode("job", status)
        return chunk, bool(lines)

    async def _changed_status(self) -> JobStatus | None:
        """The status if it is new. A finished one is asked for no more: then only lines remain."""
        if (self.sent is not None and self.sent.finished) or time.monotonic() - self.looked_at < STATUS_S:
            return None
        self.looked_at = time.monotonic()
        status = await run_in_threadpool(self.status)
        if status == self.sent:
            return None
        self.sent = status
        return status

    def _patience(self) -> float:
        """How long to wait for news: until the status may be looked up again if that was just put off."""
        rest = self.looked_at + STATUS_S - time.monotonic()
        return rest if rest > 0 else FALLBACK_S


async def _until(news: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(news.wait(), seconds)
    except TimeoutError:
        return


def encode(event: str, data: BaseModel, identifier: str | None = None) -> bytes:
    """One event. JSON has no raw line breaks, so it is one `data` line."""
    head = f"id: {identifier}\n" if identifier else ""
    return f"{head}event: {event}\ndata: {data.model_dump_json()}\n\n".encode()


def stream(events: AsyncIterator[bytes]) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
