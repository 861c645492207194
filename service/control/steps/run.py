"""Running: what the backend says is the truth; the first bad exit by its clock is why the attempt ends."""

from collections.abc import Sequence

from jobs.spec import JobSpec
from jobs.states import Desired, Reason
from jobs.units import format_duration
from service.backends.base import Phase, Sight
from service.control import moves
from service.control.context import Context, LogEnd, Next, Work
from service.control.ending import make_common
from service.control.outcome import Outcome, classify, first_bad

_ENDED = "its container has ended; the rest of its log is being stored"
Move = moves.Wait | moves.Stop | moves.Unanswered


def run(context: Context, work: Work) -> Next:
    """One step of a job in state running."""
    if work.job.desired == Desired.STOP:  # first of all, as it must work whatever else doesn't
        return make_common(context, work, moves.Stop(Outcome(Reason.STOPPED_BY_USER, "stopped on request")))
    backend = context.backend(work)
    sights = backend.observe(work.gang)
    for sight in sights:
        if sight.phase is Phase.RUNNING:
            context.collector.follow(work.replicas[sight.rank], work.placed.number)
    return make_common(context, work, decide(work, context.spec_to_end(work), sights, context.clock()))


def decide(work: Work, spec: JobSpec, sights: Sequence[Sight], now: float) -> Move:
    """Whether the attempt goes on. Pure."""
    for sight in sights:
        if sight.phase is Phase.UNKNOWN:
            return moves.Unanswered(sight.says)
    ended = [sight for sight in sights if sight.over]
    bad = first_bad(ended)
    if bad is not None:
        return moves.Stop(classify(bad, LogEnd(), spec), _ENDED)
    if len(ended) == len(sights):
        return moves.Stop(Outcome(Reason.COMPLETED, "finished with exit code 0"), _ENDED)
    if spec.max_duration is None:
        return moves.Wait()
    left = (work.placed.started_at or now) + spec.max_duration - now
    if left <= 0:
        limit = format_duration(spec.max_duration)
        return moves.Stop(Outcome(Reason.MAX_DURATION, f"reached its max_duration of {limit}"))
    return moves.Wait(left)
