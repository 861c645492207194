"""Where files of jobs lie on other machines than the control plane's, and which machines those are."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sqlmodel import Session

from service.store.tables import Host, Meta

REMOTE = PurePosixPath("/var/lib/navarch")
"""On a remote host: root's alone, as whoever may use Docker there is root anyway."""


def is_remote(host: Host) -> bool:
    return host.url.startswith("ssh:")


def remote_folder(deployment: str) -> Path:
    """What a control plane keeps on a remote host: `jobs/ID/run`, `artifacts/NAME`."""
    return Path(REMOTE, deployment)


def shared_folders(shared_root: Path, mount_roots: Sequence[Path]) -> list[Path]:
    """The folders that jobs may mount on hosts with this shared root: what both it and a mount root hold."""
    found = []
    for root in mount_roots:
        if root == shared_root or root in shared_root.parents:
            found.append(shared_root)
        elif shared_root in root.parents:
            found.append(root)
    return found


def remote_run(deployment: str, job_id: str) -> Path:
    return remote_folder(deployment) / "jobs" / job_id / "run"


def run_folder_elsewhere(session: Session, host_id: str | None, job_id: str) -> Path | None:
    """The run folder of a job on this host; None where that is the control plane's own machine."""
    host = session.get(Host, host_id) if host_id is not None else None
    deployment = session.get(Meta, "deployment")
    if host is None or deployment is None or not is_remote(host):
        return None
    return remote_run(deployment.value, job_id)
