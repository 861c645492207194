"""Why a container ended, told apart by the engine's facts, the log and the host's history. Pure."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.spec import JobSpec
from jobs.states import Reason
from jobs.units import format_size
from service.control.context import LogEnd


@dataclass(frozen=True)
class Outcome:
    """How an attempt ends."""

    reason: Reason
    message: str
    final: bool = False
    """No retry, although the reason would allow one."""


@dataclass(frozen=True)
class HostHistory:
    """When the host's engine and the host itself were last started, as far as known."""

    name: str
    engine_started_at: float | None = None
    booted_at: float | None = None


@dataclass(frozen=True)
class Exit:
    """How one container ended; `found` False: it isn't there any more."""

    node_rank: int
    found: bool
    exit_code: int | None
    oom_killed: bool
    error: str
    started_at: float | None
    finished_at: float | None


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
_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_INTERRUPTED = frozenset({75, 128 + 1, 128 + 2, 128 + 9, 128 + 15, 255})
"""Exit codes of a container that an engine took down with itself."""
_RESTART_WINDOW_S = 120.0


def first_bad(exits: Sequence[Exit]) -> Exit | None:
    """The container that failed first by the engine's clock: the others only followed. None when all ended well."""
    bad = [e for e in exits if not e.found or e.exit_code != 0]
    return min(
        bad, key=lambda e: (e.finished_at if e.finished_at is not None else float("inf"), e.node_rank), default=None
    )


def classify(end: Exit, log: LogEnd, host: HostHistory, spec: JobSpec) -> Outcome:
    """The reason and a sentence for one container's end."""
    where = f"rank {end.node_rank}'s container" if spec.resources.nodes > 1 else "the container"
    if not end.found:
        return Outcome(Reason.CONTAINER_REMOVED, f"{where} on {host.name} was removed by somebody else")
    if end.exit_code is None:
        return Outcome(Reason.USER_ERROR, f"{where} could not be started: {end.error or 'no reason given'}", final=True)
    interrupted = _interruption(end, host)
    if interrupted is not None:
        return interrupted
    if end.exit_code == 0:
        return Outcome(Reason.COMPLETED, "finished with exit code 0")
    if end.oom_killed:
        limit = f" of {format_size(spec.resources.memory)}" if spec.resources.memory else ""
        return Outcome(
            Reason.OUT_OF_MEMORY,
            f"{where} ran over its memory limit{limit} (exit code {end.exit_code}); raise resources.memory",
        )
    if log.error_kind in _KINDS:
        return Outcome(_KINDS[log.error_kind], log.error_message or _KINDS[log.error_kind].facts.says)
    if spec.type.trains and end.exit_code in _CODES:
        reason = _CODES[end.exit_code]
        return Outcome(reason, log.last_line or reason.facts.says)
    if _CUDA_MEMORY.search(log.last_line):
        return Outcome(Reason.CUDA_OUT_OF_MEMORY, log.last_line)
    return _by_exit_code(end.exit_code, log, where)


def _interruption(end: Exit, host: HostHistory) -> Outcome | None:
    """An end that came with the engine's or the machine's."""
    if end.exit_code not in _INTERRUPTED or end.started_at is None:
        return None
    if host.booted_at is not None and end.started_at < host.booted_at:
        return Outcome(Reason.HOST_REBOOTED, f"{host.name} was rebooted under the job")
    engine = host.engine_started_at
    if engine is not None and end.started_at < engine and (end.finished_at or engine) > engine - _RESTART_WINDOW_S:
        return Outcome(Reason.ENGINE_RESTARTED, f"the Docker Engine of {host.name} was restarted under the job")
    return None


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
