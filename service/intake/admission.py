"""Whether a job may be accepted: what its spec says, where its paths lead, whether any host could ever run it."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlmodel import Session

from jobs.documents import DocumentError, plain
from jobs.launch import pool_ports
from jobs.mistakes import SpecError
from jobs.placement import NEVER, Demand, HostCapacity, Need
from jobs.possible import impossible
from jobs.spec import JobSpec, JobType, parse_spec
from service.access.mounts import MountRules
from service.access.principals import Principal
from service.contract.errors import Problem
from service.intake.inputs import find_inputs, find_predecessors
from service.intake.spec_paths import Resolved, resolve_paths
from service.settings import Settings
from service.store.demands import path_need

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


def demand_of(spec: JobSpec, needs: Sequence[Need] = ()) -> Demand:
    r = spec.resources
    lasts = NEVER if spec.type is JobType.SERVE else None
    if spec.max_duration is not None:
        lasts = _START_S + spec.max_duration + spec.grace
    labels = tuple(sorted(r.labels.items()))
    return Demand(
        *(r.nodes, r.gpus, spec.fixed_ports, pool_ports(spec), r.cpus, r.memory, lasts, r.spread, labels),
        needs=tuple(needs),
    )


def resolve(session: Session, spec: JobSpec, settings: Settings, actor: Principal) -> Resolved:
    """The mounts and training sections that the spec's paths come to, and what it waits for. Raises Problem."""
    resolved = resolve_paths(spec, MountRules.of(settings), find_inputs(session, actor.id))
    resolved.needs = _needs(session, spec, resolved)
    resolved.inputs.update({wait.key: (wait, "") for wait in find_predecessors(session, spec.after, actor.id)})
    return resolved


def _needs(session: Session, spec: JobSpec, resolved: Resolved) -> list[Need]:
    """Files that only some hosts have: paths of this machine, and artifacts where jobs left them."""
    found: dict[str, Need | None] = {}
    for artifact, target in resolved.inputs.values():
        mount = resolved.mounts.get(target)
        if artifact.host_id is not None:
            found[target] = Need(f"artifact {artifact.name}@{artifact.version}", (artifact.host_id,))
        elif mount is not None:
            found[target] = path_need(session, mount.source, f"artifact {artifact.name}@{artifact.version}")
    for mount in (*spec.mounts, *resolved.mounts.values()):
        if mount.target not in found:
            found[mount.target] = path_need(session, mount.source)
    return sorted({need for need in found.values() if need is not None}, key=lambda need: need.what)


def check_possible(spec: JobSpec, hosts: Sequence[HostCapacity], needs: Sequence[Need] = ()) -> None:
    """Raises Problem when no emptying of the hosts could ever make room."""
    having = [host for host in hosts if all(host.id in need.hosts for need in needs)]
    if hosts and not having:
        names = {host.id: host.name for host in hosts}
        where = "; ".join(
            f"{need.what} is on {', '.join(names[one] for one in need.hosts if one in names) or 'no host'}"
            for need in needs
        )
        raise Problem(
            "not_enough_hosts",
            f"No host has everything that the job starts from: {where}.",
            "Share a folder (`navarch host set --shared-root`), or run the jobs that make these on one host.",
        )
    refusal = impossible(demand_of(spec), having, spec.resources.shm)
    if refusal is not None:
        code, sentence = refusal
        raise Problem(code, f"The job {sentence}.", "Ask for less, or add a host that has it.")
