"""The control plane as a process: start it here or in the background, find the one that runs, end it."""

from __future__ import annotations

import errno
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from service.access.private import UMASK, private_folder
from service.contract.errors import Problem
from service.journal import LOG_NAME
from service.locations import LOCK, Endpoint, is_served

if TYPE_CHECKING:
    from service.contract.ssh_keys import PublicKey
    from service.settings import Settings

START_NAME = "start.log"
"""What a control plane in the background prints, which is little: why it did not start."""
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
_LOOKERS_S = 0.5
"""Whoever asks if a control plane runs holds its lock for a moment."""


@dataclass(frozen=True)
class Running:
    """A control plane that answers."""

    url: str
    pid: int
    first_token: str | None = None
    """An admin's, where it was just started for others, too, and nobody had one."""


def running(data_dir: Path) -> Running | None:
    """The control plane that serves this data folder, if one does."""
    endpoint = Endpoint.read(data_dir)
    if endpoint is None or not is_served(data_dir):
        return None
    return Running(endpoint.url, endpoint.pid)


def serve(
    settings: Settings, on_ready: Callable[[str, str | None], None] = lambda *_: None, own_key: PublicKey | None = None
) -> None:
    """Run the control plane until SIGTERM or Ctrl-C. Raises Problem when it can't start.

    `on_ready` gets its URL, and an admin's token where others than this machine are listened to and there was none.
    Whoever has `own_key` may log in to the containers of the account that runs it.
    """
    import uvicorn

    from service import journal
    from service.access.principals import LOCAL
    from service.access.redaction import protect
    from service.access.tokens import FIRST, ensure_local_token
    from service.api.app import create_app
    from service.api.security import is_loopback
    from service.runtime import Runtime

    os.umask(UMASK)
    private_folder(settings.data_dir)
    journal.configure(settings.data_dir / LOG_NAME, sys.stderr if settings.log_to_stderr else None)
    protect([token for token in (settings.token, ensure_local_token(settings.data_dir)) if token])
    with only_one(settings.data_dir), _bound(settings.host, settings.port) as bound:
        runtime = Runtime(settings)
        begun = False
        try:
            runtime.open()
            first = None
            if not is_loopback(settings.host) and not runtime.tokens.all():
                first = runtime.tokens.create(FIRST)
            if own_key is not None:
                runtime.keys.add(own_key, LOCAL)
            runtime.start()
            begun = True
            app = create_app(runtime)
            url = f"http://{_reachable(settings.host)}:{bound.getsockname()[1]}"

            class Server(uvicorn.Server):
                async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                    await super().startup(sockets)
                    on_ready(url, first)  # before it can be found: whoever started it reads what that says
                    Endpoint(url, os.getpid()).write(settings.data_dir)
                    journal.log.info("started", url=url, pid=os.getpid(), data_dir=str(settings.data_dir))

                def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                    app.state.shutdown.begin()
                    super().handle_exit(sig, frame)

            config = uvicorn.Config(
                app,
                lifespan="off",
                loop="asyncio",
                http="h11",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=3,
                timeout_keep_alive=30,
            )
            settle_memory()
            Server(config).run(sockets=[bound])
        finally:
            Endpoint.forget(settings.data_dir)
            runtime.stop()
            if begun:
                journal.log.info("ended", pid=os.getpid())


def settle_memory() -> None:
    """Takes what start-up made out of the garbage collector's sight.

    A full collection walks all of it (150,000 objects) and stops every request for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()


def start_detached(settings: Settings, arguments: list[str]) -> Running:
    """Start `navarch up` in the background and wait until it answers. Raises Problem with the end of its log if not."""
    found = running(settings.data_dir)
    if found is not None:
        return found
    private_folder(settings.data_dir)
    printed = settings.data_dir / START_NAME
    with os.fdopen(os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.cli.main", "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "NAVARCH_LOG_TO_STDERR": "false"},
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        found = running(settings.data_dir)
        if found is not None and found.pid == process.pid and _answers(found.url):
            return replace(found, first_token=_take_token(printed))
        if process.poll() is not None:
            break
        time.sleep(0.1)
    else:
        process.terminate()
    said, hint = _end_of(printed)
    where = f"Its log is {settings.data_dir / LOG_NAME}."
    raise Problem("internal", f"The control plane did not start: {said}", f"{hint} {where}".strip())


def stop(data_dir: Path) -> Running | None:
    """End the control plane of this data folder and wait for it. Containers go on. None if there was none."""
    found = running(data_dir)
    if found is None:
        Endpoint.forget(data_dir)
        return None
    if not _is_navarch(found.pid):
        raise Problem(
            "not_found",
            f"The control plane that uses {data_dir} is no process of this machine: it runs in a container.",
            "End it where it was started, such as by `docker compose down`.",
        )
    os.kill(found.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while is_served(data_dir):
        if time.monotonic() > deadline:
            os.kill(found.pid, signal.SIGKILL)
            deadline = time.monotonic() + 5
        time.sleep(0.05)
    Endpoint.forget(data_dir)
    return found


def _is_navarch(pid: int) -> bool:
    """Whether a process is one of ours: a control plane in a container notes the number that it has in there."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"navarch" in command or b"service.cli.main" in command


@contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Hold the data folder's lock: two control planes on one folder would fight over its files."""
    lock = FileLock(data_dir / LOCK, timeout=_LOOKERS_S, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        endpoint = Endpoint.read(data_dir)
        where = f" at {endpoint.url} (pid {endpoint.pid})" if endpoint else ""
        hint = "`navarch down` ends it; --data-dir runs a second one beside it."
        raise Problem("engine_error", f"A control plane already uses {data_dir}{where}.", hint) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                hint = "Choose another with --port; `navarch down` ends a control plane that was started here."
                raise Problem("port_taken", f"Port {port} on {host} is taken by another program.", hint) from error
            hint = "Use an address of this machine, such as 127.0.0.1."
            raise Problem("invalid_request", f"Can't listen on {host}:{port}: {error.strerror}.", hint) from error
        yield bound


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _answers(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/api/v1/version", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _take_token(printed: Path) -> str | None:
    """The token in what a control plane has printed; from then on it stands nowhere."""
    text = printed.read_text()
    found = re.search(r"\bnav_[\w-]{40,}", text)
    if found is None:
        return None
    printed.write_text(text.replace(found[0], "*" * len(found[0])))
    return found[0]


def _end_of(printed: Path) -> tuple[str, str]:
    """The error and the hint with which a control plane ended; without an error line, the last thing that it said."""
    lines = [line for line in printed.read_bytes().decode(errors="replace").splitlines() if line.strip()]
    errors = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    if not errors:
        return (lines[-1] if lines else "it said nothing"), ""
    hints = [line.removeprefix("hint: ") for line in lines[errors[-1] + 1 :] if line.startswith("hint: ")]
    return lines[errors[-1]].removeprefix("error: "), hints[0] if hints else ""
