"""SSH keys as the control plane and its clients both have them: public keys in one line, and pairs that are made."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.contract.errors import Problem

KEY_TYPES = frozenset(
    {
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    }
)
"""What sshd of today takes."""
_HINT = "Send one line as it stands in ~/.ssh/id_ed25519.pub: type, base64, comment."


@dataclass(frozen=True)
class PublicKey:
    """One public key: what `ssh-keygen` writes into a .pub file."""

    type: str
    body: str
    comment: str

    @classmethod
    def parse(cls, line: str) -> PublicKey:
        """Read one line without options. Raises Problem `invalid_key`."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_ssh_public_key

        text = line.strip()
        if "PRIVATE KEY" in text:
            raise Problem("invalid_key", "This is a private key; it must not leave your machine.", _HINT)
        if any(broken in text for broken in "\n\r\x00"):
            raise Problem("invalid_key", "A public key is one line; this has several.", _HINT)
        kind, _, rest = text.partition(" ")
        body, _, comment = rest.strip().partition(" ")
        if kind not in KEY_TYPES:
            raise Problem("invalid_key", f"{kind[:40]!r} is not a type of SSH key.", _HINT)
        try:
            load_ssh_public_key(f"{kind} {body}".encode())
        except (ValueError, binascii.Error, UnsupportedAlgorithm) as error:
            raise Problem(
                "invalid_key", f"The base64 part of the {kind} key is no such key: {error}.", _HINT
            ) from error
        return cls(kind, body, "".join(c for c in comment.strip() if c.isprintable()))

    @property
    def line(self) -> str:
        return f"{self.type} {self.body} {self.comment}".rstrip()

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it: SHA256:…"""
        digest = hashlib.sha256(base64.b64decode(self.body)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def make_pair(private: Path, comment: str) -> PublicKey:
    """Writes an ed25519 key into a file, its public half beside it; the key is whole or absent, and comes last."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import PrivateFormat

    return _write_pair(private, comment, Ed25519PrivateKey.generate(), PrivateFormat.OpenSSH)


def make_rsa_pair(private: Path, comment: str) -> PublicKey:
    """The same with an RSA key in the old PEM form, for programs that read nothing newer."""
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
    from cryptography.hazmat.primitives.serialization import PrivateFormat

    return _write_pair(private, comment, generate_private_key(65537, 3072), PrivateFormat.TraditionalOpenSSL)


def _write_pair(private: Path, comment: str, key: Any, form: Any) -> PublicKey:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PublicFormat

    secret = key.private_bytes(Encoding.PEM, form, NoEncryption())
    open_form = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    public = PublicKey.parse(f"{open_form.decode()} {comment}")
    private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    private.with_name(private.name + ".pub").write_text(public.line + "\n")
    beside = private.with_name(f"{private.name}.{os.getpid()}.tmp")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secret)
    beside.replace(private)
    return public
