"""The SSH keys that containers authorise."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from service.contract.errors import Problem
from service.contract.ssh_keys import PublicKey


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

    def _locked(self) -> FileLock:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self._file.with_suffix(".lock"))


def authorized_keys(data_dir: Path) -> str:
    """What goes into a container's authorized_keys."""
    return "".join(key.line + "\n" for key in KeyRing(data_dir).all())
