"""Which hosts have what a job starts from."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlmodel import Session, select

from jobs.placement import Need
from service.store.places import is_remote
from service.store.tables import Artifact, Host


def stored(needs: Iterable[Need]) -> list[dict[str, Any]]:
    """As a row has them."""
    return [{"what": need.what, "hosts": list(need.hosts)} for need in needs]


def artifact_need(session: Session, artifact: Artifact) -> Need | None:
    """Where an artifact's files are; None when that restricts nothing, since there is one host only."""
    if artifact.host_id is None:
        return path_need(session, artifact.path, f"artifact {artifact.name}@{artifact.version}")
    return Need(f"artifact {artifact.name}@{artifact.version}", (artifact.host_id,))


def path_need(session: Session, path: str, what: str = "") -> Need | None:
    """Which hosts have a path of the control plane's machine: those that share it."""
    hosts = list(session.exec(select(Host).where(Host.lifecycle != "removed")))
    if not any(is_remote(host) for host in hosts):
        return None
    having = [host.id for host in hosts if not is_remote(host) or _shares(host, Path(path))]
    return Need(what or path, tuple(sorted(having)))


def _shares(host: Host, path: Path) -> bool:
    root = Path(host.shared_root) if host.shared_root else None
    return root is not None and (root == path or root in path.parents)
