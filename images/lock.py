"""One build of an image at a time on this machine; a lock ends with the process that holds it, however it ends."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import IO

from images.cancellation import Cancellation

_POLL_S = 0.3


def lock_path(name: str) -> Path:
    """The lock file of the image `name`, for this user."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"navarch-build-{os.getuid()}-{digest}.lock"


def hold(name: str, cancellation: Cancellation) -> Generator[str, None, IO[str]]:
    """Waits for the lock of `name`, saying so when it has to; returns the open file that holds it."""
    file = lock_path(name).open("w")
    try:
        said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if not said:
                    yield f"Another build of {name} is going on; waiting for it"
                    said = True
                cancellation.sleep(_POLL_S)
    except BaseException:
        file.close()
        raise
