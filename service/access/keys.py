"""SSH keys and commands: a person's key, the keys that containers authorise, pinned host keys, the `ssh` line."""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.contract.errors import Problem

#: Key files in the order in which OpenSSH itself prefers them.
KEY_NAMES = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")
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
MADE_KEY = "id_ed25519"
_KEY_HINT = "Send one line as it stands in ~/.ssh/id_ed25519.pub: type, base64, comment."


@dataclass(frozen=True)
class PublicKey:
    """One public key: what `ssh-keygen` writes into a .pub file."""

    type: str
    body: str
    comment: str

    @classmethod
    def parse(cls, line: str) -> PublicKey:
        """Read one line without options. Raises Problem `invalid_key`."""
        text = line.strip()
        if "\n" in text or "\r" in text or "\x00" in text:
            raise Problem("invalid_key", "A public key is one line; this has several.", _KEY_HINT)
        if "PRIVATE KEY" in text:
            raise Problem("invalid_key", "This is a private key; it must not leave your machine.", _KEY_HINT)
        kind, _, rest = text.partition(" ")
        body, _, comment = rest.strip().partition(" ")
        if kind not in KEY_TYPES:
            raise Problem("invalid_key", f"{kind[:40]!r} is not a type of SSH key.", _KEY_HINT)
        try:
            blob = base64.b64decode(body, validate=True)
            (length,) = struct.unpack(">I", blob[:4])
            inner = blob[4 : 4 + length].decode("ascii")
        except (binascii.Error, struct.error, ValueError) as error:
            raise Problem("invalid_key", f"The base64 part of the {kind} key can't be read.", _KEY_HINT) from error
        if inner != kind or len(blob) < 40:
            raise Problem("invalid_key", f"The key says {kind} but does not hold one.", _KEY_HINT)
        return cls(kind, body, "".join(c for c in comment.strip() if c.isprintable()))

    @property
    def line(self) -> str:
        return f"{self.type} {self.body} {self.comment}".rstrip()

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it: SHA256:…"""
        digest = hashlib.sha256(base64.b64decode(self.body)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


@dataclass(frozen=True)
class UserKey:
    """A key pair of the person at this machine."""

    private: Path
    public: PublicKey


def find_key(config_dir: Path, home: Path | None = None) -> UserKey | None:
    """The key that a person has, or the one that Navarch made earlier under `config_dir`.

    Looked at in this order: `NAVARCH_SSH_KEY`, the usual names in ~/.ssh, the key made earlier. Raises Problem
    `invalid_key` when NAVARCH_SSH_KEY can't be used.
    """
    chosen = os.environ.get("NAVARCH_SSH_KEY")
    if chosen:
        private = Path(chosen).expanduser().absolute()
        found = _pair(private)
        if found is None:
            hint = f"Write the public half beside it: ssh-keygen -y -f {private} > {private}.pub"
            raise Problem("invalid_key", f"NAVARCH_SSH_KEY is {private}, but {private}.pub can't be read.", hint)
        return found
    folder = (home or Path.home()) / ".ssh"
    for private in [*(folder / name for name in KEY_NAMES), config_dir / MADE_KEY]:
        found = _pair(private)
        if found is not None:
            return found
    return None


def user_key(config_dir: Path, home: Path | None = None) -> UserKey:
    """The key of `find_key`, or one that is made now and kept under `config_dir`."""
    return find_key(config_dir, home) or _make_key(config_dir / MADE_KEY)


def _pair(private: Path) -> UserKey | None:
    public = private.with_name(private.name + ".pub")
    try:
        if not private.is_file():
            return None
        return UserKey(private, PublicKey.parse(public.read_text()))
    except (OSError, UnicodeDecodeError, Problem):
        return None


def _make_key(private: Path) -> UserKey:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    open_form = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    public = PublicKey.parse(open_form.decode() + " navarch")
    private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secret)
    private.with_name(private.name + ".pub").write_text(public.line + "\n")
    return UserKey(private, public)


class KeyRing:
    """The keys that every new container authorises: a plain OpenSSH file, `authorized_keys`, in the data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "authorized_keys"

    def all(self) -> list[PublicKey]:
        """The keys, in the order in which they were added; lines that are no plain keys are passed over."""
        found = []
        for line in self._text().splitlines():
            try:
                found.append(PublicKey.parse(line))
            except Problem:
                continue
        return found

    def add(self, key: PublicKey) -> bool:
        """Add a key; False if it was there already."""
        with self._locked():
            if any(known.body == key.body for known in self.all()):
                return False
            self._write(self._text() + key.line + "\n")
            return True

    def remove(self, fingerprint: str) -> bool:
        """Take a key out; False if it wasn't there. Running containers keep it."""
        with self._locked():
            keys = self.all()
            kept = [key for key in keys if key.fingerprint != fingerprint]
            if len(kept) == len(keys):
                return False
            self._write("".join(key.line + "\n" for key in kept))
            return True

    def _text(self) -> str:
        try:
            return self._file.read_text()
        except FileNotFoundError:
            return ""

    def _write(self, text: str) -> None:
        beside = self._file.with_suffix(".tmp")
        beside.write_text(text)
        beside.chmod(0o600)
        beside.replace(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def authorized_keys(data_dir: Path) -> str:
    """What goes into a container's authorized_keys."""
    return "".join(key.line + "\n" for key in KeyRing(data_dir).all())


@dataclass(frozen=True)
class Login:
    """How to log in to one container: address, the key to use, and the name under which its host key is pinned."""

    host: str
    port: int
    user: str
    alias: str
    key: Path | None = None
    known_hosts: Path | None = None

    def plain(self) -> str:
        """The line for people and IDEs."""
        return f"ssh -p {self.port} {self.user}@{self.host}"

    def options(self) -> list[str]:
        """OpenSSH options (for ssh, scp, sftp, rsync -e) with which nothing is ever asked."""
        options = ["HostKeyAlias=" + self.alias, "LogLevel=ERROR", "ServerAliveInterval=15"]
        if self.known_hosts is not None:
            options += [f"UserKnownHostsFile={_quoted(self.known_hosts)}", "StrictHostKeyChecking=yes"]
        if self.key is not None:
            options += [f"IdentityFile={_quoted(self.key)}", "IdentitiesOnly=yes"]
        return options

    def command(self, remote: list[str], *, tty: bool | None = None, extra: list[str] | None = None) -> list[str]:
        """The `ssh` argv; `remote` runs instead of a shell, `tty` forces or forbids a terminal."""
        words = ["ssh", "-p", str(self.port)]
        for option in self.options():
            words += ["-o", option]
        if tty is not None:
            words.append("-t" if tty else "-T")
        return [*words, *(extra or []), f"{self.user}@{self.host}", *(["--", *remote] if remote else [])]

    def config(self) -> str:
        """A `Host` block for ~/.ssh/config, under the name of the alias."""
        lines = [f"Host {self.alias}", f"    HostName {self.host}", f"    Port {self.port}", f"    User {self.user}"]
        lines += ["    " + option.replace("=", " ", 1) for option in self.options()]
        return "\n".join(lines) + "\n"


def pin_host_key(known_hosts: Path, alias: str, host_key: str) -> None:
    """Write `alias → host key` into our known_hosts file, in place of what stood there for the alias."""
    key = PublicKey.parse(host_key)
    line = f"{alias} {key.type} {key.body}"
    known_hosts.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with known_hosts.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            lines = known_hosts.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        if line in lines:
            return
        kept = [known for known in lines if known.split(" ", 1)[0] != alias]
        beside = known_hosts.with_suffix(".tmp")
        beside.write_text("\n".join([*kept, line]) + "\n")
        beside.replace(known_hosts)


def _quoted(path: Path) -> str:
    text = str(path)
    return f'"{text}"' if " " in text else text
