"""Running: what the engine says is the truth; the first bad exit by its clock is why the attempt ends."""

from jobs.states import Desired, Reason
from jobs.units import format_duration
from service.backends.errors import Unreachable
from service.control.context import Context, LogEnd, Next, Work
from service.control.ending import begin_stopping, mark_reachable, mark_unreachable
from service.control.hosts import note_facts
from service.control.outcome import Exit, HostHistory, Outcome, classify, first_bad
from service.store.tables import Host, Replica

_ENDED = "its container has ended; the rest of its log is being stored"


def run(context: Context, work: Work) -> Next:
    """One step of a job in state running."""
    assert work.attempt is not None
    if work.job.desired == Desired.STOP:
        return begin_stopping(context, work, Outcome(Reason.STOPPED_BY_USER, "stopped on request"))
    ended: list[Exit] = []
    try:
        for replica in work.replicas:
            end = look(context, replica)
            if end is None:
                context.collector.follow(replica, work.attempt.number)
            else:
                ended.append(end)
    except Unreachable as error:
        return mark_unreachable(context, work, str(error))
    mark_reachable(context, work)
    bad = first_bad(ended)
    spec = context.spec(work.job)
    if bad is not None:
        try:
            host = history(context, work.replicas[bad.node_rank].host)
        except Unreachable as error:
            return mark_unreachable(context, work, str(error))
        return begin_stopping(context, work, classify(bad, LogEnd(), host, spec), _ENDED)
    if len(ended) == len(work.replicas):
        return begin_stopping(context, work, Outcome(Reason.COMPLETED, "finished with exit code 0"), _ENDED)
    if spec.max_duration is None:
        return Next(None)
    left = (work.attempt.started_at or context.clock()) + spec.max_duration - context.clock()
    if left <= 0:
        limit = format_duration(spec.max_duration)
        return begin_stopping(context, work, Outcome(Reason.MAX_DURATION, f"reached its max_duration of {limit}"))
    return Next(left)


def look(context: Context, replica: Replica) -> Exit | None:
    """How a replica's container ended; None while it runs. Raises Unreachable."""
    found = context.engines.engine(replica.host).inspect(replica.container_id or replica.container_name)
    if found is None:
        return Exit(replica.node_rank, False, None, False, "", replica.started_at, None)
    if found.running:
        return None
    return Exit(
        replica.node_rank,
        True,
        found.exit_code,
        found.oom_killed,
        found.error,
        found.started_at,
        found.finished_at,
    )


def history(context: Context, host_id: str) -> HostHistory:
    """The host's history, as its engine tells it now: it may have come back only a moment ago. Raises Unreachable."""
    note_facts(context, host_id, context.engines.engine(host_id).facts(), back_at=None)
    with context.database.read() as session:
        host = session.get(Host, host_id)
    if host is None:
        return HostHistory(host_id)
    return HostHistory(host.name, host.facts.get("engine_started_at"), host.facts.get("booted_at"))
