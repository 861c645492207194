"""Prometheus figures of the model server, in a registry of its own."""

from __future__ import annotations

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
        self.prompt_tokens = Counter("navarch_serve_prompt_tokens", "Prompt tokens taken in", registry=registry)
        self.generated_tokens = Counter("navarch_serve_generated_tokens", "Tokens generated", registry=registry)
        self.finished = Counter(
            "navarch_serve_requests", "Completions that ended, by reason", ["reason"], registry=registry
        )
        self.rejected = Counter("navarch_serve_rejected", "Requests refused with 429", registry=registry)
        self.waiting = Gauge("navarch_serve_waiting", "Completions in the queue", registry=registry)
        self.running = Gauge("navarch_serve_running", "Completions in slots", registry=registry)
        self.step_seconds = Gauge("navarch_serve_step_seconds", "Time of a decode step", registry=registry)
        self.tokens_per_second = Gauge(
            "navarch_serve_tokens_per_second", "Tokens generated a second, since the last reading", registry=registry
        )
        self._last: tuple[float, float] | None = None

    def text(self, now: float) -> bytes:
        """The exposition format; `now` in seconds sets the rate since the reading before."""
        count = self.generated_tokens._value.get()
        if self._last is not None and now > self._last[0]:
            self.tokens_per_second.set((count - self._last[1]) / (now - self._last[0]))
        self._last = (now, count)
        return generate_latest(self.registry)
