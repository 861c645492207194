"""`navarch-train serve`: starts the decoder process and the HTTP processes, says `ready`, watches them, drains.

The supervisor here does no work of its own: it holds the port, makes the first request, passes signals on as messages,
and ends everything when a part dies. Imports no torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import httpx

from training import errors
from training.config.serving import ServeConfig
from training.errors import ConfigError, TrainingError
from training.report.telemetry import emit
from training.serving import http_process
from training.serving.app import read_key
from training.serving.http_process import bind
from training.serving.messages import Command, Facts, Failed

WATCH_SECONDS = 0.1
STARTING_SECONDS = 60.0
"""How long HTTP processes may need to hear that the model is loaded."""
END_SECONDS = 10.0
"""How long a part may need to end after it was told to."""


@dataclass(frozen=True)
class Part:
    """A process (or thread) of the server, and the supervisor's pipe to it."""

    name: str
    control: Connection
    worker: BaseProcess | threading.Thread

    def tell(self, what: Any) -> None:
        with contextlib.suppress(OSError):  # it has ended: `watch` says so
            self.control.send(Command(what))

    def end(self) -> str:
        """How it ended, for a message."""
        code = self.worker.exitcode if isinstance(self.worker, BaseProcess) else None
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return "ended" if code is None else f"ended with code {code}"


class ModelServer:
    """A model behind the API. `run()` blocks until it is told to stop.

    With `served`, a model that is already in this process, all parts are threads here (notebooks, tests).
    """

    def __init__(self, config: ServeConfig, served: Any = None) -> None:
        self.config, self.served = config, served
        self.port = config.port
        self.ready = False
        self.decoder: Part | None = None
        self.http: list[Part] = []
        self._stopping = threading.Event()
        self._checked = False
        self._check_failed: TrainingError | None = None
        try:
            read_key(config)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @property
    def _parts(self) -> list[Part]:
        return [*([self.decoder] if self.decoder else []), *self.http]

    # --- life

    def run(self, *, signals: bool = True) -> None:
        """Serve until SIGTERM or SIGINT (or `stop()`), then let running requests finish for `drain_s` seconds.

        Raises the TrainingError of a part that could not start or go on.
        """
        bind(self.config.host, self.config.port, shared=False).close()  # taken by another server: say so now
        with bind(self.config.host, self.config.port, shared=True) as reserved:
            self.port = reserved.getsockname()[1]
            if signals:
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, lambda *_: self.stop())
            try:
                self._start()
                self._watch()
                self._drain()
            finally:
                self._end()

    def stop(self) -> None:
        """Take no new requests, and end when the running ones are done or after `drain_s`."""
        self._stopping.set()

    def _start(self) -> None:
        count = 1 if self.served is not None else self.config.http_processes or _http_processes()
        pipes = [multiprocessing.Pipe() for _ in range(count)]
        theirs = [decoder_end for decoder_end, _ in pipes]
        if self.served is None:
            self.decoder = self._part("decoder", _decoder_main, self.config, pipes=theirs)
        else:
            self.decoder = self._part("decoder", _decoder_thread, self.config, self.served, pipes=theirs)
        for number, (_, http_end) in enumerate(pipes):
            target = http_process.main if self.served is None else http_process.run_http
            self.http.append(self._part(f"http-{number}", target, self.config, self.port, pipe=http_end))
        if self.served is None:
            ids = [f"{part.name} {part.worker.pid}" for part in self._parts if isinstance(part.worker, BaseProcess)]
            print(f"serve: processes {', '.join(ids)}", flush=True)
            for pair in pipes:
                for end in pair:
                    end.close()  # so that a part notices when the other one ends

    def _part(self, name: str, target: Callable[..., None], *args: Any, **more: Any) -> Part:
        ours, theirs = multiprocessing.Pipe()
        worker: BaseProcess | threading.Thread
        if self.served is None:
            kind = multiprocessing.get_context("spawn").Process
            worker = kind(target=target, args=args, kwargs={"control": theirs, **more}, name=name, daemon=True)
            worker.start()
            theirs.close()
        else:
            more["control"] = theirs
            worker = threading.Thread(target=target, args=args, kwargs=more, name=name, daemon=True)
            worker.start()
        return Part(name, ours, worker)

    def _watch(self) -> None:
        """Until `stop`. Raises TrainingError when a part reports a failure, or ends."""
        parts = self._parts
        controls = {part.control: part for part in parts}
        while not self._stopping.is_set():
            for control in wait(list(controls), timeout=WATCH_SECONDS):
                assert isinstance(control, Connection)
                try:
                    message = control.recv()
                except (EOFError, OSError):
                    del controls[control]
                    continue
                if isinstance(message, Failed):
                    raise as_error(message)
                if isinstance(message, Facts):
                    threading.Thread(target=self._check, args=(message,), daemon=True).start()
            if self._check_failed is not None:
                raise self._check_failed
            for part in parts:
                silent = part.control not in controls or not part.control.poll()
                if silent and not part.worker.is_alive():
                    what = "decoder" if part is self.decoder else "HTTP"
                    raise TrainingError(f"the {what} process {part.end()}: the server can't go on; start it again")

    def _drain(self) -> None:
        print("serve: draining", flush=True)
        assert self.decoder is not None
        self.decoder.tell("drain")
        for part in self.http:
            part.tell("stop")
        deadline = time.monotonic() + self.config.drain_s + END_SECONDS
        for part in self.http:
            part.worker.join(timeout=max(0.0, deadline - time.monotonic()))

    def _end(self) -> None:
        """Whatever happened: HTTP processes answer what they still can, then nothing is left running."""
        if self.http and not self._stopping.is_set():
            time.sleep(http_process.LINGER_SECONDS)
        self._stopping.set()
        for part in self.http:
            part.tell("stop")
        for part in self.http:
            part.worker.join(timeout=END_SECONDS)
        if self.decoder is not None:
            self.decoder.tell("stop")
            self.decoder.worker.join(timeout=END_SECONDS if self.ready else 0.5)  # one that loads does not listen
        for part in self._parts:
            if isinstance(part.worker, BaseProcess) and part.worker.is_alive():
                part.worker.kill()
            part.control.close()

    # --- the first request

    def _check(self, facts: Facts) -> None:
        """Answer one real request through the front door; only then is the server ready."""
        try:
            seconds = self._first_request(facts)
        except (TrainingError, httpx.HTTPError) as error:
            if not self._stopping.is_set():
                message = f"the server does not answer its own first request: {error}"
                self._check_failed = TrainingError(message)
            return
        assert self.decoder is not None
        self.decoder.tell("ready")
        what = "reward model" if facts.reward else "model"
        print(f"serve: {what} {facts.name} answers on port {self.port} (first answer in {seconds:.2f} s)", flush=True)
        emit("ready", url_path="/score" if facts.reward else "/v1", port=self.port, model=facts.name)
        self.ready = True

    def _first_request(self, facts: Facts) -> float:
        host = "127.0.0.1" if self.config.host in ("0.0.0.0", "::") else self.config.host
        base = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        body: dict[str, Any]
        hello = [{"role": "user", "content": "Hello"}]
        headers = {"Authorization": f"Bearer {read_key(self.config) or 'none'}"}
        if facts.reward:
            path, body = "/score", {"messages": [*hello, {"role": "assistant", "content": "Hi."}]}
        else:
            path, body = "/v1/chat/completions", {"messages": hello, "max_tokens": 4, "temperature": 0}
        deadline = time.monotonic() + STARTING_SECONDS
        with httpx.Client(base_url=base, timeout=300, headers=headers, trust_env=False) as client:
            while True:
                start = time.perf_counter()
                try:
                    answer = client.post(path, json=body)
                except httpx.ConnectError:  # no HTTP process listens yet
                    if time.monotonic() > deadline:
                        raise
                else:
                    if answer.status_code == 200:
                        return time.perf_counter() - start
                    if answer.status_code != 503 or time.monotonic() > deadline:
                        raise TrainingError(answer.text[:500])
                if self._stopping.is_set():
                    raise TrainingError("stopped while starting")
                time.sleep(0.05)


def as_error(message: Failed) -> TrainingError:
    """The error that a part reported, with its kind and exit code."""
    known = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TrainingError)]
    found = next((kind for kind in known if (kind.kind, kind.exit_code) == (message.kind, message.exit_code)), None)
    return (found or TrainingError)(message.message)


def _http_processes() -> int:
    return max(1, min(4, len(os.sched_getaffinity(0)) // 3))


def _decoder_main(*args: Any, **more: Any) -> None:
    from training.serving.decoder_process import main  # torch is for the child alone

    main(*args, **more)


def _decoder_thread(*args: Any, **more: Any) -> None:
    from training.serving.decoder_process import run_decoder

    run_decoder(*args, **more)


def run(config: ServeConfig) -> int:
    """The command: exit code 0 after a drain."""
    if not config.model:
        raise ConfigError("serve needs a model: give `model: DIR` (or navarch-train serve --model DIR)")
    ModelServer(config).run()
    return 0


def serve_in_thread(config: ServeConfig, served: Any) -> tuple[threading.Thread, ModelServer]:
    """A running server in this process (notebooks, tests); end it with `server.stop()` and join the thread."""
    server = ModelServer(config, served)
    thread = threading.Thread(target=lambda: server.run(signals=False), name="model-server", daemon=True)
    thread.start()
    while not server.ready and thread.is_alive():
        time.sleep(0.01)
    if not thread.is_alive():
        raise TrainingError("the server did not start: see the error above")
    return thread, server
