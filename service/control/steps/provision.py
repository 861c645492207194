"""Provisioning: image present, container created and started, sshd answering; and for gangs the barrier."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlmodel import col, select

from jobs.launch import ContainerPlan, Launch, plan_containers
from jobs.mistakes import SpecError
from jobs.placement import Placed, Placement
from jobs.spec import SSH_PORT, JobSpec, Mount
from jobs.states import Desired, JobState, Reason, ReplicaState
from service.access.host_keys import HostKey, gang_keys, job_host_key
from service.access.keys import authorized_keys
from service.access.own_secrets import given
from service.backends.base import Phase, Reserved, Sight, Waiting
from service.backends.docker.ssh_ready import WrongHostKey
from service.backends.errors import Cancelled, ContainerGone, Refused
from service.control import moves
from service.control.context import Context, Next, Work, again
from service.control.ending import make_common
from service.control.outcome import Outcome
from service.control.refusals import refused
from service.settings import Settings
from service.store.events import transition
from service.store.tables import Host, Replica

_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.25
_PULL_POLL_S = 15.0
"""Who waits for a pull is woken by it; this is for the case that that is missed."""
_AT_ONCE = 16

Move = moves.Launch | moves.OpenBarrier | moves.Run | moves.Wait | moves.Stop | moves.Unanswered


def provision(context: Context, work: Work) -> Next:
    """One step of a job in state provisioning."""
    if work.job.desired == Desired.STOP:  # first of all, as it must work whatever else doesn't
        outcome = Outcome(Reason.STOPPED_BY_USER, "stopped on request while starting")
        return make_common(context, work, moves.Stop(outcome))
    try:
        spec = context.spec(work.job)
    except SpecError as error:  # of an older or newer Navarch, since it was placed
        refused_spec = Outcome(Reason.BAD_CONFIG, f"its stored spec is refused: {error}", final=True)
        return make_common(context, work, moves.Stop(refused_spec))
    states, unknown = _look(context, work, spec)
    return _make(context, work, spec, states, decide(work, spec, states, unknown, context.settings, context.clock()))


def decide(
    work: Work, spec: JobSpec, states: Sequence[ReplicaState], unknown: str | None, settings: Settings, now: float
) -> Move:
    """What comes next on the way to running; `unknown` says why nothing is known of a container. Pure."""
    if ReplicaState.PENDING in states:
        return moves.Launch()
    if ReplicaState.STARTED in states:
        if unknown is not None:
            return moves.Unanswered(unknown)
        started = [replica.started_at for replica in work.replicas if replica.started_at is not None]
        waited = now - min(started, default=now)
        return _too_late(spec, states, waited, settings) or moves.Wait(
            min(_LAST_POLL_S, max(_FIRST_POLL_S, waited / 5))
        )
    if spec.host_network and all(state is ReplicaState.READY for state in states):
        return moves.OpenBarrier()
    return moves.Run()  # if a container has ended before the start, running finds out why


def _too_late(spec: JobSpec, states: Sequence[ReplicaState], waited: float, settings: Settings) -> moves.Stop | None:
    if spec.host_network and waited > settings.barrier_timeout_s:
        late = ", ".join(f"rank {rank}" for rank, state in enumerate(states) if state is not ReplicaState.READY)
        message = f"not all containers of the gang became ready within {settings.barrier_timeout_s:.0f} s: {late}"
        return moves.Stop(Outcome(Reason.BARRIER_TIMEOUT, message))
    if not spec.host_network and waited > settings.start_timeout_s:
        message = f"the container runs, but its sshd did not answer within {settings.start_timeout_s:.0f} s"
        return moves.Stop(Outcome(Reason.START_TIMEOUT, message))
    return None


def _look(context: Context, work: Work, spec: JobSpec) -> tuple[list[ReplicaState], str | None]:
    """How far each container is, and why that isn't known of one."""
    states = [ReplicaState(replica.state) for replica in work.replicas]
    if ReplicaState.PENDING in states:
        return states, None
    starting = [replica for replica in work.replicas if replica.state == ReplicaState.STARTED]
    ready = _ready_over_ssh(context, work, starting) if spec.ssh else frozenset[int]()
    rest = [replica.node_rank for replica in starting if replica.node_rank not in ready]
    unknown = None
    for rank in ready:
        states[rank] = ReplicaState.READY
    for sight in context.backend(work).observe(work.gang.only(rest)) if rest else ():
        states[sight.rank] = _seen(sight, spec)
        if sight.phase is Phase.UNKNOWN:
            unknown = sight.says
    return states, unknown


def _seen(sight: Sight, spec: JobSpec) -> ReplicaState:
    """The state of a container whose sshd doesn't answer, or that has none."""
    match sight.phase:
        case Phase.GONE | Phase.ABSENT:
            return ReplicaState.GONE
        case Phase.RUNNING:
            return ReplicaState.STARTED if spec.ssh else ReplicaState.READY
        case Phase.UNKNOWN:
            return ReplicaState.STARTED
    return ReplicaState.EXITED


def _ready_over_ssh(context: Context, work: Work, replicas: Sequence[Replica]) -> frozenset[int]:
    """The ranks whose sshd shows the job's own host key."""
    with context.database.read() as session:
        hosts = {host.id: host for host in session.exec(select(Host).where(col(Host.id).in_(work.hosts)))}

    def answers(replica: Replica) -> bool:
        address, port = hosts[replica.host].address, replica.ports[str(SSH_PORT)]
        try:
            return context.handshake(address, port, work.job.host_key or "")
        except WrongHostKey:
            return False  # the old holder of the port may still be leaving

    if len(replicas) == 1:
        return frozenset([replicas[0].node_rank] if answers(replicas[0]) else [])
    with ThreadPoolExecutor(max_workers=min(_AT_ONCE, max(1, len(replicas)))) as pool:
        return frozenset(r.node_rank for r, good in zip(replicas, pool.map(answers, replicas), strict=True) if good)


def _make(context: Context, work: Work, spec: JobSpec, states: Sequence[ReplicaState], move: Move) -> Next:
    match move:
        case moves.Launch():
            return _launch(context, work, spec)
        case moves.OpenBarrier():
            _open_barrier(context, work, states)
            return _run(context, work, states)
        case moves.Run():
            return _run(context, work, states)
        case _:
            return make_common(context, work, move)


def _launch(context: Context, work: Work, spec: JobSpec) -> Next:
    backend, job = context.backend(work), work.job
    folder = backend.run_folder(work.gang)
    folder.make()
    key = job_host_key(context.settings.data_dir, job.owner_id, job.name, context.settings.job_dir(job.id))
    try:
        reserved = backend.reserve(work.gang, spec)
        if isinstance(reserved, Waiting):
            return _waits(context, work, reserved.says)
        plans = _plans(context, work, spec, key, str(folder.path), reserved)
        launched = backend.launch(work.gang, spec, plans, reserved, lambda: not context.wanted(work))
    except Refused as error:
        return make_common(context, work, moves.Stop(refused(error, spec)))
    except Cancelled:
        return Next(0.0)
    with context.writing(work) as (session, row):
        row.host_key, row.unreachable_since = key.public, None
        row.message = "waits for its container to answer over SSH" if spec.ssh else "waits for its container"
        work.replicas = [again(session, replica) for replica in work.replicas]
        for made in launched:
            replica = work.replicas[made.rank]
            replica.container_id, replica.state = made.container_id, ReplicaState.STARTED.value
            replica.started_at = context.clock()
    for replica in work.replicas:
        context.collector.follow(replica, work.placed.number)
    return Next(0.0)


def _waits(context: Context, work: Work, says: str) -> Next:
    if work.job.message != says:
        with context.writing(work) as (_, job):
            job.message = says
    return Next(_PULL_POLL_S)


def _plans(
    context: Context, work: Work, spec: JobSpec, key: HostKey, run_dir: str, reserved: Reserved
) -> tuple[ContainerPlan, ...]:
    job, attempt = work.job, work.placed
    with context.database.read() as session:
        keys = authorized_keys(session, job.owner_id)
        secrets = given(session, context.secrets, job.owner_id, sealed=job.secrets, env=spec.env)
    launch = Launch(
        deployment=context.deployment,
        job_id=job.id,
        job_name=job.name,
        attempt=attempt.number,
        run_dir=run_dir,
        authorized_keys=keys,
        host_key=key.private,
        host_key_public=key.public,
        secrets=secrets,
        extra_mounts=tuple(Mount.model_validate(mount) for mount in job.resolved.get("mounts", ())),
        training=job.resolved.get("training", {}),
        namespace=job.namespace,
        gang_keys=gang_keys(context.settings.job_dir(job.id)) if spec.host_network else None,
    )
    placement = Placement(tuple(_placed(spec, replica) for replica in work.replicas), attempt.master_port)
    return plan_containers(spec, placement, reserved.addresses, launch)


def _placed(spec: JobSpec, replica: Replica) -> Placed:
    """The placement that the row was made from."""
    ports = {int(inside): outside for inside, outside in replica.ports.items()}
    fixed = set(spec.fixed_ports)
    pool = tuple(outside for outside in ports.values() if outside not in fixed)
    return Placed(replica.node_rank, replica.host, tuple(replica.gpus), pool, spec.fixed_ports)


def _open_barrier(context: Context, work: Work, states: Sequence[ReplicaState]) -> None:
    """Lets the ranks start, once; committed first, so that after a crash only the harmless part is repeated."""
    if work.placed.released_at is None:
        with context.writing(work) as (session, _):
            attempt = again(session, work.placed)
            attempt.released_at = context.clock()
            for replica, state in zip(work.replicas, states, strict=True):
                again(session, replica).state = state.value
        work.attempt = attempt
    try:
        context.backend(work).release(work.gang)
    except ContainerGone:
        return  # it was removed since it was ready: running finds that out


def _run(context: Context, work: Work, states: Sequence[ReplicaState]) -> Next:
    count = len(work.replicas)
    with context.writing(work) as (session, job):
        job.unreachable_since = None
        attempt = again(session, work.placed)
        attempt.state, attempt.started_at = JobState.RUNNING.value, context.clock()
        for replica, state in zip(work.replicas, states, strict=True):
            again(session, replica).state = state.value
        says = "runs" if count == 1 else f"runs in {count} containers"
        transition(session, job, JobState.RUNNING, says, now=context.clock())
    return Next(0.0)
