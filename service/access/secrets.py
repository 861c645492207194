"""Keeps secrets unreadable at rest: encrypted with a key that only the data folder's owner can read."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from service.access import redaction
from service.contract.errors import Problem


class SecretBox:
    """Encrypts what jobs bring along. The key is made at first use and never leaves the data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._file = data_dir / "secret.key"

    def seal(self, values: Mapping[str, str]) -> bytes | None:
        redaction.protect(values.values())
        return self._fernet().encrypt(json.dumps(dict(values)).encode()) if values else None

    def open(self, sealed: bytes | None) -> dict[str, str]:
        """Raises Problem `internal` when the key isn't the one that the secrets were sealed with."""
        if sealed is None:
            return {}
        try:
            found = json.loads(self._fernet().decrypt(sealed))
        except InvalidToken:
            raise Problem(
                "internal",
                f"The job's secrets can't be decrypted with {self._file}.",
                "Put back the key file that was there when the job was submitted, or submit the job again.",
            ) from None
        redaction.protect(found.values())
        return {str(name): str(value) for name, value in found.items()}

    def _fernet(self) -> Fernet:
        try:
            return Fernet(self._file.read_bytes())
        except FileNotFoundError:
            pass
        self._file.parent.mkdir(parents=True, exist_ok=True)
        beside = self._file.with_suffix(f".{os.getpid()}.tmp")
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(Fernet.generate_key())
        try:
            os.link(beside, self._file)  # whoever comes first wins; a second maker reads the first one's key
        except FileExistsError:
            pass
        finally:
            beside.unlink()
        return Fernet(self._file.read_bytes())
