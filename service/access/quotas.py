"""How much a person may hold at once, and what they hold: GPUs, workspaces, running jobs, disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlmodel import Session, col, select

from jobs.states import PLACED
from jobs.workspace_states import AT_WORK
from service.contract.errors import Problem
from service.settings import Settings
from service.store.tables import Artifact, Job, Principal, Workspace

KINDS = ("gpus", "workspaces", "jobs", "disk")
_SHOWN = 5


@dataclass(frozen=True)
class Held:
    """One thing that somebody has, and how much of what is counted it takes."""

    what: str
    amount: int


def quota_of(session: Session, owner_id: str) -> dict[str, int]:
    """The limits that somebody has; most people have none."""
    return dict(session.exec(select(Principal.quota).where(Principal.id == owner_id)).one())


def limited(session: Session) -> set[str]:
    """Those who have a limit of any kind."""
    return {owner for owner, quota in session.exec(select(Principal.id, Principal.quota)) if quota}


def held(session: Session, kind: str, owner_id: str) -> list[Held]:
    """What somebody has of a kind but disk, the largest first."""
    placed = select(Job).where(Job.owner_id == owner_id, col(Job.state).in_([state.value for state in PLACED]))
    own = select(Workspace).where(Workspace.owner_id == owner_id)
    if kind == "workspaces":
        return [Held(f"workspace {row.name}", 1) for row in session.exec(own)]
    if kind == "jobs":
        return [Held(f"job {row.name}", 1) for row in session.exec(placed)]
    at_work = own.where(col(Workspace.state).in_([state.value for state in AT_WORK]))
    found = [
        *(Held(f"job {row.name}", row.gpus * row.nodes) for row in session.exec(placed)),
        *(Held(f"workspace {row.name}", len(row.gpus)) for row in session.exec(at_work)),
    ]
    return sorted((one for one in found if one.amount), key=lambda one: -one.amount)


def over(session: Session, owner_id: str, **more: int) -> str | None:
    """Why somebody may not have so many more, in words: by how much it is too much, and what they have; else None."""
    quota = quota_of(session, owner_id)
    for kind, amount in more.items():
        limit = quota.get(kind)
        if limit is None or not amount:
            continue
        has = held(session, kind, owner_id)
        total = sum(one.amount for one in has) + amount
        if total > limit:
            return _sentence(kind, limit, total - limit, has)
    return None


def check_quota(session: Session, owner_id: str, **more: int) -> None:
    """Raises Problem `quota_exceeded`."""
    said = over(session, owner_id, **more)
    if said is not None:
        raise Problem("quota_exceeded", f"{said}.", "Stop something of it, or ask an admin for more.")


def check_alone(session: Session, owner_id: str, gpus: int) -> None:
    """Raises Problem `quota_exceeded` for what would be too much even if they had nothing else."""
    limit = quota_of(session, owner_id).get("gpus")
    if limit is not None and gpus > limit:
        said = f"It needs {gpus} GPUs: {gpus - limit} more than the {limit} of your quota."
        raise Problem("quota_exceeded", said, "Ask for fewer, or ask an admin for more.")


def check_disk(session: Session, settings: Settings, owner_id: str) -> None:
    """Raises Problem `quota_exceeded` when somebody's files take more than they may."""
    limit = quota_of(session, owner_id).get("disk")
    if limit is None:
        return
    has = disk(session, settings, owner_id)
    total = sum(one.amount for one in has)
    if total > limit:
        said = _sentence("disk", limit, total - limit, has)
        hint = "Delete jobs that ended (`navarch rm`) and artifacts (`navarch artifact rm`), or ask an admin for more."
        raise Problem("quota_exceeded", f"{said}.", hint)


def disk(session: Session, settings: Settings, owner_id: str) -> list[Held]:
    """What jobs left in their folders, and kept artifacts, in bytes; homes of workspaces are not counted."""
    shelf = str(settings.data_dir / "artifacts")
    kept = select(Artifact).where(Artifact.owner_id == owner_id, col(Artifact.path).startswith(shelf))
    artifacts = session.exec(kept)
    jobs = session.exec(select(Job).where(Job.owner_id == owner_id))
    found = [
        *(Held(f"job {job.name}", _size(settings.job_dir(job.id))) for job in jobs),
        *(Held(f"artifact {row.name}@{row.version}", row.size or 0) for row in artifacts),
    ]
    return sorted((one for one in found if one.amount), key=lambda one: -one.amount)


def _size(folder: Path) -> int:
    """Bytes that a folder takes; what can't be looked at counts nothing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(path, name).lstat().st_blocks * 512
    return total


def _sentence(kind: str, limit: int, excess: int, has: Sequence[Held]) -> str:
    words = {"gpus": "GPUs", "workspaces": "workspaces", "jobs": "running jobs", "disk": "of disk"}[kind]
    listed = ", ".join(
        one.what if kind in ("workspaces", "jobs") else f"{one.what} has {_amount(kind, one.amount)}"
        for one in has[:_SHOWN]
    )
    more = f" and {len(has) - _SHOWN} more" if len(has) > _SHOWN else ""
    you = f": {listed}{more}" if listed else ""
    return f"over the quota of {_amount(kind, limit)} {words} by {_amount(kind, excess)}{you}"


def _amount(kind: str, amount: int) -> str:
    return f"{amount / 1e9:.1f} GB" if kind == "disk" else str(amount)
