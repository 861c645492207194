"""The control plane's own Prometheus metrics: requests by route, jobs by state, hosts and GPUs."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from sqlalchemy import func
from sqlmodel import col, select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.states import JobState
from service.store import tables
from service.store.database import Database


class Meter:
    """Counts requests and how long they took, by method, route and status."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("method", "route", "status")
        self.requests = Counter("navarch_requests", "Requests answered", labels, registry=self.registry)
        self.seconds = Histogram(
            "navarch_request_seconds",
            "Time to the answer's first byte",
            ("method", "route"),
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
            registry=self.registry,
        )

    def middleware(self, app: ASGIApp) -> ASGIApp:
        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            start = time.perf_counter()

            async def counted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    route = getattr(scope.get("route"), "path", "none")
                    self.requests.labels(scope["method"], route, str(message["status"])).inc()
                    self.seconds.labels(scope["method"], route).observe(time.perf_counter() - start)
                await send(message)

            await app(scope, receive, counted)

        return measured


def exposition(meter: Meter, database: Database, *others: CollectorRegistry) -> bytes:
    """All metrics as Prometheus reads them; what the database knows is asked for now."""
    registry = CollectorRegistry()
    jobs = Gauge("navarch_jobs", "Jobs by state", ("state",), registry=registry)
    hosts = Gauge("navarch_hosts", "Hosts by whether they can be reached", ("reachable",), registry=registry)
    gpus = Gauge("navarch_gpus", "GPUs by whether an attempt holds them", ("held",), registry=registry)
    with database.read() as session:
        counted = dict(session.exec(select(tables.Job.state, func.count()).group_by(tables.Job.state)).all())
        known = [
            (host.reachable, len((host.facts or {}).get("gpus") or [])) for host in session.exec(select(tables.Host))
        ]
        held = session.exec(select(func.count(col(tables.GpuLease.gpu)))).one()
    writes = Gauge("navarch_write_transactions", "Write transactions since the start", registry=registry)
    writes.set(database.writes)
    for state in JobState:
        jobs.labels(state.value).set(counted.get(state.value, 0))
    for reachable in (True, False):
        hosts.labels(str(reachable).lower()).set(sum(seen is reachable for seen, _ in known))
    total = sum(count for _, count in known)
    gpus.labels("true").set(held)
    gpus.labels("false").set(max(0, total - held))
    return b"".join(generate_latest(each) for each in (meter.registry, registry, *others))
