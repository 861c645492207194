"""An HTTP process's end of the pipe to the decoder process: submits requests, and hands each its updates."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, Literal

from training.serving.messages import (
    Accepted,
    Answer,
    Ask,
    Cancel,
    Facts,
    Failed,
    Hello,
    Query,
    Refused,
    Score,
    Submit,
    Update,
)
from training.serving.protocol import ApiError

ANSWER_SECONDS = 10.0
"""A decoder that does not say how it is for so long is not well."""


class Request:
    """One API request's completions in the decoder process. Updates of all of them arrive in one queue."""

    def __init__(self, client: DecoderClient, asks: Sequence[Ask]) -> None:
        self.client, self.asks = client, tuple(asks)
        self.first = self.asks[0].number
        self.open = {ask.number for ask in self.asks}
        self._arrived: asyncio.Queue[Update] = asyncio.Queue()
        self._taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def accepted(self) -> None:
        """Returns when the decoder has taken the request. Raises ApiError 429 or 503."""
        await self._taken

    async def next(self) -> tuple[int, Update]:
        """(index of the completion, its next update). Raises ApiError when there can't be one any more."""
        update = await self._arrived.get()
        if update.finish == "error":
            raise ApiError(500, f"generation failed: {update.error}", kind="server_error")
        if update.finish == "abort":
            raise self.client.unavailable()
        return update.number - self.first, update

    def cancel(self, *indices: int) -> None:
        """Free the slots of these completions, or of all; nothing to do for those that have ended."""
        numbers = [self.first + index for index in indices] or list(self.open)
        still = tuple(number for number in numbers if number in self.open)
        if still:
            self.open.difference_update(still)
            self.client.forget(still)

    def put(self, message: Any) -> None:
        if isinstance(message, Update):
            if message.number not in self.open:
                return  # cancelled meanwhile
            if message.finish is not None:
                self.open.discard(message.number)
            self._arrived.put_nowait(message)
        elif not self._taken.done():
            if isinstance(message, Refused):
                self._taken.set_exception(refusal(message))
            else:
                self._taken.set_result(None)

    def lose(self) -> None:
        """The decoder is gone: whoever waits hears it."""
        if not self._taken.done():
            self._taken.set_exception(self.client.unavailable())
            self._taken.exception()  # perhaps nobody asks any more
        for number in self.open:
            self._arrived.put_nowait(Update(number, [], finish="abort"))
        self.open.clear()


class DecoderClient:
    """See the module. Belongs to one event loop, from `attach` on."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.facts: Facts | None = None
        self.failure: str | None = None
        """Why there will be no more answers."""
        self._numbers = itertools.count()
        self._requests: dict[int, Request] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}

    def attach(self) -> None:
        """Begin to read, on the running event loop."""
        asyncio.get_running_loop().add_reader(self.connection.fileno(), self._read)
        self._send(Hello(os.getpid()))

    def detach(self) -> None:
        asyncio.get_running_loop().remove_reader(self.connection.fileno())
        self.connection.close()

    def check(self) -> Facts:
        """The model's facts. Raises ApiError 503 while there is no decoder to answer."""
        if self.failure is not None or self.facts is None:
            raise self.unavailable()
        return self.facts

    def unavailable(self) -> ApiError:
        if self.failure is not None:
            return ApiError(503, self.failure, kind="server_error", code="decoder_gone")
        if self.facts is None:
            why = "the model is being loaded: try again later"
            return ApiError(503, why, kind="server_error", code="starting", headers={"Retry-After": "5"})
        return ApiError(503, "the server stopped before the completion was done", kind="server_error", code="stopped")

    def submit(self, asks: Sequence[Ask]) -> Request:
        """Send a request; the asks get consecutive numbers."""
        self.check()
        request = Request(self, [replace(ask, number=next(self._numbers)) for ask in asks])
        self._requests.update((ask.number, request) for ask in request.asks)
        self._send(Submit(request.asks))
        return request

    async def query(self, what: Literal["metrics", "status"]) -> Any:
        """Raises ApiError when the decoder is gone or does not answer."""
        return await self._ask(Query(next(self._numbers), what), ANSWER_SECONDS)

    async def score(self, documents: list[list[int]]) -> list[float]:
        """One score a document. Raises ApiError 429 or 503."""
        scores: list[float] | Refused = await self._ask(Score(next(self._numbers), documents), None)
        if isinstance(scores, Refused):
            raise refusal(scores)
        return scores

    async def _ask(self, message: Query | Score, seconds: float | None) -> Any:
        self.check()
        future = self._answers[message.number] = asyncio.get_running_loop().create_future()
        self._send(message)
        try:
            return await asyncio.wait_for(future, seconds)
        except TimeoutError:
            why = f"the decoder process has not answered for {seconds:.0f} s"
            raise ApiError(503, why, kind="server_error", code="decoder_stuck") from None
        finally:
            self._answers.pop(message.number, None)

    def forget(self, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            self._requests.pop(number, None)
        self._send(Cancel(numbers))

    def _send(self, message: Any) -> None:
        try:
            self.connection.send(message)
        except OSError:
            self._lost("the decoder process has ended")

    def _read(self) -> None:
        try:
            messages = self.connection.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self.connection.fileno())
            self._lost("the decoder process has ended")
            return
        for message in messages:
            self._dispatch(message)

    def _dispatch(self, message: Any) -> None:
        if isinstance(message, Update):
            request = self._requests.get(message.number)
            if request is not None:
                if message.finish is not None:
                    del self._requests[message.number]
                request.put(message)
        elif isinstance(message, Accepted):
            if message.number in self._requests:
                self._requests[message.number].put(message)
        elif isinstance(message, Refused):
            request = self._requests.get(message.number)
            if request is not None:
                for ask in request.asks:
                    self._requests.pop(ask.number, None)
                request.open.clear()
                request.put(message)
        elif isinstance(message, Answer):
            future = self._answers.get(message.number)
            if future is not None and not future.done():
                future.set_result(message.value)
        elif isinstance(message, Facts):
            self.facts = message
        elif isinstance(message, Failed):
            self._lost(f"the decoder process failed: {message.message}")

    def _lost(self, why: str) -> None:
        if self.failure is not None:
            return
        self.failure = why
        requests, self._requests = set(self._requests.values()), {}
        for request in requests:
            request.lose()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(self.unavailable())


def refusal(message: Refused) -> ApiError:
    if message.reason == "full":
        return ApiError(
            429, "the server is full: try again later", kind="rate_limit_error", code="queue_full",
            headers={"Retry-After": str(message.retry_after)},
        )  # fmt: skip
    return ApiError(
        503, "the server is shutting down", kind="server_error", code="draining", headers={"Retry-After": "5"}
    )
