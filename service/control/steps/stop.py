"""Stopping: SIGTERM, a grace, SIGKILL; then the exit facts and the whole log are stored, leases go, containers go."""

from collections.abc import Iterable

from sqlalchemy import delete
from sqlmodel import col

from jobs.states import AfterAttempt, Desired, JobState, Reason, ReplicaState, after_attempt
from service.backends.errors import Unreachable
from service.control.context import NOTHING, Context, LogEnd, Next, Work, again
from service.control.ending import mark_reachable, mark_unreachable
from service.control.outcome import Exit, Outcome, classify, first_bad
from service.control.steps.run import history, look
from service.store.events import transition
from service.store.tables import Holder, Job, Replica

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


def stop(context: Context, work: Work) -> Next:
    """One step of a job in state stopping."""
    attempt = work.attempt
    assert attempt is not None
    lost = attempt.reason == Reason.HOST_LOST
    ends: dict[int, Exit] = {}
    try:
        for replica in work.replicas:
            try:
                end = look(context, replica)
            except Unreachable:
                if not lost:
                    raise
                end = Exit(replica.node_rank, False, None, False, "", replica.started_at, None)
            if end is not None:
                ends[replica.node_rank] = end
        running = [r for r in work.replicas if r.node_rank not in ends]
        if running:
            mark_reachable(context, work)
            return _press(context, work, running)
        if attempt.reason == Reason.KILLED and _just_now(context, ends.values()):
            return Next(_SETTLE_S)
        read = {r.node_rank: _drain(context, work, r, ends[r.node_rank]) for r in work.replicas}
        logs = {rank: log for rank, log in read.items() if log is not None}
        if len(logs) < len(read):
            return Next(_LOOK_AGAIN_S)  # the collector wakes the job when it has read everything
        outcome = _outcome(context, work, list(ends.values()), logs)
    except Unreachable as error:
        return mark_unreachable(context, work, str(error))
    decision = _finish(context, work, ends, logs, outcome)
    reap(context, work)
    return Next(decision.delay_s) if decision.state is JobState.QUEUED else NOTHING


def _just_now(context: Context, ends: Iterable[Exit]) -> bool:
    """Whether a container ended so recently that it isn't clear yet what killed it."""
    now = context.clock()
    return any(end.found and end.finished_at is not None and 0 <= now - end.finished_at < _SETTLE_S for end in ends)


def _press(context: Context, work: Work, running: list[Replica]) -> Next:
    """Asks what still runs to end; insists when the grace is over."""
    assert work.attempt is not None
    now = context.clock()
    deadline = work.attempt.stop_deadline if work.attempt.stop_deadline is not None else now
    for replica in running:
        engine = context.engines.engine(replica.host)
        name = replica.container_id or replica.container_name
        if now >= deadline:
            engine.signal(name, "SIGKILL")
        elif replica.signalled_at is None:
            engine.signal(name, "SIGTERM")
            with context.writing(work) as (session, _):
                again(session, replica).signalled_at = now
    return Next(_KILL_POLL_S if now >= deadline else deadline - now)


def _drain(context: Context, work: Work, replica: Replica, end: Exit) -> LogEnd | None:
    """The rest of the log of a container that has run; None while it is being read."""
    assert work.attempt is not None
    if not end.found or end.started_at is None:
        return LogEnd(error_kind=replica.error_kind, error_message=replica.error_message)
    patience = _STOPPED_PATIENCE_S if work.job.desired == Desired.STOP else _PATIENCE_S
    return context.collector.drain(replica, work.attempt.number, patience)


def _outcome(context: Context, work: Work, ends: list[Exit], logs: dict[int, LogEnd]) -> Outcome:
    """Why the attempt ended, now that every fact is there."""
    attempt = work.attempt
    assert attempt is not None and attempt.reason is not None
    decided = Outcome(Reason(attempt.reason), attempt.message or "", attempt.final)
    if decided.reason not in _FROM_EXIT or decided.final:
        return decided
    removed = [end for end in ends if not end.found]
    if removed and decided.reason is Reason.KILLED:  # removing a running container kills it first
        host = history(context, work.replicas[removed[0].node_rank].host)
        return classify(removed[0], LogEnd(), host, context.spec(work.job))
    bad = first_bad([end for end in ends if end.found and end.started_at is not None])
    if bad is None:
        return decided
    host = history(context, work.replicas[bad.node_rank].host)
    log = logs[bad.node_rank]
    if log.error_kind in (None, "rank_failed"):  # the rank that failed by itself knows best
        told = [other for other in logs.values() if other.error_kind not in (None, "rank_failed", "stopped")]
        log = told[0] if told else log
    return classify(bad, log, host, context.spec(work.job))


def _finish(
    context: Context, work: Work, ends: dict[int, Exit], logs: dict[int, LogEnd], outcome: Outcome
) -> AfterAttempt:
    """One transaction: exit facts, the attempt's end, the leases, the job's next state."""
    assert work.attempt is not None
    now = context.clock()
    spec = context.spec(work.job)
    with context.writing(work) as (session, job):
        attempt = again(session, work.attempt)
        for index, replica in enumerate(work.replicas):
            row = again(session, replica)
            _harvest(row, ends[replica.node_rank], logs[replica.node_rank], now)
            work.replicas[index] = row
        decision = _decide(job, outcome, spec.retries)
        attempt.reason, attempt.message = outcome.reason.value, outcome.message
        attempt.state, attempt.finished_at = outcome.reason.facts.outcome.value, now
        session.exec(delete(Holder).where(col(Holder.id) == attempt.holder))  # and its leases with it
        if decision.state is JobState.QUEUED:
            job.user_retries += decision.user_retry
            job.system_retries += not decision.user_retry
            job.not_before = now + decision.delay_s
            job.why = f"tries again in {decision.delay_s:.0f} s: {outcome.message}"
        job.unreachable_since = None
        transition(session, job, decision.state, outcome.message, reason=outcome.reason, now=now)
    work.attempt = attempt
    return decision


def _decide(job: Job, outcome: Outcome, retries: int) -> AfterAttempt:
    if job.desired == Desired.STOP and outcome.reason.facts.retried:
        return AfterAttempt(JobState.STOPPED, 0.0, user_retry=False)
    if outcome.final:
        return AfterAttempt(outcome.reason.facts.outcome, 0.0, user_retry=False)
    return after_attempt(outcome.reason, retries, job.user_retries, job.system_retries)


def _harvest(row: Replica, end: Exit, log: LogEnd, now: float) -> None:
    row.state = (ReplicaState.EXITED if end.found else ReplicaState.GONE).value
    row.exit_code, row.oom_killed, row.error = end.exit_code, end.oom_killed, end.error or None
    row.started_at = end.started_at or row.started_at
    row.finished_at = end.finished_at or now
    row.error_kind = log.error_kind or row.error_kind
    row.error_message = log.error_message or row.error_message
    row.harvested_at = now


def reap(context: Context, work: Work) -> bool:
    """Removes the containers of an attempt whose facts are stored; False when a host didn't answer."""
    done = True
    for index, replica in enumerate(work.replicas):
        if replica.removed_at is not None or replica.harvested_at is None:
            continue
        try:
            context.engines.engine(replica.host).remove(replica.container_id or replica.container_name)
        except Unreachable:
            done = False
            continue
        with context.writing(work) as (session, _):
            row = again(session, replica)
            row.removed_at = context.clock()
        work.replicas[index] = row
    return done
