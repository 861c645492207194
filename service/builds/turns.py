"""First come, first served: who may use something that only one can use at a time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from images.cancellation import Cancellation

_LOOK_S = 0.2


class Turns:
    """A line; any thread may stand in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: list[str] = []

    def ahead(self, name: str) -> int:
        """How many stand before `name`, the one whose turn it is included; 0 for who doesn't stand in the line."""
        with self._lock:
            return self._line.index(name) if name in self._line else 0

    @contextmanager
    def turn(self, name: str, cancellation: Cancellation, waits: Callable[[int], None]) -> Iterator[None]:
        """Inside, it is the turn of `name`. `waits` is told the number of those ahead, whenever it changes."""
        with self._lock:
            self._line.append(name)
        try:
            told = 0
            while (ahead := self.ahead(name)) > 0:
                if ahead != told:
                    told = ahead
                    waits(ahead)
                cancellation.sleep(_LOOK_S)
            yield
        finally:
            with self._lock:
                self._line.remove(name)
