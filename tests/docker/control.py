"""A control plane for tests: in this process, or as a process of its own that can be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
from sqlmodel import col, select

from service.control.loop import Controller
from service.runtime import Runtime
from service.settings import Settings
from service.store.database import Database
from service.store.tables import Attempt, Event, GpuLease, Host, ImageBuild, Job, Meta, PortLease, Replica
from tests.docker.engines import remove_containers

REPOSITORY = Path(__file__).parents[2]
TERMINAL = ("succeeded", "failed", "stopped")


def until(what: str, check: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """The first true answer of `check`."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.02)


class Store:
    """Reads a deployment's rows from outside."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            found = session.get(Job, job_id)
            assert found is not None
            return found

    def ended(self, job_id: str, timeout_s: float = 30.0) -> Job:
        def check() -> Job | None:
            job = self.job(job_id)
            return job if job.state in TERMINAL else None

        found = until(f"end of {job_id} ({self.job(job_id).state}: {self.job(job_id).message})", check, timeout_s)
        assert isinstance(found, Job)
        return found

    def in_state(self, job_id: str, state: str, timeout_s: float = 30.0) -> Job:
        until(f"{state} of {job_id}", lambda: self.job(job_id).state == state, timeout_s)
        return self.job(job_id)

    def rows(self, table: Any, **equal: Any) -> list[Any]:
        with self.database.read() as session:
            query = select(table)
            for name, value in equal.items():
                query = query.where(col(getattr(table, name)) == value)
            return list(session.exec(query))

    def replica(self, job_id: str) -> Replica:
        return max(self.rows(Replica, job_id=job_id), key=lambda r: r.id or 0)

    def leases(self) -> list[Any]:
        return [*self.rows(GpuLease), *self.rows(PortLease)]

    def states(self, job_id: str) -> list[str]:
        """The states that a job went through, as its events tell."""
        events = sorted(self.rows(Event, job_id=job_id, kind="job.state"), key=lambda e: e.id)
        return [event.new for event in events]

    def attempts(self, job_id: str) -> list[Attempt]:
        return sorted(self.rows(Attempt, job_id=job_id), key=lambda a: a.number)


def test_settings(folder: Path, **changes: Any) -> Settings:
    """Ports that depend on the process, so that tests which run side by side don't meet."""
    first = 26000 + (os.getpid() * 40) % 6000
    return Settings(data_dir=folder, port_range=(first, first + 39), sweep_s=1.0, **changes)


test_settings.__test__ = False  # type: ignore[attr-defined]


class Plane(Store):
    """A control plane in this process."""

    def __init__(self, settings: Settings) -> None:
        self.runtime = Runtime(settings)
        self.runtime.open()
        self.runtime.start()
        super().__init__(self.runtime.database)
        until("engine", lambda: self.runtime.health()["engine"][0])
        self.client = docker.DockerClient(base_url=settings.engine_url)

    @property
    def controller(self) -> Controller:
        assert self.runtime.controller is not None
        return self.runtime.controller

    def submit(self, command: Any, **spec: Any) -> str:
        document = {"type": "command", "command": command, "grace": "5s", **spec}
        return self.runtime.jobs.submit(document).job.id

    def log(self, job_id: str) -> list[str]:
        return [line.line for line in self.runtime.logs.read(job_id).lines]

    def logged(self, job_id: str, line: str, timeout_s: float = 30.0) -> None:
        until(f"{line!r} in the log", lambda: line in self.log(job_id), timeout_s)

    def containers(self) -> list[Any]:
        label = f"navarch.deployment={self.runtime.deployment}"
        return self.client.containers.list(all=True, filters={"label": label}, ignore_removed=True)

    def close(self) -> None:
        with self.database.read() as session:
            live = list(session.exec(select(Job.id).where(col(Job.finished_at).is_(None))))
        for job_id in live:
            self.runtime.jobs.stop(job_id)
        self.runtime.stop()
        remove_containers(self.client, f"navarch.deployment={self.runtime.deployment}")
        self.client.close()


class PlaneProcess(Store):
    """A control plane as a process of its own, which can be killed and started again on the same folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.start()
        super().__init__(Database(settings.url))

    def start(self) -> None:
        code = (
            "import json,os,sys,time; from service.runtime import Runtime; from service.settings import Settings;"
            "s=Settings(**json.loads(sys.argv[1])); said=os.dup(1);"
            "log=os.open(s.data_dir/'plane.log', os.O_WRONLY|os.O_CREAT|os.O_APPEND); os.dup2(log,1); os.dup2(log,2);"
            "r=Runtime(s); r.open(); r.start(); os.write(said, b'up\\n'); time.sleep(3600)"
        )
        given = self.settings.model_dump(mode="json")
        self.started_at = time.time()
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(given)], stdout=subprocess.PIPE, env=environment, cwd=REPOSITORY
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None

    def builds(self) -> list[ImageBuild]:
        return self.rows(ImageBuild)

    def close(self) -> None:
        """Ends it once it isn't looking for GPUs any more, and removes every container that it has made."""
        if self.process is not None:
            until("connection", lambda: (self.rows(Host)[0].seen_at or 0.0) > self.started_at)
            self.kill()
        label = f"navarch.deployment={self.rows(Meta, key='deployment')[0].value}"
        client = docker.DockerClient(base_url=self.settings.engine_url)
        remove_containers(client, label)
        client.close()
        self.database.close()
