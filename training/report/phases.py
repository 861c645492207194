"""Says what takes long: after two seconds what it is, then every so often how far, at the end how long it took."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_S = 2.0
AGAIN_S = 20.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Phase:
    """One thing that is being done. `note` prints a line; it is not called from two threads at once."""

    def __init__(self, what: str, note: Callable[[str], None] = say, *, first_s: float = FIRST_S) -> None:
        self._what, self._note, self._first_s = what, note, first_s
        self._began = time.monotonic()
        self._told = False
        self._where = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="phase", daemon=True)
        self._thread.start()

    def at(self, done: int, total: int | None = None, unit: str = "") -> None:
        """How far it is; cheap enough for every row."""
        self._where = f"{done:,} of {total:,}" if total is not None else f"{done:,}"
        self._where += f" {unit}" if unit else ""

    def end(self) -> None:
        """It is done, or has failed. A second call does nothing."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        if self._told:
            self._note(f"{self._what}: took {self._seconds:.0f} s")

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _watch(self) -> None:
        wait_s = self._first_s
        while not self._over.wait(wait_s):
            facts = [self._where] if self._where else []
            facts += [f"{self._seconds:.0f} s"] if self._told else []
            self._note(f"{self._what} …" + (f" {', '.join(facts)}" if facts else ""))
            self._told, wait_s = True, AGAIN_S


@contextmanager
def phase(what: str, note: Callable[[str], None] = say, *, first_s: float = FIRST_S) -> Iterator[Phase]:
    """A Phase for as long as the block runs."""
    made = Phase(what, note, first_s=first_s)
    try:
        yield made
    finally:
        made.end()
