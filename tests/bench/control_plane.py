"""How fast the control plane is: python tests/bench/control_plane.py [--quick] [--json FILE] [--append RESULTS.md]

Drives a real `navarch up` on a real Docker Engine with the system image (SSH and the entrypoint, no torch):
submit → first line beside a bare `docker run`, POST /jobs from 50 clients, 10,000 queued jobs, log line → SSE client,
and what an idle control plane costs. Prints a table, and one JSON line with every figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.client import Client
from tests.bench.http_load import Load, run_load
from tests.docker.front_door import FrontDoor, front_door

PORT = 24998
CLOCK = "date +%s.%N"


@dataclass
class Figure:
    """One line of the table."""

    what: str
    value: str
    target: str
    met: bool | None


@dataclass
class Report:
    figures: list[Figure] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, value: float, unit: str, limit: float | None = None) -> None:
        target = f"< {limit:g} {unit}" if limit is not None else ""
        met = value < limit if limit is not None else None
        self.figures.append(
            Figure(what, f"{value:,.1f} {unit}" if value < 100 else f"{value:,.0f} {unit}", target, met)
        )
        print(f"{what}: {self.figures[-1].value} {target}", flush=True)

    def table(self) -> str:
        lines = ["| what | measured | target | met |", "| --- | --- | --- | --- |"]
        marks = {True: "yes", False: "**no**", None: ""}
        lines += [f"| {f.what} | {f.value} | {f.target} | {marks[f.met]} |" for f in self.figures]
        return "\n".join(lines)


def system_image() -> str:
    import docker

    from images.build import build, finish

    return finish(build(docker.from_env(timeout=600), "cpu", training=False)).tag


def first_line(report: Report, client: Client, image: str, rounds: int) -> None:
    """Submit → the container's first line, by the container's own clock, in turns with a bare `docker run`."""
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(rounds):
        start = time.time()
        printed = subprocess.run(
            ["docker", "run", "--rm", image, "bash", "-c", CLOCK], capture_output=True, text=True, check=True
        ).stdout
        bare.append(float(printed.split()[0]) - start)
        start = time.time()
        job = client.submit({"type": "command", "image": image, "command": CLOCK})
        line = next(client.follow_logs(job.id))
        ours.append(float(line.line) - start)
        client.wait(job.id, timeout_s=60)
    report.raw["first_line_s"] = {"navarch": ours, "docker_run": bare}
    navarch, docker = statistics.median(ours), statistics.median(bare)
    report.add("submit → first line, median", navarch * 1000, "ms")
    report.add("bare `docker run` → first line, median", docker * 1000, "ms")
    report.add("the difference", (navarch - docker) * 1000, "ms", 500)


@contextmanager
def held_port(client: Client, image: str) -> Iterator[None]:
    """While this lasts, jobs that want PORT stay queued."""
    spec = {"type": "command", "image": image, "command": "sleep infinity", "ports": [f"{PORT}:80"], "grace": "1s"}
    job = client.submit(spec)
    while client.job(job.id).state != "running":
        time.sleep(0.1)
    yield
    client.stop(job.id)
    client.wait(job.id, timeout_s=60)


def queued_job(image: str) -> dict[str, Any]:
    return {"type": "command", "image": image, "command": ["true"], "ports": [f"{PORT}:80"]}


def submits(report: Report, door: FrontDoor, image: str, count: int) -> None:
    """POST /jobs from 50 connections: each at its own pace, then all as fast as they are answered."""
    spec = queued_job(image)
    for name, pause, limit in (("50 clients, 2/s each", 0.5, 50.0), ("50 clients, without a pause", 0.0, None)):
        load = run_load(
            "127.0.0.1",
            door.port,
            door.token,
            lambda _: ("POST", "/api/v1/jobs", spec),
            clients=50,
            requests=count,
            pause_s=pause,
        )
        assert load.statuses == {201: count}, load.statuses
        _load(report, f"POST /jobs, {name}", load, limit)


def _load(report: Report, name: str, load: Load, limit: float | None) -> None:
    report.raw[name] = load.figures()
    report.add(f"{name}: p99", load.percentile(0.99), "ms", limit)
    report.add(f"{name}: p50 (at {load.per_second:,.0f} a second)", load.percentile(0.5), "ms")


def pages(report: Report, door: FrontDoor, image: str, total: int) -> None:
    """With `total` queued jobs: pages of 50, of 200, and deep in the list."""
    have = 0
    with door.client() as client:
        have = sum(1 for _ in client.jobs(states=["queued"]))
        missing = max(0, total - have)
        run_load(
            "127.0.0.1",
            door.port,
            door.token,
            lambda _: ("POST", "/api/v1/jobs", queued_job(image)),
            clients=20,
            requests=missing,
        )
        time.sleep(3)
        cursor = None
        for _ in range(total // 250):
            page = client._transport.request("GET", "jobs", params={"limit": 200, "cursor": cursor}).json()
            cursor = page["next_cursor"]
    for name, query in (
        ("first page of 50", "limit=50"),
        (f"page of 50 behind {min(total, 8000):,}", f"limit=50&cursor={cursor}"),
        ("queued only", "state=queued&limit=50"),
    ):
        path = f"/api/v1/jobs?{query}"
        load = run_load("127.0.0.1", door.port, door.token, lambda _, p=path: ("GET", p, None), clients=1, requests=300)
        _load(report, f"GET /jobs with {total:,} queued, {name}", load, 50)


def scheduling_pass(report: Report, door: FrontDoor, total: int) -> None:
    """One pass of the scheduler over the stored queue, in this process (the control plane is down)."""
    from service.access.secrets import SecretBox
    from service.control.context import Context
    from service.control.steps.schedule import schedule
    from service.settings import Settings
    from service.store.database import Database

    settings = Settings(data_dir=door.data_dir)
    database = Database(settings.url)
    context = Context(
        database=database,
        settings=settings,
        backends={},  # a pass talks to none
        collector=None,  # type: ignore[arg-type]
        deployment="bench",
        clock=time.time,
        secrets=SecretBox(settings.data_dir),
        handshake=lambda *_: False,
    )
    times, processor = [], []
    for _ in range(6):
        start, used = time.perf_counter(), time.process_time()
        placed = schedule(context)
        times.append((time.perf_counter() - start) * 1000)
        processor.append((time.process_time() - used) * 1000)
        assert not placed
    database.close()
    report.raw["scheduling_pass_ms"] = times
    report.add(f"a scheduling pass over {total:,} queued jobs, median", statistics.median(times), "ms", 200)
    report.add("the same pass, processor time", statistics.median(processor), "ms")


def log_latency(report: Report, client: Client, image: str, lines: int) -> None:
    """From a line's printing to its arrival at an SSE client."""
    script = f"for i in $(seq {lines}); do {CLOCK}; sleep 0.1; done"
    job = client.submit({"type": "command", "image": image, "command": script})
    late = [(time.time() - float(line.line)) * 1000 for line in client.follow_logs(job.id)][3:]
    report.raw["log_latency_ms"] = late
    report.add("log line → SSE client, median", statistics.median(late), "ms", 300)
    report.add("log line → SSE client, p99", sorted(late)[int(len(late) * 0.99)], "ms")


def idle(report: Report, door: FrontDoor, seconds: float) -> None:
    """Memory and processor of a control plane that has nothing to do."""
    assert door.process is not None
    pid = door.process.pid
    time.sleep(5)
    before, start = _cpu(pid), time.monotonic()
    time.sleep(seconds)
    share = (_cpu(pid) - before) / (time.monotonic() - start) * 100
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    report.raw["idle"] = {"rss_mb": resident / 1024, "cpu_percent": share, "seconds": seconds}
    report.add("idle control plane, resident memory", resident / 1024, "MB", 150)
    report.add(f"idle control plane, processor over {seconds:.0f} s", share, "% of a core", 1)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--json", type=Path, help="append the figures to this file")
    parser.add_argument("--append", type=Path, help="append the table to this Markdown file")
    asked = parser.parse_args()
    part = 10 if asked.quick else 1
    report = Report()
    report.raw["when"] = time.strftime("%Y-%m-%d %H:%M")
    report.raw["load_average"] = os.getloadavg()
    image = system_image()
    total = 10_000 // part
    with (
        tempfile.TemporaryDirectory(prefix="navarch-bench-") as folder,
        front_door(Path(folder)) as door,
        door.client() as client,
    ):
        idle(report, door, 60 / part)
        first_line(report, client, image, 3 if asked.quick else 9)
        log_latency(report, client, image, 200 // part)
        with held_port(client, image):
            submits(report, door, image, 3000 // part)
            pages(report, door, image, total)
            door.kill()
            scheduling_pass(report, door, total)
            door.start()
    print("\n" + report.table() + "\n")
    print(json.dumps(report.raw))
    if asked.json:
        with asked.json.open("a") as out:
            out.write(json.dumps(report.raw) + "\n")
    if asked.append:
        load = ", ".join(f"{value:.1f}" for value in report.raw["load_average"])
        where = f"{os.cpu_count()} cores, load average at the start {load}; {report.raw['when']}"
        with asked.append.open("a") as out:
            out.write(f"\n## Control plane\n\n`python tests/bench/control_plane.py` ({where}).\n\n{report.table()}\n")


if __name__ == "__main__":
    main()
