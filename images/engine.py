"""A connection to a Docker Engine for long work, whose calls can be broken off from another thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import docker
from docker.transport import unixconn

from images.cancellation import Cancellation
from images.errors import ImageError

LONG_S = 1800
"""How long an engine may be silent in the middle of a build, a pull or a push."""


@contextmanager
def engine_for(url: str, cancellation: Cancellation, timeout_s: int = LONG_S) -> Generator[docker.DockerClient]:
    """A client whose calls end at once when `cancellation` wants it. Raises ImageError (`engine_unreachable`)."""
    cancellation.check()
    try:
        client = docker.DockerClient(base_url=url, timeout=timeout_s)
    except docker.errors.DockerException as error:
        raise ImageError(
            "engine_unreachable", f"The Docker Engine at {url} does not answer.", "Start it, or see `navarch doctor`."
        ) from error
    lines = _Lines()
    if url.startswith("unix://"):
        adapter = _Adapter(lines, f"http+{url}", timeout=timeout_s)
        client.api.mount("http+docker://", adapter)
        setattr(client.api, "_custom_adapter", adapter)  # noqa: B010 - what the client closes
    try:
        with cancellation.ending(lines.cut):
            yield client
    except Exception as error:
        if cancellation.wanted and not isinstance(error, ImageError):
            cancellation.check()  # what it fails with is that its line was cut
        raise
    finally:
        client.close()


class _Lines:
    """The open connections of one client."""

    def __init__(self) -> None:
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._lock = threading.Lock()
        self._is_cut = False

    def add(self, line: socket.socket) -> None:
        with self._lock:
            self._sockets.add(line)
            if self._is_cut:
                _shut(line)

    def cut(self) -> None:
        """A call that waits for the engine fails now; the engine ends what it did for the call."""
        with self._lock:
            self._is_cut = True
            for line in list(self._sockets):
                _shut(line)


def _shut(line: socket.socket) -> None:
    with suppress(OSError):  # it was closed already
        line.shutdown(socket.SHUT_RDWR)


class _Connection(unixconn.UnixHTTPConnection):
    lines: _Lines

    def connect(self) -> None:
        super().connect()
        if self.sock is not None:
            self.lines.add(self.sock)


class _Pool(unixconn.UnixHTTPConnectionPool):
    lines: _Lines

    def _new_conn(self) -> Any:
        timeout: Any = self.timeout
        connection = _Connection(self.base_url, self.socket_path, timeout)
        connection.lines = self.lines
        return connection


class _Adapter(unixconn.UnixHTTPAdapter):
    def __init__(self, lines: _Lines, url: str, timeout: int) -> None:
        super().__init__(url, timeout)
        self._lines = lines

    def get_connection(self, url: bytes | str, proxies: Any = None) -> Any:
        with self.pools.lock:
            pool = self.pools.get(url)
            if pool is None:
                pool = _Pool(str(url), self.socket_path, self.timeout, maxsize=self.max_pool_size)
                pool.lines = self._lines
                self.pools[url] = pool
            return pool
