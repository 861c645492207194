"""One build of an image at a time on this machine; a lock ends with the process that holds it, however it ends."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Generator
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from images.cancellation import Cancellation

_POLL_S = 0.3


def lock_path(name: str) -> Path:
    """The lock file of the image `name`, for this user."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"navarch-build-{os.getuid()}-{digest}.lock"


def hold(name: str, cancellation: Cancellation) -> Generator[str, None, AbstractContextManager[object]]:
    """Waits for the lock of `name`, saying so when it has to; returns what holds it until it is left."""
    lock = FileLock(lock_path(name), timeout=0)
    said = False
    while True:
        try:
            return lock.acquire()
        except Timeout:
            if not said:
                yield f"Another build of {name} is going on; waiting for it"
                said = True
            cancellation.sleep(_POLL_S)
