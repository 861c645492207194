"""How submitted specs become rows: several in one transaction, each accepted or refused by itself."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlmodel import Session, col, select

from jobs.awaited import NOT_BEFORE_ITS_INPUTS
from jobs.placement import HostCapacity
from jobs.spec import JobSpec, redacted
from jobs.states import JobState
from service.access.principals import LOCAL, Principal
from service.access.quotas import check_alone, check_disk
from service.access.secrets import SecretBox
from service.builds.look import ImageLook
from service.contract.errors import Problem
from service.intake.admission import check_possible, demand_of, parse, resolve
from service.intake.spec_paths import Resolved
from service.settings import Settings
from service.store.capacity import capacities, kind_of
from service.store.database import Database
from service.store.demands import stored
from service.store.ids import new_id
from service.store.tables import Event, Idempotency, Job, JobInput, Workspace


@dataclass(frozen=True)
class Submission:
    """One job as a client sent it."""

    document: Mapping[str, Any]
    actor: Principal = LOCAL
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Submitted:
    job: Job
    replayed: bool
    """Whether an earlier submit with the same Idempotency-Key made it."""
    inputs: tuple[JobInput, ...] = ()
    """Of a new job: the artifacts that it uses."""


@dataclass(frozen=True)
class _Checked:
    """A submission that passed everything that needs no transaction."""

    spec: JobSpec
    submission: Submission
    named: bool
    resolved: Resolved
    sealed: bytes | None
    digest: str
    job_id: str
    name: str
    """As asked for, or made up."""


@dataclass
class _Known:
    """What a batch of submissions has to be compared with; two queries, however many there are."""

    names: set[tuple[str, str]]
    """(owner, name) of active jobs."""
    keys: dict[tuple[str, str], tuple[str, Job | None]]
    """(owner, key) → the digest of what came with it, and its job."""

    @classmethod
    def of(cls, session: Session, items: "Sequence[_Checked]") -> "_Known":
        wanted = {item.name for item in items}
        active = select(Job.owner_id, Job.name).where(col(Job.name).in_(wanted), col(Job.finished_at).is_(None))
        names = set(session.exec(active)) if wanted else set()
        workspaces = select(Workspace.owner_id, Workspace.name).where(col(Workspace.name).in_(wanted))
        names |= set(session.exec(workspaces)) if wanted else set()
        keys: dict[tuple[str, str], tuple[str, Job | None]] = {}
        asked = {item.submission.idempotency_key for item in items} - {None}
        if asked:
            for row in session.exec(select(Idempotency).where(col(Idempotency.key).in_(asked))):
                keys[row.owner_id, row.key] = (row.digest, session.get(Job, row.job_id))
        return cls(names, keys)


class Submissions:
    """Checks specs and writes their rows; whoever calls it wakes the scheduler."""

    def __init__(self, database: Database, settings: Settings, images: ImageLook | None = None) -> None:
        self._database, self._settings, self._images = database, settings, images
        self._secrets = SecretBox(settings.data_dir)

    def accept(self, submissions: Sequence[Submission]) -> list[Submitted | Exception]:
        """Accepts several jobs in one transaction; each is accepted or refused by itself, in the same order.

        What goes wrong with one, foreseen or not, is that one's result and nobody else's.
        """
        with self._database.read() as session:
            hosts = cache(lambda: capacities(session))
            checked = [self._checked(session, submission, hosts) for submission in submissions]
        stored = iter(self._store([item for item in checked if isinstance(item, _Checked)]))
        return [next(stored) if isinstance(item, _Checked) else item for item in checked]

    def _store(self, items: "Sequence[_Checked]") -> list[Submitted | Exception]:
        """All in one transaction; if that fails, each in its own, so that only the one at fault is refused."""
        if not items:
            return []
        try:
            with self._database.write() as session:
                known = _Known.of(session, items)
                return [self._add(session, item, known) for item in items]
        except Exception as error:
            return [error] if len(items) == 1 else [self._store([item])[0] for item in items]

    def _checked(
        self, session: Session, submission: Submission, hosts: Callable[[], list[HostCapacity]]
    ) -> "_Checked | Exception":
        try:
            return self._check(session, submission, hosts)
        except Exception as error:
            return error

    def _check(self, session: Session, submission: Submission, hosts: Callable[[], list[HostCapacity]]) -> "_Checked":
        spec = parse(submission.document)
        owner = submission.actor.id
        check_alone(session, owner, spec.resources.gpus * spec.resources.nodes)
        check_disk(session, self._settings, owner)
        resolved = resolve(session, spec, self._settings, submission.actor)
        check_possible(spec, hosts(), resolved.needs)
        if self._images is not None:
            self._images.check(spec, hosts())
        text = json.dumps(submission.document, sort_keys=True, separators=(",", ":"), default=str)
        job_id = new_id()
        named = bool(submission.document.get("name"))
        return _Checked(
            spec,
            submission,
            named,
            resolved,
            self._secrets.seal(spec.secrets),
            hashlib.sha256(text.encode()).hexdigest(),
            job_id,
            spec.name if named else f"{spec.type}-{job_id[-4:]}",
        )

    def _add(self, session: Session, item: _Checked, known: "_Known") -> Submitted | Problem:
        key, owner = item.submission.idempotency_key, item.submission.actor.id
        if key is not None and (owner, key) in known.keys:
            digest, earlier = known.keys[owner, key]
            if digest != item.digest or earlier is None:
                return Problem(
                    "idempotency_conflict",
                    f"Idempotency-Key {key!r} was used before, for another job.",
                    "Use a new key for a new job.",
                )
            return Submitted(earlier, replayed=True)
        job_id, name = item.job_id, item.name
        while (owner, name) in known.names:
            if item.named:
                return Problem(
                    "name_taken",
                    f"A job or workspace named {name!r} is still there.",
                    f"Stop it (`navarch stop {name}`), choose another name, or leave `name` out to get one.",
                )
            name = f"{item.spec.type}-{new_id()[-8:]}"
        known.names.add((owner, name))
        job = _row(item, name)
        session.add(job)
        inputs = _input_rows(job.id, item.resolved)
        if inputs:
            session.flush()  # they refer to the job
            session.add_all(inputs)
        session.add(
            Event(
                actor_id=owner,
                kind="job.submitted",
                subject=f"job/{job_id}",
                job_id=job_id,
                job_name=name,
                new=JobState.QUEUED.value,
                message=f"{name} was submitted",
            )
        )
        if key is not None:
            session.add(Idempotency(owner_id=owner, key=key, digest=item.digest, job_id=job_id))
            known.keys[owner, key] = (item.digest, job)
        return Submitted(job, replayed=False, inputs=inputs)


def _row(item: _Checked, name: str) -> Job:
    demand, owner = demand_of(item.spec, item.resolved.needs), item.submission.actor.id
    return Job(
        id=item.job_id,
        name=name,
        type=item.spec.type.value,
        document={**redacted(item.submission.document), "name": name},
        secrets=item.sealed,
        resolved={
            "training": item.resolved.training,
            "mounts": [mount.model_dump() for mount in item.resolved.mounts.values()],
        },
        owner_id=owner,
        priority=item.spec.priority,
        nodes=demand.nodes,
        gpus=demand.gpus,
        cpus=demand.cpus,
        memory=demand.memory,
        lasts=demand.lasts,
        placing={"spread": demand.spread, "labels": dict(demand.labels)},
        ports={"fixed": list(demand.fixed_ports), "pool": demand.pool_ports},
        needs=stored(demand.needs),
        demand=kind_of(demand, owner),
        not_before=NOT_BEFORE_ITS_INPUTS if item.resolved.why else 0.0,
        why=item.resolved.why or "has just been submitted",
        message="waits for its turn",
    )


def _input_rows(job_id: str, resolved: Resolved) -> tuple[JobInput, ...]:
    return tuple(
        JobInput(
            job_id=job_id,
            key=key,
            name=found.name,
            target=target,
            version=found.version,
            artifact_id=found.artifact_id,
            digest=found.digest,
            maker_id=found.maker_id,
            maker_name=found.maker_name,
        )
        for key, (found, target) in resolved.inputs.items()
    )
