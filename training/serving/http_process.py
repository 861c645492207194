"""An HTTP process: uvicorn with the API on its own socket, until the supervisor says stop or the decoder is gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection

import uvicorn

from training.config.serving import ServeConfig
from training.errors import ConfigError, as_training_error
from training.serving.messages import Failed

LINGER_SECONDS = 1.0
"""How long requests are still answered (with 503) after the decoder process has died."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals are the supervisor's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int, *, shared: bool) -> socket.socket:
    """A bound socket; `shared` ones of several processes can have the same port, and the kernel deals out clients."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"can't listen on {host}:{port}: {error.strerror}; choose another port") from error
    return listener


async def serve(config: ServeConfig, port: int, control: Connection, pipe: Connection) -> None:
    # Late, for the spawned process: USE_TORCH must be set before transformers is imported.
    from training.data.template import TextCodec
    from training.serving.app import Api, make_app
    from training.serving.decoder_client import DecoderClient

    client = DecoderClient(pipe)
    app = make_app(Api(config, TextCodec.load(config.model), client))
    server = _Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=60,
            timeout_graceful_shutdown=max(1, round(config.drain_s)), backlog=2048,
        )
    )  # fmt: skip
    loop = asyncio.get_running_loop()

    def stop() -> None:  # anything from the supervisor, its death included, means this
        loop.remove_reader(control.fileno())
        server.should_exit = True

    loop.add_reader(control.fileno(), stop)
    client.attach()
    serving = asyncio.create_task(server.serve([bind(config.host, port, shared=True)]))
    while not serving.done():
        await asyncio.wait({serving}, timeout=0.25)
        if client.failure is not None and not server.should_exit:
            await asyncio.sleep(LINGER_SECONDS)
            server.should_exit = True
    loop.remove_reader(control.fileno())
    client.detach()
    serving.result()


def run_http(config: ServeConfig, port: int, control: Connection, pipe: Connection) -> None:
    """The HTTP side's whole life, in a process or a thread of its own; failures are told to the supervisor."""
    try:
        # uvicorn picks the faster event loop when it is installed
        with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
            runner.run(serve(config, port, control, pipe))
    except BaseException as error:
        failure = as_training_error(error)
        with contextlib.suppress(OSError):
            control.send(Failed(failure.kind, failure.exit_code, str(failure)))


def main(config: ServeConfig, port: int, control: Connection, pipe: Connection) -> None:
    """Target of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["USE_TORCH"] = "0"  # tokenizers need none of it, and need not say so
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    gc.set_threshold(20_000, 50, 50)  # requests make many short-lived objects; fewer walks over the long-lived
    run_http(config, port, control, pipe)
