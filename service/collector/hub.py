"""Tells those who wait for something (a job's log, a build's log) that there is more of it."""

import threading
from collections import defaultdict
from collections.abc import Callable


class Hub:
    """Waiting without polling. Keys are ids of jobs and builds; a notification says "look again", no more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: dict[str, list[Callable[[], None]]] = defaultdict(list)

    def subscribe(self, key: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Has `callback` called, from another thread, whenever there may be more; returns what ends that."""
        with self._lock:
            self._callbacks[key].append(callback)

        def unsubscribe() -> None:
            with self._lock:
                callbacks = self._callbacks.get(key, [])
                if callback in callbacks:
                    callbacks.remove(callback)
                if not callbacks:
                    self._callbacks.pop(key, None)

        return unsubscribe

    def notify(self, key: str) -> None:
        with self._lock:
            callbacks = list(self._callbacks.get(key, ()))
        for callback in callbacks:
            callback()

    def wait(self, key: str, timeout_s: float, check: Callable[[], bool] = lambda: False) -> bool:
        """Blocks until the next notification; False after `timeout_s`. Returns at once when `check` says there is more:
        it is asked after subscribing, so that nothing is missed in between."""
        happened = threading.Event()
        unsubscribe = self.subscribe(key, happened.set)
        try:
            return check() or happened.wait(timeout_s)
        finally:
            unsubscribe()
