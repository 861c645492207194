"""Stopping: SIGTERM, a grace, SIGKILL; then the exit facts and the whole log are stored, leases go, containers go."""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import delete
from sqlmodel import Session, col

from jobs.states import AfterAttempt, Desired, Fault, JobState, Reason, ReplicaState, after_attempt
from service.backends.base import Phase, Sight
from service.control import moves
from service.control.context import NOTHING, Context, LogEnd, Next, Work, again
from service.control.ending import make_common
from service.control.outcome import Outcome, classify, first_bad
from service.store.capacity import demand_of_row, kind_of
from service.store.events import transition
from service.store.tables import Holder, Host, Job, Replica

_OF_GPUS = frozenset({Reason.CUDA_OUT_OF_MEMORY, Reason.NO_SPACE})
"""The user's fault mostly, but a host's state may have to do with it."""
_FROM_EXIT = frozenset(
    {
        Reason.USER_ERROR,
        Reason.KILLED,
        Reason.BAD_CONFIG,
        Reason.BAD_DATA,
        Reason.MISSING_INPUT,
        Reason.NO_SPACE,
        Reason.NAN_LOSS,
        Reason.CUDA_OUT_OF_MEMORY,
        Reason.OUT_OF_MEMORY,
        Reason.ENGINE_RESTARTED,
    }
)
"""Reasons that were read from an exit code and are read again when the whole log is there."""
_PATIENCE_S, _STOPPED_PATIENCE_S = 60.0, 10.0
"""How long the rest of a log may take to be read, of a job that ended by itself and of one that was stopped: leases
are held so long. What takes longer is left out but for its end, and the log says so."""
_LOOK_AGAIN_S = 5.0
_KILL_POLL_S = 0.5
_SETTLE_S = 3.0
"""A container that was killed may be about to be removed, or its engine to go down: then that is the reason."""

Move = moves.Wait | moves.Unanswered | moves.Press | moves.Finish


def stop(context: Context, work: Work) -> Next:
    """One step of a job in state stopping."""
    sights = context.backend(work).observe(work.gang)
    move = decide(work, sights, context.clock())
    match move:
        case moves.Press():
            return _press(context, work, move)
        case moves.Finish():
            return _finish(context, work, move.ends)
        case _:
            return make_common(context, work, move)


def decide(work: Work, sights: Sequence[Sight], now: float) -> Move:
    """What is still to be done before the attempt is over. Pure."""
    attempt = work.placed
    if attempt.reason != Reason.HOST_LOST:  # then nobody waits for an answer any more
        for sight in sights:
            if sight.phase is Phase.UNKNOWN:
                return moves.Unanswered(sight.says)
    running = [sight.rank for sight in sights if sight.phase is Phase.RUNNING]
    if running:
        deadline = attempt.stop_deadline if attempt.stop_deadline is not None else now
        if now >= deadline:
            return moves.Press(tuple(running), "SIGKILL", _KILL_POLL_S)
        untold = tuple(rank for rank in running if work.replicas[rank].signalled_at is None)
        return moves.Press(untold, "SIGTERM", deadline - now) if untold else moves.Wait(deadline - now)
    if attempt.reason == Reason.KILLED and any(_just_now(sight, now) for sight in sights):
        return moves.Wait(_SETTLE_S)
    return moves.Finish(tuple(sights))


def _just_now(sight: Sight, now: float) -> bool:
    """Whether a container ended so recently that it isn't clear yet what killed it."""
    return sight.finished_at is not None and 0 <= now - sight.finished_at < _SETTLE_S


def _press(context: Context, work: Work, move: moves.Press) -> Next:
    """Asks what still runs to end, or insists."""
    context.backend(work).signal(work.gang, move.ranks, move.signal)
    if move.signal == "SIGTERM":
        with context.writing(work) as (session, job):
            job.unreachable_since = None
            for rank in move.ranks:
                again(session, work.replicas[rank]).signalled_at = context.clock()
    return Next(move.again_s)


def _finish(context: Context, work: Work, ends: Sequence[Sight]) -> Next:
    logs: dict[int, LogEnd] = {}
    for end in ends:
        log = _drained(context, work, work.replicas[end.rank], end)
        if log is None:
            return Next(_LOOK_AGAIN_S)  # the collector wakes the job when it has read everything
        logs[end.rank] = log
    _store(context, work, ends, logs, outcome(context, work, ends, logs))
    reap(context, work)
    return NOTHING


def end_by_force(context: Context, work: Work, says: str) -> Next | None:
    """Ends an attempt whose last steps failed again and again, with what is known; None while it may still run."""
    backend = context.backend(work)
    sights = backend.observe(work.gang)
    running = [sight.rank for sight in sights if sight.phase is Phase.RUNNING]
    if running:
        backend.signal(work.gang, running, "SIGKILL")
    if running or any(sight.phase is Phase.UNKNOWN for sight in sights):
        return None
    attempt = work.placed
    how = Outcome(Reason(attempt.reason or Reason.INTERNAL_ERROR), f"{attempt.message} ({says})", final=True)
    logs = {r.node_rank: LogEnd(error_kind=r.error_kind, error_message=r.error_message) for r in work.replicas}
    _store(context, work, sights, logs, how)
    reap(context, work)
    return NOTHING


def _drained(context: Context, work: Work, replica: Replica, end: Sight) -> LogEnd | None:
    """The end of the log of a container that has run; None while its rest is still being collected."""
    if end.phase is not Phase.ENDED:
        return LogEnd(error_kind=replica.error_kind, error_message=replica.error_message)
    patience = _STOPPED_PATIENCE_S if work.job.desired == Desired.STOP else _PATIENCE_S
    return context.collector.drain(replica, work.placed.number, patience)


def outcome(context: Context, work: Work, ends: Sequence[Sight], logs: Mapping[int, LogEnd]) -> Outcome:
    """Why the attempt ended, now that every fact is there."""
    attempt = work.placed
    assert attempt.reason is not None
    decided = Outcome(Reason(attempt.reason), attempt.message or "", attempt.final)
    if decided.reason not in _FROM_EXIT or decided.final:
        return decided
    spec = context.spec_to_end(work)
    removed = [end for end in ends if end.phase in (Phase.GONE, Phase.ABSENT)]
    if removed and decided.reason is Reason.KILLED:  # removing a running container kills it first
        return classify(removed[0], LogEnd(), spec)
    followers = {rank for rank, log in logs.items() if log.error_kind == "rank_failed"}
    followers |= {replica.node_rank for replica in work.replicas if replica.signalled_at is not None}
    bad = first_bad([end for end in ends if end.phase is Phase.ENDED], followers)
    if bad is None:
        return decided
    if logs[bad.rank].error_kind in (None, "rank_failed") and not bad.oom_killed:
        told = {rank for rank, log in logs.items() if log.error_kind not in (None, "rank_failed", "stopped")}
        bad = first_bad([end for end in ends if end.rank in told]) or bad  # who failed by itself knows best
    return classify(bad, logs[bad.rank], spec)


def _store(context: Context, work: Work, ends: Sequence[Sight], logs: Mapping[int, LogEnd], how: Outcome) -> None:
    """One transaction: exit facts, the attempt's end, the leases, the job's next state."""
    now = context.clock()
    with context.writing(work) as (session, job):
        attempt = again(session, work.placed)
        work.replicas = [again(session, replica) for replica in work.replicas]
        for end in ends:
            _harvest(work.replicas[end.rank], end, logs[end.rank], now)
        decision = _decide(context, work, job, how)
        attempt.reason, attempt.message = how.reason.value, how.message
        attempt.state, attempt.finished_at = how.reason.facts.outcome.value, now
        if how.reason.facts.fault is Fault.SYSTEM or how.reason in _OF_GPUS:
            for replica in work.replicas:  # something may be wrong with its host: a closer look is due
                if replica.host_id is not None and (host := session.get(Host, replica.host_id)) is not None:
                    host.checked_at = None
        session.exec(delete(Holder).where(col(Holder.id) == attempt.holder))  # and its leases with it
        if decision.state is JobState.QUEUED:
            job.user_retries += decision.user_retry
            job.system_retries += not decision.user_retry
            job.not_before = now + decision.delay_s
            job.why = f"tries again in {decision.delay_s:.0f} s: {how.message}"
            if how.reason is Reason.HOST_UNFIT:
                _avoid(session, job, work.replicas, {log.error_host for log in logs.values()})
        job.unreachable_since = None
        transition(session, job, decision.state, how.message, reason=how.reason, now=now)
    work.attempt = attempt
    context.freed()


def _avoid(session: Session, job: Job, replicas: Sequence[Replica], names: Collection[str]) -> None:
    """Other attempts don't use the hosts of this one that its check named, as long as others can do it."""
    rows = [session.get(Host, replica.host_id) for replica in replicas]
    found = {host.id for host in rows if host is not None and host.name in names}
    job.placing = {**job.placing, "avoid": sorted({*job.placing.get("avoid", ()), *found})}
    job.demand = kind_of(demand_of_row(job), job.owner_id)


def _decide(context: Context, work: Work, job: Job, how: Outcome) -> AfterAttempt:
    if job.desired == Desired.STOP and how.reason.facts.retried:
        return AfterAttempt(JobState.STOPPED, 0.0, user_retry=False)
    if how.final:
        return AfterAttempt(how.reason.facts.outcome, 0.0, user_retry=False)
    retries = context.spec_to_end(work).retries if how.reason.facts.retried else 0
    return after_attempt(how.reason, retries, job.user_retries, job.system_retries)


def _harvest(row: Replica, end: Sight, log: LogEnd, now: float) -> None:
    is_there = end.phase in (Phase.ENDED, Phase.CREATED)
    row.state = (ReplicaState.EXITED if is_there else ReplicaState.GONE).value
    row.exit_code, row.oom_killed, row.error = end.exit_code, end.oom_killed, end.error or None
    row.started_at = end.started_at or row.started_at
    row.finished_at = end.finished_at or now
    row.error_kind = log.error_kind or row.error_kind
    row.error_message = log.error_message or row.error_message
    row.harvested_at = now


def reap(context: Context, work: Work) -> None:
    """Removes the containers of an attempt whose facts are stored; what can't be removed now is swept later."""
    left = [r.node_rank for r in work.replicas if r.removed_at is None and r.harvested_at is not None]
    if not left:
        return
    removed = context.backend(work).remove(work.gang.only(left))
    if removed:
        with context.writing(work) as (session, _):
            for rank in removed:
                again(session, work.replicas[rank]).removed_at = context.clock()
