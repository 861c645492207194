"""Keeps the data folder to its owner: folders 0700 and files 0600, also those of an earlier version."""

from __future__ import annotations

import os
from pathlib import Path

UMASK = 0o077
"""Of a control plane; programs whose files others read are started with another."""
_OWN = (
    "navarch.*",
    "secret.key",
    "token",
    "server.json",
    "start.log",
    "*.lock",
    "jobs",
    "builds",
)
"""What Navarch itself puts into the data folder; people keep other things there, too."""
_IN_DATABASE = ("tokens.json", "authorized_keys")
_SHARED = "run"
"""A job's run folder belongs to its containers as well: it lies in a private one, and keeps its modes."""


def private_folder(folder: Path) -> None:
    """Makes the folder, or takes an existing one from everybody else, with all that is Navarch's in it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_mode & 0o077 and _ours(folder):
        folder.chmod(0o700)  # first: from here on nobody else gets at what is below
        for pattern in _OWN:
            for path in folder.glob(pattern):
                _mend(path)


def forget_old_files(data_dir: Path) -> None:
    """Removes what is in the database since the version that brought principals: a stale copy would only mislead."""
    for name in _IN_DATABASE:
        (data_dir / name).unlink(missing_ok=True)


def private_file(file: Path, content: str) -> None:
    """Writes a file that only its owner can read; it is whole or absent."""
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as target:
        os.fchmod(target.fileno(), 0o600)
        target.write(content)
    beside.replace(file)


def _mend(path: Path) -> None:
    if path.is_symlink() or path.name == _SHARED or not _ours(path):
        return
    if not path.is_dir():
        path.chmod(0o600)
        return
    path.chmod(0o700)
    for inside in path.iterdir():
        _mend(inside)


def _ours(path: Path) -> bool:
    return os.geteuid() in (0, path.lstat().st_uid)
