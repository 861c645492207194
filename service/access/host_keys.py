"""The SSH host key of a job's name: made once and kept, the same in every attempt and run, so that nothing warns."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from service.contract.ssh_keys import make_pair

_NAME = "ssh_host_ed25519_key"


@dataclass(frozen=True)
class HostKey:
    private: str = field(repr=False)
    public: str
    """One OpenSSH line."""


def job_host_key(data_dir: Path, owner_id: str, job_name: str, job_dir: Path) -> HostKey:
    """The host key of this owner's jobs of this name; made at the first call.

    A job that was submitted when keys belonged to jobs keeps the one in its folder.
    """
    whose = hashlib.sha256(owner_id.encode()).hexdigest()[:12]
    file = data_dir / "host_keys" / f"{job_name}-{whose}" / _NAME
    earlier = job_dir / "ssh" / _NAME
    if earlier.exists():
        file = earlier
    elif not file.exists():
        make_pair(file, f"navarch-{job_name}")
    return HostKey(file.read_text(), file.with_suffix(".pub").read_text().strip())
