"""One step of one job: what its state asks for, and what becomes of it when that fails."""

from collections.abc import Callable

import structlog

from jobs.states import PLACED, JobState, Reason
from service.backends.errors import EngineError, Unreachable
from service.control.context import NOTHING, Context, Next, Vanished, Work
from service.control.ending import begin_stopping, mark_unreachable
from service.control.outcome import Outcome
from service.control.steps.provision import provision
from service.control.steps.run import run
from service.control.steps.stop import end_by_force, reap, stop

log = structlog.get_logger("controller")
BUDGET = 6
"""How many steps of a job may fail one after the other before its attempt is given up."""
_LONGEST_S = 60.0
_STEPS: dict[JobState, Callable[[Context, Work], Next]] = {
    JobState.PROVISIONING: provision,
    JobState.RUNNING: run,
    JobState.STOPPING: stop,
}


def step(context: Context, job_id: str) -> Next:
    """Everything that the controller does to a job goes through here; one step of a job is under way at a time."""
    work = context.load(job_id)
    if work is None:
        return NOTHING
    state = JobState(work.job.state)
    try:
        result = _STEPS[state](context, work) if state in PLACED else _tidy(context, work)
        if work.job.failures and work.job.state == state:
            with context.writing(work) as (_, job):
                job.failures = 0
    except Vanished:
        return NOTHING
    except Unreachable as error:
        context.figures.steps.labels(state, "unreachable").inc()
        return mark_unreachable(context, work, str(error)) if state in PLACED else Next(_LONGEST_S)
    except EngineError as error:
        context.figures.steps.labels(state, "refused").inc()
        return _failed(context, work, f"the engine refused: {error}", is_ours=False)
    except Exception as error:  # one bad row must never stop the others
        log.exception("step failed", job=job_id)
        context.figures.steps.labels(state, "failed").inc()
        return _failed(context, work, f"Navarch failed at this job ({type(error).__name__}: {error})", is_ours=True)
    context.figures.steps.labels(state, "done").inc()
    return result


def _tidy(context: Context, work: Work) -> Next:
    """What an ended attempt may have left."""
    reap(context, work)
    return NOTHING


def _failed(context: Context, work: Work, message: str, *, is_ours: bool) -> Next:
    """Shows the error at the job and tries again later: 1, 2, 4 … s; gives the attempt up when the budget is spent."""
    state = JobState(work.job.state)
    if state not in PLACED:
        return Next(_LONGEST_S)
    try:
        with context.writing(work) as (_, job):
            job.failures += 1
            delay = min(_LONGEST_S, 2.0 ** min(job.failures - 1, 10))
            job.message = f"{message}; tries again in {delay:.0f} s"
        if work.job.failures < BUDGET or state is JobState.RUNNING:  # nobody's work is ended for Navarch's mistakes
            return Next(delay)
        if state is JobState.STOPPING:
            return end_by_force(context, work, message) or Next(delay)
        outcome = Outcome(Reason.INTERNAL_ERROR, f"given up after {BUDGET} tries: {message}", final=is_ours)
        return begin_stopping(context, work, outcome)
    except Vanished:
        return NOTHING
    except EngineError as error:
        log.warning("an attempt can't be given up", job=work.job.id, error=str(error))
        return Next(_LONGEST_S)
