"""SSH as a person at this machine has it: their key, pinned host keys, the `ssh` line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from service.contract.errors import Problem
from service.contract.ssh_keys import PublicKey, make_pair

KEY_NAMES = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")
"""Key files in the order in which OpenSSH itself prefers them."""
MADE_KEY = "id_ed25519"


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
    found = find_key(config_dir, home)
    private = config_dir / MADE_KEY
    return found or UserKey(private, make_pair(private, "navarch"))


def _pair(private: Path) -> UserKey | None:
    public = private.with_name(private.name + ".pub")
    try:
        if not private.is_file():
            return None
        return UserKey(private, PublicKey.parse(public.read_text()))
    except (OSError, UnicodeDecodeError, Problem):
        return None


@dataclass(frozen=True)
class Login:
    """How to log in to one container: address, the key to use, and the name under which its host key is pinned."""

    host: str
    port: int
    user: str
    alias: str
    key: Path | None = None
    known_hosts: Path | None = None

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
    with FileLock(known_hosts.with_suffix(".lock")):
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
