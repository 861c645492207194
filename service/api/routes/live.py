"""`/live`: one WebSocket for a whole browser tab, which says what changed; what it is now is asked for over REST."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from service.api.state import ApiState

router = APIRouter()
_GAP_S = 0.25
"""News of this long go in one message."""
_PING_S = 20.0
_MAX_TOPICS = 200
_MAX_MESSAGE = 32_768


class _Watch:
    """The topics of one connection, and which of them have changed since the last message."""

    def __init__(self, state: ApiState, wake: Callable[[], None]) -> None:
        self._state, self._wake = state, wake
        self._ends: dict[str, Callable[[], None]] = {}
        self.changed: set[str] = set()

    def set(self, topics: set[str]) -> None:
        for gone in self._ends.keys() - topics:
            self._ends.pop(gone)()
        for topic in topics - self._ends.keys():
            self._ends[topic] = self._state.runtime.hub.subscribe(_key(topic), self._noter(topic))

    def _noter(self, topic: str) -> Callable[[], None]:
        def note() -> None:
            if topic not in self.changed:
                self.changed.add(topic)
                self._wake()

        return note

    def end(self) -> None:
        self.set(set())


def _key(topic: str) -> str:
    """The hub knows jobs and builds by their ids, lists by their names."""
    kind, _, name = topic.partition("/")
    return name if name and kind in ("job", "build") else topic


@router.websocket("/live")
async def live(socket: WebSocket) -> None:
    """The client sends `{"watch": [topic, …]}`, as often as it likes; gets `{"changed": [topic, …]}`.

    Topics: `jobs`, `hosts`, `events`, `builds`, `artifacts`, `job/ID`, `build/ID`.
    """
    state: ApiState = socket.app.state.navarch
    await socket.accept()
    loop, news = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(news.set)

    watch = _Watch(state, wake)
    unwatch = state.shutdown.watch(wake)
    listening = asyncio.create_task(_listen(socket, watch))
    try:
        while not state.shutdown.begun and not listening.done():
            waiting = asyncio.create_task(news.wait())
            await asyncio.wait({waiting, listening}, timeout=_PING_S, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            news.clear()
            changed = sorted(watch.changed)
            watch.changed.difference_update(changed)
            await socket.send_text(json.dumps({"changed": changed}))
            await asyncio.sleep(_GAP_S)
        if not listening.done():
            await socket.close(1001)
    except (WebSocketDisconnect, RuntimeError):
        pass  # the client has gone
    finally:
        listening.cancel()
        watch.end()
        unwatch()


async def _listen(socket: WebSocket, watch: _Watch) -> None:
    """Takes the client's wishes until it goes; what is none ends the connection."""
    try:
        while True:
            text = await socket.receive_text()
            if len(text) > _MAX_MESSAGE:
                raise ValueError
            topics = json.loads(text)["watch"]
            if not isinstance(topics, list) or len(topics) > _MAX_TOPICS:
                raise ValueError
            watch.set({topic for topic in topics if isinstance(topic, str) and len(topic) <= 120})
    except (WebSocketDisconnect, RuntimeError):
        return
    except (ValueError, KeyError, TypeError):
        await socket.close(1007)
