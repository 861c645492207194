"""What the collector tells of itself to Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class Figures:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.lines = Counter("navarch_log_lines", "Log lines stored", registry=self.registry)
        self.bytes = Counter("navarch_log_bytes", "Bytes of log stored", registry=self.registry)
        self.events = Counter("navarch_log_events", "Printed events lifted out of logs", registry=self.registry)
        self.dropped = Counter(
            "navarch_log_events_dropped", "Printed events that could not be used", registry=self.registry
        )
        self.transactions = Counter(
            "navarch_collector_transactions", "Write transactions of the collector", registry=self.registry
        )
        self.interruptions = Counter(
            "navarch_log_interruptions", "Log streams that ended or failed early", registry=self.registry
        )
        self.cuts = Counter("navarch_log_cuts", "Logs that were not read to their end", registry=self.registry)
        self.followers = Gauge("navarch_log_followers", "Containers whose log is followed", registry=self.registry)
        self.lag = Gauge("navarch_log_lag_seconds", "How far the log read last is behind", registry=self.registry)
