"""The way into `stopping`, and what is done about backends that don't answer: moves that several steps may make."""

from jobs.spec import JobSpec
from jobs.states import JobState, Reason
from jobs.units import format_duration
from service.control.context import Context, Next, Work, again
from service.control.moves import Stop, Unanswered, Wait
from service.control.outcome import Outcome
from service.store.events import record_job, transition

_UNREACHABLE_POLL_S = 2.0
_GANG_GRACE_S = 10.0
"""How long ranks are waited for of which another one has failed: without it they can't save anything."""
_ASKED_FOR = frozenset({Reason.STOPPED_BY_USER, Reason.MAX_DURATION})


def make_common(context: Context, work: Work, move: Wait | Unanswered | Stop) -> Next:
    """Makes a move that is the same in every state."""
    match move:
        case Wait():
            _answers(context, work)
            return Next(move.after_s)
        case Unanswered():
            return mark_unreachable(context, work, move.says)
        case Stop():
            return begin_stopping(context, work, move.outcome, move.says)


def begin_stopping(context: Context, work: Work, outcome: Outcome, says: str | None = None) -> Next:
    """Writes down why the attempt ends, and when what still runs is killed; the next step does the rest."""
    now = context.clock()
    context.backend(work).withdraw(work.gang)
    with context.writing(work) as (session, job):
        row = again(session, work.placed)
        row.state = JobState.STOPPING.value
        row.reason, row.message, row.final = outcome.reason.value, outcome.message, outcome.final
        row.stop_deadline = now + grace_of(work, context.spec_to_end(work), outcome.reason)
        job.failures = 0
        transition(session, job, JobState.STOPPING, says or outcome.message, reason=outcome.reason, now=now)
    work.attempt = row
    return Next(0.0)


def grace_of(work: Work, spec: JobSpec, reason: Reason) -> float:
    """Seconds that what still runs gets to end by itself. Pure."""
    broken = len(work.replicas) > 1 and reason not in _ASKED_FOR
    return min(spec.grace, _GANG_GRACE_S) if broken else spec.grace


def mark_unreachable(context: Context, work: Work, error: str) -> Next:
    """Its host doesn't answer: the job keeps all it has until the grace is over."""
    now = context.clock()
    since = work.job.unreachable_since
    if since is None:
        with context.writing(work) as (session, job):
            job.unreachable_since = now
            job.message = f"its host doesn't answer: {error}"
            record_job(session, job, "job.unreachable", job.message)
        return Next(_UNREACHABLE_POLL_S)
    if now - since > context.settings.unreachable_grace_s:
        grace = format_duration(context.settings.unreachable_grace_s)
        lost = Outcome(Reason.HOST_LOST, f"its host did not answer for {grace}: {error}")
        if work.job.state != JobState.STOPPING:
            return begin_stopping(context, work, lost)
        with context.writing(work) as (session, _):  # nobody waits for its end any more
            row = again(session, work.placed)
            row.reason, row.message = lost.reason.value, lost.message
        work.attempt = row
        return Next(0.0)
    return Next(_UNREACHABLE_POLL_S)


def _answers(context: Context, work: Work) -> None:
    """The host answers (again)."""
    if work.job.unreachable_since is None:
        return
    with context.writing(work) as (session, job):
        job.unreachable_since = None
        job.message = "its host answers again"
        record_job(session, job, "job.reachable", job.message)
