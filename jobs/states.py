"""States of jobs, attempts and replicas: which moves are legal, and the reasons for them."""

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    QUEUED = "queued"
    PROVISIONING = "provisioning"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


class ReplicaState(StrEnum):
    """What was last seen of one container. `gone` means that somebody else removed it."""

    PENDING = "pending"
    STARTED = "started"
    READY = "ready"
    EXITED = "exited"
    GONE = "gone"


class Desired(StrEnum):
    RUN = "run"
    STOP = "stop"


TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED})
"""Every state that the controller still has work with."""
PLACED = frozenset({JobState.PROVISIONING, JobState.RUNNING, JobState.STOPPING})
"""States in which an attempt exists and holds leases."""

_MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.PROVISIONING, JobState.STOPPED, JobState.FAILED}),
    JobState.PROVISIONING: frozenset({JobState.RUNNING, JobState.STOPPING}),
    JobState.RUNNING: frozenset({JobState.STOPPING}),
    JobState.STOPPING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED, JobState.QUEUED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.STOPPED: frozenset(),
}


class IllegalTransition(Exception):
    """A move that the table doesn't allow: a bug in the caller, never a user's fault."""


def check_move(old: JobState, new: JobState) -> None:
    """Raises IllegalTransition unless a job may go from `old` to `new`."""
    if new not in _MOVES[old]:
        raise IllegalTransition(f"a job can't go from {old} to {new}; from {old} it can go to {sorted(_MOVES[old])}")


class Fault(StrEnum):
    """Whose fault it was. The system's faults are retried without using up the user's retries."""

    NOBODY = "nobody"
    USER = "user"
    SYSTEM = "system"


@dataclass(frozen=True)
class ReasonFacts:
    fault: Fault
    retried: bool
    outcome: JobState
    """The terminal state when no retry is left."""
    says: str
    """What a person reads when nothing more exact is known."""


class Reason(StrEnum):
    COMPLETED = "completed"
    STOPPED_BY_USER = "stopped_by_user"
    USER_ERROR = "user_error"
    BAD_CONFIG = "bad_config"
    BAD_DATA = "bad_data"
    MISSING_INPUT = "missing_input"
    NAN_LOSS = "nan_loss"
    NO_SPACE = "no_space"
    OUT_OF_MEMORY = "out_of_memory"
    CUDA_OUT_OF_MEMORY = "cuda_out_of_memory"
    KILLED = "killed"
    CONTAINER_REMOVED = "container_removed"
    ENGINE_RESTARTED = "engine_restarted"
    HOST_LOST = "host_lost"
    HOST_REBOOTED = "host_rebooted"
    IMAGE_UNAVAILABLE = "image_unavailable"
    IMAGE_UNSUITABLE = "image_unsuitable"
    ENGINE_REFUSED = "engine_refused"
    PORT_UNAVAILABLE = "port_unavailable"
    GPU_UNAVAILABLE = "gpu_unavailable"
    HOST_UNFIT = "host_unfit"
    START_TIMEOUT = "start_timeout"
    BARRIER_TIMEOUT = "barrier_timeout"
    MAX_DURATION = "max_duration"
    INTERNAL_ERROR = "internal_error"

    @property
    def facts(self) -> ReasonFacts:
        return _REASONS[self]


def _user(says: str, retried: bool = True) -> ReasonFacts:
    return ReasonFacts(Fault.USER, retried, JobState.FAILED, says)


def _system(says: str) -> ReasonFacts:
    return ReasonFacts(Fault.SYSTEM, True, JobState.FAILED, says)


_REASONS: dict[Reason, ReasonFacts] = {
    Reason.COMPLETED: ReasonFacts(Fault.NOBODY, False, JobState.SUCCEEDED, "finished with exit code 0"),
    Reason.STOPPED_BY_USER: ReasonFacts(Fault.NOBODY, False, JobState.STOPPED, "stopped on request"),
    Reason.USER_ERROR: _user("the command failed"),
    Reason.BAD_CONFIG: _user("the training configuration was refused", retried=False),
    Reason.BAD_DATA: _user("the training data was refused", retried=False),
    Reason.MISSING_INPUT: _user("a model or data file is missing", retried=False),
    Reason.NAN_LOSS: _user("the loss became NaN", retried=False),
    Reason.NO_SPACE: _user("a disk was full", retried=False),
    Reason.OUT_OF_MEMORY: _user("the container ran out of memory"),
    Reason.CUDA_OUT_OF_MEMORY: _user("a GPU ran out of memory"),
    Reason.KILLED: _user("the process was killed by a signal that Navarch didn't send"),
    Reason.CONTAINER_REMOVED: _user("the container was removed by somebody else"),
    Reason.ENGINE_RESTARTED: _system("the Docker Engine was restarted under the job"),
    Reason.HOST_LOST: _system("the host could not be reached for longer than the grace period"),
    Reason.HOST_REBOOTED: _system("the host was rebooted under the job"),
    Reason.IMAGE_UNAVAILABLE: _user("the image is not on the host and can't be pulled", retried=False),
    Reason.IMAGE_UNSUITABLE: _user("the image can't run this job", retried=False),
    Reason.ENGINE_REFUSED: _user("the engine refused the container", retried=False),
    Reason.PORT_UNAVAILABLE: _system("a host port was already taken"),
    Reason.GPU_UNAVAILABLE: _system("the host could not give the GPUs to the container"),
    Reason.HOST_UNFIT: _system("a host of the gang failed the check before the start"),
    Reason.START_TIMEOUT: _system("the container did not become ready in time"),
    Reason.BARRIER_TIMEOUT: _system("not all containers of the gang became ready in time"),
    Reason.MAX_DURATION: ReasonFacts(Fault.USER, False, JobState.STOPPED, "the job reached its max_duration"),
    Reason.INTERNAL_ERROR: _system("Navarch itself failed while handling the job"),
}

MAX_SYSTEM_RETRIES = 5
"""How often the system's own faults are retried before the job fails."""


@dataclass(frozen=True)
class AfterAttempt:
    """What becomes of a job when an attempt ended."""

    state: JobState
    delay_s: float
    """How long to wait before the next attempt; only meaningful when `state` is queued."""
    user_retry: bool
    """Whether this uses up one of the user's retries."""


def _delay(first_s: float, earlier: int) -> float:
    return min(300.0, first_s * 2.0 ** min(earlier, 10))


def after_attempt(reason: Reason, retries: int, user_retries_used: int, system_retries_used: int) -> AfterAttempt:
    """Another attempt or a terminal state. Delays double from 1 s (user) or 2 s (system) up to 5 min."""
    facts = reason.facts
    if facts.retried and facts.fault is Fault.SYSTEM and system_retries_used < MAX_SYSTEM_RETRIES:
        return AfterAttempt(JobState.QUEUED, _delay(2.0, system_retries_used), user_retry=False)
    if facts.retried and facts.fault is Fault.USER and user_retries_used < retries:
        return AfterAttempt(JobState.QUEUED, _delay(1.0, user_retries_used), user_retry=True)
    return AfterAttempt(facts.outcome, 0.0, user_retry=False)
