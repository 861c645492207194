"""Makes batches ahead of the loop in a thread, pinned for copies that overlap with compute; keeps the cursor exact."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from training.data.batch import StepBatch

AHEAD = 2
"""Steps that are ready before they are needed."""


def prefetched(steps: Iterable[StepBatch], cursor: Callable[[], Any], *, pin: bool) -> Iterator[tuple[StepBatch, Any]]:
    """Yields (step, the loader's state right after that step), whatever has been read ahead by then.

    An exception in the loader comes out here. Leaving the loop early ends the thread.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=AHEAD)
    leave = threading.Event()

    def put(item: Any) -> bool:
        while not leave.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for step in steps:
                if pin:
                    step = replace(step, micro_batches=tuple(batch.pin_memory() for batch in step.micro_batches))
                if not put((step, cursor())):
                    return
            put(None)
        except BaseException as error:  # whatever it is, the loop must hear of it
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        leave.set()
        thread.join(timeout=5)
