"""Whether a job may be accepted: what its spec says, where its paths lead, whether any host could ever run it."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlmodel import Session

from jobs.documents import DocumentError, plain
from jobs.launch import pool_ports
from jobs.mistakes import SpecError
from jobs.placement import NEVER, Demand, HostCapacity
from jobs.possible import impossible
from jobs.spec import JobSpec, JobType, parse_spec
from service.access.mounts import MountRules
from service.access.principals import Principal
from service.contract.errors import Problem
from service.intake.inputs import find_inputs, find_predecessors
from service.intake.spec_paths import Resolved, resolve_paths
from service.settings import Settings

_CHECK = "`navarch submit --dry-run` checks a job without starting it."


def parse(document: Mapping[str, Any]) -> JobSpec:
    """The spec in a document. Raises Problem `invalid_spec` that names every mistake."""
    try:
        return parse_spec(plain(document))
    except DocumentError as error:
        raise Problem("invalid_spec", f"The spec can't be read: {error}.", _CHECK) from None
    except SpecError as error:
        raise Problem(
            "invalid_spec",
            " ".join(m.message if m.message.endswith((".", "?")) else f"{m.message}." for m in error.mistakes),
            _CHECK,
            problems=[{"path": m.path, "message": m.message} for m in error.mistakes],
        ) from None


_START_S = 300.0
"""What a job may take to start, beyond its `max_duration`, when others count on its end."""


def demand_of(spec: JobSpec) -> Demand:
    r = spec.resources
    lasts = NEVER if spec.type is JobType.SERVE else None
    if spec.max_duration is not None:
        lasts = _START_S + spec.max_duration + spec.grace
    labels = tuple(sorted(r.labels.items()))
    return Demand(r.nodes, r.gpus, spec.fixed_ports, pool_ports(spec), r.cpus, r.memory, lasts, r.spread, labels)


def resolve(session: Session, spec: JobSpec, settings: Settings, actor: Principal) -> Resolved:
    """The mounts and training sections that the spec's paths come to, and what it waits for. Raises Problem."""
    resolved = resolve_paths(spec, MountRules.of(settings), find_inputs(session, actor.id))
    resolved.inputs.update({wait.key: (wait, "") for wait in find_predecessors(session, spec.after, actor.id)})
    return resolved


def check_possible(spec: JobSpec, hosts: Sequence[HostCapacity]) -> None:
    """Raises Problem when no emptying of the hosts could ever make room."""
    refusal = impossible(demand_of(spec), hosts, spec.resources.shm)
    if refusal is not None:
        code, sentence = refusal
        raise Problem(code, f"The job {sentence}.", "Ask for less, or add a host that has it.")
