"""Where Navarch keeps things on this machine, and how a client finds the control plane that runs on it."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_PORT = 8470
LOCK = "navarch.lock"
"""Held by the control plane that serves a data folder."""
LOCAL_TOKEN = "token"
"""The local account's token, in the data folder."""
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"


def data_dir() -> Path:
    """`NAVARCH_DATA_DIR`, else `.navarch` in the working folder if there is one, else `~/.navarch`; absolute."""
    chosen = os.environ.get("NAVARCH_DATA_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    here = Path.cwd() / ".navarch"
    return here if here.is_dir() else Path.home() / ".navarch"


def config_dir() -> Path:
    """A person's own settings: the SSH key that Navarch made, known hosts. `NAVARCH_CONFIG_DIR` moves it."""
    chosen = os.environ.get("NAVARCH_CONFIG_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "navarch"


@dataclass(frozen=True)
class Endpoint:
    """A control plane that `navarch up` started here."""

    url: str
    pid: int

    def write(self, directory: Path) -> None:
        """Into its data folder; and the folder into this account's settings, where clients find it by the port."""
        _write(directory / "server.json", json.dumps({"url": self.url, "pid": self.pid}) + "\n")
        with suppress(OSError):  # an account without a home: its clients say where the data folder is
            _write(_registered(self.url), f"{directory.absolute()}\n")

    @classmethod
    def read(cls, directory: Path) -> Endpoint | None:
        """The endpoint that was last written, or None; whether it still runs is another question."""
        try:
            found = json.loads((directory / "server.json").read_text())
            return cls(url=str(found["url"]), pid=int(found["pid"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def forget(directory: Path) -> None:
        (directory / "server.json").unlink(missing_ok=True)


def is_served(directory: Path) -> bool:
    """Whether a control plane holds the lock of this data folder."""
    try:
        with (directory / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def server_url() -> str:
    """`NAVARCH_URL`, else what `navarch up` wrote into the data folder, else the default on loopback."""
    chosen = os.environ.get("NAVARCH_URL")
    if chosen:
        return chosen.rstrip("/")
    endpoint = Endpoint.read(data_dir())
    return endpoint.url if endpoint else DEFAULT_URL


def served_folder(url: str) -> Path | None:
    """The data folder of the control plane of this account that runs at `url`; None if there is none."""
    for directory in (data_dir(), _folder_at(url)):
        endpoint = Endpoint.read(directory) if directory is not None else None
        if directory is None or endpoint is None or _place(endpoint.url) != _place(url):
            continue
        if is_served(directory):  # else somebody else may listen there now, who must not be told the token
            return directory
    return None


def local_token(url: str) -> str | None:
    """The token with which this account may use its own control plane at `url`."""
    directory = served_folder(url)
    try:
        return (directory / LOCAL_TOKEN).read_text().strip() if directory is not None else None
    except OSError:
        return None


def _registered(url: str) -> Path:
    return config_dir() / "servers" / str(_place(url)[1])


def _folder_at(url: str) -> Path | None:
    try:
        return Path(_registered(url).read_text().strip())
    except OSError:
        return None


def _place(url: str) -> tuple[str, int | None]:
    """Host and port; all names of loopback are one."""
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
    except ValueError:
        return ("", None)
    return ("127.0.0.1" if name in ("localhost", "::1") else name, port)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = file.with_suffix(f".{os.getpid()}.tmp")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as target:
        target.write(text)
    beside.replace(file)
