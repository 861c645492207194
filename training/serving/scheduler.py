"""Continuous batching: one thread drives the decoder; requests join at any step and leave when they end.

The loop launches a few decode steps, and while the device works on them hands out the tokens of the steps before. A
request's tokens depend on its prompt, options and seed only, never on who shares the batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from training.generation_config import GenerationConfig
from training.rollout.decoder import Decoder
from training.rollout.slots import RECENT, Features, Request, Snapshot
from training.serving.metrics import Metrics
from training.serving.streaming_text import TextStream

CHUNK_SECONDS = 0.008
"""How long the steps of one launch should take: short enough for a stream to look smooth."""
LONGEST_CHUNK = RECENT // 4
FinishReason = Literal["stop", "length", "abort", "error"]


class QueueFull(Exception):
    """More requests wait than the server was told to keep."""


class Draining(Exception):
    """The server is shutting down and takes no new requests."""


class Token(NamedTuple):
    """One generated token with its log-prob and, if asked for, the most likely ones at its place."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What a request is handed: new text and tokens; the last piece has a finish reason."""

    text: str
    tokens: tuple[Token, ...]
    finish: FinishReason | None = None
    error: str | None = None


@dataclass
class Completion:
    """One running or waiting request. `sink` is called on the scheduler's thread."""

    prompt: list[int]
    config: GenerationConfig
    stop_ids: tuple[int, ...]
    seed: int
    sink: Callable[[Piece], None]
    stream: bool = False
    top: int = 0
    created: float = field(default_factory=time.perf_counter)
    generated: int = 0
    """Tokens of the completion so far, the stop token included."""
    slot: int | None = None
    issued: int = 0
    cancelled: bool = False
    done: bool = False
    first_token_at: float | None = None
    text: TextStream | None = None
    pending: list[Token] = field(default_factory=list)
    """Tokens not yet turned into text."""
    kept: list[Token] = field(default_factory=list)
    """Tokens turned into text but not yet handed over (requests that don't stream)."""
    delivered: int = 0


class Launch(NamedTuple):
    """Steps that the device works on, and for whom."""

    snapshot: Snapshot
    running: dict[int, Completion]
    started: float
    steps: int


class Scheduler:
    """Owns the decoder and its thread. `submit`, `cancel` and the counts may be called from any thread."""

    def __init__(
        self, decoder: Decoder, decode: Callable[[list[int]], str], *, max_queue: int, metrics: Metrics | None = None
    ) -> None:
        self.decoder, self.decode, self.max_queue = decoder, decode, max_queue
        self.metrics = metrics or Metrics()
        self._wake = threading.Condition()
        self._waiting: deque[Completion] = deque()
        self._running: dict[int, Completion] = {}
        self._free = list(range(decoder.max_batch))
        self._draining = self._stopped = False
        self._step_seconds = self._last_end = 0.0
        self._thread = threading.Thread(target=self._loop, name="decoder", daemon=True)
        self.failure: BaseException | None = None

    # --- from any thread

    def start(self) -> None:
        self._thread.start()

    def submit(self, *completions: Completion) -> None:
        """Queue requests, all or none. Raises QueueFull or Draining."""
        with self._wake:
            if self._draining or self._stopped:
                raise Draining
            room = self.max_queue + len(self._free) - len(self._waiting)
            if len(completions) > room:
                self.metrics.rejected.inc()
                raise QueueFull
            for completion in completions:
                completion.text = TextStream(self.decode, completion.config.stop)
                self._waiting.append(completion)
            self.metrics.waiting.set(len(self._waiting))
            self._wake.notify()

    def cancel(self, completion: Completion) -> None:
        """Forget a request whose client has gone; its slot is free at the next step."""
        with self._wake:
            completion.cancelled = True
            self._wake.notify()

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        return len(self._running), len(self._waiting)

    def retry_after(self) -> int:
        """Seconds after which a slot may be free, as a guess for clients."""
        return max(1, round(self._step_seconds * 128 * (1 + len(self._waiting) / self.decoder.max_batch)))

    def drain(self) -> None:
        """Take no more requests; those accepted go on."""
        with self._wake:
            self._draining = True

    def stop(self) -> None:
        """End the thread; what still runs is aborted."""
        with self._wake:
            self._draining = self._stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    # --- the decoder's thread

    def _loop(self) -> None:
        launched: Launch | None = None
        try:
            while True:
                with self._wake:
                    while not (self._waiting or self._running or launched or self._stopped):
                        self._wake.wait()
                    if self._stopped:
                        break
                    new = self._take()
                self._drop_cancelled()
                if new:
                    self._admit(new)
                before = launched
                launched = self._launch()
                if before is not None:
                    self._hand_out(before)
                elif launched is None and self._running:
                    raise RuntimeError("requests hold slots but can't go on")
        except BaseException as error:  # a failed device must end every request, not hang it
            self.failure = error
            with self._wake:
                self._draining = self._stopped = True
        for completion in [*self._running.values(), *self._waiting]:
            self._end(completion, "error" if self.failure else "abort", str(self.failure) if self.failure else None)

    def _take(self) -> list[Completion]:
        taken: list[Completion] = []
        while self._waiting and len(taken) < len(self._free):
            completion = self._waiting.popleft()
            if completion.cancelled:
                self._end(completion, "abort")
            else:
                taken.append(completion)
        self.metrics.waiting.set(len(self._waiting))
        return taken

    def _admit(self, new: list[Completion]) -> None:
        requests = []
        for completion in new:
            slot = self._free.pop()
            completion.slot = slot
            self._running[slot] = completion
            requests.append(Request(slot, completion.prompt, completion.config, completion.stop_ids, completion.seed))
            self.metrics.prompt_tokens.inc(len(completion.prompt))
        self.decoder.admit(requests)
        self.metrics.running.set(len(self._running))

    def _drop_cancelled(self) -> None:
        for completion in [c for c in self._running.values() if c.cancelled]:
            self._end(completion, "abort")

    def _launch(self) -> Launch | None:
        """Start the next steps on the device; None when every request already has all that it may get."""
        limits = {slot: self._budget(completion) for slot, completion in self._running.items()}
        active = sorted(slot for slot, left in limits.items() if left > 0)
        if not active:
            return None
        count = min(self._chunk(), max(limits[slot] for slot in active))
        running = {slot: self._running[slot] for slot in active}
        features = Features(
            filtered=any(completion.config.filtered for completion in running.values()),
            penalised=any(completion.config.penalised for completion in running.values()),
            top=any(completion.top for completion in running.values()),
        )
        start = time.perf_counter()
        self.decoder.steps(active, count, features)
        for completion in running.values():
            completion.issued += count
        return Launch(self.decoder.snapshot(RECENT, features.top), dict(self._running), start, count)

    def _budget(self, completion: Completion) -> int:
        most = min(completion.config.max_new_tokens, self.decoder.max_length - len(completion.prompt))
        return most - completion.issued

    def _chunk(self) -> int:
        if not self._step_seconds:
            return 1
        return max(1, min(LONGEST_CHUNK, int(CHUNK_SECONDS / self._step_seconds)))

    def _measure(self, seconds: float) -> None:
        self._step_seconds = seconds if not self._step_seconds else 0.8 * self._step_seconds + 0.2 * seconds
        self.metrics.step_seconds.set(self._step_seconds)

    def _hand_out(self, launch: Launch) -> None:
        """Give each request the tokens of finished steps."""
        snapshot = launch.snapshot.wait()
        now = time.perf_counter()
        self._measure((now - max(launch.started, self._last_end)) / launch.steps)
        self._last_end = now
        total = 0
        for slot, completion in launch.running.items():
            if completion.done:
                continue
            start = len(completion.prompt) + completion.generated
            ids = snapshot.tokens(slot, start)
            finished = bool(snapshot.finished[slot])
            if not ids and not finished:
                continue
            scores = snapshot.logprobs(slot, start)
            tops: list[Any] = snapshot.top(slot, start, completion.top) if completion.top and ids else [()] * len(ids)
            total += len(ids)
            if completion.first_token_at is None and ids:
                completion.first_token_at = now
                self.metrics.ttft.observe(now - completion.created)
            completion.generated += len(ids)
            completion.pending += [Token(i, score, tuple(top)) for i, score, top in zip(ids, scores, tops, strict=True)]
            if finished or completion.stream or completion.config.stop:  # else nobody looks before the end
                self._deliver(completion, finished, bool(snapshot.stopped[slot]))
        self.metrics.generated_tokens.inc(total)

    def _deliver(self, completion: Completion, finished: bool, by_id: bool) -> None:
        text = completion.text
        assert text is not None
        tokens, completion.pending = completion.pending, []
        new = text.add([token.id for token in (tokens[:-1] if by_id else tokens)], last=finished)
        if text.stopped:
            tokens = tokens[: text.count - completion.delivered]
            completion.generated = text.count
        completion.delivered += len(tokens)
        if not completion.stream:
            completion.kept += tokens
            new, tokens = text.text, completion.kept
        if text.stopped or finished:
            self._end(completion, "stop" if text.stopped or by_id else "length", None, new, tokens)
        elif completion.stream:
            completion.sink(Piece(new, tuple(tokens)))

    def _end(
        self,
        completion: Completion,
        reason: FinishReason,
        error: str | None = None,
        text: str = "",
        tokens: list[Token] | None = None,
    ) -> None:
        completion.done = True
        if completion.slot is not None and self._running.pop(completion.slot, None) is not None:
            if self.failure is None:
                self.decoder.forget([completion.slot])
            with self._wake:
                self._free.append(completion.slot)
            self.metrics.running.set(len(self._running))
        self.metrics.finished.labels(reason=reason).inc()
        self.metrics.seconds.observe(time.perf_counter() - completion.created)
        completion.sink(Piece(text, tuple(tokens or ()), reason, error))


def warm(decoder: Decoder) -> float:
    """Capture the graphs of plain decoding and prefill ahead, so that no request waits for them; returns seconds."""
    start = time.perf_counter()
    if decoder.graphs:
        decoder.warm()
        torch.cuda.synchronize()
    return time.perf_counter() - start
