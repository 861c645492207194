"""The controller's own figures, for Prometheus: steps, lanes, passes, failures."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class Figures:
    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.steps = Counter(
            "navarch_steps", "Steps of jobs by state and how they ended", ("state", "end"), registry=registry
        )
        self.passes = Histogram(
            "navarch_scheduling_pass_seconds", "Time of a pass over the queue", buckets=_BUCKETS, registry=registry
        )
        self.failures = Counter(
            "navarch_controller_failures", "What went wrong in the controller, by where", ("where",), registry=registry
        )
        self.waiting = Gauge(
            "navarch_lane_waiting", "Pieces of work that wait for a worker of their lane", ("lane",), registry=registry
        )
        self.busy = Gauge("navarch_lane_busy", "Workers that are at work", ("lane",), registry=registry)
        self.seconds = Histogram(
            "navarch_lane_seconds", "Time that pieces of work took", ("lane",), buckets=_BUCKETS, registry=registry
        )
