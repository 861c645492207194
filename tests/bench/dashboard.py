"""How fast the dashboard is: python tests/bench/dashboard.py [--mlflow PYTHON] [--quick]

A real control plane whose data folder was filled first, through the tables and in the files that the collector writes:
10,000 jobs, 8 hosts of 8 GPUs, 50 runs of 20 metrics, one run with a million points, a log of 200 MB. Then charts
over HTTP, pages in a real Chromium, and 100 open pages. With `--mlflow`, the Python of an environment that has MLflow,
its server gets the same million points.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))

from playwright.sync_api import Browser, sync_playwright

from service.store.database import Database
from service.store.ids import new_id
from service.store.tables import Attempt, Host, Job
from tests.bench.control_plane import Report, _cpu
from tests.docker.front_door import FrontDoor

RUNS, METRICS, STEPS = 50, 20, 500
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


def fill(door: FrontDoor, jobs: int, points: int, log_bytes: int) -> dict[str, str]:
    """Rows and files of work that was done; the ids of the run with many points and of the one with a long log."""
    database = Database(f"sqlite:///{door.data_dir}/navarch.db")
    now = time.time()
    made: list[Job] = []
    with database.write() as session:
        for host in range(8):
            gpus = [
                {"uuid": f"GPU-{host}-{index}", "name": "NVIDIA H200", "memory_mib": 143_771, "index": index}
                for index in range(8)
            ]
            facts = {"cpus": 64, "memory_bytes": 1 << 40, "gpus": gpus}
            url = f"unix://{door.folder}/none-{host}.sock"
            session.add(Host(id=f"h{host}", name=f"gpu{host}", url=url, address="127.0.0.1", facts=facts))
        for number in range(jobs):
            name = f"run-{number}"
            spec = {"type": "sft", "image": "cpu", "name": name, "train": {"lr": 1e-4 * (1 + number % 5)}}
            job = Job(
                id=new_id(),
                name=name,
                type="sft",
                document=spec,
                owner_id="local",
                state="succeeded",
                message="finished with exit code 0",
                attempts=1,
                created_at=now - jobs + number,
                started_at=now - jobs + number,
                finished_at=now - jobs + number + 60,
                progress={"step": STEPS, "total_steps": STEPS, "loss": 1.5, "tokens_per_second": 390_000.0},
            )
            made.append(job)
            session.add(job)
        session.flush()
        for job in made:
            session.add(Attempt(job_id=job.id, number=1, state="succeeded"))
    database.close()
    for job in made[-RUNS:]:
        _metrics(door, job.id, STEPS, [f"metric_{index}" for index in range(METRICS - 1)] + ["loss"])
    many, logged = made[0], made[1]
    _metrics(door, many.id, points, ["loss"])
    folder = door.data_dir / "jobs" / logged.id / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    line = "2026-11-29T00:00:00.000000000Z " + "x" * 99
    with (folder / "1-0.log").open("w") as out:
        for number in range(log_bytes // 140):
            out.write(f"{line} {number:08d}\n")
    return {"many": many.id, "log": logged.id}


def _metrics(door: FrontDoor, job_id: str, points: int, names: list[str]) -> None:
    """As the collector writes them; a spike and a NaN among them."""
    folder = door.data_dir / "jobs" / job_id
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(1)
    with (folder / "metrics.jsonl").open("w") as out:
        for step in range(points):
            values: dict[str, float | str] = {
                name: round(3 * math.exp(-step / points * 3) + chance.gauss(0, 0.1), 6) for name in names
            }
            if step == points // 3:
                values[names[0]] = "NaN"
            row = {"step": step, "time": 1.79e9 + step, "attempt": 1, "replica": 0, "values": values}
            out.write(json.dumps(row) + "\n")


def asked(report: Report, what: str, get: Callable[[], httpx.Response], times: int, limit: float) -> httpx.Response:
    """Median time of a request, and how large its answer is."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        answer = get()
        took.append((time.perf_counter() - start) * 1000)
        assert answer.status_code == 200, answer.text[:300]
    report.raw[what] = took
    report.add(f"{what}: median", statistics.median(took), "ms", limit)
    return answer


def charts(report: Report, http: httpx.Client, job: str, points: int) -> None:
    path = f"/jobs/{job}/series"
    start = time.perf_counter()
    http.get(path, params={"name": "loss"}).raise_for_status()
    report.add(f"a chart of {points:,} points, the first time (its file is read)", time.perf_counter() - start, "s")
    answer = asked(report, f"a chart of {points:,} points", lambda: http.get(path, params={"name": "loss"}), 30, 50)
    report.add("the same, its answer", answer.num_bytes_downloaded / 1000, "kB", 40)
    assert answer.json()["total"] == points
    chance = random.Random(2)
    took = []
    for _ in range(200):
        low = chance.uniform(0, points * 0.9)
        window = {"name": "loss", "from": low, "to": low + chance.uniform(100, points / 10)}
        start = time.perf_counter()
        http.get(path, params=window).raise_for_status()
        took.append((time.perf_counter() - start) * 1000)
    report.add("zoom into it, p95 of 200", sorted(took)[190], "ms", 150)


def server_time(report: Report, http: httpx.Client) -> None:
    for what, path in (
        ("the first page of jobs", "/jobs?limit=50"),
        ("jobs found by text", "/jobs?limit=50&q=run-99"),
        ("counts of jobs", "/jobs/counts"),
        ("hosts with 64 GPUs", "/hosts"),
    ):
        asked(report, f"{what}, 10,000 jobs", lambda path=path: http.get(path), 20, 200)


@contextmanager
def chromium() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield opened
        opened.close()


def pages(report: Report, door: FrontDoor, browser: Browser, runs: list[str], log: str) -> None:
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    got: list[int] = []
    page.on("requestfinished", lambda request: got.append(request.sizes()["responseBodySize"]))
    with door.client() as client:
        page.goto(client.sign_in_link())
    page.locator("h1").wait_for()
    page.wait_for_timeout(1000)
    report.add("the first load, compressed, with its data", sum(got) / 1000, "kB", 250)
    start = time.perf_counter()
    page.goto(f"{door.url}/compare?" + "&".join(f"run={run}" for run in runs))
    drawn = "() => [...document.querySelectorAll('canvas')].filter((one) => one.width > 0).length >= 2"
    page.wait_for_function(drawn, timeout=60_000)
    report.add(f"{len(runs)} runs × {METRICS} metrics, first charts drawn", time.perf_counter() - start, "s", 2)
    start = time.perf_counter()
    page.goto(f"{door.url}/jobs/{log}?tab=log")
    page.locator(".log-line, .log-row, [data-line]").first.wait_for(timeout=60_000)
    report.add("a log of 200 MB is on the screen", time.perf_counter() - start, "s", 1)
    page.context.close()


def open_pages(report: Report, door: FrontDoor, count: int, seconds: float) -> None:
    """What `count` open pages of a quiet cluster cost: each has one connection, and fetches what is said to change."""
    import websockets.sync.client as ws

    assert door.process is not None
    stop = threading.Event()
    token = door.token
    address = door.url.replace("http", "ws") + "/api/v1/live"

    def one() -> None:
        with (
            ws.connect(address, additional_headers={"Authorization": f"Bearer {token}"}) as socket,
            door.client() as client,
        ):
            socket.send(json.dumps({"watch": ["jobs", "hosts", "events"]}))
            while not stop.is_set():
                try:
                    changed = json.loads(socket.recv(timeout=1))["changed"]
                except TimeoutError:
                    continue
                if "jobs" in changed:
                    client._transport.request("GET", "jobs", params={"limit": 50})
                if "hosts" in changed:
                    client._transport.request("GET", "hosts")

    threads = [threading.Thread(target=one, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    time.sleep(5)
    before, start = _cpu(door.process.pid), time.monotonic()
    time.sleep(seconds)
    share = (_cpu(door.process.pid) - before) / (time.monotonic() - start) * 100
    stop.set()
    for thread in threads:
        thread.join(timeout=10)
    report.add(f"{count} open pages, the control plane's processor over {seconds:.0f} s", share, "% of a core", 10)


def mlflow(report: Report, python: str, points: int) -> None:
    """The same points in MLflow's own server (SQLite), logged by its client in batches; the chart as its page asks."""
    port = 25_977
    with tempfile.TemporaryDirectory(prefix="navarch-mlflow-") as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        serve = [python, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port), "--workers", "1"]
        with (Path(folder) / "log").open("w") as log:
            server = subprocess.Popen(serve, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                try:
                    httpx.get(url + "/health", timeout=2).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.5)
            script = f"""
import mlflow, random, time
from mlflow.entities import Metric
client = mlflow.MlflowClient({store!r})
run = client.create_run("0").info.run_id
chance = random.Random(1)
for first in range(0, {points}, 1000):
    part = [Metric("loss", chance.gauss(1, 0.1), 0, step) for step in range(first, first + 1000)]
    client.log_batch(run, metrics=part)
print(run)
"""
            start = time.perf_counter()
            done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True, timeout=3000)
            run = done.stdout.split()[-1]
            report.add(f"MLflow: {points:,} points logged in batches of 1,000", time.perf_counter() - start, "s")
            bulk = f"{url}/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval"
            asking = {"run_ids": run, "metric_key": "loss", "max_results": 2500}
            answer = asked(report, "MLflow: its chart", lambda: httpx.get(bulk, params=asking, timeout=120), 5, 1e9)
            report.add("the same, its answer", answer.num_bytes_downloaded / 1000, "kB")
            zoom = {**asking, "start_step": points // 2, "end_step": points // 2 + points // 20}
            asked(report, "MLflow: zoom", lambda: httpx.get(bulk, params=zoom, timeout=120), 5, 1e9)
        finally:
            os.killpg(server.pid, 15)
            server.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--mlflow", help="a Python that has MLflow")
    wanted = parser.parse_args()
    part = 10 if wanted.quick else 1
    points = 1_000_000 // part
    report = Report()
    with tempfile.TemporaryDirectory(prefix="navarch-bench-") as name:
        door = FrontDoor(Path(name))
        door.start()
        assert door.process is not None
        door.process.terminate()
        door.process.wait(timeout=30)
        ids = fill(door, 10_000 // part, points, 200_000_000 // part)
        door.start()
        try:
            headers = {"Authorization": f"Bearer {door.token}", "Accept-Encoding": "gzip"}
            with httpx.Client(base_url=f"{door.url}/api/v1", headers=headers, timeout=120) as http:
                time.sleep(3)
                server_time(report, http)
                charts(report, http, ids["many"], points)
                runs = [job["id"] for job in http.get("/jobs", params={"limit": RUNS}).json()["items"]]
            with chromium() as browser:
                pages(report, door, browser, runs, ids["log"])
            open_pages(report, door, 100, 60 / part)
        finally:
            door.end()
    if wanted.mlflow:
        mlflow(report, wanted.mlflow, points)
    print("\n" + report.table() + "\n")
    print(json.dumps(report.raw))


if __name__ == "__main__":
    main()
