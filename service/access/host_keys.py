"""The SSH host key of each job: made once, kept with the job, the same in every attempt, so that IDEs never warn."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_NAME = "ssh_host_ed25519_key"


@dataclass(frozen=True)
class HostKey:
    private: str = field(repr=False)
    public: str
    """One OpenSSH line."""


def job_host_key(job_dir: Path, job_name: str) -> HostKey:
    """The job's host key; made at the first call."""
    file = job_dir / "ssh" / _NAME
    if not file.exists():
        _make(file, f"navarch-{job_name}")
    return HostKey(file.read_text(), file.with_suffix(".pub").read_text().strip())


def _make(file: Path, comment: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    file.with_suffix(".pub").write_text(f"{public.decode()} {comment}\n")
    beside = file.with_suffix(".tmp")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as target:
        target.write(private)
    beside.replace(file)  # last: a key that is there is whole, and has its public half
