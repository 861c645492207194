"""Layers of images on their way between engines: files named after digests, kept as long as somebody wants them."""

import hashlib
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_CHUNK = 1 << 20
_KEPT_S = 86400.0
"""How long a layer of a copy that broke off waits for the next try."""


class Spool:
    """A folder of layers; any thread may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._users: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def using(self, digests: Collection[str]) -> Iterator[Callable[[str], None]]:
        """Keeps these layers while inside. What it gives is told of each that arrived: unless others use it, it goes.

        What hasn't arrived when this breaks off is kept for the next try.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._tidy()
        held = set(digests)
        with self._lock:
            self._users.update(held)

        def arrived(digest: str) -> None:
            with self._lock:
                held.discard(digest)
                self._users[digest] -= 1
                if self._users[digest] <= 0:
                    self.path(digest).unlink(missing_ok=True)

        try:
            yield arrived
        finally:
            with self._lock:
                self._users.subtract(held)

    def path(self, digest: str) -> Path:
        return self._folder / digest.removeprefix("sha256:")

    def present(self) -> set[str]:
        return {f"sha256:{file.name}" for file in self._folder.iterdir() if "." not in file.name}

    def take(self, content: IO[bytes], wanted: Collection[str], check: Callable[[], None]) -> None:
        """Reads a file to its end, and keeps it if it turns out to be one of these."""
        beside = self._folder / f"{uuid.uuid4().hex}.part"
        total = hashlib.sha256()
        try:
            with beside.open("wb") as file:
                while chunk := content.read(_CHUNK):
                    check()
                    total.update(chunk)
                    file.write(chunk)
            digest = f"sha256:{total.hexdigest()}"
            if digest in wanted:
                beside.replace(self.path(digest))
        finally:
            beside.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """What broke off long ago is wanted by nobody."""
        old = time.time() - _KEPT_S
        for file in self._folder.iterdir():
            if file.stat().st_mtime < old and not self._users[f"sha256:{file.name}"]:
                file.unlink(missing_ok=True)
