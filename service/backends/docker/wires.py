"""One SSH connection for each remote host, by which its engine's socket appears on this machine.

Whatever connects to `Wire.socket` gets a channel of its own (`direct-streamlocal@openssh.com`) to the engine's socket
on the host; all of them share one connection, so that neither sshd's limit of sessions nor a login for each call
counts. When nothing is heard of a host for some seconds the connection is given up, everybody who waits on the socket
is told by its end, and another connection is tried, less and less often. asyncssh has these channels and keep-alives;
paramiko, which the rest of Navarch uses as a client, has no way to ask for such a channel.

One event loop, in a thread of its own, serves all hosts: none of them ever makes it wait for another one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import shutil
import tempfile
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncssh
import structlog

from service.backends.errors import EngineError, Unreachable
from service.contract.ssh_keys import PublicKey

log = structlog.get_logger("wires")
asyncssh.set_log_level("WARNING")  # it would tell of every channel
SOCKET = "/var/run/docker.sock"
CONNECT_S = 10.0
KEEP_ALIVE_S, KEEP_ALIVES = 3, 3
"""A host that says nothing for (3 + 1) · 3 s is lost."""
_BACK_OFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)
_STEADY_S = 30.0
_ANSWER_S = 4.0
_LONGEST_SOCKET = 100
"""Linux takes 107 bytes."""
Answer = TypeVar("Answer")


class HostKeyChanged(Unreachable):
    """The host shows another key than the one that was pinned."""


class LoginRefused(Unreachable):
    """The host doesn't take the key, or doesn't know the account."""


@dataclass(frozen=True)
class Route:
    """How a host is reached."""

    user: str
    address: str
    port: int
    private_key: str = field(repr=False)
    """In OpenSSH's form, without a passphrase."""
    host_key: str | None = None
    """The pinned key's line; None: whatever it shows is taken, once."""
    socket: str = SOCKET

    @classmethod
    def parse(cls, url: str, private_key: str, host_key: str | None = None) -> Route:
        """From `ssh://user@address[:port][/path/to/docker.sock]`. Raises ValueError, in words."""
        try:
            parts = urlsplit(url)
            port = parts.port or 22
        except ValueError as error:
            raise ValueError(f"{url!r} is no URL: {error}") from error
        if parts.scheme != "ssh" or not parts.hostname:
            raise ValueError(f"{url!r} is not of the form ssh://user@address")
        if parts.password is not None:
            raise ValueError("a password has no place in a host's URL: hosts are reached by a key")
        if parts.query or parts.fragment:
            raise ValueError(f"{url!r} has more behind it than an address, a port and the path of a socket")
        path = parts.path if parts.path not in ("", "/") else SOCKET
        return cls(parts.username or "root", parts.hostname, port, private_key, host_key, path)

    @property
    def shown(self) -> str:
        return f"{self.user}@{self.address}" + (f":{self.port}" if self.port != 22 else "")


@dataclass(frozen=True)
class Said:
    """What a command on a host printed."""

    code: int
    output: bytes
    errors: str


class Wires:
    """The connections to all remote hosts."""

    def __init__(self, folder: Path) -> None:
        """Sockets are made in `folder`, or where its name is too long for that, in a private one of their own."""
        self._folder, self._own = folder, False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._wires: dict[str, Wire] = {}

    def open(self, host_id: str, route: Route) -> Wire:
        """A connection for a host, which is made in the background from now on."""
        with self._lock:
            loop = self._running()
            old = self._wires.pop(host_id, None)
            wire = self._wires[host_id] = Wire(host_id, route, self._folder / f"{host_id}.sock", loop)
        if old is not None:
            old.close()
        wire.begin()
        return wire

    def drop(self, host_id: str) -> None:
        with self._lock:
            wire = self._wires.pop(host_id, None)
        if wire is not None:
            wire.close()

    def try_out(self, route: Route) -> str:
        """Connects once, logs in, and leaves; the line of the key that the host has. Raises EngineError."""
        with self._lock:
            loop = self._running()
        return _wait(loop, _host_key_of(route), CONNECT_S * 3)

    def close(self) -> None:
        with self._lock:
            wires, self._wires = list(self._wires.values()), {}
            loop, self._loop = self._loop, None
        for wire in wires:
            wire.close()
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
        if self._own:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            if len(str(self._folder)) > _LONGEST_SOCKET - len("/0123456789abcdef.sock"):
                self._folder, self._own = Path(tempfile.mkdtemp(prefix="navarch-")), True
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_serve, args=(self._loop,), name="wires", daemon=True).start()
        return self._loop


class Wire:
    """The connection to one host. Any thread may use it."""

    def __init__(self, host_id: str, route: Route, socket: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.host_id, self.route, self.socket = host_id, route, socket
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._connection: asyncssh.SSHClientConnection | None = None
        self._tried = threading.Event()
        self._trouble: EngineError | None = None

    @property
    def url(self) -> str:
        """Where Docker's client finds the host's engine."""
        return f"unix://{self.socket}"

    def begin(self) -> None:
        _wait(self._loop, self._begin(), CONNECT_S)

    def check(self) -> None:
        """Returns when the connection stands. Raises Unreachable with why it doesn't."""
        if not self._tried.wait(CONNECT_S * 2):
            raise Unreachable(f"{self.route.shown} doesn't answer")
        trouble = self._trouble
        if trouble is not None:
            raise type(trouble)(str(trouble))

    def run(self, command: str, timeout_s: float = 20.0) -> Said:
        """Runs a command on the host, as the account that logs in. Raises Unreachable."""
        self.check()
        return _wait(self._loop, self._run(command, timeout_s), timeout_s + 5)

    def reaches(self, address: str, port: int) -> str | None:
        """Why nothing answers the host at another address; None when something does, if only by a refusal."""
        self.check()
        return _wait(self._loop, self._reaches(address, port), CONNECT_S)

    async def _reaches(self, address: str, port: int) -> str | None:
        connection = self._connection
        if connection is None:
            raise Unreachable(f"{self.route.shown} doesn't answer")
        try:
            _, writer = await asyncio.wait_for(connection.open_connection(address, port), _ANSWER_S)
        except asyncssh.ChannelOpenError as error:
            if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
                raise EngineError(f"sshd of {self.route.shown} lets nobody connect from there") from error
            return None if "refused" in error.reason.lower() else error.reason
        except TimeoutError:
            return "no answer"
        except (asyncssh.Error, OSError) as error:
            raise Unreachable(f"{self.route.shown}: {error}") from error
        writer.close()
        return None

    def close(self) -> None:
        """Whoever waits on the socket sees its end."""
        self._trouble = Unreachable(f"the connection to {self.route.shown} was closed")
        self._tried.set()
        with suppress(Unreachable):
            _wait(self._loop, self._end(), 5)

    async def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, command: str, timeout_s: float) -> Said:
        connection = self._connection
        if connection is None:
            raise Unreachable(f"{self.route.shown} doesn't answer")
        try:
            done = await connection.run(command, timeout=timeout_s, encoding=None, stdin=asyncssh.DEVNULL)
        except asyncssh.TimeoutError as error:
            raise EngineError(f"{self.route.shown} took longer than {timeout_s:g} s over a command") from error
        except (asyncssh.Error, OSError) as error:
            raise Unreachable(f"{self.route.shown}: {error}") from error
        errors = bytes(done.stderr or b"").decode("utf-8", "replace")  # type: ignore[arg-type]
        return Said(done.returncode if done.returncode is not None else -1, bytes(done.stdout or b""), errors)  # type: ignore[arg-type]

    async def _keep(self) -> None:
        """Connects again and again, until it is cancelled."""
        failures = 0
        clock = asyncio.get_running_loop().time
        while True:
            begun = clock()
            try:
                await self._connected()
            except EngineError as error:
                self._trouble = error
            except Exception as error:
                log.exception("connection to a host failed", host=self.host_id)
                self._trouble = Unreachable(f"{self.route.shown}: {type(error).__name__}: {error}")
            finally:
                self._connection = None
                self.socket.unlink(missing_ok=True)
            self._tried.set()
            failures = 0 if clock() - begun > _STEADY_S else failures + 1
            await asyncio.sleep(_BACK_OFF_S[min(failures, len(_BACK_OFF_S) - 1)])

    async def _connected(self) -> None:
        """Stays as long as the connection does; raises Unreachable with why it ended or could not be made."""
        connection, _ = await _connect(self.route)
        async with connection:
            self.socket.unlink(missing_ok=True)
            async with await connection.forward_local_path(str(self.socket), self.route.socket):
                self._connection, self._trouble = connection, None
                self._tried.set()
                await connection.wait_closed()
        raise Unreachable(f"the SSH connection to {self.route.shown} was lost")


class _Doorman(asyncssh.SSHClient):
    """Looks at the key that a host shows."""

    def __init__(self, wanted: str | None) -> None:
        self._wanted = wanted
        self.shown: PublicKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        line = key.export_public_key("openssh").decode().strip()
        kind, body = line.split()[:2]
        self.shown = PublicKey(kind, body, "")
        return self._wanted is None or self.shown.line == " ".join(self._wanted.split()[:2])


async def _connect(route: Route) -> tuple[asyncssh.SSHClientConnection, PublicKey]:
    doorman = _Doorman(route.host_key)
    options: dict[str, Any] = {}
    if route.host_key is not None:
        options["server_host_key_algs"] = _algorithms(route.host_key)
    try:
        connection = await asyncssh.connect(
            route.address,
            route.port,
            username=route.user,
            client_keys=[asyncssh.import_private_key(route.private_key)],
            client_factory=lambda: doorman,
            known_hosts=asyncssh.import_known_hosts(""),  # nobody is known: the doorman is asked
            config=[],
            agent_path=None,
            preferred_auth="publickey",
            connect_timeout=CONNECT_S,
            login_timeout=CONNECT_S,
            keepalive_interval=KEEP_ALIVE_S,
            keepalive_count_max=KEEP_ALIVES,
            encryption_algs=["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr"],
            compression_algs=["none"],
            **options,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise _changed(route, doorman.shown) from error
    except asyncssh.KeyExchangeFailed as error:
        if route.host_key is not None:
            raise _changed(route, None) from error
        raise Unreachable(f"{route.shown}: {error}") from error
    except asyncssh.PermissionDenied as error:
        raise LoginRefused(f"{route.shown} refuses the login: {error.reason}") from error
    except (asyncssh.Error, OSError, TimeoutError) as error:
        said = str(error) or "no answer"
        raise Unreachable(f"{route.address}:{route.port} can't be reached over SSH: {said}") from error
    assert doorman.shown is not None
    return connection, doorman.shown


async def _host_key_of(route: Route) -> str:
    connection, shown = await _connect(route)
    connection.close()
    with suppress(asyncssh.Error, OSError):
        await connection.wait_closed()
    return shown.line


def _changed(route: Route, shown: PublicKey | None) -> HostKeyChanged:
    pinned = PublicKey.parse(route.host_key or "")
    now = f"shows {shown.fingerprint} ({shown.type})" if shown is not None else "has no key of that kind any more"
    return HostKeyChanged(
        f"the SSH host key of {route.address}:{route.port} has changed: it {now}, pinned is {pinned.fingerprint} "
        f"({pinned.type}). Somebody may be in between. If the host was installed anew, compare with what "
        "`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` says there, then `navarch host trust NAME FINGERPRINT`"
    )


def _algorithms(line: str) -> list[str]:
    """Only the pinned key's kind is asked for: that a host has others besides is no change."""
    kind = line.split()[0]
    return ["rsa-sha2-512", "rsa-sha2-256"] if kind == "ssh-rsa" else [kind]


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _wait(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Answer], timeout_s: float) -> Answer:
    done = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return done.result(timeout_s)
    except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError) as error:
        done.cancel()
        raise Unreachable("the host didn't answer in time") from error
