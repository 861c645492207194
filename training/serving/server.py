"""`navarch-train serve`: loads a model, answers over HTTP, says `ready` after a real completion, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import torch
import uvicorn

from training.data.batch import IGNORE, PackedBatch
from training.errors import ConfigError, TrainingError, as_training_error
from training.rollout.decoder import Decoder
from training.serving.app import Api, Scorer, make_app
from training.serving.config import ServeConfig
from training.serving.loading import Served, load_served
from training.serving.metrics import Metrics
from training.serving.protocol import ApiError
from training.serving.scheduler import Scheduler, warm
from training.telemetry import emit

SWITCH_SECONDS = 5e-4
SCORE_TOKENS = 16384
"""Tokens of one pass of a reward model."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: `run` installs ones that drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ModelServer:
    """A served model with its HTTP server; `run()` blocks until it is told to stop."""

    def __init__(self, config: ServeConfig, served: Served) -> None:
        self.config, self.served = config, served
        metrics = Metrics()
        self.scheduler: Scheduler | None = None
        scorer: Scorer | None = None
        if served.reward:
            scorer = make_scorer(served)
        else:
            decoder = Decoder(served.model, max_batch=config.max_batch, max_length=served.max_length)
            seconds = warm(decoder)
            size = f"{config.max_batch} slots of {served.max_length} tokens, {decoder.table.nbytes() / 2**30:.2f} GiB"
            print(f"serve: {size}; warm in {seconds:.1f} s", flush=True)
            self.scheduler = Scheduler(decoder, self._decode, max_queue=config.max_queue, metrics=metrics)
        self.api = Api(config, served, self.scheduler, scorer, metrics)
        try:
            app = make_app(self.api)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.http = _Server(
            uvicorn.Config(
                app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=60,
                timeout_graceful_shutdown=int(config.drain_s), backlog=2048,
            )
        )  # fmt: skip
        self.port = config.port

    def _decode(self, ids: list[int]) -> str:
        return self.served.codec.decode(ids)

    def listen(self) -> socket.socket:
        """Bind the configured address (port 0: any free port, then in `port`)."""
        listener = socket.socket(socket.AF_INET6 if ":" in self.config.host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.config.host, self.config.port))
        except OSError as error:
            listener.close()
            where = f"{self.config.host}:{self.config.port}"
            raise ConfigError(f"can't listen on {where}: {error.strerror}; choose another port") from error
        self.port = listener.getsockname()[1]
        return listener

    def run(self, *, signals: bool = True) -> None:
        """Serve until SIGTERM or SIGINT (or `stop()`), then let running requests finish for `drain_s` seconds."""
        listener = self.listen()
        # The decoder's thread gives up Python's lock at every launch; at the default 5 ms it would wait for the HTTP
        # thread each time, and the device with it.
        sys.setswitchinterval(SWITCH_SECONDS)
        if self.scheduler is not None:
            self.scheduler.start()
        try:
            asyncio.run(self._serve(listener, signals))
        finally:
            if self.scheduler is not None:
                self.scheduler.stop()

    async def _serve(self, listener: socket.socket, signals: bool) -> None:
        if signals:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
        serving = asyncio.create_task(self.http.serve([listener]))
        while not self.http.started and not serving.done():
            await asyncio.sleep(0.01)
        checking = asyncio.create_task(asyncio.to_thread(self._announce))
        checking.add_done_callback(lambda task: self.stop() if task.exception() else None)
        while not serving.done():
            await asyncio.wait({serving}, timeout=0.5)
            if self.scheduler is not None and self.scheduler.failure is not None:
                self.http.should_exit = True
        if checking.done() and checking.exception() is not None:
            raise checking.exception()  # type: ignore[misc]
        if self.scheduler is not None and self.scheduler.failure is not None:
            raise as_training_error(self.scheduler.failure) from self.scheduler.failure

    def _announce(self) -> None:
        """Answer one real request through the front door; only then is the server ready."""
        key = os.environ.get(self.config.api_key_env or "") or "none"
        host = "127.0.0.1" if self.config.host in ("0.0.0.0", "::") else self.config.host
        base = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        hello = [{"role": "user", "content": "Hello"}]
        start = time.perf_counter()
        with httpx.Client(
            base_url=base, timeout=300, headers={"Authorization": f"Bearer {key}"}, trust_env=False
        ) as client:
            if self.served.reward:
                answer = client.post("/score", json={"messages": [*hello, {"role": "assistant", "content": "Hi."}]})
            else:
                body = {"messages": hello, "max_tokens": 4, "temperature": 0}
                answer = client.post("/v1/chat/completions", json=body)
        if answer.status_code != 200:
            raise TrainingError(f"the server does not answer its own first request: {answer.text[:500]}")
        self.api.ready = True
        what = "reward model" if self.served.reward else "model"
        seconds = time.perf_counter() - start
        print(f"serve: {what} {self.served.name} at {base} (first answer in {seconds:.2f} s)", flush=True)
        emit("ready", url_path="/score" if self.served.reward else "/v1", port=self.port, model=self.served.name)

    def stop(self) -> None:
        """Take no new requests and end when the running ones are done, or after `drain_s`."""
        if not self.http.should_exit:
            print("serve: draining", flush=True)
        if self.scheduler is not None:
            self.scheduler.drain()
        self.http.should_exit = True


def make_scorer(served: Served) -> Scorer:
    """Scores of conversations by a reward model, in batches of a bounded number of tokens."""
    lock = threading.Lock()

    @torch.no_grad()
    def score(conversations: list[list[dict[str, str]]]) -> tuple[list[float], int]:
        documents = [encoded.tokens.tolist() for encoded in served.codec.encode_chats(conversations)]
        longest = max(len(tokens) for tokens in documents)
        if longest > served.max_length:
            message = f"a conversation has {longest} tokens; this model takes {served.max_length}: shorten it"
            raise ApiError(400, message, param="messages", code="context_length_exceeded")
        scores: list[float] = []
        start = 0
        with lock:
            while start < len(documents):
                end, total = start, 0
                while end < len(documents) and (end == start or total + len(documents[end]) <= SCORE_TOKENS):
                    total += len(documents[end])
                    end += 1
                scores += served.model.scores(pack_documents(documents[start:end]).to(served.device)).tolist()
                start = end
        return scores, sum(map(len, documents))

    return score


def pack_documents(documents: list[list[int]]) -> PackedBatch:
    """Whole documents one after another, without labels or a pad tail."""
    lengths = tuple(len(tokens) for tokens in documents)
    tokens = torch.tensor([token for tokens in documents for token in tokens])
    return PackedBatch(
        tokens=tokens,
        labels=torch.full_like(tokens, IGNORE),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
        max_seqlen=max(lengths),
        num_targets=0,
        lengths=lengths,
        rows=tuple(str(i) for i in range(len(lengths))),
    )


def run(config: ServeConfig) -> int:
    """The command: exit code 0 after a drain."""
    torch.set_grad_enabled(False)
    ModelServer(config, load_served(config)).run()
    return 0


def serve_in_thread(config: ServeConfig, served: Served) -> tuple[Any, ModelServer]:
    """A running server in this process (notebooks, tests); end it with `server.stop()` and join the thread."""
    server = ModelServer(config, served)
    thread = threading.Thread(target=lambda: server.run(signals=False), name="model-server", daemon=True)
    thread.start()
    while not server.api.ready and thread.is_alive():
        time.sleep(0.01)
    if not thread.is_alive():
        raise TrainingError("the server did not start: see the error above")
    return thread, server
