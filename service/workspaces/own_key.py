"""The control plane's own SSH key: it logs in with it on hosts, and in workspaces to try what an IDE does."""

from __future__ import annotations

from pathlib import Path

import paramiko

from service.contract.ssh_keys import make_pair


class OwnKey:
    """Made at the first use, in the data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "own_key" / "id_ed25519"

    @property
    def line(self) -> str:
        """For authorized_keys."""
        self._make()
        return self._file.with_suffix(".pub").read_text()

    @property
    def text(self) -> str:
        """The private key, in OpenSSH's form."""
        self._make()
        return self._file.read_text()

    def private(self) -> paramiko.PKey:
        self._make()
        return paramiko.Ed25519Key.from_private_key_file(str(self._file))

    def _make(self) -> None:
        if not self._file.exists():
            make_pair(self._file, "navarch-control-plane")
