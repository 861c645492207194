"""Prometheus figures of the model server, kept by the decoder process in a registry of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

import psutil  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """One object a server; `text()` is what /metrics answers."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.ttft = Histogram(
            "navarch_serve_ttft_seconds", "Time to first token, queueing included", buckets=SECONDS, registry=registry
        )
        self.seconds = Histogram(
            "navarch_serve_request_seconds", "Time from arrival to the last token", buckets=SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "navarch_serve_queue_seconds", "Time from arrival to a slot", buckets=SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("navarch_serve_prompt_tokens", "Prompt tokens taken in", registry=registry)
        self.generated_tokens = Counter("navarch_serve_generated_tokens", "Tokens generated", registry=registry)
        self.finished = Counter(
            "navarch_serve_requests", "Completions that ended, by reason", ["reason"], registry=registry
        )
        self.rejected = Counter("navarch_serve_rejected", "Requests refused with 429", registry=registry)
        self.waiting = Gauge("navarch_serve_waiting", "Completions in the queue", registry=registry)
        self.running = Gauge("navarch_serve_running", "Completions in slots", registry=registry)
        self.device_seconds = Counter(
            "navarch_serve_device_seconds",
            "Time of the device: prefill, decode, score, or idle between launches (with work or without)",
            ["doing"],
            registry=registry,
        )
        self.host_seconds = Counter(
            "navarch_serve_decoder_seconds",
            "Time of the decoder's loop: asleep (no work), admit, launch, wait (for the device), hand_out",
            ["doing"],
            registry=registry,
        )
        self.steps = Counter("navarch_serve_steps", "Decode steps", registry=registry)
        self.slot_steps = Counter(
            "navarch_serve_slot_steps", "Decode steps times slots in use: over steps, the mean batch", registry=registry
        )
        self.prefills = Counter("navarch_serve_prefills", "Prefill passes", registry=registry)
        self.cpu_seconds = Gauge(
            "navarch_serve_cpu_seconds", "CPU time of the server's processes", ["process"], registry=registry
        )
        self.step_seconds = Gauge("navarch_serve_step_seconds", "Time of a decode step", registry=registry)
        self.tokens_per_second = Gauge(
            "navarch_serve_tokens_per_second", "Tokens generated a second, since the last reading", registry=registry
        )
        self._last: tuple[float, float] | None = None

    def text(self, http_pids: Iterable[int] = ()) -> bytes:
        """The exposition format, with the CPU time of this process and of the HTTP processes."""
        now, count = time.monotonic(), self.generated_tokens._value.get()
        if self._last is not None and now > self._last[0]:
            self.tokens_per_second.set((count - self._last[1]) / (now - self._last[0]))
        self._last = (now, count)
        self.cpu_seconds.labels(process="decoder").set(time.process_time())
        for number, pid in enumerate(pid for pid in http_pids if pid != os.getpid()):
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.NoSuchProcess:
                continue
            self.cpu_seconds.labels(process=f"http-{number}").set(times.user + times.system)
        return generate_latest(self.registry)
