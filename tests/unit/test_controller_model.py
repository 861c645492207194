"""Random lives of a deployment: users, failures, crashes between any two effects; what must hold, holds after each."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jobs.states import PLACED, TERMINAL, JobState, Reason, check_move
from service.contract.errors import Problem
from service.store.tables import Artifact, Attempt, Event, GpuLease, Holder, Host, Job, JobInput, Replica
from tests.unit.simulated_engine import Container, Crash, LogRecord
from tests.unit.simulation import SimulatedController, World

CRASH = st.one_of(st.none(), st.none(), st.integers(1, 40))
PICK = st.integers(0, 1 << 16)


class Life(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp(prefix="navarch-life-"))
        self.world = World(self.folder)
        self.controller = self.world.controller()
        self.harvested: dict[int, float] = {}
        self.taken: dict[int, tuple[int, str]] = {}
        self.lost_hosts: set[str] = set()

    def teardown(self) -> None:
        try:
            self.controller.fuse.left = None
            self.world.settle(self.controller)
            assert [(j.name, j.state, j.message) for j in self.world.live_jobs()] == []
            assert [c.plan.name for c in self.world.containers()] == []
            self.lost_hosts.clear()
            self.everything_holds()
        finally:
            self.controller.close()
            self.world.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def acting(self, crash: int | None) -> Iterator[SimulatedController]:
        """The controller at work; when it dies at its n-th effect, a new process takes its place."""
        self.controller.fuse.left = crash
        try:
            yield self.controller
        except Crash:
            self.controller.close()
            self.controller = self.world.controller()
        else:
            self.controller.fuse.left = None

    @rule(
        gpus=st.integers(0, 3),
        nodes=st.integers(1, 2),
        retries=st.integers(0, 1),
        port=st.sampled_from([None, 7000]),
        after=st.one_of(st.none(), PICK),
        pulled=st.sampled_from([False, False, True]),
    )
    def submit(self, gpus: int, nodes: int, retries: int, port: int | None, after: int | None, pulled: bool) -> None:
        jobs = self.world.rows(Job) if after is not None else []
        document: dict[str, Any] = {
            "type": "command",
            "image": "debian:trixie" if pulled and nodes == 1 else "cpu",
            "ssh": nodes > 1 or not pulled,
            "command": "x",
            "resources": {"gpus": gpus, "nodes": nodes},
            "retries": retries,
            "grace": 5,
            "ports": [port] if port else [],
            "after": [jobs[(after or 0) % len(jobs)].id] if jobs else [],
        }
        try:
            self.world.jobs.submit(document)
        except Problem as problem:
            assert problem.code == "not_enough_gpus" or (jobs and problem.code == "invalid_spec")

    @rule(pick=PICK, first=st.booleans())
    def submit_a_step_of_a_chain(self, pick: int, first: bool) -> None:
        """A training that starts from the hub, or from what another one leaves or will leave."""
        makers = [job.name for job in self.world.rows(Job) if job.type == "sft"]
        model = f"artifact:{makers[pick % len(makers)]}-model" if makers and not first else "hf:org/base"
        rows = self.world.shared / "rows.jsonl"
        rows.touch()
        document = {"type": "sft", "image": "cpu", "model": model, "data": [{"path": str(rows)}], "grace": 5}
        try:
            self.world.jobs.submit(document)
        except Problem as problem:
            assert problem.code == "artifact_not_found" and model != "hf:org/base"

    @precondition(lambda self: self._trainings())
    @rule(pick=PICK, code=st.sampled_from([0, 0, 0, 1]))
    def a_training_leaves_its_model_and_ends(self, pick: int, code: int) -> None:
        trainings = self._trainings()
        chosen = trainings[pick % len(trainings)]
        left = self.world.settings.job_dir(chosen.plan.labels["navarch.job"]) / "run" / "model"
        left.mkdir(parents=True, exist_ok=True)
        event = '@navarch {"event": "artifact", "path": "model", "kind": "model"}'
        chosen.log.append(LogRecord(f"2026-01-01T00:{len(chosen.log):02d}:00.000000000Z", event))
        for machine in self.world.machines.values():
            if machine.containers.get(chosen.id) is chosen:
                machine.end(chosen, code)

    def _trainings(self) -> list[Container]:
        running = [container for container in self.world.containers() if container.running]
        return [container for container in running if container.plan.environment["NAVARCH_JOB"].startswith("sft-")]

    @rule(pick=PICK)
    def stop(self, pick: int) -> None:
        jobs = self.world.rows(Job)
        if jobs:
            self.world.jobs.stop(jobs[pick % len(jobs)].id)

    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        jobs = self.world.rows(Job)
        if jobs:
            job = jobs[pick % len(jobs)]
            try:
                self.world.jobs.delete(job.id)
            except Problem as problem:
                assert problem.code in ("job_active", "artifact_in_use")
            else:
                assert job.state in TERMINAL

    @rule(crash=CRASH)
    def schedule(self, crash: int | None) -> None:
        with self.acting(crash) as controller:
            controller.schedule()

    @rule(pick=PICK, crash=CRASH, steps=st.integers(1, 4))
    def step(self, pick: int, crash: int | None, steps: int) -> None:
        jobs = self.world.rows(Job)
        if jobs:
            with self.acting(crash) as controller:
                for _ in range(steps):
                    controller.step(jobs[pick % len(jobs)].id)

    @rule(crash=CRASH, rounds=st.integers(1, 3))
    def everybody_takes_a_step(self, crash: int | None, rounds: int) -> None:
        """What a controller does by itself, so that lives get further than a few single steps."""
        with self.acting(crash) as controller:
            for _ in range(rounds):
                controller.schedule()
                for job in self.world.live_jobs():
                    controller.step(job.id)
                controller.work_lanes()

    @rule(crash=CRASH)
    def a_lane_works(self, crash: int | None) -> None:
        with self.acting(crash) as controller:
            if controller.in_lanes:
                controller.in_lanes.popleft()()

    @rule(host=st.sampled_from(["h1", "h2"]), crash=CRASH)
    def watch(self, host: str, crash: int | None) -> None:
        with self.acting(crash) as controller:
            controller.watch(host)
            if self.world.machines[host].reachable:
                self.lost_hosts.discard(host)

    @precondition(lambda self: self.world.containers())
    @rule(pick=PICK, code=st.sampled_from([0, 0, 1, 137]), oom=st.booleans())
    def container_ends(self, pick: int, code: int, oom: bool) -> None:
        containers = self.world.containers()
        chosen = containers[pick % len(containers)]
        for machine in self.world.machines.values():
            if chosen.id in machine.containers and machine.containers[chosen.id] is chosen:
                machine.end(chosen, code, oom=oom and code == 137)

    @precondition(lambda self: self.world.containers())
    @rule(pick=PICK)
    def somebody_removes_a_container(self, pick: int) -> None:
        containers = self.world.containers()
        chosen = containers[pick % len(containers)]
        for machine in self.world.machines.values():
            if machine.containers.get(chosen.id) is chosen:
                del machine.containers[chosen.id]

    @rule(pick=PICK)
    def container_becomes_stubborn(self, pick: int) -> None:
        containers = self.world.containers()
        if containers:
            containers[pick % len(containers)].ignores_term = True

    @rule(host=st.sampled_from(["h1", "h2"]), count=st.integers(1, 3))
    def answers_get_lost(self, host: str, count: int) -> None:
        self.world.machines[host].lost_answers = count

    @rule(host=st.sampled_from(["h1", "h2"]))
    def a_log_breaks_off(self, host: str) -> None:
        self.world.machines[host].broken_streams += 1

    @rule(host=st.sampled_from(["h1", "h2"]))
    def a_disk_gets_full_or_is_cleared(self, host: str) -> None:
        self.world.machines[host].disk_full ^= True

    @rule(host=st.sampled_from(["h1", "h2"]))
    def engine_restarts(self, host: str) -> None:
        self.world.machines[host].restart_engine()

    @rule(host=st.sampled_from(["h1", "h2"]))
    def host_vanishes_or_returns(self, host: str) -> None:
        machine = self.world.machines[host]
        machine.reachable = not machine.reachable
        self.lost_hosts.add(host)

    @rule(seconds=st.sampled_from([1.0, 10.0, 45.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(port=st.sampled_from([7000, 20000, 20001]))
    def foreign_program_takes_or_frees_a_port(self, port: int) -> None:
        self.world.machines["h1"].foreign_ports ^= {port}

    @invariant()
    def everything_holds(self) -> None:
        world = self.world
        jobs = {job.id: job for job in world.rows(Job)}
        attempts = {attempt.id: attempt for attempt in world.rows(Attempt)}
        live = {a.id for a in attempts.values() if a.finished_at is None}
        assert {holder.id for holder in world.rows(Holder)} == {attempts[id].holder for id in live}
        for job in jobs.values():
            open_attempts = [a for a in attempts.values() if a.job_id == job.id and a.finished_at is None]
            assert len(open_attempts) == (1 if JobState(job.state) in PLACED else 0), (job.state, open_attempts)
            assert job.user_retries <= job.document.get("retries", 0)
            assert (job.finished_at is not None) == (JobState(job.state) in TERMINAL)
        self._inputs_are_fixed(jobs)
        self._gpus_match(attempts, live)
        self._containers_have_attempts(attempts, live)
        self._events_tell_the_story(jobs)
        for machine in world.machines.values():
            assert all(runs == 1 for runs in machine.runs.values()), "a container was started twice"
        for replica in world.rows(Replica):
            if replica.harvested_at is not None:
                first = self.harvested.setdefault(replica.id, replica.harvested_at)
                assert first == replica.harvested_at, "harvested twice"

    def _inputs_are_fixed(self, jobs: dict[str, Job]) -> None:
        """Nothing starts without its inputs, all attempts get the same, and what a live job uses isn't removed."""
        there = {artifact.id for artifact in self.world.rows(Artifact)}
        for wanted in self.world.rows(JobInput):
            job = jobs[wanted.job_id]
            if wanted.version is None:
                assert job.attempts == 0, f"{job.name} started without {wanted.name or wanted.maker_name}"
                continue
            if not wanted.name:
                maker = jobs.get(wanted.maker_id or "")
                assert maker is None or maker.state == JobState.SUCCEEDED
                continue
            assert self.taken.setdefault(wanted.id, (wanted.version, wanted.artifact_id)) == (
                wanted.version,
                wanted.artifact_id,
            ), "another version than before"
            sources = [mount["source"] for mount in job.resolved["mounts"] if mount["target"] == wanted.target]
            assert len(sources) == 1
            assert job.state in TERMINAL or wanted.artifact_id in there, f"{job.name} lost {wanted.name}"

    def _gpus_match(self, attempts: dict[int | None, Attempt], live: set[int | None]) -> None:
        leased = {lease.gpu: lease.holder_id for lease in self.world.rows(GpuLease)}
        for replica in self.world.rows(Replica):
            for gpu in replica.gpus:
                held = leased.get(gpu) == f"attempt/{replica.attempt_id}"
                assert held == (replica.attempt_id in live)

    def _containers_have_attempts(self, attempts: dict[int | None, Attempt], live: set[int | None]) -> None:
        unswept = self.lost_hosts | {h.id for h in self.world.rows(Host) if not h.reachable}
        running = {(a.job_id, str(a.number)) for a in attempts.values() if a.id in live}
        for host, machine in self.world.machines.items():
            used: list[str] = []
            for container in machine.containers.values():
                labels = container.plan.labels
                known = (labels["navarch.job"], labels["navarch.attempt"]) in running
                if container.running and host not in unswept:
                    assert known, f"{container.plan.name} runs without an attempt"
                if container.running and known:
                    used += container.plan.gpus
            assert len(used) == len(set(used)), "two containers on one GPU"

    def _events_tell_the_story(self, jobs: dict[str, Job]) -> None:
        told: dict[str, str] = {}
        for event in sorted(self.world.rows(Event), key=lambda e: e.id):
            if event.kind == "job.submitted":
                told[event.job_id] = JobState.QUEUED.value
            elif event.kind == "job.state":
                assert told[event.job_id] == event.old
                check_move(JobState(event.old), JobState(event.new))
                assert event.reason is None or Reason(event.reason)
                told[event.job_id] = event.new
        for job in jobs.values():
            assert told[job.id] == job.state


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=20,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
