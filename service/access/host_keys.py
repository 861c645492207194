"""The SSH host key of a job's name: made once and kept, the same in every attempt and run, so that nothing warns."""

import hashlib
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


def job_host_key(data_dir: Path, owner: str, job_name: str, job_dir: Path) -> HostKey:
    """The host key of this owner's jobs of this name; made at the first call.

    A job that was submitted when keys belonged to jobs keeps the one in its folder.
    """
    whose = hashlib.sha256(owner.encode()).hexdigest()[:12]
    file = data_dir / "host_keys" / f"{job_name}-{whose}" / _NAME
    earlier = job_dir / "ssh" / _NAME
    if earlier.exists():
        file = earlier
    elif not file.exists():
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
