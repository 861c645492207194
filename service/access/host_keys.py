"""The SSH keys of jobs: a host key for each name, the same in every run, so that nothing warns; a gang's own keys."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from jobs.gang import GangKeys
from service.contract.ssh_keys import make_pair, make_rsa_pair

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
    earlier = job_dir / "ssh" / _NAME
    return _read(earlier) if earlier.exists() else host_key(data_dir, owner_id, job_name)


def host_key(data_dir: Path, owner_id: str, name: str) -> HostKey:
    """The host key of this owner's jobs or workspace of this name; made at the first call."""
    file = data_dir / "host_keys" / f"{name}-{owner_mark(owner_id)}" / _NAME
    if not file.exists():
        make_pair(file, f"navarch-{name}")
    return _read(file)


def gang_keys(job_dir: Path) -> GangKeys:
    """With which the containers of this job log in to each other, in all its attempts; made at the first call."""
    ed25519, rsa = job_dir / "gang_ssh" / "id_ed25519", job_dir / "gang_ssh" / "id_rsa"
    if not ed25519.exists():
        make_pair(ed25519, "navarch-gang")
    if not rsa.exists():
        make_rsa_pair(rsa, "navarch-gang")
    public = tuple(file.with_suffix(".pub").read_text().strip() for file in (ed25519, rsa))
    return GangKeys(ed25519.read_text(), rsa.read_text(), public)


def owner_mark(owner_id: str) -> str:
    """A short text that stands for an owner in the names of what is kept for them."""
    return hashlib.sha256(owner_id.encode()).hexdigest()[:12]


def _read(file: Path) -> HostKey:
    return HostKey(file.read_text(), file.with_suffix(".pub").read_text().strip())
