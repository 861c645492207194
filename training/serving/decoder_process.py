"""The decoder process: owns the device, loads the model, and answers the HTTP processes' messages."""

from __future__ import annotations

import gc
import itertools
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection, wait
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import torch

from training.config.generation import GenerationConfig
from training.config.serving import ServeConfig
from training.errors import OutOfMemory, TrainingError, as_training_error
from training.report.phases import phase
from training.rollout.decoder import BATCH_SIZES, Decoder
from training.rollout.families import family_of
from training.rollout.memory import HOST_SHARE, SERVING_SHARE, CachePlan, plan_cache
from training.rollout.slots import TOP_LOGPROBS as TOP_COLUMNS
from training.rollout.slots import Request
from training.serving.loading import Served, load_served
from training.serving.messages import (
    TOP_LOGPROBS,
    Accepted,
    Answer,
    Cancel,
    Command,
    Facts,
    Failed,
    Hello,
    Query,
    QueueFull,
    Refused,
    Score,
    Status,
    Submit,
)
from training.serving.metrics import Metrics
from training.serving.scheduler import PREFILL_TOKENS, SERVED_FEATURES, Completion, Scheduler
from training.serving.scoring import ScoreQueue

SWITCH_SECONDS = 5e-4
"""The thread that reads the pipes must not wait the default 5 ms for a loop that is busy launching."""


class Gone(NamedTuple):
    """The other end of a pipe was closed."""


class Link:
    """One HTTP process: what it is owed, and its running completions by its own numbers."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.outbox: list[Any] = []
        self.completions: dict[int, Completion] = {}
        self.pid: int | None = None
        self.open = True

    def flush(self) -> None:
        """Send what has gathered, as one message."""
        if self.outbox and self.open:
            try:
                self.connection.send(self.outbox)
            except OSError:
                self.open = False  # its reader says so too, and then its requests are cancelled
        self.outbox.clear()


class Inbox:
    """A thread that reads every pipe at once, so that no sender ever waits for the loop."""

    def __init__(self, connections: list[Connection]) -> None:
        self._queue: SimpleQueue[tuple[Connection, Any]] = SimpleQueue()
        threading.Thread(target=self._read, args=(list(connections),), name="inbox", daemon=True).start()

    def _read(self, connections: list[Connection]) -> None:
        while connections:
            for connection in wait(connections):
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except (EOFError, OSError):
                    message = Gone()
                    connections.remove(connection)
                self._queue.put((connection, message))

    def take(self, block: bool) -> list[tuple[Connection, Any]]:
        """All messages that are there; with `block`, at least one."""
        found = [self._queue.get()] if block else []
        while True:
            try:
                found.append(self._queue.get_nowait())
            except Empty:
                return found


class DecoderLoop:
    """Messages in, steps of the scheduler (or of the score queue), messages out, until `stop` or a failure."""

    def __init__(self, served: Served, config: ServeConfig, control: Connection, pipes: list[Connection]) -> None:
        self.control = control
        vocabulary = 0 if served.reward else int(served.model.config.vocab_size)
        plan = None if served.reward else cache_for(served, config)
        self.facts = Facts(served.name, plan.max_length if plan else served.max_length, vocabulary, served.reward)
        self.metrics = Metrics()
        self.links = {connection: Link(connection) for connection in pipes}
        self.inbox = Inbox([control, *pipes])
        self.work: Scheduler | ScoreQueue
        if plan is None:
            self.work = ScoreQueue(served.model, served.device, self.metrics, max_queue=config.max_queue)
        else:
            decoder = Decoder(served.model, max_batch=plan.slots, max_length=plan.max_length, unscaled=True)
            with phase("serve: compiling and capturing what requests can meet"):
                seconds = warm(decoder)
            print(f"serve: {plan.sentence}; warm in {seconds:.1f} s", flush=True)
            self.work = Scheduler(decoder, max_queue=config.max_queue, metrics=self.metrics, seed=config.seed)
        self.ready = self.draining = self.stopped = False

    def run(self) -> None:
        """Raises what the device raised, after every waiting request was told."""
        self._send_all(self.facts)
        try:
            while True:
                idle = self.work.idle
                started = time.perf_counter()
                messages = self.inbox.take(block=idle)
                if idle:
                    self.metrics.host_seconds.labels(doing="asleep").inc(time.perf_counter() - started)
                for connection, message in messages:
                    self._handle(connection, message)
                if self.stopped:
                    return
                if not self.work.idle:
                    self.work.step()
                for link in self.links.values():
                    link.flush()
        except BaseException as error:
            if isinstance(self.work, Scheduler):
                self.work.fail(str(error))
            failure = serving_error(error)
            self._send_all(Failed(failure.kind, failure.exit_code, str(failure)))
            raise

    def _send_all(self, message: Any) -> None:
        for link in self.links.values():
            link.outbox.append(message)
            link.flush()

    def _handle(self, connection: Connection, message: Any) -> None:
        if connection is self.control:
            what = message.what if isinstance(message, Command) else "stop"  # Gone: the supervisor has died
            self.ready |= what == "ready"
            self.draining |= what == "drain"
            self.stopped |= what == "stop"
            return
        link = self.links[connection]
        if isinstance(message, Submit):
            self._submit(link, message)
        elif isinstance(message, Score):
            self._score(link, message)
        elif isinstance(message, Query):
            pids = [link.pid for link in self.links.values() if link.pid is not None]
            value = Status(self.ready, *self.work.load) if message.what == "status" else self.metrics.text(pids)
            link.outbox.append(Answer(message.number, value))
        elif isinstance(message, Hello):
            link.pid = message.pid
        else:
            numbers = message.numbers if isinstance(message, Cancel) else tuple(link.completions)
            link.open &= not isinstance(message, Gone)
            for number in numbers:
                completion = link.completions.pop(number, None)
                if completion is not None and isinstance(self.work, Scheduler):
                    self.work.cancel(completion)

    def _score(self, link: Link, message: Score) -> None:
        assert isinstance(self.work, ScoreQueue)
        number = message.number
        if self.draining:
            link.outbox.append(Answer(number, Refused(number, "draining", 5)))
            return
        try:
            self.work.submit(message.documents, lambda scores: link.outbox.append(Answer(number, scores)))
        except QueueFull:
            link.outbox.append(Answer(number, Refused(number, "full", self.work.retry_after())))

    def _submit(self, link: Link, message: Submit) -> None:
        assert isinstance(self.work, Scheduler)
        first = message.asks[0].number
        if self.draining:
            link.outbox.append(Refused(first, "draining", 5))
            return

        def deliver(update: Any) -> None:
            link.outbox.append(update)
            if update.finish is not None:
                link.completions.pop(update.number, None)

        try:
            found = self.work.submit(message.asks, deliver)
        except QueueFull:
            link.outbox.append(Refused(first, "full", self.work.retry_after()))
            return
        link.outbox.append(Accepted(first))
        link.completions.update((completion.ask.number, completion) for completion in found)


def cache_for(served: Served, config: ServeConfig) -> CachePlan:
    """How many requests of what length fit: at most what the configuration says, as much of it as there is memory."""
    share = SERVING_SHARE if served.device.type == "cuda" else HOST_SHARE
    return plan_cache(
        family_of(served.model), served.device, slots=config.max_batch, max_length=served.max_length, share=share,
        may_shorten=config.max_length is None,
    )  # fmt: skip


@torch.no_grad()
def warm(decoder: Decoder) -> float:
    """Compile and capture all that requests can meet, so that none of them waits for it; returns seconds."""
    if TOP_LOGPROBS > TOP_COLUMNS:
        raise RuntimeError(f"the API offers {TOP_LOGPROBS} top log-probs, the decoder keeps {TOP_COLUMNS}")
    start = time.perf_counter()
    if not decoder.graphs:
        return 0.0
    decoder.warm()
    greedy = GenerationConfig(max_new_tokens=1 << 20, temperature=0)
    sizes = [size for size in BATCH_SIZES if size < decoder.max_batch] + [decoder.max_batch]
    longest = [1, *(256 * 2**i for i in range(6) if 256 * 2**i + 2 * len(SERVED_FEATURES) < decoder.max_length)]
    for size, tokens in itertools.product(sizes, longest):  # long rows are decoded by other kernels in small batches
        prompts = [[0] * tokens, *[[0]] * (size - 1)]
        decoder.admit([Request(slot, prompt, greedy, (), 0) for slot, prompt in enumerate(prompts)])
        for features in SERVED_FEATURES:
            decoder.steps(range(size), 2, features)
            decoder.snapshot(2, features.top).wait()
        decoder.forget(range(size))
    for length in (PREFILL_TOKENS + 2, PREFILL_TOKENS + 17):  # beyond the graphs: both kinds of alignment
        if length < decoder.max_length:
            decoder.admit([Request(0, [0] * length, greedy, (), 0)])
            decoder.forget([0])
    torch.cuda.synchronize()
    return time.perf_counter() - start


def serving_error(error: BaseException) -> TrainingError:
    """The error with its name; what to do when memory ran out is another thing than in training."""
    failure = as_training_error(error)
    if isinstance(failure, OutOfMemory):
        first_line = str(error).split("\n")[0]
        return OutOfMemory(f"The GPU's memory ran out: {first_line} Lower max_batch or max_length, or set quantize.")
    return failure


def run_decoder(config: ServeConfig, served: Served | None, control: Connection, pipes: list[Connection]) -> None:
    """The decoder's whole life, in a process or a thread of its own; failures are told to the supervisor."""
    try:
        with torch.no_grad():
            with phase(f"serve: loading {config.model}"):
                served = served or load_served(config)
            gc.collect()
            gc.freeze()  # the model's objects stay: collections need not walk them
            loop = DecoderLoop(served, config, control, pipes)
            control.send(loop.facts)
            loop.run()
    except BaseException as error:
        failure = serving_error(error)
        control.send(Failed(failure.kind, failure.exit_code, str(failure)))
        if not isinstance(error, Exception):
            raise


def main(config: ServeConfig, control: Connection, pipes: list[Connection]) -> None:
    """Target of the process. Signals are the supervisor's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_SECONDS)
    run_decoder(config, None, control, pipes)
