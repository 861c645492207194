"""Why an attempt ended, told apart by what the backend saw of its containers and by the log. Pure."""

import re
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from jobs.spec import JobSpec
from jobs.states import Reason
from jobs.units import format_size
from service.backends.base import Phase, Sight
from service.control.context import LogEnd


@dataclass(frozen=True)
class Outcome:
    """How an attempt ends."""

    reason: Reason
    message: str
    final: bool = False
    """No retry, although the reason would allow one."""


_KINDS = {
    "bad_config": Reason.BAD_CONFIG,
    "bad_data": Reason.BAD_DATA,
    "missing_input": Reason.MISSING_INPUT,
    "no_space": Reason.NO_SPACE,
    "nan_loss": Reason.NAN_LOSS,
    "cuda_out_of_memory": Reason.CUDA_OUT_OF_MEMORY,
    "rank_failed": Reason.USER_ERROR,
    "internal": Reason.USER_ERROR,
    "stopped": Reason.KILLED,
    "port_taken": Reason.PORT_UNAVAILABLE,
    "host_misconfigured": Reason.HOST_UNFIT,
    "host_unfit": Reason.HOST_UNFIT,
}
_CODES = {
    64: Reason.BAD_CONFIG,
    65: Reason.BAD_DATA,
    66: Reason.MISSING_INPUT,
    74: Reason.NO_SPACE,
    75: Reason.KILLED,
    76: Reason.NAN_LOSS,
}
_CUDA_MEMORY = re.compile(r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED")
_LATE = float("inf")
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def first_bad(ends: Sequence[Sight], followers: Collection[int] = ()) -> Sight | None:
    """The container that failed first by the engines' clocks: the others only followed. None when all ended well.

    `followers`: ranks that are known to have ended because of another one. Clocks of hosts differ, that is certain.
    """
    bad = [end for end in ends if end.phase is not Phase.ENDED or end.exit_code != 0]
    leaders = [end for end in bad if end.rank not in followers] or bad
    return min(
        leaders, key=lambda end: (end.finished_at if end.finished_at is not None else _LATE, end.rank), default=None
    )


def where(end: Sight, spec: JobSpec) -> str:
    """Which container of the job it is: the ranks in it, and its host."""
    if spec.resources.nodes == 1:
        return "the container"
    each = spec.resources.processes_per_node
    first = end.rank * each
    ranks = f"rank {first}" if each == 1 else f"ranks {first} to {first + each - 1}"
    return f"{ranks} on {end.place}" if end.place else ranks


def classify(end: Sight, log: LogEnd, spec: JobSpec) -> Outcome:
    """The reason and a sentence for one container's end; of a gang, it says which ranks these were, and where."""
    outcome = _classify(end, log, spec)
    place = where(end, spec)
    told = outcome.message.startswith((place, "Rank ", "rank ")) or end.interruption is not None
    if spec.resources.nodes == 1 or told or outcome.reason is Reason.COMPLETED:
        return outcome
    return replace(outcome, message=f"{place}: {outcome.message}")


def _classify(end: Sight, log: LogEnd, spec: JobSpec) -> Outcome:
    place = where(end, spec)
    if end.phase in (Phase.GONE, Phase.ABSENT, Phase.UNKNOWN):
        return Outcome(Reason.CONTAINER_REMOVED, _removed(end, spec))
    if end.exit_code is None:
        said = end.error or "no reason given"
        return Outcome(Reason.ENGINE_REFUSED, f"{place} could not be started: {said}", final=True)
    if end.interruption is not None:
        return Outcome(*end.interruption)
    if end.exit_code == 0:
        return Outcome(Reason.COMPLETED, "finished with exit code 0")
    if end.oom_killed:
        limit = f" of {format_size(spec.resources.memory)}" if spec.resources.memory else ""
        return Outcome(
            Reason.OUT_OF_MEMORY,
            f"{place} ran over its memory limit{limit} (exit code {end.exit_code}); raise resources.memory",
        )
    if log.error_kind in _KINDS:
        return Outcome(_KINDS[log.error_kind], log.error_message or _KINDS[log.error_kind].facts.says)
    if spec.type.trains and end.exit_code in _CODES:
        reason = _CODES[end.exit_code]
        return Outcome(reason, log.last_line or reason.facts.says)
    if _CUDA_MEMORY.search(log.last_line):
        return Outcome(Reason.CUDA_OUT_OF_MEMORY, log.last_line)
    if log.failed_rank is not None:  # torchrun ended with 1, as it does whatever happened
        rank, code = log.failed_rank
        which = f"rank {rank} on {end.place}" if spec.resources.nodes > 1 else f"rank {rank}"
        return _by_exit_code(128 - code if code < 0 else code, LogEnd(), which)
    return _by_exit_code(end.exit_code, log, place)


def _removed(end: Sight, spec: JobSpec) -> str:
    container = "the container" if spec.resources.nodes == 1 else f"the container of {where(end, spec)}"
    on = f" on {end.place}" if spec.resources.nodes == 1 else ""
    return f"{container}{on} was removed by somebody else"


def _by_exit_code(code: int, log: LogEnd, where: str) -> Outcome:
    said = f": {log.last_line}" if log.last_line else ""
    if code == 127:
        return Outcome(Reason.USER_ERROR, f"the command was not found (exit code 127){said}")
    if code == 126:
        return Outcome(Reason.USER_ERROR, f"the command can't be executed (exit code 126){said}")
    try:
        name = signal.Signals(code - 128)
    except ValueError:
        return Outcome(Reason.USER_ERROR, f"exit code {code}{said}")
    if name in _FROM_OUTSIDE:
        return Outcome(Reason.KILLED, f"{where} was killed by {name.name} (exit code {code}), not by Navarch")
    return Outcome(Reason.USER_ERROR, f"the command crashed with {name.name} (exit code {code}){said}")
