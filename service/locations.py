"""Where Navarch keeps things on this machine, and how a client finds the control plane that runs on it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PORT = 8470
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
        file = directory / "server.json"
        beside = file.with_suffix(".tmp")
        beside.write_text(json.dumps({"url": self.url, "pid": self.pid}) + "\n")
        beside.replace(file)

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


def server_url() -> str:
    """`NAVARCH_URL`, else what `navarch up` wrote into the data folder, else the default on loopback."""
    chosen = os.environ.get("NAVARCH_URL")
    if chosen:
        return chosen.rstrip("/")
    endpoint = Endpoint.read(data_dir())
    return endpoint.url if endpoint else DEFAULT_URL
