"""Continuous batching: requests join the decoder's slots at any step and leave when they end.

One `step` admits, launches a few decode steps, and while the device works on them hands out the tokens of the launch
before. One thread drives it all; nothing here waits for anything but the device. A request's tokens depend on its
prompt, options and seed only, never on who shares the batch.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from training.rollout.decoder import Decoder
from training.rollout.engine import row_seed
from training.rollout.slots import RECENT, Features, Request, Snapshot
from training.serving.clock import Mark
from training.serving.messages import Ask, FinishReason, QueueFull, Update
from training.serving.metrics import Metrics

CHUNK_SECONDS = 0.005
"""How long the steps of one launch should take: a request that ends or arrives waits for the end of a launch."""
LONGEST_CHUNK = RECENT // 4
STREAM_SECONDS = 0.015
"""Least time between two updates of one request: every update costs the HTTP side as much as several tokens."""
LONGEST_HOLD = 0.02
"""Most time that a request waits for others to share its prefill pass."""
PREFILL_TOKENS = 2048
"""Prompt tokens of one prefill pass: what the decoder has captured graphs for."""
MOST_PASSES = 4
"""Prefill passes in a row before those who run get their next steps."""
Deliver = Callable[[Update], None]


@dataclass(eq=False)
class Completion:
    """One running or waiting request."""

    ask: Ask
    deliver: Deliver
    seed: int
    arrived: float
    slot: int | None = None
    issued: int = 0
    """Steps launched for it."""
    generated: int = 0
    """Tokens known to exist, the stop token included."""
    done: bool = False
    tokens: list[int] = field(default_factory=list)
    """Tokens not yet handed over."""
    logprobs: list[float] = field(default_factory=list)
    top: list[list[tuple[int, float]]] = field(default_factory=list)
    told: float = 0.0
    """When its last update was sent."""


class Launch(NamedTuple):
    """Steps that the device works on, and for whom."""

    snapshot: Snapshot
    running: list[Completion]
    steps: int
    begin: Mark
    filled: Mark
    end: Mark


class Scheduler:
    """Owns the decoder. `idle` says that `step` has nothing to do until the next `submit`."""

    def __init__(self, decoder: Decoder, *, max_queue: int, metrics: Metrics, seed: int = 0) -> None:
        self.decoder, self.max_queue, self.metrics = decoder, max_queue, metrics
        self._seeds = (row_seed(seed, number) for number in itertools.count())
        self._waiting: deque[Completion] = deque()
        self._running: dict[int, Completion] = {}
        self._free: deque[tuple[int, float]] = deque((slot, 0.0) for slot in range(decoder.max_batch))
        """Free slots, and since when."""
        self._launched: Launch | None = None
        self._last_end: Mark | None = None
        self._step_seconds = 0.0

    # --- requests

    def submit(self, asks: tuple[Ask, ...], deliver: Deliver) -> list[Completion]:
        """Queue completions, all or none. Raises QueueFull."""
        if len(asks) > self.max_queue + len(self._free) - len(self._waiting):
            self.metrics.rejected.inc()
            raise QueueFull
        now = time.monotonic()
        found = []
        for ask in asks:
            seed = next(self._seeds) if ask.seed is None else row_seed(ask.seed, ask.choice)
            found.append(Completion(ask, deliver, seed, now))
        self._waiting += found
        return found

    def cancel(self, completion: Completion) -> None:
        """Forget a request whose client has gone."""
        if not completion.done:
            if completion.slot is None:
                self._waiting.remove(completion)
            self._end(completion, "abort")

    def fail(self, error: str) -> None:
        """End every request: the device is lost."""
        for completion in [*self._running.values(), *self._waiting]:
            completion.done = True
            completion.deliver(Update(completion.ask.number, [], finish="error", error=error))

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._running or self._launched)

    @property
    def load(self) -> tuple[int, int]:
        """(running, waiting) requests."""
        return len(self._running), len(self._waiting)

    def retry_after(self) -> int:
        """Seconds after which a slot may be free, as a guess for clients."""
        return max(1, round(self._step_seconds * 128 * (1 + len(self._waiting) / self.decoder.max_batch)))

    # --- one round

    def step(self) -> None:
        """Admit, launch the next steps, and hand out the results of those before."""
        started = time.perf_counter()
        begin = Mark(self.decoder.device)
        now, pairs = time.monotonic(), zip(self._waiting, self._free, strict=False)
        held = [now - max(completion.arrived, since) for completion, (_, since) in pairs]
        if worth_admitting(held, len(self._running), self._step_seconds):
            for _ in range(MOST_PASSES):
                if not self._admit():
                    break
        filled = Mark(self.decoder.device)
        started = self._spent("admit", started)
        before, self._launched = self._launched, self._launch(begin, filled)
        started = self._spent("launch", started)
        if before is not None:
            before.snapshot.wait()
            started = self._spent("wait", started)
            self._hand_out(before)
            self._spent("hand_out", started)
        elif self._launched is None and self._running:
            raise RuntimeError("requests hold slots but can't go on")
        if self.idle:
            self._last_end = None  # from here on the device rests for want of work
        self.metrics.waiting.set(len(self._waiting))
        self.metrics.running.set(len(self._running))

    def _spent(self, doing: str, since: float) -> float:
        now = time.perf_counter()
        self.metrics.host_seconds.labels(doing=doing).inc(now - since)
        return now

    def _admit(self) -> bool:
        """One prefill pass for those who wait, as far as slots and its budget allow; False when nobody was admitted."""
        requests: list[Request] = []
        size = 0
        while self._waiting and self._free:
            ask = self._waiting[0].ask
            size += len(ask.prompt) - 1
            if requests and size > PREFILL_TOKENS:
                break
            completion = self._waiting.popleft()
            slot, _ = self._free.popleft()
            completion.slot, self._running[slot] = slot, completion
            requests.append(Request(slot, ask.prompt, ask.config, ask.stop_ids, completion.seed))
            self.metrics.prompt_tokens.inc(len(ask.prompt))
            self.metrics.queue_seconds.observe(time.monotonic() - ask.created)
        if requests:
            self.decoder.admit(requests)
            self.metrics.prefills.inc()
        return bool(requests)

    def _launch(self, begin: Mark, filled: Mark) -> Launch | None:
        """Start the next steps on the device; None when every request already has all that it may get."""
        left = {slot: self._budget(completion) for slot, completion in self._running.items()}
        active = sorted(slot for slot, steps in left.items() if steps > 0)
        if not active:
            return None
        count = min(self._chunk(), max(left[slot] for slot in active))
        running = [self._running[slot] for slot in active]
        features = features_for(running)
        self.decoder.steps(active, count, features)
        for completion in running:
            completion.issued += count
        self.metrics.steps.inc(count)
        self.metrics.slot_steps.inc(count * len(active))
        end = Mark(self.decoder.device)
        return Launch(self.decoder.snapshot(count, features.top), running, count, begin, filled, end)

    def _budget(self, completion: Completion) -> int:
        ask = completion.ask
        return min(ask.config.max_new_tokens, self.decoder.max_length - len(ask.prompt)) - completion.issued

    def _chunk(self) -> int:
        if not self._step_seconds:
            return 1
        return max(1, min(LONGEST_CHUNK, round(CHUNK_SECONDS / self._step_seconds)))

    def _hand_out(self, launch: Launch) -> None:
        """Give each request the tokens of finished steps."""
        self._measure(launch)
        now, snapshot = time.monotonic(), launch.snapshot
        total = 0
        for completion in launch.running:
            if completion.done:
                continue
            ask, slot = completion.ask, completion.slot
            assert slot is not None
            start = len(ask.prompt) + completion.generated
            ids = snapshot.tokens(slot, start)
            if ids:
                if not completion.generated:
                    self.metrics.ttft.observe(now - ask.created)
                completion.generated += len(ids)
                total += len(ids)
                completion.tokens += ids
                if ask.logprobs:
                    completion.logprobs += snapshot.logprobs(slot, start)
                if ask.top:
                    completion.top += snapshot.top(slot, start, ask.top)
            if snapshot.finished[slot]:
                self._end(completion, "stop" if snapshot.stopped[slot] else "length")
            elif ask.live and completion.tokens and now - completion.told >= STREAM_SECONDS:
                completion.told = now
                completion.deliver(_update(completion))
        self.metrics.generated_tokens.inc(total)

    def _measure(self, launch: Launch) -> None:
        decode = launch.filled.until(launch.end)
        device = self.metrics.device_seconds
        device.labels(doing="prefill").inc(launch.begin.until(launch.filled))
        device.labels(doing="decode").inc(decode)
        if self._last_end is not None:
            device.labels(doing="idle").inc(max(0.0, self._last_end.until(launch.begin)))
        self._last_end = launch.end
        seconds = decode / launch.steps
        self._step_seconds = seconds if not self._step_seconds else 0.8 * self._step_seconds + 0.2 * seconds
        self.metrics.step_seconds.set(self._step_seconds)

    def _end(self, completion: Completion, reason: FinishReason) -> None:
        completion.done = True
        if completion.slot is not None:
            del self._running[completion.slot]
            if reason == "abort":
                self.decoder.forget([completion.slot])
            self._free.append((completion.slot, time.monotonic()))
        self.metrics.finished.labels(reason=reason).inc()
        self.metrics.seconds.observe(time.monotonic() - completion.ask.created)
        completion.deliver(_update(completion, reason))


def worth_admitting(held: list[float], running: int, step_seconds: float) -> bool:
    """Whether a prefill pass should run now for requests that could have started `held` seconds ago each.

    A pass stops everybody who runs for about a step. Waiting for company until those who wait have lost as much time
    together as the pass costs the others makes the two losses together least.
    """
    if not held or not running:
        return bool(held)
    return sum(held) >= running * step_seconds or max(held) >= LONGEST_HOLD


def _update(completion: Completion, finish: FinishReason | None = None) -> Update:
    """What has not been told yet."""
    ask, tokens = completion.ask, completion.tokens
    update = Update(
        ask.number,
        tokens,
        completion.logprobs if ask.logprobs else None,
        completion.top if ask.top else None,
        finish,
    )
    completion.tokens, completion.logprobs, completion.top = [], [], []
    return update


PLAIN, FILTERED = Features(), Features(filtered=True)
TOP, ALL = Features(top=True), Features(filtered=True, penalised=True, top=True)
SERVED_FEATURES = (PLAIN, FILTERED, TOP, ALL)
"""The kinds of step that serving uses, few enough to capture all of them at start."""


def features_for(running: list[Completion]) -> Features:
    """The least of SERVED_FEATURES that does what these requests ask for; the surplus changes no token."""
    filtered = any(completion.ask.config.filtered for completion in running)
    top = any(completion.ask.top for completion in running)
    if any(completion.ask.config.penalised for completion in running) or (filtered and top):
        return ALL
    return TOP if top else FILTERED if filtered else PLAIN
