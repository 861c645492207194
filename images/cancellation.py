"""A wish to end work early, which any thread may express: whatever the work waits for is ended for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from images.errors import ImageError


class Cancellation:
    """Given to work that may take long; `cancel` has it raise ImageError (`cancelled`) within moments."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._lock = threading.Lock()
        self._ends: list[Callable[[], None]] = []

    @property
    def wanted(self) -> bool:
        return self._wanted.is_set()

    def cancel(self) -> None:
        with self._lock:
            self._wanted.set()
            ends = list(self._ends)
        for end in ends:
            end()

    def check(self) -> None:
        """Raises ImageError when the work is not wanted any more."""
        if self.wanted:
            raise ImageError("cancelled", "It was cancelled.")

    def sleep(self, seconds: float) -> None:
        """Waits; raises ImageError as soon as the work is not wanted any more."""
        self._wanted.wait(seconds)
        self.check()

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """Inside, `cancel` calls `end` (from its own thread), which makes the call return that the work waits for."""
        self.check()
        with self._lock:
            self._ends.append(end)
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)
