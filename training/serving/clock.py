"""Points on the device's time line, so that prefill, decode and idle time can be told apart without waiting."""

from __future__ import annotations

import time

import torch


class Mark:
    """Now, as the device will see it: after all that was launched before."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.cuda.Event | None = None
        self._seconds = 0.0
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._seconds = time.perf_counter()

    def until(self, later: Mark) -> float:
        """Seconds from this mark to a later one; the device must have passed both."""
        if self._event is None or later._event is None:
            return later._seconds - self._seconds
        return float(self._event.elapsed_time(later._event)) / 1e3
