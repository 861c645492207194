"""Provisioning: image present, container created and started, sshd answering; and for gangs the barrier."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from sqlmodel import col, select

from jobs.launch import GO_FILE, Address, ContainerPlan, Launch, plan_containers
from jobs.placement import Placed, Placement
from jobs.spec import SSH_PORT, JobSpec, Mount
from jobs.states import Desired, JobState, Reason, ReplicaState
from service.access.host_keys import job_host_key
from service.access.keys import authorized_keys
from service.backends.base import Created, Engine, ImageFacts
from service.backends.docker.ssh_ready import WrongHostKey
from service.backends.errors import (
    BadContainer,
    EngineError,
    GpuUnavailable,
    ImageMissing,
    MountRefused,
    NameTaken,
    NoSpace,
    PortTaken,
    Unreachable,
)
from service.builds.fitness import LOOKED_FOR, is_root, misfit, started_in
from service.builds.references import find_image, how_to_get
from service.control.context import Context, Next, Work, again
from service.control.ending import begin_stopping, mark_unreachable
from service.control.outcome import Outcome
from service.store.events import transition
from service.store.tables import Host, Job, Replica

_FIRST_POLL_S = 0.02
_LAST_POLL_S = 0.25


class _Failed(Exception):
    """One replica can't be started."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


def provision(context: Context, work: Work) -> Next:
    """One step of a job in state provisioning."""
    attempt = work.attempt
    assert attempt is not None
    if work.job.desired == Desired.STOP:
        return begin_stopping(context, work, Outcome(Reason.STOPPED_BY_USER, "stopped on request while starting"))
    spec = context.spec(work.job)
    try:
        pending = [r for r in work.replicas if r.state in (ReplicaState.PENDING, ReplicaState.CREATED)]
        if pending:
            plans = _plans(context, work, spec)
            _side_by_side(pending, lambda replica: _start(context, work, spec, replica, plans[replica.node_rank]))
        if not _ready(context, work, spec):
            return _too_late(context, work, spec) or Next(_LAST_POLL_S)
        if spec.host_network:
            _open_barrier(context, work)
    except _Failed as failed:
        return begin_stopping(context, work, failed.outcome)
    except Unreachable as error:
        return mark_unreachable(context, work, str(error))
    with context.writing(work) as (session, job):
        job.unreachable_since = None
        row = again(session, attempt)
        row.state, row.started_at = JobState.RUNNING.value, context.clock()
        transition(session, job, JobState.RUNNING, _running_message(work), now=context.clock())
    return Next(0.0)


def _running_message(work: Work) -> str:
    count = len(work.replicas)
    return "runs" if count == 1 else f"runs in {count} containers"


def _side_by_side(replicas: list[Replica], start: Callable[[Replica], None]) -> None:
    if len(replicas) == 1:
        start(replicas[0])
        return
    with ThreadPoolExecutor(max_workers=min(16, len(replicas))) as pool:
        for done in [pool.submit(start, replica) for replica in replicas]:
            done.result()


def _plans(context: Context, work: Work, spec: JobSpec) -> tuple[ContainerPlan, ...]:
    assert work.attempt is not None
    job, attempt = work.job, work.attempt
    job_dir = context.settings.job_dir(job.id)
    key = job_host_key(context.settings.data_dir, job.owner, job.name, job_dir)
    run_dir = job_dir / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    with context.database.read() as session:
        hosts = {
            h.id: h for h in session.exec(select(Host).where(col(Host.id).in_({r.host_id for r in work.replicas})))
        }
    if job.host_key != key.public:
        with context.writing(work) as (_, row):
            row.host_key = key.public
    launch = Launch(
        deployment=context.deployment,
        job_id=job.id,
        job_name=job.name,
        attempt=attempt.number,
        run_dir=str(run_dir),
        authorized_keys=authorized_keys(context.settings.data_dir),
        host_key=key.private,
        host_key_public=key.public,
        secrets=context.secrets.open(job.secrets),
        extra_mounts=tuple(Mount.model_validate(mount) for mount in job.resolved.get("mounts", ())),
        training=job.resolved.get("training", {}),
    )
    placement = Placement(tuple(_placed(spec, replica) for replica in work.replicas), attempt.master_port)
    addresses = [Address(r.host, hosts[r.host].name, hosts[r.host].address) for r in work.replicas]
    return plan_containers(spec, placement, addresses, launch)


def _placed(spec: JobSpec, replica: Replica) -> Placed:
    """The placement that the row was made from."""
    ports = {int(inside): outside for inside, outside in replica.ports.items()}
    fixed = set(spec.fixed_ports)
    pool = tuple(outside for outside in ports.values() if outside not in fixed)
    return Placed(replica.node_rank, replica.host, tuple(replica.gpus), pool, spec.fixed_ports)


def _start(context: Context, work: Work, spec: JobSpec, replica: Replica, plan: ContainerPlan) -> None:
    assert work.attempt is not None
    engine = context.engines.engine(replica.host)
    try:
        image = _image(context, work, engine, plan.image)
        programs = partial(engine.holding, image.id, LOOKED_FOR)
        wrong = misfit(spec, image, programs)
        if wrong is not None:
            raise _Failed(Outcome(Reason.IMAGE_UNSUITABLE, f"{wrong.message} {wrong.hint}", final=True))
        if not is_root(image):
            (context.settings.job_dir(work.job.id) / "run").chmod(0o777)  # below a folder that is the owner's alone
        created = _create(context, engine, started_in(plan, image, programs))
        if not created.started:  # else the controller died between a start and its commit; it may have ended since
            engine.start(created.id)
    except PortTaken as error:
        named = error.port in spec.fixed_ports
        which = f"port {error.port}" if error.port else "a port"
        advice = "; choose another, or auto:PORT to get one from the pool" if named else ""
        raise _Failed(
            Outcome(Reason.PORT_UNAVAILABLE, f"{which} of the host is used by another program{advice}", final=named)
        ) from error
    except GpuUnavailable as error:
        raise _Failed(
            Outcome(
                Reason.GPU_UNAVAILABLE,
                f"the engine can't give GPUs to containers ({error}); is the NVIDIA Container Toolkit installed there?",
            )
        ) from error
    except ImageMissing as error:
        raise _Failed(
            Outcome(
                Reason.IMAGE_UNAVAILABLE,
                f"image {plan.image} is not on the host and can't be pulled ({error}). {how_to_get(plan.image)}",
            )
        ) from error
    except NoSpace as error:
        raise _Failed(Outcome(Reason.NO_SPACE, f"the engine's disk is full: {error}", final=True)) from error
    except MountRefused as error:
        reason = Reason.MISSING_INPUT if error.missing else Reason.BAD_CONFIG
        raise _Failed(Outcome(reason, str(error), final=True)) from error
    except BadContainer as error:
        raise _Failed(Outcome(Reason.USER_ERROR, f"the engine refused the container: {error}", final=True)) from error
    with context.writing(work) as (session, job):
        row = again(session, replica)
        row.container_id, row.state, row.started_at = created.id, ReplicaState.STARTED.value, context.clock()
        job.message = "waits for its container to answer over SSH" if spec.ssh else job.message
    work.replicas[replica.node_rank] = row
    context.collector.follow(row, work.attempt.number)


def _create(context: Context, engine: Engine, plan: ContainerPlan) -> Created:
    """Creates the container; a left-over of an ended job of ours that has the name makes room."""
    try:
        return engine.create(plan)
    except NameTaken as error:
        found = engine.inspect(error.container_id)
        if found is not None and not _is_leftover(context, found.labels):
            raise EngineError(f"{error}: remove that container, or rename the job") from error
        engine.remove(error.container_id)
        return engine.create(plan)


def _is_leftover(context: Context, labels: Mapping[str, str]) -> bool:
    if labels.get("navarch.deployment") != context.deployment:
        return False
    with context.database.read() as session:
        job = session.get(Job, labels.get("navarch.job", ""))
        return job is None or job.finished_at is not None


def _image(context: Context, work: Work, engine: Engine, reference: str) -> ImageFacts:
    """The image under its name or, for a recipe's name, under `navarch/NAME`; pulled when it isn't there."""
    found = find_image(engine, reference)
    if found is not None:
        return found
    told = 0.0

    def progress(line: str) -> None:
        nonlocal told
        if line and context.clock() - told > 2.0:
            told = context.clock()
            with context.writing(work) as (_, job):
                job.message = f"pulls {reference}: {line}"

    with context.writing(work) as (_, job):
        job.message = f"pulls {reference}"
    return engine.pull(reference, progress)


def _ready(context: Context, work: Work, spec: JobSpec) -> bool:
    """Whether every container answers, or has ended already; waits a little for those that don't yet."""
    poll, deadline = _FIRST_POLL_S, time.monotonic() + context.patience_s
    while True:
        for rank, replica in enumerate(work.replicas):
            if replica.state == ReplicaState.STARTED:
                state = _answers(context, spec, replica)
                if state is not None:
                    with context.writing(work) as (session, _):
                        row = again(session, replica)
                        row.state = state.value
                    work.replicas[rank] = row
        if all(r.state not in (ReplicaState.STARTED, ReplicaState.PENDING) for r in work.replicas):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(poll)
        poll = min(_LAST_POLL_S, poll * 1.3)


def _answers(context: Context, spec: JobSpec, replica: Replica) -> ReplicaState | None:
    """ready, exited or gone; None while it is still starting."""
    engine = context.engines.engine(replica.host)
    if spec.ssh and replica.container_id is not None:
        with context.database.read() as session:
            host = session.get(Host, replica.host_id)
            job = session.get(Job, replica.job_id)
        assert host is not None and job is not None and job.host_key is not None
        try:
            if context.handshake(host.address, replica.ports[str(SSH_PORT)], job.host_key):
                return ReplicaState.READY
        except WrongHostKey:
            pass  # the old holder of the port may still be leaving
    found = engine.inspect(replica.container_id or replica.container_name)
    if found is None:
        return ReplicaState.GONE
    if not found.running:
        return ReplicaState.EXITED
    return None if spec.ssh else ReplicaState.READY


def _too_late(context: Context, work: Work, spec: JobSpec) -> Next | None:
    assert work.attempt is not None
    settings = context.settings
    started = [r.started_at for r in work.replicas if r.started_at is not None]
    waited = context.clock() - min(started, default=context.clock())
    if spec.host_network and waited > settings.barrier_timeout_s:
        late = ", ".join(f"rank {r.node_rank}" for r in work.replicas if r.state != ReplicaState.READY)
        message = f"not all containers of the gang became ready within {settings.barrier_timeout_s:.0f} s: {late}"
        return begin_stopping(context, work, Outcome(Reason.BARRIER_TIMEOUT, message))
    if not spec.host_network and waited > settings.start_timeout_s:
        message = f"the container runs, but its sshd did not answer within {settings.start_timeout_s:.0f} s"
        return begin_stopping(context, work, Outcome(Reason.START_TIMEOUT, message))
    return None


def _open_barrier(context: Context, work: Work) -> None:
    """Lets the ranks start, once; committed first, so that after a crash only the harmless part is repeated."""
    assert work.attempt is not None
    if any(r.state != ReplicaState.READY for r in work.replicas):
        return  # a container has ended before the start: running finds out why
    if work.attempt.released_at is None:
        with context.writing(work) as (session, _):
            row = again(session, work.attempt)
            row.released_at = context.clock()
        work.attempt = row
    for replica in work.replicas:
        if replica.container_id is not None:
            with suppress(BadContainer):  # it was removed since it was ready: running finds that out
                context.engines.engine(replica.host).put(replica.container_id, {Path(GO_FILE).name: b""})
