"""Kills a real control plane with kill -9 again and again, on a real engine, and counts what that did to its jobs.

`make soak`, or `python -m tests.soak.kills --kills 200 --seed 1 [--append tests/bench/RESULTS.md]`. Seeded: the same
jobs, the same moments. Each job's command writes a line into its run folder when it begins, so a command that ran twice
is seen for real, whatever the database says.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import docker

from images.build import build, finish
from service.backends.docker.backend import DockerBackend
from service.backends.docker.hosts import DockerHosts
from service.control.invariants import examine
from service.intake.commands import Jobs
from service.store.tables import GpuLease, Holder, Job, Meta, PortLease, Replica
from tests.docker.control import TERMINAL, PlaneProcess, test_settings

BEGIN = 'echo "$NAVARCH_ATTEMPT $NODE_RANK" >> "$NAVARCH_RUN_DIR/begun"; '
MOMENTS = ("start", "start", "start", "create", "die", "destroy", "kill", None, None)
"""The engine's events at which it is killed, at once; None: after a random time."""
SETTLE_S = 600.0


@dataclass(frozen=True)
class Kind:
    """A kind of job, and how it must end."""

    command: str
    state: str
    reason: str
    attempts: int = 1
    spec: dict[str, Any] = field(default_factory=dict)
    is_stopped: bool = False


KINDS = {
    "quick": Kind("true", "succeeded", "completed"),
    "without sshd": Kind("true", "succeeded", "completed", spec={"ssh": False}),
    "takes a while": Kind("sleep 1.5", "succeeded", "completed"),
    "fails": Kind("exit 3", "failed", "user_error"),
    "fails twice": Kind("exit 3", "failed", "user_error", attempts=2, spec={"retries": 1}),
    "gang": Kind("sleep 0.5", "succeeded", "completed", spec={"resources": {"nodes": 2}}),
    "stopped": Kind("sleep 300", "stopped", "stopped_by_user", is_stopped=True),
}


@dataclass
class Result:
    """What came of it; all but the first two must be nothing."""

    kills: int = 0
    jobs: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    moments: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.leaked or self.wrong)

    def table(self) -> str:
        row = f"| {self.kills} | {self.jobs} | " + " | ".join(
            str(len(found)) for found in (self.lost, self.doubled, self.leaked, self.wrong)
        )
        return (
            f"| kills | jobs | lost | doubled | leaked | wrong state |\n| --- | --- | --- | --- | --- | --- |\n{row} |"
        )


class Nobody:
    """A listener that isn't there."""

    def wake(self, job_id: str) -> None:
        pass

    def look(self, host_id: str) -> None:
        pass

    def room(self) -> None:
        pass


class Soak:
    def __init__(self, plane: PlaneProcess, client: docker.DockerClient, image: str, seed: int) -> None:
        self.plane, self.client, self.image = plane, client, image
        self.random = random.Random(seed)
        self.jobs = Jobs(plane.database, plane.settings)
        self.kinds: dict[str, Kind] = {}
        self.to_stop: list[tuple[float, str]] = []
        self.result = Result()
        self.deployment = str(plane.rows(Meta, key="deployment")[0].value)
        self.label = f"navarch.deployment={self.deployment}"

    def kill_once(self) -> None:
        """Submits some jobs, waits for the moment, kills the control plane, and starts it again."""
        for _ in range(self.random.choice((0, 1, 1, 2))):
            self._submit()
        moment = self.random.choice(MOMENTS)
        if moment is None:
            time.sleep(self.random.uniform(0.0, 2.0))
        else:
            self._await(moment, self.random.uniform(2.0, 5.0))
        self.plane.kill()
        self.result.kills += 1
        time.sleep(self.random.choice((0.0, 0.0, 0.3, 1.0)))
        self._stop_some()
        self.plane.start()

    def _submit(self) -> None:
        kind = KINDS[self.random.choice(list(KINDS))]
        document = {"type": "command", "image": self.image, "command": BEGIN + kind.command, "grace": "2s", **kind.spec}
        job_id = self.jobs.submit(document).job.id
        self.kinds[job_id] = kind
        if kind.is_stopped:
            self.to_stop.append((time.monotonic() + self.random.uniform(0.0, 15.0), job_id))

    def _stop_some(self, *, everything: bool = False) -> None:
        for due, job_id in list(self.to_stop):
            if everything or due <= time.monotonic():
                self.jobs.stop(job_id)
                self.to_stop.remove((due, job_id))

    def _await(self, action: str, timeout_s: float) -> None:
        """Returns the moment that the engine tells of such an event, or after a while."""
        stream = self.client.api.events(decode=True, filters={"label": self.label, "event": action})
        heard: queue.Queue[object] = queue.Queue()
        threading.Thread(target=lambda: heard.put(next(iter(stream), None)), daemon=True).start()
        try:
            heard.get(timeout=timeout_s)
            self.result.moments[action] += 1
        except queue.Empty:
            self.result.moments["no event"] += 1
        finally:
            stream.close()

    def settle(self) -> Result:
        """Lets everything end, and counts."""
        self._stop_some(everything=True)
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            open_jobs = [job for job in self.plane.rows(Job) if job.state not in TERMINAL]
            if not open_jobs and not self._containers():
                break
            time.sleep(0.5)
        self.result.jobs = len(self.kinds)
        self._count()
        return self.result

    def _containers(self) -> list[Any]:
        return self.client.containers.list(all=True, filters={"label": self.label}, ignore_removed=True)

    def _count(self) -> None:
        result = self.result
        for job_id, kind in self.kinds.items():
            job = self.plane.job(job_id)
            said = f"{job.name}: {job.state}, {job.reason}, {job.attempts} attempts: {job.message}"
            begun = Counter(self._begun(job_id))
            if job.state not in TERMINAL:
                result.lost.append(said)
            elif (job.state, job.reason) != (kind.state, kind.reason):
                result.wrong.append(said)
            elif not kind.is_stopped and set(begun) != self._expected(job_id, kind):
                result.lost.append(f"{said}: began {sorted(begun)}")
            result.doubled += [f"{said}: {line!r} began {count} times" for line, count in begun.items() if count > 1]
            if job.attempts > kind.attempts:
                result.doubled.append(f"{said}, but {kind.attempts} were to be made")
        result.leaked += [f"container {container.name} ({container.status})" for container in self._containers()]
        for table in (Holder, GpuLease, PortLease):
            result.leaked += [f"{table.__name__} {row}" for row in self.plane.rows(table)]
        database, settings = self.plane.database, self.plane.settings
        engines = DockerHosts(database, settings)
        backend = DockerBackend(engines, database, settings, time.time)
        backend.start(self.deployment, Nobody(), lambda kind, place, work: None)
        result.wrong += [check.detail for check in examine(database, [backend]) if not check.ok]
        engines.close()
        log = settings.data_dir / "plane.log"
        result.wrong += [line for line in log.read_text().splitlines() if "[error" in line or '"level":"error"' in line]

    def _begun(self, job_id: str) -> list[str]:
        file = self.plane.settings.job_dir(job_id) / "run" / "begun"
        return file.read_text().splitlines() if file.exists() else []

    def _expected(self, job_id: str, kind: Kind) -> set[str]:
        ranks = max(replica.node_rank for replica in self.plane.rows(Replica, job_id=job_id)) + 1
        return {f"{attempt} {rank}" for attempt in range(1, kind.attempts + 1) for rank in range(ranks)}


@contextmanager
def soaking(folder: Path, image: str, seed: int) -> Iterator[Soak]:
    """A control plane in a folder, to be killed."""
    client = docker.from_env(timeout=120)
    plane = PlaneProcess(test_settings(folder))
    try:
        yield Soak(plane, client, image, seed)
    finally:
        plane.close()
        client.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=90.0, help="no more kills after that long")
    parser.add_argument("--append", type=Path, help="append the result to this Markdown file")
    asked = parser.parse_args()
    client = docker.from_env(timeout=600)
    image = finish(build(client, "cpu", training=False)).tag
    begun = time.monotonic()
    with TemporaryDirectory(prefix="navarch-soak-") as folder, soaking(Path(folder), image, asked.seed) as soak:
        for number in range(1, asked.kills + 1):
            if time.monotonic() - begun > 60 * asked.minutes:
                print(f"{asked.minutes:.0f} minutes are over", flush=True)
                break
            soak.kill_once()
            if number % 10 == 0:
                print(f"{number} kills, {len(soak.kinds)} jobs, {time.monotonic() - begun:.0f} s", flush=True)
        result = soak.settle()
    print(result.table())
    print("killed at", dict(result.moments))
    for name in ("lost", "doubled", "leaked", "wrong"):
        for found in getattr(result, name):
            print(f"{name}: {found}")
    if asked.append:
        took = (time.monotonic() - begun) / 60
        where = f"seed {asked.seed}, {took:.0f} min on {os.cpu_count()} cores; {time.strftime('%Y-%m-%d')}"
        with asked.append.open("a") as out:
            out.write(f"\n## kill -9 soak\n\n`make soak` ({where}).\n\n{result.table()}\n")
    return 0 if result.good else 1


if __name__ == "__main__":
    sys.exit(main())
