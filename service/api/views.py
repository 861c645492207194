"""Reads rows and shows them as the REST schemas: a fixed number of queries a page, however long it is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from sqlmodel import Session, col, select

from jobs.awaited import describe_wait, wait_sentence
from service.access.principals import Principal, names
from service.api.cursors import Cursor
from service.api.tolerant import mapping, number, progress, shown, whole
from service.collector.reader import LogLine
from service.contract import images, schemas
from service.contract.ssh_keys import PublicKey
from service.intake.deletion import Deleted
from service.store import tables

MAX_PAGE = 200
SSH_CONTAINER_PORT = "22"
SERVE_PORT = 8000


def job(session: Session, row: tables.Job) -> schemas.Job:
    return jobs(session, [row])[0]


def new_job(row: tables.Job, inputs: Iterable[tables.JobInput], owner: Principal) -> schemas.Job:
    """A job that has just been made: it has no attempt yet, so nothing has to be read."""
    return _job(row, [], {}, {}, {owner.id: owner.name}, inputs, ())


def job_status(row: tables.Job) -> schemas.JobStatus:
    return schemas.JobStatus(
        id=row.id,
        name=row.name,
        state=row.state,
        reason=row.reason,
        message=row.message,
        why=row.why,
        unreachable_since=row.unreachable_since,
        progress=progress(row.progress),
    )


def deleted(found: Deleted) -> schemas.Deleted:
    return schemas.Deleted(
        job=job_status(found.job),
        kept=[artifact(row) for row in found.kept],
        deleted=[artifact(row) for row in found.gone],
    )


def log_line(line: LogLine) -> schemas.LogLine:
    return schemas.LogLine(
        cursor=line.cursor,
        time=line.time,
        replica=line.replica,
        line=line.line,
        attempt=line.attempt,
        passing=line.passing,
    )


def jobs(session: Session, rows: Sequence[tables.Job]) -> list[schemas.Job]:
    ids = [row.id for row in rows if row.attempts > 0]
    attempts: dict[str, list[tables.Attempt]] = defaultdict(list)
    replicas: dict[int, list[tables.Replica]] = defaultdict(list)
    artifacts: dict[str, list[tables.Artifact]] = defaultdict(list)
    inputs: dict[str, list[tables.JobInput]] = defaultdict(list)
    hosts: dict[str, tables.Host] = {}
    for used in session.exec(
        select(tables.JobInput)
        .where(col(tables.JobInput.job_id).in_([row.id for row in rows]))
        .order_by(col(tables.JobInput.id))
    ):
        inputs[used.job_id].append(used)
    people = names(session)
    awaited = _awaited(session, [row for row in rows if row.state == "queued"], inputs)
    if ids:
        for attempt in session.exec(
            select(tables.Attempt).where(col(tables.Attempt.job_id).in_(ids)).order_by(col(tables.Attempt.number))
        ):
            attempts[attempt.job_id].append(attempt)
        for replica in session.exec(
            select(tables.Replica).where(col(tables.Replica.job_id).in_(ids)).order_by(col(tables.Replica.node_rank))
        ):
            replicas[replica.attempt_id].append(replica)
        for artifact in session.exec(
            select(tables.Artifact)
            .where(col(tables.Artifact.job_id).in_(ids))
            .order_by(col(tables.Artifact.created_at))
        ):
            artifacts[artifact.job_id or ""].append(artifact)
        hosts = {host.id: host for host in session.exec(select(tables.Host))}
    return [
        shown(
            partial(
                _job,
                row,
                attempts[row.id],
                replicas,
                hosts,
                people,
                inputs[row.id],
                artifacts[row.id],
                awaited.get(row.id),
            ),
            partial(_bare_job, row),
            f"job/{row.id}",
        )
        for row in rows
    ]


def _bare_job(row: tables.Job, said: str) -> schemas.Job:
    """What can be said of a job whatever is in its row."""
    created = number(row.created_at) or 0.0
    return schemas.Job(
        id=row.id,
        name=str(row.name),
        type=str(row.type),
        state=str(row.state),
        message=said,
        spec={},
        created_at=created,
    )


def _awaited(
    session: Session, queued: Sequence[tables.Job], inputs: dict[str, list[tables.JobInput]]
) -> dict[str, str | None]:
    """What jobs wait for that others are making, with how far those are now."""
    missing = {row.id: [item for item in inputs[row.id] if item.version is None] for row in queued}
    ids = {item.maker_id for items in missing.values() for item in items}
    if not ids:
        return {}
    makers = {job.id: job for job in session.exec(select(tables.Job).where(col(tables.Job.id).in_(ids)))}
    said = {
        job_id: [
            describe_wait(item.name, maker.name, maker.state, mapping(maker.progress))
            for item in items
            if (maker := makers.get(item.maker_id or "")) is not None
        ]
        for job_id, items in missing.items()
    }
    return {job_id: wait_sentence(parts) for job_id, parts in said.items()}


def _job(
    row: tables.Job,
    attempts: list[tables.Attempt],
    replicas: dict[int, list[tables.Replica]],
    hosts: dict[str, tables.Host],
    people: Mapping[str, str],
    inputs: Iterable[tables.JobInput],
    artifacts: Iterable[tables.Artifact],
    why: str | None = None,
) -> schemas.Job:
    tries = [_attempt(attempt, replicas[attempt.id or 0], hosts) for attempt in attempts]
    return schemas.Job(
        id=row.id,
        name=row.name,
        type=row.type,
        state=row.state,
        reason=row.reason,
        message=row.message,
        why=why or row.why,
        spec=row.document,
        priority=row.priority,
        owner=people.get(row.owner_id, row.owner_id),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        unreachable_since=row.unreachable_since,
        progress=progress(row.progress),
        attempts=tries,
        ssh=_ssh(row, attempts, replicas, hosts),
        url=_url(row, attempts, replicas, hosts),
        inputs=[
            schemas.JobInput(key=i.key, name=i.name, version=i.version, digest=i.digest, job=i.maker_name)
            for i in inputs
            if i.name
        ],
        artifacts=[_artifact_ref(artifact) for artifact in artifacts],
        warnings=_warnings(replicas[attempts[-1].id or 0]) if attempts else [],
    )


def _warnings(latest: Iterable[tables.Replica]) -> list[str]:
    """What of the last attempt's output could not be used."""
    dropped: Counter[str] = Counter()
    for replica in latest:
        dropped.update({str(why): whole(count) or 0 for why, count in mapping(replica.dropped).items()})
    return [
        f"{count} printed event{'s' if count != 1 else ''} dropped: {why}" for why, count in dropped.most_common(20)
    ]


def _attempt(row: tables.Attempt, replicas: list[tables.Replica], hosts: dict[str, tables.Host]) -> schemas.Attempt:
    return schemas.Attempt(
        number=row.number,
        state=row.state,
        reason=row.reason,
        message=row.message,
        replicas=[
            schemas.Replica(
                node_rank=replica.node_rank,
                host=hosts[replica.host_id].name if replica.host_id in hosts else replica.host_id or "",
                container_name=replica.container_name,
                container_id=replica.container_id,
                state=replica.state,
                exit_code=replica.exit_code,
                oom_killed=replica.oom_killed,
                gpus=replica.gpus,
                ports=replica.ports,
            )
            for replica in replicas
        ],
    )


def _first_ready(
    row: tables.Job, attempts: list[tables.Attempt], replicas: dict[int, list[tables.Replica]]
) -> tables.Replica | None:
    """The replica of rank 0 that runs now, sshd and all."""
    if row.finished_at is not None or not attempts:
        return None
    latest = replicas[attempts[-1].id or 0]
    first = latest[0] if latest else None
    return first if first is not None and first.node_rank == 0 and first.state == "ready" else None


def _ssh(
    row: tables.Job,
    attempts: list[tables.Attempt],
    replicas: dict[int, list[tables.Replica]],
    hosts: dict[str, tables.Host],
) -> schemas.SshAccess | None:
    first = _first_ready(row, attempts, replicas)
    port = first.ports.get(SSH_CONTAINER_PORT) if first is not None else None
    if first is None or port is None or not row.document.get("ssh", True):
        return None
    host = hosts.get(first.host_id or "")
    return schemas.SshAccess(host=host.address if host else "127.0.0.1", port=port, host_key=row.host_key)


def _url(
    row: tables.Job,
    attempts: list[tables.Attempt],
    replicas: dict[int, list[tables.Replica]],
    hosts: dict[str, tables.Host],
) -> str | None:
    """Where a serving job answers, once this attempt has said that it does."""
    first = _first_ready(row, attempts, replicas)
    told = mapping(row.progress)
    path = told.get("url_path") if attempts and told.get("ready") == attempts[-1].number else None
    port = first.ports.get(str(row.document.get("port") or SERVE_PORT)) if first is not None else None
    if first is None or row.type != "serve" or path is None or port is None:
        return None
    host = hosts.get(first.host_id or "")
    return f"http://{host.address if host else '127.0.0.1'}:{port}{path}"


def _artifact_ref(row: tables.Artifact) -> schemas.ArtifactRef:
    return schemas.ArtifactRef(
        name=row.name,
        version=row.version,
        path=row.run_path or row.path,
        location=row.path,
        kind=row.kind,
        size=whole(row.size),
        metrics=mapping(row.metrics),
    )


def event_page(
    session: Session, job_id: str | None, limit: int, cursor: str | None, subject: str | None = None
) -> schemas.Page[schemas.Event]:
    """Events, newest first."""
    query = select(tables.Event)
    if subject is not None:
        query = query.where(tables.Event.subject == subject)
    if job_id is not None:
        query = query.where(tables.Event.job_id == job_id)
    if cursor is not None:
        query = query.where(col(tables.Event.id) < Cursor.number(cursor))
    rows = session.exec(query.order_by(col(tables.Event.id).desc()).limit(limit + 1)).all()
    people = names(session)
    items = [shown(partial(event, row, people), partial(_bare_event, row), f"event/{row.id}") for row in rows[:limit]]
    return schemas.Page[schemas.Event](items=items, next_cursor=str(items[-1].id) if len(rows) > limit else None)


def _bare_event(row: tables.Event, said: str) -> schemas.Event:
    when = number(row.time) or 0.0
    return schemas.Event(id=row.id or 0, time=when, actor=str(row.actor_id), kind=str(row.kind), message=said)


def event(row: tables.Event, people: Mapping[str, str]) -> schemas.Event:
    facts = {"subject": row.subject, "old": row.old, "new": row.new, "reason": row.reason}
    return schemas.Event(
        id=row.id or 0,
        time=row.time,
        actor=people.get(row.actor_id, row.actor_id),
        kind=row.kind,
        message=row.message,
        job_id=row.job_id,
        job_name=row.job_name,
        data={**{key: value for key, value in facts.items() if value is not None}, **row.data},
    )


def hosts(session: Session) -> list[schemas.Host]:
    """All hosts, each GPU with the job or workspace that holds it."""
    held = select(tables.GpuLease.gpu, tables.Holder).join(
        tables.Holder, col(tables.Holder.id) == col(tables.GpuLease.holder_id)
    )
    holders = dict(session.exec(held).all())
    rows = session.exec(select(tables.Host).where(tables.Host.lifecycle != "removed").order_by(col(tables.Host.name)))
    return [shown(partial(host, row, holders), partial(_bare_host, row), f"host/{row.id}") for row in rows]


def one_host(session: Session, row: tables.Host) -> schemas.Host:
    return next(found for found in hosts(session) if found.id == row.id)


def _bare_host(row: tables.Host, said: str) -> schemas.Host:
    known = {"id": row.id, "name": str(row.name), "url": str(row.url), "state": str(row.lifecycle)}
    return schemas.Host(**known, reachable=bool(row.reachable), message=said)


def host(row: tables.Host, holders: dict[str, tables.Holder]) -> schemas.Host:
    facts = mapping(row.facts)
    sick = {finding.get("gpu"): finding for finding in row.findings or []}
    return schemas.Host(
        id=row.id,
        name=row.name,
        url=row.url,
        state=row.lifecycle,
        reachable=row.reachable,
        unreachable_since=row.unreachable_since,
        message=row.message,
        address=row.address,
        cluster_address=row.cluster_address,
        interface=row.interface,
        labels=mapping(row.labels),
        first_port=row.first_port,
        last_port=row.last_port,
        shared_root=row.shared_root,
        fingerprint=PublicKey.parse(row.host_key).fingerprint if row.host_key else None,
        findings=[schemas.Finding(**finding) for finding in row.findings or []],
        checked_at=row.checked_at,
        engine_version=facts.get("engine_version"),
        cpus=facts.get("cpus"),
        memory_bytes=facts.get("memory_bytes"),
        gpus=[_gpu(gpu, holders.get(gpu["uuid"]), sick.get(gpu["uuid"])) for gpu in facts.get("gpus") or []],
        seen_at=row.seen_at,
    )


def _gpu(facts: dict[str, Any], holder: tables.Holder | None, finding: dict[str, Any] | None) -> schemas.Gpu:
    name = holder.name if holder is not None else None
    return schemas.Gpu(
        **facts,
        holder=name,
        job=name if holder is not None and holder.kind == "job" else None,
        health=finding["name"] if finding is not None else None,
        health_message=finding["detail"] if finding is not None else None,
    )


def build(row: tables.ImageBuild, ahead: int) -> images.Build:
    return images.Build(
        id=row.id,
        recipe=row.recipe,
        tag=row.tag,
        state=row.state,
        message=row.message,
        ahead=ahead,
        image=row.image_id,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )


def artifact(row: tables.Artifact) -> schemas.Artifact:
    return schemas.Artifact(
        id=row.id,
        name=row.name,
        version=row.version,
        kind=row.kind,
        path=row.path,
        digest=row.digest,
        size=row.size,
        state=row.state,
        message=row.message,
        source=row.source,
        job=row.job_id,
        created_at=row.created_at,
    )
