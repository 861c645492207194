"""An OpenSSH configuration of its own for everything that one can log in to, taken in by ~/.ssh/config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from service.client.ssh import Login

NAME = "ssh_config"
_HEAD = "# Written by `navarch ssh-config`; what is changed here is lost.\n"


def render(logins: Sequence[Login]) -> str:
    """One Host block for each, in the order of their names; the same text for the same logins."""
    blocks = [login.config() for login in sorted(logins, key=lambda login: login.alias)]
    return "\n".join([_HEAD, *blocks])


def write(folder: Path, logins: Sequence[Login]) -> tuple[Path, bool]:
    """The file in the person's own settings, written anew where something changed; whether it did."""
    file, text = folder / NAME, render(logins)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(file.with_suffix(".lock")):
        if file.exists() and file.read_text() == text:
            return file, False
        beside = file.with_suffix(".tmp")
        beside.write_text(text)
        beside.chmod(0o600)
        beside.replace(file)
    return file, True


def include(file: Path, home: Path) -> bool:
    """Has ~/.ssh/config take the file in: a line at its beginning, as those further down count for their Host only.

    False where it is there already. Nothing else in that file is touched.
    """
    config = home / ".ssh" / "config"
    line = f'Include "{file}"' if " " in str(file) else f"Include {file}"
    text = config.read_text() if config.exists() else ""
    if line in (known.strip() for known in text.splitlines()):
        return False
    config.parent.mkdir(mode=0o700, exist_ok=True)
    target = config.resolve()  # people keep it elsewhere, and link to it
    beside = target.with_name(target.name + ".navarch-tmp")
    beside.write_text(f"{line}\n{text}")
    beside.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o600)
    beside.replace(target)
    return True
